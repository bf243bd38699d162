"""Descents along a boundary, from points near and far."""

from __future__ import annotations

import math

import pytest
import torch

from captum_boundary._base.geometry import Box, length
from captum_boundary._base.oracle import MarginOracle
from captum_boundary.search._descent import _FROM_THE_BOUNDARY, _follow_spheres
from captum_boundary.search._incumbents import Incumbents

UNLIMITED = Box(torch.full((1, 1), -math.inf), torch.full((1, 1), math.inf))


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("times_as_far", [1.5, 10, 50])
def test_descents_hurry_while_they_are_far_away(norm, times_as_far) -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(600, 2)
    model.weight.data = torch.randn(2, 600, generator=generator)
    model.bias.data.zero_()
    inputs = torch.randn(8, 600, generator=generator)
    search = Incumbents(MarginOracle(model, (inputs,)), UNLIMITED, norm, budget=40, seed=0)
    rows = search.oracle.all_rows
    slope = model.weight.detach().diff(dim=0)
    margins = (inputs @ slope.T).abs().squeeze(1)
    nearest = margins / length(slope, 1 if norm == math.inf else 2)
    # Beyond the boundary, but a long way to the side.
    aside = torch.randn(8, 600, generator=generator)
    aside = aside - (aside @ slope.T) / slope.square().sum() * slope
    across = -(inputs @ slope.T) / slope.square().sum() * slope
    starts = inputs + 1.01 * across + (times_as_far * nearest / length(aside, norm))[:, None] * aside
    search.offer(starts, rows, search.oracle.depth(starts, rows)[0])
    assert (search.distance > 0.9 * times_as_far * nearest).all()

    _follow_spheres(search, rows, starts, torch.full_like(rows, 36), _FROM_THE_BOUNDARY[norm])

    assert (search.distance < 1.1 * nearest).all()
