"""First contact with the boundary."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from captum_boundary import NearestBoundary
from captum_boundary._core.bounds import box_of
from captum_boundary._core.oracle import MarginOracle
from captum_boundary.search import NearestBoundarySettings
from captum_boundary.search._problem import Problem
from captum_boundary.search.nearest.first_contact import newton_phase, newton_step, newton_steps

SETTINGS = NearestBoundarySettings()


def problem_of(model, inputs: Tensor) -> Problem:
    return Problem(MarginOracle(model, (inputs,)), box_of(None, (inputs,)), 2, torch.tensor(1e-12))


def test_a_step_goes_a_little_further_than_it_seems_to_need() -> None:
    """Newton's method alone would end short of a boundary that bends away, again and again."""
    inputs = torch.zeros(1, 1, dtype=torch.float64)
    problem = problem_of(lambda x: 1 - x[:, 0] + 0.015 * x[:, 0] ** 2, inputs)
    point = newton_step(problem, SETTINGS, inputs, problem.linearize(inputs))
    assert problem.signed_margin(point) < 0


def test_rivals_of_about_equal_strength_share_the_slope() -> None:
    inputs = torch.zeros(1, 2, dtype=torch.float64)
    model = lambda x: torch.stack([0 * x[:, 0] + 1, x[:, 0], x[:, 1] - 0.01], dim=1)  # noqa: E731
    point = newton_phase(problem_of(model, inputs), SETTINGS, 1)[0].points[0]
    assert 0.5 * point[0] < point[1] < point[0]


def test_a_dead_end_is_left_after_two_slow_steps() -> None:
    calls = 0

    def saturated(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 1 + 1e-3 * torch.tanh(x[:, 0])  # no boundary, and steps that lead nowhere

    problem = problem_of(saturated, torch.zeros(1, 1, dtype=torch.float64))
    found, _ = newton_phase(problem, SETTINGS, 10)
    assert torch.isinf(found.distance).all()
    assert calls < 12


def test_a_class_that_is_asked_for_is_reached_however_slow_the_steps_are() -> None:
    """Slopes that fade with the distance: the first steps leave nine tenths of the margin."""
    inputs = torch.zeros(2, 600, dtype=torch.float64)
    problem = problem_of(lambda x: 2 - (x[:, 0] + 1e-8).sqrt(), inputs)
    start = problem.signed_margin(inputs)
    _, margin = newton_steps(problem, SETTINGS, inputs, start, 10)
    assert (margin > 0.8 * start).all()
    _, margin = newton_steps(problem, SETTINGS, inputs, start, 10, gives_up=False)
    assert (margin < 0).all()


def _is_sensitive_inside_its_data_range_alone(x: Tensor) -> Tensor:
    """A decision by a few of many values, of which those outside the range of the data tell nothing."""
    weights = torch.randn(600, generator=torch.Generator().manual_seed(0)) ** 5
    return (x.clamp(0, 1) @ weights.to(x))[:, None] * torch.tensor([1.0, -1.0]).to(x)


@pytest.mark.parametrize("norm", [2, 1, math.inf])
def test_where_a_model_sees_nothing_outside_the_range_of_its_data_limits_need_not_be_given(norm) -> None:
    inputs = torch.rand(20, 600, generator=torch.Generator().manual_seed(1))
    free = NearestBoundary(_is_sensitive_inside_its_data_range_alone, norm=norm).find(inputs)
    limited = NearestBoundary(_is_sensitive_inside_its_data_range_alone, norm=norm, bounds=(0, 1)).find(inputs)
    assert (free.distance <= 1.015 * limited.distance).all()
