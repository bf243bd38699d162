"""How near NearestBoundary comes: closed forms, exact solutions of tiny networks, and what it spends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact_distances import least_distance, relu_scores, tiny_networks
from scipy.optimize import linprog
from torch import Tensor

from captum_boundary import BoundaryNotFoundWarning, NearestBoundary

DUAL = {2: 2, math.inf: 1, 1: math.inf}
# Below this margin, relative to the largest score, float32 itself no longer resolves distances to 1e-4.
RESOLVED = 5e-3


def random_linear(n_classes: int, dtype: torch.dtype, n_inputs: int = 7, seed: int = 0):
    generator = torch.Generator().manual_seed(100 * seed + n_classes)
    weight = torch.randn(n_classes, n_inputs, generator=generator, dtype=torch.float64).to(dtype)
    bias = torch.randn(n_classes, generator=generator, dtype=torch.float64).to(dtype)
    inputs = torch.randn(40, n_inputs, generator=generator, dtype=torch.float64).to(dtype)
    return weight, bias, inputs


def linear_distances(weight: Tensor, bias: Tensor, inputs: Tensor, norm: float) -> Tensor:
    """Distance of every input to the hyperplane of every other class, by the dual norm, in float64."""
    weight, bias, inputs = weight.double(), bias.double(), inputs.double()
    scores = inputs @ weight.T + bias
    target = scores.argmax(dim=1)
    margins = scores.gather(1, target[:, None]) - scores
    widths = torch.linalg.vector_norm(weight[target][:, None] - weight, ord=DUAL[norm], dim=2)
    return torch.where(widths > 0, margins / widths, torch.inf)


@pytest.mark.parametrize("norm", [2, math.inf, 1])
@pytest.mark.parametrize("n_classes", range(2, 11))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
def test_linear_models_have_the_closed_form(n_classes, norm, dtype, tolerance):
    weight, bias, inputs = random_linear(n_classes, dtype)
    scores = inputs @ weight.T + bias
    top = scores.topk(2, dim=1).values
    margin = (top[:, 0] - top[:, 1]) / scores.abs().amax(dim=1)
    inputs = inputs[margin > RESOLVED]
    exact = linear_distances(weight, bias, inputs, norm)
    nearest = exact.amin(dim=1)
    # On some processors scores change with the size of their batch. Points lie beyond the boundary by up to six times
    # as much, and the scores that place them there are wrong by as much on either side.
    alone = torch.cat([row @ weight.T + bias for row in inputs.split(1)])
    change = ((alone - scores[margin > RESOLVED]).abs().amax(dim=1) / alone.abs().amax(dim=1)).amax()
    allowed = (8 * change / margin[margin > RESOLVED]).double().clamp_min(tolerance) * nearest

    boundary = NearestBoundary(lambda x: x @ weight.T + bias, norm=norm).find(inputs)

    assert boundary.found.all()
    assert ((boundary.distance.double() - nearest).abs() <= allowed).all()
    chosen = exact.gather(1, boundary.adversarial[:, None]).squeeze(1)
    torch.testing.assert_close(chosen, nearest, rtol=tolerance, atol=0)


@pytest.mark.parametrize("bounds", [None, (0.0, 30.0)])
def test_nearest_point_in_l1_where_two_slopes_are_equal(bounds):
    """Of the hyperbola that is (1, 1), which no step along one coordinate reaches."""
    inputs = torch.tensor([[0.2, 0.1], [0.5, 0.3], [0.3, 0.9]], dtype=torch.float64)
    search = NearestBoundary(
        lambda x: torch.stack([torch.ones_like(x[:, 0]), x[:, 0] * x[:, 1]], 1), norm=1, bounds=bounds
    )
    torch.testing.assert_close(search.find(inputs).distance, (1 - inputs).sum(dim=1), rtol=2e-4, atol=0)


def test_restarts_in_l1_look_along_single_coordinates():
    """Steps that no slope at the input, nor any direction of many coordinates, leads to."""

    def model(x: torch.Tensor) -> torch.Tensor:
        steps = torch.sigmoid(50 * (x[:, 1:].abs() - 1)).sum(dim=1)
        return torch.stack([2 - x[:, 0] - 4 * steps, torch.zeros_like(steps)], dim=1)

    inputs = torch.zeros(3, 20, dtype=torch.float64)
    distance = NearestBoundary(model, norm=1, budget=100).find(inputs).distance
    torch.testing.assert_close(distance, torch.ones_like(distance), rtol=1e-2, atol=0)  # half a step is 2


def distance_in_box(x: np.ndarray, slope: np.ndarray, drop: float, norm: float, low: float, high: float) -> float:
    """Distance from x to ``{y in box : slope . (x - y) >= drop}`` by linear or least distance programming."""
    n = len(x)
    if norm == 2:
        move = least_distance(np.vstack([-slope, np.eye(n), -np.eye(n)]), np.concatenate([[drop], low - x, x - high]))
        return math.inf if move is None else float(np.linalg.norm(move))
    n_bounds = 1 if norm == math.inf else n
    limit = np.ones((n, 1)) if norm == math.inf else np.eye(n)
    solution = linprog(
        np.concatenate([np.zeros(n), np.ones(n_bounds)]),
        A_ub=np.block([[np.eye(n), -limit], [-np.eye(n), -limit], [slope[None], np.zeros((1, n_bounds))]]),
        b_ub=np.concatenate([np.zeros(2 * n), [-drop]]),
        bounds=[(low - value, high - value) for value in x] + [(0, None)] * n_bounds,
    )
    return solution.fun if solution.success else math.inf


@pytest.mark.parametrize("norm", [2, math.inf, 1])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_linear_models_in_a_box_equal_a_programme(n_classes, norm):
    weight, bias, inputs = random_linear(n_classes, torch.float64, seed=1)
    low, high = -0.8, 0.8
    inputs = inputs.clamp(low, high)
    target = (inputs @ weight.T + bias).argmax(dim=1)
    exact = []
    for x, t in zip(inputs, target.tolist(), strict=True):
        margins = (weight[t] - weight) @ x + bias[t] - bias
        exact.append(
            min(
                distance_in_box(x.numpy(), (weight[t] - weight[j]).numpy(), margins[j].item(), norm, low, high)
                for j in range(n_classes)
                if j != t
            )
        )
    exact = torch.tensor(exact, dtype=torch.float64)
    search = NearestBoundary(lambda x: x @ weight.T + bias, bounds=(low, high), norm=norm)
    if torch.isfinite(exact).all():
        boundary = search.find(inputs)
    else:
        with pytest.warns(BoundaryNotFoundWarning):
            boundary = search.find(inputs)
    assert torch.equal(boundary.found, torch.isfinite(exact))
    found = boundary.found
    assert found.sum() > 20
    torch.testing.assert_close(boundary.distance[found], exact[found], rtol=1e-3, atol=0)
    assert (boundary.points >= low).all()
    assert (boundary.points <= high).all()


@pytest.mark.parametrize("n_classes", [3, 5])
def test_entering_a_linear_region_equals_a_programme(n_classes):
    """From outside, the nearest point of a region may be an edge or a corner of it."""
    weight, bias, inputs = random_linear(n_classes, torch.float64, seed=2)
    target = (inputs @ weight.T + bias).argmin(dim=1)
    exact = []
    for x, t in zip(inputs, target.tolist(), strict=True):
        others = [j for j in range(n_classes) if j != t]
        margins = (weight[t] - weight[others]) @ x + bias[t] - bias[others]
        exact.append(np.linalg.norm(least_distance((weight[t] - weight[others]).numpy(), -margins.numpy())))
    boundary = NearestBoundary(lambda x: x @ weight.T + bias).find(inputs, target)
    assert boundary.found.all()
    assert (boundary.margin > 0).all()
    torch.testing.assert_close(boundary.distance, torch.tensor(np.array(exact)), rtol=1e-6, atol=0)


def test_examples_that_are_done_leave():
    weight, bias, inputs = random_linear(3, torch.float64)
    model = lambda x: x @ weight.T + bias  # noqa: E731
    thorough = NearestBoundary(model, budget=200).find(inputs)
    assert (thorough.n_gradient < 150).all()
    quick = NearestBoundary(model, budget=4).find(inputs)
    assert (quick.n_gradient <= 4).all()
    assert quick.found.all()


def test_labels_hold_for_a_model_in_lower_precision():
    weight, bias, inputs = random_linear(4, torch.float32)
    model = lambda x: x.bfloat16() @ weight.bfloat16().T + bias.bfloat16()  # noqa: E731
    boundary = NearestBoundary(model).find(inputs)
    assert boundary.found.all()
    for point, target in zip(boundary.points.split(1), boundary.target, strict=True):
        scores = model(point)[0]
        assert (scores > scores[target]).any()
    exact = linear_distances(weight, bias, inputs, 2).amin(dim=1)
    assert ((boundary.distance - exact).abs() < 0.05 * (1 + exact)).all()


def test_progress_is_shown_on_demand(capsys):
    weight, bias, inputs = random_linear(3, torch.float64)
    NearestBoundary(lambda x: x @ weight.T + bias).find(inputs)
    assert capsys.readouterr().err == ""
    NearestBoundary(lambda x: x @ weight.T + bias, show_progress=True).find(inputs)
    assert "Nearest boundary" in capsys.readouterr().err


LIMIT = 3.0


@pytest.fixture(scope="module")
def networks():
    return list(tiny_networks(n_cases=20, seed=0, limit=LIMIT))


@pytest.mark.parametrize(("budget", "share"), [(40, 0.95), pytest.param(200, 0.99, marks=pytest.mark.exhaustive)])
def test_tiny_relu_networks_against_enumeration(networks, budget, share):
    ratios = []
    for x, _, *parameters, exact in networks:
        boundary = NearestBoundary(relu_scores, bounds=(-LIMIT, LIMIT), budget=budget).find(x, None, tuple(parameters))
        start, end = (relu_scores(points, *parameters) for points in (x, boundary.points))
        assert boundary.found.all()
        assert (end.argmax(dim=1) != start.argmax(dim=1)).all()
        assert (boundary.n_gradient <= budget).all()
        ratios.append(boundary.distance / exact)
    ratios = torch.cat(ratios)
    assert len(ratios) >= 200
    assert ratios.min() > 1 - 1e-6
    assert (ratios < 1.01).double().mean() >= share


@pytest.mark.parametrize("n_inputs", [20, 600])
@pytest.mark.parametrize("norm", [2, 1, math.inf])
@pytest.mark.parametrize("bounds", [None, (-4, 4)])
def test_models_are_never_evaluated_without_any_rows(n_inputs, norm, bounds) -> None:
    weights = torch.randn(n_inputs, 3, generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(3, n_inputs, generator=torch.Generator().manual_seed(1)).clamp(-4, 4)
    n_rows = []

    def model(points: Tensor, slope: float) -> Tensor:
        n_rows.append(len(points))
        return slope * points @ weights + torch.tensor([1.0, 0.0, 0.0]) * (slope == 0)

    search = NearestBoundary(model, norm=norm, bounds=bounds)
    assert search.find(inputs, additional_forward_args=1.0).found.all()
    with pytest.warns(BoundaryNotFoundWarning):
        search.find(inputs, additional_forward_args=0.0)
    assert min(n_rows) > 0
