"""Aggregated normals against closed forms on linear models, and against their own parts everywhere."""

from __future__ import annotations

import contextlib
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryNotFoundWarning,
    BoundarySaliency,
    NearestBoundary,
    PGDBoundary,
)
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search import ClosestBoundary

WEIGHTINGS = {
    "softmin": lambda distance: torch.exp(-distance / distance.amin(dim=1, keepdim=True)),
    "inverse": lambda distance: 1 / distance,
    "uniform": torch.ones_like,
}


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def open_fan(n_classes: int) -> nn.Linear:
    """A linear model of which every class meets every other one next to the origin, at its hyperplane's foot."""
    model = nn.Linear(n_classes, n_classes).double()
    model.weight.data = torch.eye(n_classes, dtype=torch.float64)
    model.bias.data = torch.zeros(n_classes, dtype=torch.float64)
    model.bias.data[0] = 1.0
    return model


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5)).double()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("multiply_by_inputs", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_models_have_the_closed_form(weighting, multiply_by_inputs, dtype):
    n_classes = 6
    model = open_fan(n_classes).to(dtype)
    inputs = 0.1 * torch.rand(4, n_classes, dtype=dtype)
    difference = model.weight[0] - model.weight[1:]
    normal = difference / difference.norm(dim=1, keepdim=True)  # (K, D)
    distance = (model.bias[0] - model.bias[1:] + inputs @ difference.T) / difference.norm(dim=1)  # (N, K)
    weights = WEIGHTINGS[weighting](distance)
    weights = weights / weights.sum(dim=1, keepdim=True)
    expected = weights @ normal
    if multiply_by_inputs:
        points = inputs[:, None] - distance[:, :, None] * normal
        expected = expected * (inputs - (weights[:, :, None] * points).sum(dim=1))

    method = AggregatedBoundaryNormals(model, multiply_by_inputs=multiply_by_inputs)
    actual, boundaries = method.attribute(inputs, weighting=weighting, return_boundary=True)

    tolerance = 1e-5 if dtype == torch.float64 else 5e-4
    close(actual, expected.detach(), tolerance)
    close(boundaries.distance, distance.sort(dim=1).values.detach(), tolerance)
    close(boundaries.weights, weights.gather(1, distance.argsort(dim=1)).detach(), tolerance)
    close(boundaries.normals, normal[boundaries.adversarial - 1].detach(), tolerance)
    assert (boundaries.target == 0).all()


@pytest.mark.parametrize("sampling", ["classes", "random"])
def test_one_boundary_is_boundary_saliency_of_unit_length(sampling, network, inputs):
    n_sides = 0
    for target in (None, 0, 2, 4):
        boundary = NearestBoundary(network).find(inputs, target)
        saliency = BoundarySaliency(network, score="margin").attribute(inputs, target, boundary=boundary)
        normals = AggregatedBoundaryNormals(network).attribute(inputs, target, n_boundaries=1, sampling=sampling)
        saliency = saliency / saliency.norm(dim=1, keepdim=True)
        # In a corner, where three classes meet, there are two normals, and one between, parallel to the displacement.
        highest = network(boundary.points).topk(3, dim=1).values
        is_side = highest[:, 1] - highest[:, 2] > 1e-3
        n_sides += int(is_side.sum())
        close(normals[is_side], saliency[is_side], 1e-4)
        displacement = inputs - boundary.points
        along = torch.cosine_similarity(normals, displacement).abs()  # of either sign: regions are left or entered
        assert (along[~is_side] > 1 - 1e-3).all()
        assert (along >= torch.cosine_similarity(saliency, displacement).abs() - 1e-6).all()
    assert n_sides >= 18  # of four times seven


@pytest.mark.parametrize("sampling", ["classes", "random"])
@pytest.mark.parametrize("multiply_by_inputs", [False, True])
def test_attributions_are_the_mean_of_what_is_returned(sampling, multiply_by_inputs, network, inputs):
    method = AggregatedBoundaryNormals(network, multiply_by_inputs=multiply_by_inputs)
    actual, boundaries = method.attribute(inputs, n_boundaries=3, sampling=sampling, return_boundary=True)
    weights = boundaries.weights[:, :, None]
    expected = (weights * boundaries.normals).sum(dim=1)
    if multiply_by_inputs:
        expected = expected * (inputs - (weights * boundaries.points).sum(dim=1))
    close(actual, expected, 1e-12)
    close(boundaries.weights.sum(dim=1), torch.ones(7, dtype=torch.float64), 1e-12)
    close(boundaries.normals.norm(dim=2), torch.ones(7, 3, dtype=torch.float64), 1e-12)
    close((boundaries.points - inputs[:, None]).norm(dim=2), boundaries.distance, 1e-12)
    assert method.multiplies_by_inputs is multiply_by_inputs
    assert not method.has_convergence_delta()


def test_normals_are_gradients_of_the_margin_over_the_class_beyond(network, inputs):
    _, boundaries = AggregatedBoundaryNormals(network).attribute(inputs, n_boundaries=4, return_boundary=True)
    points = boundaries.points.flatten(0, 1).requires_grad_()
    scores = network(points)
    sides = [getattr(boundaries, side).flatten()[:, None] for side in ("neighbor", "adversarial")]
    margin = scores.gather(1, sides[0]) - scores.gather(1, sides[1])
    (gradient,) = torch.autograd.grad(margin.sum(), points)
    normals = boundaries.normals.flatten(0, 1)
    best = scores.topk(3, dim=1)
    assert torch.equal(best.indices[:, :2], torch.cat(sides[::-1], dim=1))
    # Where three regions meet, the normal is between those of two boundaries, parallel to the displacement.
    gap = best.values[:, 1] - best.values[:, 2]
    is_side, is_corner = gap > 1e-2, gap < 1e-6
    assert is_side.sum() > 10
    assert is_corner.any()
    close(normals[is_side], (gradient / gradient.norm(dim=1, keepdim=True))[is_side], 5e-4)
    way = (inputs[:, None] - boundaries.points).flatten(0, 1).detach()
    close(normals[is_corner], (way / way.norm(dim=1, keepdim=True))[is_corner], 1e-3)
    assert (boundaries.neighbor[:, 0] == boundaries.target).all()


def test_inputs_outside_of_their_target_have_its_boundary_alone(network, inputs):
    target = network(inputs).argmin(dim=1)
    target[0] = network(inputs[:1]).argmax()
    _, boundaries = AggregatedBoundaryNormals(network).attribute(inputs, target, n_boundaries=3, return_boundary=True)
    assert boundaries.found.sum(dim=1).tolist() == [3, 1, 1, 1, 1, 1, 1]
    close(boundaries.weights[1:, 0], torch.ones(6, dtype=torch.float64))
    assert (network(boundaries.points[1:, 0]).argmax(dim=1) == target[1:]).all()
    # The normal points into the region of the target, and so did the displacement.
    way = boundaries.points[1:, 0] - inputs[1:]
    assert ((boundaries.normals[1:, 0] * way).sum(dim=1) > 0).all()
    assert (boundaries.normals[1:, 1:] == 0).all()
    assert torch.equal(boundaries.points[1:, 1:], inputs[1:, None].expand(-1, 2, -1))
    assert (boundaries.adversarial[1:, 1:] == -1).all()


def test_a_model_with_one_output_has_one_other_class(inputs):
    model = nn.Linear(6, 1).double()
    attributions, boundaries = AggregatedBoundaryNormals(model).attribute(inputs, return_boundary=True)
    assert boundaries.distance.shape == (7, 1)
    sign = torch.where(model(inputs) > 0, 1.0, -1.0)
    close(attributions, (sign * model.weight / model.weight.norm()).detach())
    random = AggregatedBoundaryNormals(model).attribute(inputs, n_boundaries=3, sampling="random")
    close(random, attributions)


@pytest.mark.parametrize("norm", [2, math.inf, 1])
def test_every_norm(norm, network, inputs):
    search = NearestBoundary(network, norm=norm)
    _, boundaries = AggregatedBoundaryNormals(network, search).attribute(inputs, return_boundary=True)
    nearest = search.find(inputs).distance
    ways = boundaries.points - inputs[:, None]
    close(torch.linalg.vector_norm(ways, ord=norm, dim=2), boundaries.distance, 1e-9)
    assert (boundaries.distance[:, 0] <= 1.2 * nearest).all()


def test_other_searches_go_to_classes_but_not_in_random_directions(network, inputs):
    nearest, pgd = NearestBoundary(network), PGDBoundary(network, epsilons=(1.0, 3.0, 9.0))
    closest = ClosestBoundary([nearest, pgd])
    results = {
        search: AggregatedBoundaryNormals(network, search).attribute(inputs, n_boundaries=2, return_boundary=True)[1]
        for search in (nearest, pgd, closest)
    }
    assert results[pgd].found.any(dim=1).all()
    best = torch.minimum(results[nearest].distance[:, 0], results[pgd].distance[:, 0])
    close(results[closest].distance[:, 0], best, 1e-9)
    for search in (pgd, closest):
        with pytest.raises(BoundaryValueError, match="PGDBoundary cannot start in random directions"):
            AggregatedBoundaryNormals(network, search).attribute(inputs, sampling="random")


def test_no_more_examples_than_allowed_pass_through_the_model_at_once(network, inputs):
    sizes = []

    def watched(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return network(x)

    first, second = (NearestBoundary(watched, budget=5, internal_batch_size=size) for size in (3, 2))
    for search, largest in ((first, 3), (ClosestBoundary([first, second]), 3)):
        sizes.clear()
        AggregatedBoundaryNormals(watched, search).attribute(inputs, n_boundaries=3)
        assert max(sizes) <= largest


def test_all_evaluations_are_counted(network, inputs):
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return network(x)

    for n_boundaries, sampling in ((1, "classes"), (2, "classes"), (4, "classes"), (3, "random")):
        calls.clear()
        method = AggregatedBoundaryNormals(counted)
        boundaries = method.attribute(inputs, n_boundaries=n_boundaries, sampling=sampling, return_boundary=True)[1]
        assert boundaries.n_forward.sum() == sum(calls)
        assert (boundaries.n_gradient > 0).all()


def test_a_generator_changes_random_directions_alone(network, inputs):
    def normals(seed: int | None, sampling: str) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        search = NearestBoundary(network, budget=5, generator=generator)
        return AggregatedBoundaryNormals(network, search).attribute(inputs, n_boundaries=2, sampling=sampling)

    assert torch.equal(normals(None, "random"), normals(None, "random"))
    assert torch.equal(normals(3, "random"), normals(3, "random"))
    assert not torch.equal(normals(3, "random"), normals(4, "random"))


@settings(deadline=None, max_examples=15)
@given(scale=st.floats(0.01, 100.0), shift=st.floats(-2.0, 2.0), seed=st.integers(0, 100))
def test_units_of_scores_and_inputs_do_not_matter(scale, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(4, 3).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    inputs = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    expected = AggregatedBoundaryNormals(model).attribute(inputs)
    close(AggregatedBoundaryNormals(lambda x: scale * model(x) + shift).attribute(inputs), expected, 1e-4)
    close(AggregatedBoundaryNormals(lambda x: model(x / scale)).attribute(scale * inputs), expected, 1e-4)


class TestWeights:
    """The user's own weights."""

    def test_are_used_and_scaled(self, network, inputs):
        method = AggregatedBoundaryNormals(network)
        seen = []

        def first_alone(distance: Tensor) -> Tensor:
            seen.append(distance.clone())
            weights = torch.zeros_like(distance)
            weights[:, 0] = 7.0
            distance.zero_()  # a copy
            return weights

        attributions, boundaries = method.attribute(inputs, n_boundaries=3, weighting=first_alone, return_boundary=True)
        close(attributions, boundaries.normals[:, 0], 1e-12)
        assert torch.equal(seen[0], boundaries.distance)
        assert (boundaries.distance > 0).all()

    @pytest.mark.parametrize(
        ("weighting", "error", "message"),
        [
            ("nearest", BoundaryValueError, '"softmin", "inverse", "uniform", or a function, but it is \'nearest\''),
            (3, BoundaryTypeError, "a name or a function, but it is int"),
            (lambda d: 1.0, BoundaryTypeError, "return a Tensor, but it returned float"),
            (lambda d: d[:, :1], BoundaryValueError, r"of shape \(7, 2\), but it returned \(7, 1\)"),
            (lambda d: -d, BoundaryValueError, "none negative and one positive"),
            (lambda d: 0 * d, BoundaryValueError, "none negative and one positive"),
            (lambda d: d / 0, BoundaryValueError, "finite"),
        ],
    )
    def test_that_make_no_sense_are_refused(self, weighting, error, message, network, inputs):
        with pytest.raises(error, match=message):
            AggregatedBoundaryNormals(network).attribute(inputs, n_boundaries=2, weighting=weighting)


def test_an_input_on_a_boundary_has_that_boundary_alone():
    model = open_fan(4)
    inputs = torch.zeros(1, 4, dtype=torch.float64)
    inputs[0, 1] = 1.0 - 1e-12
    attributions = AggregatedBoundaryNormals(model).attribute(inputs)
    expected = torch.tensor([[0.5**0.5, -(0.5**0.5), 0.0, 0.0]], dtype=torch.float64)
    close(attributions, expected, 1e-4)


@pytest.mark.parametrize("n_boundaries", [1, 2, 3, 5])
def test_the_class_on_whose_boundary_an_input_lies_is_the_nearest(n_boundaries):
    model = nn.Linear(6, 6, bias=False).double()
    model.weight.data = torch.eye(6).double()
    inputs = torch.tensor([[1.0, 1.0, 0.9, 0.8, 0.7, 0.1]]).double()
    _, boundaries = AggregatedBoundaryNormals(model).attribute(inputs, n_boundaries=n_boundaries, return_boundary=True)
    assert boundaries.adversarial.tolist() == [[1, 2, 3, 4, 5][:n_boundaries]]
    assert boundaries.distance[0, 0] < 1e-9
    assert boundaries.found.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_boundaries": 0}, "n_boundaries must be a positive integer, but it is 0"),
        ({"n_boundaries": 2.5}, "n_boundaries must be a positive integer, but it is 2.5"),
        ({"sampling": "all"}, "'classes' or 'random', but it is 'all'"),
    ],
)
def test_bad_options_say_how_to_mend_them(options, message, network, inputs):
    with pytest.raises(BoundaryValueError, match=message):
        AggregatedBoundaryNormals(network).attribute(inputs, **options)


def test_the_nearest_classes_are_not_those_of_the_highest_scores():
    """A class whose score is high and hardly moves is far away."""
    model = nn.Linear(6, 6, bias=True).double()
    model.weight.data = torch.diag(torch.tensor([0.0, 0.01, 0.02, 5.0, 4.0, 3.0], dtype=torch.float64))
    model.bias.data = torch.tensor([10.0, 9.9, 9.8, 5.0, 5.1, 5.2], dtype=torch.float64)
    inputs = torch.zeros(1, 6, dtype=torch.float64)
    _, boundaries = AggregatedBoundaryNormals(model).attribute(inputs, n_boundaries=2, return_boundary=True)
    assert boundaries.adversarial.tolist() == [[3, 4]]
    close(boundaries.distance, torch.tensor([[5 / 5, 4.9 / 4]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("first", "last"),
    [(0, 5), *(pytest.param(first, first + 50, marks=pytest.mark.exhaustive) for first in range(0, 200, 50))],
)
def test_normals_do_not_depend_on_the_batch(first, last):
    """Nearest points of networks of ReLUs lie on kinks, where rounding decides about gradients."""
    n_apart = n_rows = 0
    for seed in range(first, last):
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).requires_grad_(False)
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        inputs = torch.randn(6, 6, generator=generator)
        whole = AggregatedBoundaryNormals(model).attribute(inputs, n_boundaries=1)
        alone = torch.cat([AggregatedBoundaryNormals(model).attribute(row, n_boundaries=1) for row in inputs.split(1)])
        search = NearestBoundary(model, internal_batch_size=4)
        grouped = AggregatedBoundaryNormals(model, search).attribute(inputs, n_boundaries=1)
        n_rows += 2 * len(inputs)
        n_apart += sum(int(((whole - other).abs().amax(dim=1) > 1e-4).sum()) for other in (alone, grouped))
    # Rarely rounding leads the search itself to another point, as near or nearly so.
    assert n_apart <= 0.015 * n_rows


def forbidden(x: Tensor) -> Tensor:
    raise AssertionError("the model was evaluated")


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize("multiply_by_inputs", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weightings_share_one_search(weighting, multiply_by_inputs, as_tuple, network, inputs):
    given = (inputs,) if as_tuple else inputs
    options = {"n_boundaries": 3, "return_boundary": True}
    search = NearestBoundary(network, budget=10)
    _, found = AggregatedBoundaryNormals(network, search).attribute(given, weighting="uniform", **options)
    normals = AggregatedBoundaryNormals(network, search, multiply_by_inputs=multiply_by_inputs)
    expected, boundaries = normals.attribute(given, weighting=weighting, **options)
    again = AggregatedBoundaryNormals(forbidden, multiply_by_inputs=multiply_by_inputs)
    maps, reweighed = again.attribute(given, weighting=weighting, boundary=found, return_boundary=True)
    torch.testing.assert_close(maps, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reweighed.weights, boundaries.weights)
    assert torch.equal(found.weights, torch.full((7, 3), 1 / 3, dtype=torch.float64))
    alone = again.attribute(given, weighting=weighting, boundary=found)
    torch.testing.assert_close(alone, maps, rtol=0, atol=0)


def test_given_boundaries_are_those_of_the_target(network, inputs):
    normals = AggregatedBoundaryNormals(network)
    expected, found = normals.attribute(inputs, 2, return_boundary=True)
    close(normals.attribute(inputs, 2, boundary=found), expected)
    close(normals.attribute(inputs, found.target, boundary=found), expected)
    with pytest.raises(BoundaryValueError, match=r"target asks for the classes \[1, 1, .*that of the classes \[2, 2"):
        normals.attribute(inputs, 1, boundary=found)


def test_rows_without_any_boundary_stay_nan():
    model = open_fan(4)
    normals = AggregatedBoundaryNormals(model, NearestBoundary(model, max_distance=2.0))
    inputs = torch.zeros(2, 4, dtype=torch.float64)
    inputs[1, 0] = 50.0
    with pytest.warns(BoundaryNotFoundWarning, match=r"1 of 2 examples, row\(s\) 1") as caught:
        _, found = normals.attribute(inputs, return_boundary=True)
    assert caught[0].filename == __file__
    maps = normals.attribute(inputs, boundary=found, weighting="uniform")
    assert torch.isfinite(maps[0]).all()
    assert maps[1].isnan().all()


BAD_BOUNDARIES = {
    "points": (
        lambda inputs, found: (inputs, NearestBoundary(nn.Linear(6, 5).double()).find(inputs)),
        "BoundaryPoints",
    ),
    "other inputs": (lambda inputs, found: (inputs[:3], found), r"\[\(\(3, 4, 6\), .*it holds \[\(\(7, 4, 6\)"),
    "other dtype": (lambda inputs, found: (inputs.float(), found), r"torch\.float32.*it holds .*torch\.float64"),
    "a tuple": (lambda inputs, found: ((inputs, inputs), found), r"\(7, 4, 6\).*\(7, 4, 6\).*it holds"),
}


@pytest.mark.parametrize(("make", "message"), BAD_BOUNDARIES.values(), ids=BAD_BOUNDARIES)
def test_boundaries_of_other_inputs_are_refused(make, message, network, inputs):
    normals = AggregatedBoundaryNormals(network)
    _, found = normals.attribute(inputs, return_boundary=True)
    wrong, boundary = make(inputs, found)
    with pytest.raises((BoundaryTypeError, BoundaryValueError), match=f"boundary must (hold|be BoundaryN).*{message}"):
        normals.attribute(wrong, boundary=boundary)


def test_a_mask_where_nothing_is_searched_is_refused(network, inputs):
    normals = AggregatedBoundaryNormals(network)
    _, found = normals.attribute(inputs, 2, return_boundary=True)
    with pytest.raises(BoundaryValueError, match="mask tells a search which values may move, but the boundary was"):
        normals.attribute(inputs, boundary=found, mask=torch.ones_like(inputs))


def test_a_target_beside_given_boundaries_leaves_running_statistics_alone(inputs):
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(inputs.shape[1]), torch.nn.Linear(inputs.shape[1], 3)).to(inputs)
    normals = AggregatedBoundaryNormals(model.eval())
    _, found = normals.attribute(inputs, 1, return_boundary=True)
    model.train()
    before = model[0].running_mean.clone()
    with pytest.warns(UserWarning, match="training mode"), contextlib.suppress(BoundaryValueError):
        normals.attribute(inputs, found.target, boundary=found)
    assert torch.equal(model[0].running_mean, before)


@pytest.mark.parametrize("norm", [2, math.inf, 1])
@pytest.mark.parametrize("n_boundaries", [1, 2, 3])
def test_a_boundary_on_which_the_input_lies_is_the_nearest(norm, n_boundaries):
    """At such an input the scores of two classes are equal, so that neither region is that of the input alone."""
    weight = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]]).double()
    inputs = torch.tensor([[1.0, 1.0, -0.5], [-3.0, 4.0, 4.0], [3.0, -1.0, 3.0], [5.0, 1.0, 0.0]]).double()
    target, rivals = [0, 1, 0, 0], [1, 2, 2]
    model = lambda x: x @ weight.T  # noqa: E731
    method = AggregatedBoundaryNormals(model, NearestBoundary(model, norm=norm))
    _, boundary = method.attribute(inputs, target, n_boundaries=n_boundaries, return_boundary=True)
    assert boundary.adversarial[:3, 0].tolist() == rivals
    assert boundary.neighbor[:, 0].tolist() == target
    assert boundary.distance[:3, 0].max() < 1e-9
    for row, rival in enumerate(rivals):
        expected = (weight[target[row]] - weight[rival]) / math.sqrt(2)
        torch.testing.assert_close(boundary.normals[row, 0], expected)
    if n_boundaries == 1:
        return
    # Further classes are as far as the regions of three halfspaces say, and no class occurs twice.
    assert boundary.distance[:3, 1].min() > 0.1
    assert all(len(set(row)) == n_boundaries for row in boundary.adversarial.tolist())


def test_a_corner_of_three_regions_has_two_boundaries_at_no_distance():
    weight = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]]).double()
    inputs = torch.full((1, 3), 2.0).double()
    model = lambda x: x @ weight.T  # noqa: E731
    _, boundary = AggregatedBoundaryNormals(model).attribute(inputs, 0, n_boundaries=2, return_boundary=True)
    assert sorted(boundary.adversarial[0].tolist()) == [1, 2]
    assert boundary.distance.max() < 1e-9
    # Each region is entered through the corner, where all normals between those of its two sides are normals.
    for normal, rival in zip(boundary.normals[0], boundary.adversarial[0].tolist(), strict=True):
        assert normal[rival] == normal.min() < 0


def test_boundaries_are_stored_and_loaded_by_default():
    model, inputs = nn.Linear(4, 3), torch.randn(2, 4)
    method, file = AggregatedBoundaryNormals(model), io.BytesIO()
    maps, boundary = method.attribute(inputs, n_boundaries=2, return_boundary=True)
    torch.save(boundary, file)
    file.seek(0)
    assert torch.equal(method.attribute(inputs, boundary=torch.load(file, weights_only=True)), maps)
