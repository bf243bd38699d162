"""Boundary points of many classes at once: closed forms, exact solutions of tiny networks, and real networks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from exact_distances import linear_region_distances, relu_region_distances, relu_scores
from torch import Tensor, nn

from captum_boundary import AggregatedBoundaryNormals, BoundaryNormals, NearestBoundary

LIMIT = 3.0


def boundaries_of(model, search, *arguments, **options) -> BoundaryNormals:
    return AggregatedBoundaryNormals(model, search).attribute(*arguments, **options, return_boundary=True)[1]


@pytest.mark.parametrize(("n_classes", "n_inputs"), [(3, 2), (5, 4), (10, 20)])
def test_regions_of_a_linear_model_equal_programmes(n_classes, n_inputs):
    generator = torch.Generator().manual_seed(n_classes)
    model = nn.Linear(n_inputs, n_classes).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    inputs = torch.randn(12, n_inputs, generator=generator, dtype=torch.float64)
    weight, bias = (parameter.detach().numpy() for parameter in (model.weight, model.bias))
    exact = torch.tensor(np.stack([linear_region_distances(weight, bias, x) for x in inputs.numpy()]))

    attributions, boundaries = AggregatedBoundaryNormals(model).attribute(
        inputs, n_boundaries=n_classes - 1, return_boundary=True
    )

    assert torch.equal(boundaries.found, torch.isfinite(boundaries.distance))
    assert (boundaries.distance.diff(dim=1)[boundaries.found[:, 1:]] >= 0).all()
    exact = exact.gather(1, boundaries.adversarial.clamp_min(0))
    found = boundaries.found
    assert found.double().mean() > 0.9
    torch.testing.assert_close(boundaries.distance[found], exact[found], rtol=1e-5, atol=0)
    # Regions of linear models are convex: at their nearest points, corners included, the way is the normal.
    ways = inputs[:, None] - boundaries.points
    normals = torch.where(found[:, :, None], ways / ways.norm(dim=2, keepdim=True), 0.0)
    slopes = model.weight.detach()[boundaries.neighbor] - model.weight.detach()[boundaries.adversarial]
    is_side = torch.cosine_similarity(ways, slopes, dim=2) > 1 - 1e-9
    assert (found & is_side).any()
    assert (found & ~is_side).any() == (n_classes > 3)
    torch.testing.assert_close(boundaries.normals, normals, rtol=1e-5, atol=1e-5)
    distance = torch.where(found, exact, torch.inf)
    weights = torch.softmax(-distance / distance.amin(dim=1, keepdim=True), dim=1)
    torch.testing.assert_close(boundaries.weights, weights, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(attributions, (weights[:, :, None] * normals).sum(dim=1), rtol=1e-5, atol=1e-5)


def tiny_networks(n_cases: int, seed: int):
    """Random networks, inputs and exact distances of all classes, in batches of equal shape."""
    random = np.random.default_rng(seed)
    for n_inputs, n_classes in itertools.product(range(1, 7), (3, 4, 5)):
        cases = []
        for _ in range(n_cases):
            n_hidden = random.integers(1, 7)
            first, last = random.normal(size=(6, n_inputs)), random.normal(size=(n_classes, 6))
            first_bias, last_bias = random.normal(size=6), random.normal(size=n_classes)
            last[:, n_hidden:] = 0.0
            x = random.normal(size=n_inputs).clip(-LIMIT, LIMIT)
            used = first[:n_hidden], first_bias[:n_hidden], last[:, :n_hidden], last_bias
            cases.append((x, first, first_bias, last, last_bias, relu_region_distances(*used, x, LIMIT)))
        yield [torch.tensor(np.stack(column)) for column in zip(*cases, strict=True)]


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")  # some have one region alone
@pytest.mark.parametrize(("n_cases", "share"), [(1, 0.85), pytest.param(8, 0.95, marks=pytest.mark.exhaustive)])
def test_tiny_relu_networks_against_enumeration(n_cases, share):
    ratios = []
    for x, *parameters, exact in tiny_networks(n_cases, seed=0):
        search = NearestBoundary(relu_scores, bounds=(-LIMIT, LIMIT))
        boundaries = boundaries_of(relu_scores, search, x, None, tuple(parameters), n_boundaries=exact.shape[1] - 1)
        exact = exact.scatter(1, boundaries.target[:, None], math.inf)
        for distances, found, classes, expected in zip(
            boundaries.distance, boundaries.found, boundaries.adversarial, exact, strict=True
        ):
            near = torch.full_like(expected, math.inf).scatter(0, classes[found], distances[found])
            ratios.append((near / expected)[torch.isfinite(expected)])
            assert torch.isinf(near[torch.isinf(expected)]).all()
    ratios = torch.cat(ratios)
    assert len(ratios) >= 25 * n_cases
    assert ratios.min() > 1 - 1e-6
    assert (ratios < 1.01).double().mean() >= share


# Nine classes on CIFAR-10, against a search of one boundary and against Foolbox.
N_IMAGES = 8


@pytest.fixture(scope="module")
def resnet20(zoo):
    return zoo.cifar_resnet20()


@pytest.fixture(scope="module")
def images(zoo, resnet20) -> Tensor:
    return zoo.first_correct(resnet20, *zoo.load_images("cifar10_test500"), N_IMAGES)[0]


@pytest.fixture(scope="module")
def boundaries(resnet20, images) -> BoundaryNormals:
    return boundaries_of(resnet20, NearestBoundary(resnet20, bounds=(0, 1)), images, n_boundaries=9)


def test_points_lie_in_their_classes(resnet20, boundaries):
    assert boundaries.found.all()
    points = boundaries.points.flatten(0, 1)
    assert points.min() >= 0
    assert points.max() <= 1
    with torch.no_grad():
        assert torch.equal(resnet20(points).argmax(dim=1), boundaries.adversarial.flatten())
    assert (boundaries.adversarial.sort(dim=1).values.diff(dim=1) > 0).all()


def test_nine_cost_four_times_as_much_as_one(resnet20, images, boundaries):
    one = NearestBoundary(resnet20, bounds=(0, 1)).find(images)
    cost, cost_of_one = ((found.n_forward + 2 * found.n_gradient).sum() for found in (boundaries, one))
    assert cost <= 4 * cost_of_one


def test_distances_are_those_of_a_hundred_steps(resnet20, images, boundaries):
    foolbox = pytest.importorskip("foolbox")
    model = foolbox.PyTorchModel(resnet20, bounds=(0, 1))
    rows = torch.arange(N_IMAGES).repeat_interleave(9)
    criterion = foolbox.criteria.TargetedMisclassification(boundaries.adversarial.flatten())
    starts = images[rows]
    _, points, success = foolbox.attacks.DDNAttack(steps=100)(model, starts, criterion, epsilons=None)
    distance = (points - starts).flatten(1).norm(dim=1)
    ratio = boundaries.distance.flatten()[success].mean() / distance[success].mean()
    assert success.double().mean() > 0.9
    assert ratio <= 1.05


def test_fewer_classes_are_the_nearest_ones(resnet20, images, boundaries):
    few = boundaries_of(resnet20, NearestBoundary(resnet20, bounds=(0, 1)), images, n_boundaries=3)
    assert few.distance.mean() <= 1.1 * boundaries.distance[:, :3].mean()


def test_random_directions_lead_to_near_points(resnet20, images, boundaries):
    search = NearestBoundary(resnet20, bounds=(0, 1))
    few = boundaries_of(resnet20, search, images[:4], n_boundaries=4, sampling="random")
    assert few.found.all()
    assert few.distance.mean() <= 1.3 * boundaries.distance[:4, 0].mean()
    normals = few.normals.flatten(2)
    assert (normals @ normals.mT).flatten().mean() < 0.95  # not the same point again and again
