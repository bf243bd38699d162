"""The l2 norm with a factor for each feature: closed forms, and the plain norm of scaled inputs as its oracle."""

from __future__ import annotations

import io
import math
import pickle

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryPoints,
    NearestBoundary,
    PGDBoundary,
    RARLoss,
    metrics,
)
from captum_boundary._core.geometry import Box
from captum_boundary._core.norms import L1, LINF, Norm, project_along
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search import CategoricalBoundary, ClosestBoundary, WeightedL2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def units(n_features: int, spread: float = 3.0) -> Tensor:
    """Factors over several orders of magnitude."""
    return 10 ** (spread * (torch.rand(n_features, generator=seeded(7), dtype=torch.float64) - 0.5))


def linear(n_features: int, n_classes: int) -> nn.Linear:
    model = nn.Linear(n_features, n_classes).double()
    model.weight.data = torch.randn(n_classes, n_features, generator=seeded(1), dtype=torch.float64)
    model.bias.data = torch.randn(n_classes, generator=seeded(2), dtype=torch.float64)
    return model


def curved(n_features: int) -> nn.Module:
    """A smooth, strongly bent network of inputs of about one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = nn.Sequential(nn.Linear(n_features, 24), nn.Tanh(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))
        return network.double().eval()


@pytest.mark.parametrize("n_features", [5, 600])
def test_the_distance_of_a_linear_model_is_the_margin_over_the_dual_norm(n_features) -> None:
    model, scale = linear(n_features, 2), units(n_features)
    inputs = torch.randn(6, n_features, generator=seeded(), dtype=torch.float64)
    boundary = NearestBoundary(model, norm=WeightedL2(scale)).find(inputs)

    slope = (model.weight[0] - model.weight[1]).detach()
    margin = (model(inputs) @ torch.tensor([1.0, -1.0], dtype=torch.float64)).detach()
    dual = (slope / scale).norm()
    torch.testing.assert_close(boundary.distance, margin.abs() / dual, rtol=1e-7, atol=0)
    nearest = inputs - (margin / dual**2)[:, None] * slope / scale**2
    torch.testing.assert_close(boundary.points, nearest, rtol=1e-6, atol=1e-7)
    optimality = metrics.first_order_optimality(model, inputs, boundary)
    torch.testing.assert_close(optimality, torch.ones_like(optimality), rtol=1e-6, atol=0)
    plain = metrics.first_order_optimality(model, inputs, boundary, norm=2)
    assert (plain < 0.9).all()


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_within_a_box_it_solves_the_quadratic_program() -> None:
    model, scale = linear(4, 3), units(4, 2.0)
    inputs = 0.1 + 0.8 * torch.rand(8, 4, generator=seeded(), dtype=torch.float64)
    boundary = NearestBoundary(model, norm=WeightedL2(scale), bounds=(0, 1), budget=100).find(inputs)
    assert boundary.points.min() >= 0
    assert boundary.points.max() <= 1
    weight, bias, factors = (values.detach().numpy() for values in (model.weight, model.bias, scale))
    for x, target, distance in zip(inputs.numpy(), boundary.target.tolist(), boundary.distance.tolist(), strict=True):
        least = math.inf
        for rival in {0, 1, 2} - {target}:
            slope, offset = weight[target] - weight[rival], bias[target] - bias[rival]
            solution = minimize(
                lambda y, x=x: ((factors * (y - x)) ** 2).sum(),
                np.where(slope > 0, 0.0, 1.0),
                bounds=[(0, 1)] * 4,
                constraints={"type": "ineq", "fun": lambda y, s=slope, o=offset: -(s @ y + o)},
                options={"ftol": 1e-14, "maxiter": 500},
            )
            least = min(least, math.sqrt(solution.fun) if solution.success else math.inf)
        assert distance == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("n_features", [6, 600])
@pytest.mark.parametrize("bounds", [None, (-1, 1)])
@pytest.mark.parametrize("budget", [10, 40])
def test_it_finds_what_a_search_of_scaled_inputs_finds(n_features, bounds, budget) -> None:
    network = curved(n_features)
    scale = 2.0 ** torch.arange(n_features).remainder(9).sub(4).double()  # no rounding
    scaled = 2 * torch.rand(5, n_features, generator=seeded(), dtype=torch.float64) - 1
    inputs = scaled / scale
    limits = None if bounds is None else (bounds[0] / scale, bounds[1] / scale)

    expected = NearestBoundary(network, bounds=bounds, budget=budget).find(scaled)
    search = NearestBoundary(lambda x: network(x * scale), norm=WeightedL2(scale), bounds=limits, budget=budget)
    boundary = search.find(inputs)

    assert expected.found.any()
    assert torch.equal(boundary.found, expected.found)
    torch.testing.assert_close(boundary.distance, expected.distance, rtol=1e-9, atol=0)
    torch.testing.assert_close(boundary.points * scale, expected.points, rtol=1e-9, atol=1e-9)
    assert torch.equal(boundary.n_gradient, expected.n_gradient)
    assert torch.equal(boundary.status, expected.status)


@pytest.mark.parametrize("random_start", [False, True])
def test_balls_of_pgd_and_of_training_are_those_of_scaled_inputs(random_start) -> None:
    network, scale = curved(6), units(6)
    scaled = torch.randn(5, 6, generator=seeded(), dtype=torch.float64)
    inputs, norm = scaled / scale, WeightedL2(scale)
    model = nn.Sequential(Times(scale), network)
    options = {"random_start": random_start}

    pgd = {"epsilons": (0.5, 1.0, 2.0, 4.0), "attack_steps": 10, **options}
    expected = PGDBoundary(network, **pgd).find(scaled)
    boundary = PGDBoundary(model, norm=norm, **pgd).find(inputs)
    torch.testing.assert_close(boundary.distance, expected.distance, rtol=1e-6, atol=0)

    training = {"epsilon": 0.5, "attack_steps": 3, "warmup": 0, **options}
    target = torch.tensor([0, 1, 2, 3, 0])
    moved = RARLoss(model, norm=norm, **training).perturb(inputs, target)
    torch.testing.assert_close(moved * scale, RARLoss(network, norm=2, **training).perturb(scaled, target))
    assert (((moved - inputs) * scale).norm(dim=1) <= 0.5).all()


class Times(nn.Module):
    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_normals_and_random_directions_are_those_of_scaled_inputs() -> None:
    network, scale = curved(6), units(6)
    scaled = torch.randn(4, 6, generator=seeded(), dtype=torch.float64)
    for sampling in ("classes", "random"):
        found = []
        for model, inputs, norm in ((network, scaled, 2), (lambda x: network(x * scale), scaled / scale, None)):
            search = NearestBoundary(model, norm=norm or WeightedL2(scale))
            options = {"n_boundaries": 3, "sampling": sampling, "return_boundary": True}
            found.append(AggregatedBoundaryNormals(model, search).attribute(inputs, **options)[1])
        plain, weighted = found
        assert weighted.norm == WeightedL2(scale)
        torch.testing.assert_close(weighted.distance, plain.distance, rtol=1e-6, atol=0)
        normals = plain.normals * scale
        normals = normals / normals.norm(dim=2, keepdim=True).clamp_min(1e-300)
        torch.testing.assert_close(weighted.normals, normals, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_limits_and_fixed_values_are_kept_to_the_last_bit() -> None:
    scale = units(8).float() / 3
    network = curved(8).float()
    inputs = torch.randn(20, 8, generator=seeded())
    lower, upper = inputs - torch.rand(8, generator=seeded(4)), inputs + torch.rand(8, generator=seeded(5))
    seen = []

    def model(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return network(x)

    mask = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0])
    for row in range(20):
        seen.clear()
        search = NearestBoundary(model, norm=WeightedL2(scale), bounds=(lower[row], upper[row]))
        points = search.find(inputs[row : row + 1], mask=mask).points
        assert torch.equal(points[0, 6:], inputs[row, 6:])
        every = torch.cat(seen)
        assert ((every >= lower[row]) & (every <= upper[row])).all()


def test_it_is_a_norm_wherever_searches_are_combined() -> None:
    network, scale = curved(4).float(), torch.tensor([1.0, 10.0, 0.1, 3.0])
    inputs = torch.randn(3, 4, generator=seeded())
    one, other = WeightedL2(scale), WeightedL2(scale.clone())
    assert one == other
    assert hash(one) == hash(other)
    assert one != WeightedL2(2 * scale)
    assert one != 2
    searches = [NearestBoundary(network, norm=one), PGDBoundary(network, norm=other)]
    closest = ClosestBoundary(searches).find(inputs)
    nearest = searches[0].find(inputs)
    assert (closest.distance <= nearest.distance).all()
    with pytest.raises(BoundaryValueError, match="share their norm"):
        ClosestBoundary([searches[0], NearestBoundary(network)])

    rows = torch.cat([inputs[:, :3], torch.tensor([[0.0], [1.0], [0.0]])], dim=1)
    valid = CategoricalBoundary(searches[0], categories=[[3]]).find(rows)
    moves = (scale * (valid.points - rows)).norm(dim=1)
    torch.testing.assert_close(moves[valid.found], valid.distance[valid.found])
    assert set(valid.points[:, 3].tolist()) <= {0.0, 1.0}


def test_points_are_stored_shown_joined_and_moved_with_it() -> None:
    network, scale = curved(4).float(), torch.tensor([1.0, 10.0, 0.1, 3.0])
    boundary = NearestBoundary(network, norm=WeightedL2(scale)).find(torch.randn(3, 4, generator=seeded()))
    assert "weighted l2 distance" in repr(boundary)
    assert repr(WeightedL2(scale)) == f"WeightedL2({scale!r})"
    file = io.BytesIO()
    torch.save(boundary, file)
    file.seek(0)
    for loaded in (torch.load(file, weights_only=True), pickle.loads(pickle.dumps(boundary)), boundary.to("cpu")):
        assert loaded.norm == boundary.norm
        assert torch.equal(loaded.points, boundary.points)
    assert boundary.to("meta").norm.scale.device.type == "meta"
    assert BoundaryPoints.cat([boundary[:1], boundary[1:]]).norm == boundary.norm
    other = NearestBoundary(network, norm=WeightedL2(2 * scale)).find(torch.zeros(1, 4))
    with pytest.raises(BoundaryValueError, match="share their norm"):
        BoundaryPoints.cat([boundary, other])


def test_factors_of_channels_and_of_each_input() -> None:
    network = curved(12).float()
    image, table = torch.randn(3, 2, 2, 2, generator=seeded()), torch.randn(3, 4, generator=seeded(1))
    channels, columns = torch.tensor([1.0, 5.0]).view(2, 1, 1), torch.tensor([1.0, 2.0, 4.0, 8.0])

    def model(first: Tensor, second: Tensor) -> Tensor:
        return network(torch.cat([first.flatten(1), second], dim=1))

    boundary = NearestBoundary(model, norm=WeightedL2((channels, columns))).find((image, table))
    first, second = boundary.points
    moves = torch.cat([(channels * (first - image)).flatten(1), columns * (second - table)], dim=1)
    torch.testing.assert_close(boundary.distance, moves.norm(dim=1))


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        ([1.0, 2.0], BoundaryTypeError, r"scale must be a floating-point Tensor"),
        (torch.tensor([1, 2]), BoundaryTypeError, r"scale must be a floating-point Tensor"),
        ((), BoundaryTypeError, r"scale must be a floating-point Tensor"),
        (torch.tensor([1.0, 0.0]), BoundaryValueError, r"scale must be positive and finite"),
        (torch.tensor([1.0, math.nan]), BoundaryValueError, r"scale must be positive and finite"),
        (torch.tensor([1.0, math.inf]), BoundaryValueError, r"scale must be positive and finite"),
        (torch.tensor([]), BoundaryValueError, r"scale must be positive and finite"),
    ],
)
def test_factors_that_make_no_norm_are_refused(scale, error, message) -> None:
    with pytest.raises(error, match=message):
        WeightedL2(scale)


@pytest.mark.parametrize("scale", [torch.ones(3), torch.ones(5, 4), (torch.ones(4), torch.ones(4))])
def test_factors_of_other_shapes_are_refused(scale) -> None:
    search = NearestBoundary(curved(4).float(), norm=WeightedL2(scale))
    with pytest.raises(BoundaryValueError, match=r"must broadcast to examples of shapes \[\(4,\)\]"):
        search.find(torch.zeros(5, 4))


class WeightedLInf(Norm):
    """A norm of somebody else's: the largest coordinate, each in its own unit."""

    name = "weighted linf"

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale

    @property
    def dual(self) -> Norm:
        return WeightedL1(1 / self.scale)

    def length(self, vectors: Tensor) -> Tensor:
        return LINF.length(self.scale * vectors)

    def steepest(self, slope: Tensor) -> Tensor:
        return slope.sign() / self.scale

    def project_onto_ball(self, vectors: Tensor, radius: Tensor) -> Tensor:
        return LINF.project_onto_ball(self.scale * vectors, radius) / self.scale

    def project_onto_half_space(
        self, x: Tensor, normal: Tensor, required: Tensor, box: Box, n_steps: int = 32
    ) -> Tensor:
        return project_along(x, normal, normal.sign() / self.scale, required, box, n_steps)


class WeightedL1(WeightedLInf):
    """As far as it is needed: the dual norm."""

    def length(self, vectors: Tensor) -> Tensor:
        return L1.length(self.scale * vectors)


@pytest.mark.parametrize("n_features", [5, 600])
@pytest.mark.parametrize("bounds", [None, (-1, 1)])
def test_a_norm_of_ones_own_is_searched_in(n_features, bounds) -> None:
    model, scale = linear(n_features, 2), units(n_features, 1.0)
    inputs = 0.5 * torch.randn(6, n_features, generator=seeded(), dtype=torch.float64).clamp(-1.8, 1.8)
    boundary = NearestBoundary(model, norm=WeightedLInf(scale), bounds=bounds).find(inputs)
    scaled = NearestBoundary(
        lambda z: model(z / scale), norm=math.inf, bounds=None if bounds is None else (-scale, scale)
    ).find(inputs * scale)
    assert boundary.found.all()
    torch.testing.assert_close(boundary.distance, scaled.distance, rtol=1e-6, atol=0)
    assert "weighted linf distance" in repr(boundary)
