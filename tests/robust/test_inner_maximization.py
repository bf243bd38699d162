"""Perturbed inputs stay in their ball and their bounds, exactly, in every precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_boundary._core.flat import pack
from captum_boundary._core.geometry import Box
from captum_boundary.robust import AttributionAttack, RARLoss
from captum_boundary.robust._inner_maximization import FeasibleSet

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
# None of them is a number of any of the dtypes.
EPSILONS = [0.1, 8 / 255, 1e-3]


def assert_inside(points: Tensor, x: Tensor, epsilon: float, norm: float, bounds: tuple[float, float] | None) -> None:
    """As measured in the inputs' dtype, and in the real numbers."""
    assert points.dtype == x.dtype
    for dtype in (x.dtype, torch.float64):
        distances = torch.linalg.vector_norm((points.to(dtype) - x.to(dtype)).flatten(1), norm, dim=1)
        assert (distances <= epsilon).all()
    if bounds is not None:
        assert points.double().min() >= bounds[0]
        assert points.double().max() <= bounds[1]


def images(n_examples: int, dtype: torch.dtype, bounds: tuple[float, float] | None) -> Tensor:
    """Many of them, up to their bounds, with colors of all magnitudes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n_examples, 24, generator=generator, dtype=torch.float64)
    x = x * 10 ** (-4 * torch.rand(n_examples, 1, generator=generator, dtype=torch.float64))
    if bounds is not None:
        x = bounds[0] + (bounds[1] - bounds[0]) * (1.5 * x - 0.25).clamp(0, 1)
        x = x.to(dtype).clamp(*bounds)
        x = torch.where(x.double() > bounds[1], 0.5 * bounds[1], x.double()).to(dtype)
    return x.to(dtype)


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 16), nn.Softplus(), nn.Linear(16, 3)).to(dtype).eval()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [math.inf, 2])
@pytest.mark.parametrize("bounds", [None, (0, 1), (0.0, 0.7)])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_training_stays_in_ball_and_bounds(dtype, norm, bounds, epsilon) -> None:
    x = images(300, dtype, bounds)
    y = torch.arange(300) % 3
    for random_start in (True, False):
        settings = {"epsilon": epsilon, "norm": norm, "bounds": bounds, "attack_steps": 3, "attack_n_steps": 2}
        rar = RARLoss(network(dtype), **settings, random_start=random_start, n_steps=2, warmup=0)
        points = rar.perturb(x, y)
        assert_inside(points, x, epsilon, norm, bounds)
        assert (points != x).any(dim=1).float().mean() > 0.2
        rar(x, y)
        assert_inside(rar.parts.perturbed, x, epsilon, norm, bounds)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["topk", "random"])
@pytest.mark.parametrize("bounds", [None, (0, 1), (0.0, 0.7)])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_attack_stays_in_ball_and_bounds(dtype, method, bounds, epsilon) -> None:
    x = images(300, dtype, bounds)
    attack = AttributionAttack(network(dtype), method, epsilon=epsilon, bounds=bounds, n_steps=2, attack_steps=3)
    points = attack.perturb(x)
    assert_inside(points, x, epsilon, math.inf, bounds)
    assert (points != x).any(dim=1).float().mean() > 0.2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_penalized_form_stays_in_the_bounds(dtype) -> None:
    x = images(300, dtype, (0.0, 0.7))
    rar = RARLoss(network(dtype), epsilon=0.1, penalty=0.01, bounds=(0.0, 0.7), n_steps=2, warmup=0)
    points = rar.perturb(x, torch.arange(300) % 3)
    assert_inside(points, x, math.inf, 2, (0.0, 0.7))


def test_inputs_of_mixed_precision_have_one_ball() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network(torch.float32)

        def forward(self, *parts: Tensor) -> Tensor:
            return self.body(torch.cat([part.float() for part in parts], dim=1))

    x = images(200, torch.float64, None)
    parts = x[:, :8].bfloat16(), x[:, 8:16].half(), x[:, 16:].float()
    for norm in (2, math.inf):
        rar = RARLoss(Joined(), epsilon=0.1, norm=norm, n_steps=2, attack_n_steps=2, warmup=0)
        points = rar.perturb(parts, torch.arange(200) % 3)
        assert [part.dtype for part in points] == [part.dtype for part in parts]
        moves = torch.cat([point.double() - part.double() for point, part in zip(points, parts, strict=True)], dim=1)
        lengths = torch.linalg.vector_norm(moves, norm, dim=1)
        assert (lengths <= 0.1).all()
        assert (lengths > 0.09).all()


@pytest.mark.parametrize("norm", [math.inf, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(-12, 4), epsilon=st.integers(-12, 3))
def test_any_point_is_brought_inside_and_far_out(norm, dtype, seed, size, epsilon) -> None:
    generator = torch.Generator().manual_seed(seed)
    radius = 2.0**epsilon * 1.1
    x = (torch.randn(4, 50, generator=generator, dtype=torch.float64) * 2.0**size).to(dtype)
    moves = torch.randn(4, 50, generator=generator, dtype=torch.float64) * radius
    everywhere = Box(*(torch.full((1, 50), limit) for limit in (-math.inf, math.inf)))
    near = FeasibleSet.of((x,), everywhere, radius, norm)
    points = near.rounded(near.project(pack((x,)) + moves.to(near.x))).to(dtype)
    assert_inside(points, x, radius, norm, None)
    # As near to the edge as numbers of this size allow.
    steps = torch.linalg.vector_norm(torch.finfo(dtype).eps * x.double().abs(), norm, dim=1)
    slack = max(torch.finfo(dtype).eps, 1e-5) * 2
    reached = torch.linalg.vector_norm(points.double() - x.double(), norm, dim=1)
    assert (reached >= radius * (1 - slack) - 2 * steps - torch.finfo(dtype).smallest_normal).all()
