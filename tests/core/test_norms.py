"""Projections against SciPy's solvers, and the crossing of a boundary on a segment."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from captum_boundary._core.geometry import Box, row_dot
from captum_boundary._core.norms import norm_of

NORMS = [1, 2, math.inf]
DUAL = {1: math.inf, 2: 2, math.inf: 1}
every_norm = pytest.mark.parametrize("norm", NORMS)
thorough = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def vectors(size, low=-3.0, high=3.0):
    return st.lists(st.integers(int(low * 100), int(high * 100)).map(lambda n: n / 100), min_size=size, max_size=size)


@st.composite
def problems(draw, bounded=True):
    """A point, a normal, and the box around the point, all as float64 arrays of one size."""
    size = draw(st.integers(1, 6))
    x, normal = np.array(draw(vectors(size))), np.array(draw(vectors(size)))
    if not bounded:
        return x, normal, np.full(size, -np.inf), np.full(size, np.inf)
    below, above = np.array(draw(vectors(size, 0.0, 2.0))), np.array(draw(vectors(size, 0.0, 2.0)))
    open_ = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    return x, normal, np.where(open_, -np.inf, x - below), x + above


def largest_drop(x, normal, lower, upper):
    """The furthest that the box reaches along the normal (3, where it has no end)."""
    moves = normal != 0  # a coordinate without slope gains nothing, however far it could go
    gains = normal[moves] * np.where(normal > 0, x - lower, x - upper)[moves]
    return min(float(gains.sum()), 3.0)


def project(x, normal, lower, upper, drop, norm):
    batch = (torch.tensor(array)[None] for array in (x, normal, lower, upper))
    point, slope, *sides = batch
    required = torch.tensor([drop], dtype=torch.float64)
    return norm_of(norm).project_onto_half_space(point, slope, required, Box(*sides))[0].numpy()


def shortest_move(x, normal, lower, upper, drop, norm):
    """Length of the shortest move ``m`` with ``normal . m = drop`` and ``x - m`` in the box, by a general solver."""
    size = len(x)
    limits = list(zip(x - upper, x - lower, strict=True))
    if norm == 2:
        start = x - project(x, normal, lower, upper, drop, 1)  # a feasible start that the l2 code has no part in
        solution = minimize(
            lambda move: move @ move,
            start,
            jac=lambda move: 2 * move,
            bounds=limits,
            constraints={"type": "eq", "fun": lambda move: normal @ move - drop, "jac": lambda move: normal},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        return float(np.linalg.norm(solution.x))
    # Linear programmes in (move, size of the move): one bound for all coordinates, or one for each.
    n_sizes = 1 if norm == math.inf else size
    spread = np.ones((size, 1)) if norm == math.inf else np.eye(size)
    solution = linprog(
        np.concatenate([np.zeros(size), np.ones(n_sizes)]),
        A_ub=np.block([[np.eye(size), -spread], [-np.eye(size), -spread]]),
        b_ub=np.zeros(2 * size),
        A_eq=np.concatenate([normal, np.zeros(n_sizes)])[None],
        b_eq=[drop],
        bounds=[*limits, *[(0, None)] * n_sizes],
    )
    assert solution.status == 0
    return float(solution.fun)


@every_norm
@thorough
@given(problem=problems(), share=st.floats(0.0, 0.99))
def test_the_projection_is_the_nearest_point_of_plane_and_box(norm, problem, share):
    x, normal, lower, upper = problem
    drop = share * largest_drop(*problem)
    point = project(*problem, drop, norm)
    assert (point >= lower).all()
    assert (point <= upper).all()
    assert normal @ (x - point) == pytest.approx(drop, abs=1e-9)
    moved = float(np.linalg.norm(x - point, ord=norm))
    assert moved == pytest.approx(shortest_move(*problem, drop, norm), abs=2e-5)


@every_norm
@thorough
@given(problem=problems(bounded=False), drop=st.floats(0.0, 3.0))
def test_without_limits_the_distance_is_the_drop_over_the_dual_norm(norm, problem, drop):
    x, normal, _, _ = problem
    point = project(*problem, drop, norm)
    slope = np.linalg.norm(normal, ord=DUAL[norm])
    expected = drop / slope if slope > 0 else 0.0
    assert np.linalg.norm(x - point, ord=norm) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@every_norm
@thorough
@given(problem=problems(), excess=st.floats(0.01, 10.0))
def test_a_plane_out_of_reach_is_approached(norm, problem, excess):
    x, normal, lower, upper = problem
    if not np.isfinite(lower[normal > 0]).all():
        return
    reach = float((normal * np.where(normal > 0, x - lower, np.where(normal < 0, x - upper, 0.0))).sum())
    point = project(*problem, reach + excess, norm)
    assert (point >= lower).all()
    assert (point <= upper).all()
    assert normal @ (x - point) == pytest.approx(reach, abs=1e-9)


@every_norm
def test_rows_are_projected_independently(norm):
    generator = torch.Generator().manual_seed(0)
    x, normal = torch.rand(2, 8, 5, generator=generator, dtype=torch.float64)
    normal = normal - 0.5
    drop = torch.linspace(0, 1, 8, dtype=torch.float64)
    box = Box(torch.zeros(1, 5, dtype=torch.float64), torch.ones(8, 5, dtype=torch.float64))
    together = norm_of(norm).project_onto_half_space(x, normal, drop, box)
    for row in range(8):
        index = torch.tensor([row])
        alone = norm_of(norm).project_onto_half_space(x[index], normal[index], drop[index], box.of(index))
        torch.testing.assert_close(alone[0], together[row])


@every_norm
@thorough
@given(vector=st.integers(1, 7).flatmap(vectors), radius=st.floats(0.01, 5.0))
def test_the_projection_onto_a_ball_is_the_nearest_point_of_it(norm, vector, radius):
    vector = torch.tensor([vector], dtype=torch.float64)
    point = norm_of(norm).project_onto_ball(vector, torch.tensor([radius], dtype=torch.float64))
    assert norm_of(norm).length(point).item() <= radius * (1 + 1e-12)
    if norm_of(norm).length(vector).item() <= radius:
        torch.testing.assert_close(point, vector)
    # The variational inequality: no point of the ball lies further along what the projection took away.
    removed = vector - point
    furthest = radius * norm_of(norm).dual.length(removed)
    assert furthest.item() <= row_dot(removed, point).item() + 1e-9


@pytest.mark.parametrize("share", [1e-3, 0.02, 0.5, 2.0])
def test_of_many_coordinates_the_steepest_are_used_up_first(share):
    """One after the other, whether a few of them are enough or not; a share of 2 is out of reach."""
    generator = torch.Generator().manual_seed(0)
    x, normal = torch.rand(2, 8192, generator=generator).double(), torch.randn(2, 8192, generator=generator).double()
    gain = torch.where(normal > 0, x, 1 - x) * normal.abs()
    required = share * gain.sum(dim=1)
    found = norm_of(1).project_onto_half_space(x, normal, required, Box(torch.tensor([[0.0]]), torch.tensor([[1.0]])))
    for row, left in enumerate(required.tolist()):
        expected = x[row].clone()
        for index in normal[row].abs().argsort(descending=True):
            used = min(left, gain[row, index].item())
            expected[index] -= used / normal[row, index]
            left -= used
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-9)


def test_no_row_depends_on_whether_others_need_many_coordinates():
    """Bit for bit, where many slopes are equal, as those of pooled pixels are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 8192, generator=generator)
    normal = torch.randn(2, 8192 // 64, generator=generator).repeat_interleave(64, dim=1)
    gain = (torch.where(normal > 0, x, 1 - x) * normal.abs()).sum(dim=1)
    box = Box(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
    for share in (1e-3, 5e-3, 0.02, 0.05):
        alone = norm_of(1).project_onto_half_space(x[:1], normal[:1], share * gain[:1], box)
        required = torch.stack([share * gain[0], 0.9 * gain[1]])
        together = norm_of(1).project_onto_half_space(x, normal, required, box)
        assert torch.equal(alone[0], together[0])


def test_a_box_limits_rows_of_a_batch():
    box = Box(torch.zeros(1, 2), torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    rows = box.of(torch.tensor([1]))
    assert rows.clamp(torch.tensor([[3.0, -1.0]])).tolist() == [[2.0, 0.0]]
    assert rows.lower.shape == (1, 2)
