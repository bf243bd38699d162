"""Descents along a boundary, from points near and far."""

from __future__ import annotations

import math

import pytest
import torch

from captum_boundary._base.bounds import box_of
from captum_boundary._base.geometry import length
from captum_boundary._base.oracle import MarginOracle
from captum_boundary.search._descent import descend, dive
from captum_boundary.search._problem import Candidates, Problem


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("times_as_far", [1.5, 10, 50])
def test_descents_hurry_while_they_are_far_away(norm, times_as_far) -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(600, 2)
    model.weight.data = torch.randn(2, 600, generator=generator)
    model.bias.data.zero_()
    inputs = torch.randn(8, 600, generator=generator)
    problem = Problem(MarginOracle(model, (inputs,)), box_of(None, (inputs,)), norm, torch.tensor(1e-6))
    slope = model.weight.detach().diff(dim=0)
    margins = (inputs @ slope.T).abs().squeeze(1)
    nearest = margins / length(slope, 1 if norm == math.inf else 2)
    # Beyond the boundary, but a long way to the side.
    aside = torch.randn(8, 600, generator=generator)
    aside = aside - (aside @ slope.T) / slope.square().sum() * slope
    across = -(inputs @ slope.T) / slope.square().sum() * slope
    starts = inputs + 1.01 * across + (times_as_far * nearest / length(aside, norm))[:, None] * aside
    known = Candidates.none(problem).or_nearer(starts, problem.distance(starts), problem.depth(starts))
    assert (known.distance > 0.9 * times_as_far * nearest).all()

    found = descend(problem, known, torch.full((8,), 36))

    assert (found.distance < 1.1 * nearest).all()


@pytest.mark.parametrize("norm", [2, math.inf])
def test_dives_step_towards_a_boundary_that_they_have_not_crossed_yet(norm) -> None:
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(1, 600, generator=generator)
    inputs = torch.randn(8, 600, generator=generator)
    problem = Problem(
        MarginOracle(lambda x: (x @ slope.T).squeeze(1), (inputs,)), box_of(None, (inputs,)), norm, torch.tensor(1e-6)
    )
    nearest = (inputs @ slope.T).abs().squeeze(1) / length(slope, 1 if norm == math.inf else 2)
    found = dive(problem, problem.x, 12)
    assert (found.distance < 1.1 * nearest).all()


def test_steps_in_linf_heed_signs_alone() -> None:
    """Coordinates of small slope count as much as others, where the largest change is the distance."""
    slope = torch.logspace(-3, 0, 600)
    inputs = torch.ones(1, 600)
    problem = Problem(
        MarginOracle(lambda x: torch.stack([x @ slope, 0 * x[:, 0]], dim=1), (inputs,)),
        box_of(None, (inputs,)),
        math.inf,
        torch.tensor(1e-6),
    )
    nearest = (inputs @ slope / slope.sum()).item()
    start = inputs - 1.001 * (inputs @ slope) / slope.square().sum() * slope
    known = Candidates.none(problem).or_nearer(start, problem.distance(start), problem.depth(start))
    assert known.distance > 1.9 * nearest
    assert descend(problem, known, torch.full((1,), 12)).distance < 1.02 * nearest
