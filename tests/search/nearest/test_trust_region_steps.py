"""Step rule in l1: each step against a solver, and where descents end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from captum_boundary._core.bounds import box_of
from captum_boundary._core.norms import L1
from captum_boundary._core.oracle import Linearization, MarginOracle
from captum_boundary.search import NearestBoundarySettings
from captum_boundary.search._line_search import line_search
from captum_boundary.search._problem import Incumbent, Phase, Problem
from captum_boundary.search.nearest.descent import descend
from captum_boundary.search.nearest.first_contact import newton_step
from captum_boundary.search.nearest.step_rules import _AIM, Iterate, TrustRegionLPStep

SETTINGS = NearestBoundarySettings()
GAIN = SETTINGS.aim_gain


def problem_of(inputs, bounds=None, depth=1.0) -> Problem:
    """A linear margin that is ``depth`` at the first input."""
    slope = torch.linspace(-1, 1, inputs.shape[1]).to(inputs)
    offset = depth - inputs[0] @ slope
    return Problem(
        MarginOracle(lambda x: x @ slope + offset, (inputs,)), box_of(bounds, (inputs,)), 1, torch.tensor(1e-12)
    )


def iterate(problem: Problem, points, depth, slope) -> Iterate:
    move = points - problem.x
    return Iterate(points, move, L1.length(move), Linearization(depth, depth, slope), problem.box)


def solved(x, points, slope, depth, reach, low, high) -> float:
    """The least l1 distance from x at which the linearized depth is at most 0, by ``y = x + rise - fall``."""
    n = len(x)
    lower, upper = np.maximum(points - reach, low) - x, np.minimum(points + reach, high) - x
    within = np.hstack([np.eye(n), -np.eye(n)])
    solution = linprog(
        np.ones(2 * n),
        A_ub=np.vstack([np.concatenate([slope, -slope]), within, -within]),
        b_ub=np.concatenate([[slope @ (points - x) - depth], upper, -lower]),
        bounds=(0, None),
    )
    assert solution.status in (0, 2)
    return solution.fun if solution.status == 0 else np.inf


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_a_step_solves_its_linear_program(bounds) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, points = torch.rand(2, 60, 9, generator=generator, dtype=torch.float64)
    slope = torch.randn(60, 9, generator=generator, dtype=torch.float64)
    problem = problem_of(inputs, bounds)
    depth = problem.scale * torch.randn(60, generator=generator, dtype=torch.float64)
    reach = 0.3 + torch.rand(60, generator=generator, dtype=torch.float64)
    rule = TrustRegionLPStep(SETTINGS, reach, torch.zeros(1, 60, dtype=torch.float64))
    at = iterate(problem, points, depth, slope)

    moved = rule.step(problem, at, Incumbent.none(problem), 0)

    reach = rule._trust_radius[0]
    assert ((moved - points).abs() <= reach[:, None] + 1e-12).all()
    aim = torch.maximum(GAIN * depth, _AIM * problem.scale)
    low, high = bounds or (-np.inf, np.inf)
    n_solved = 0
    for row in range(60):
        arguments = (values[row].numpy() for values in (inputs, points, slope, depth + aim, reach))
        least = solved(*arguments, low, high)
        if np.isfinite(least):
            n_solved += 1
            assert depth[row] + slope[row] @ (moved - points)[row] <= -aim[row] + 1e-9
            assert problem.distance(moved)[row].item() == pytest.approx(least, rel=1e-7, abs=1e-9)
    assert n_solved > 30


def test_steps_that_fall_short_let_the_next_ones_aim_further() -> None:
    inputs = torch.zeros(1, 4, dtype=torch.float64)
    problem = problem_of(inputs)
    rule = TrustRegionLPStep(
        SETTINGS, torch.full((1,), 100.0, dtype=torch.float64), torch.zeros(6, 1, dtype=torch.float64)
    )
    slope = torch.tensor([[1.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
    aims = []
    for step, depth in enumerate((0.5, 0.5, -3.0, 0.5, torch.inf, 0.5)):
        at = iterate(problem, inputs, torch.tensor([depth], dtype=torch.float64), slope)
        moved = rule.step(problem, at, Incumbent.none(problem), step)
        assert moved.isfinite().all()
        aims.append(-(depth + (slope @ moved.T).item()))
    assert aims[:2] == pytest.approx([0.5 * GAIN, GAIN])
    assert aims[3] == pytest.approx(_AIM + 0.5 * GAIN)  # after a point that lay well beyond the boundary
    assert aims[5] == pytest.approx(1.0)  # no further than the input is deep, after a model that returned no number


def test_slopes_are_averages() -> None:
    inputs = torch.zeros(1, 2, dtype=torch.float64)
    problem = problem_of(inputs)
    rule = TrustRegionLPStep(
        SETTINGS, torch.full((1,), 9.0, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    )
    depth = torch.ones(1, dtype=torch.float64)
    for step, slope in enumerate(([[1.0, 0.0]], [[0.0, 1.0]])):
        at = iterate(problem, inputs, depth, torch.tensor(slope, dtype=torch.float64))
        moved = rule.step(problem, at, Incumbent.none(problem), step)
    assert SETTINGS.slope_memory > 0.5  # so that the first of two slopes is the steeper one
    assert moved[0, 0] < 0
    assert moved[0, 0].abs() > moved[0, 1].abs()


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_a_descent_ends_at_the_closest_point_of_a_hyperplane(bounds) -> None:
    inputs = torch.rand(8, 600, generator=torch.Generator().manual_seed(0))
    problem = problem_of(inputs, bounds, depth=20.0)
    plane = problem.linearize(inputs)
    exact = problem.distance(L1.project_onto_half_space(inputs, plane.slope, plane.depth, problem.box))
    known = line_search(problem, newton_step(problem, SETTINGS, inputs, plane), Phase.NEWTON)
    assert (known.distance > 1.45 * exact).all()
    assert (descend(problem, SETTINGS, known, torch.full((8,), 36), seed=0).distance < 1.01 * exact).all()
