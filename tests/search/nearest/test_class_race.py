"""Classes that compete for the nearest boundary of an example."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from captum_boundary import NearestBoundary
from captum_boundary.search import NearestBoundarySettings

ALONE = NearestBoundarySettings(race_rows=0)
WEIGHT = torch.randn(6, 600, generator=torch.Generator().manual_seed(0)) / 600**0.5
# The classes with the lowest scores have the steepest slopes, and so the nearest boundaries.
STEEPNESS = torch.tensor([1.0, 1.0, 1.5, 2.5, 3.5, 4.5])
OFFSET = torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5, 0.0])


def bent(x: Tensor) -> Tensor:
    """Scores that are nearly linear, but not so much that a first-order test proves anything."""
    weight = WEIGHT.to(x)
    linear = x @ (STEEPNESS.to(x)[:, None] * weight).T
    return OFFSET.to(x) + linear + 0.05 * torch.sin(3 * linear) + 0.02 * (3 * x).sin() @ weight.flip(1).T


def inputs_of(n: int) -> Tensor:
    return 0.05 * torch.randn(n, 600, generator=torch.Generator().manual_seed(1))


def nearest_of_single_classes(x: Tensor, norm: float) -> Tensor:
    """The nearest boundary, each class searched alone with a large budget."""
    target = bent(x).argmax(dim=1)
    every = torch.full((len(x), 6), torch.inf)
    for other in range(6):
        rows = (target != other).nonzero().flatten()
        if len(rows) > 0:
            columns = torch.stack([target, torch.full_like(target, other)], dim=1)[rows]
            search = NearestBoundary(lambda z, pair: bent(z).gather(1, pair), norm=norm, budget=200, settings=ALONE)
            every[rows, other] = search.find(x[rows], 0, columns).distance
    return every.amin(dim=1)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_the_class_with_the_nearest_boundary_wins_whatever_its_score(norm) -> None:
    x = inputs_of(12)
    nearest = nearest_of_single_classes(x, norm)
    ratio = NearestBoundary(bent, norm=norm, budget=40).find(x).distance / nearest
    ratio_alone = NearestBoundary(bent, norm=norm, budget=40, settings=ALONE).find(x).distance / nearest
    assert ratio.amax() < 1.01
    assert ratio_alone.amax() > 1.1  # so that the test tells the two apart


@pytest.mark.parametrize(("norm", "budget"), [(2, 10), (math.inf, 10), (1, 40)])
def test_where_the_budget_is_too_small_for_a_race_nothing_is_otherwise(norm, budget) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(600, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 6)
        model, x = nn.Sequential(*layers).eval(), torch.randn(8, 600)
    never = NearestBoundarySettings(race_rows=0)
    boundary = NearestBoundary(model, norm=norm, budget=budget).find(x)
    alone = NearestBoundary(model, norm=norm, budget=budget, settings=never).find(x)
    assert torch.equal(boundary.points, alone.points)
    assert torch.equal(boundary.n_gradient, alone.n_gradient)


@pytest.mark.parametrize("budget", [20, 40, 200])
@pytest.mark.parametrize("norm", [2, math.inf, 1])
def test_every_gradient_is_counted_and_the_budget_is_kept(budget, norm) -> None:
    spent = torch.zeros((), dtype=torch.long)

    def count(gradient: Tensor) -> None:
        spent.add_(len(gradient))

    def counted(x: Tensor) -> Tensor:
        scores = bent(x)
        if scores.requires_grad:
            scores.register_hook(count)
        return scores

    boundary = NearestBoundary(counted, norm=norm, budget=budget).find(inputs_of(5))
    assert boundary.n_gradient.amax() <= budget
    assert boundary.n_gradient.sum() == spent
    assert boundary.n_forward.amax() <= max(160, 4 * budget)


def test_no_example_depends_on_the_others() -> None:
    x = inputs_of(4).double()
    together = NearestBoundary(bent, budget=40).find(x).distance
    alone = torch.cat([NearestBoundary(bent, budget=40).find(row[None]).distance for row in x])
    torch.testing.assert_close(alone, together, rtol=1e-7, atol=0)
