"""Rows that leave a batch and come back, points that improve upon others, and linearized distances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_boundary._core.bounds import box_of
from captum_boundary._core.oracle import MarginOracle
from captum_boundary.search._problem import ActiveSet, Incumbent, Problem


class Doubled:
    """State that is no tensor."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def select(self, rows: torch.Tensor) -> Doubled:
        return Doubled(self.values[rows])


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_every_row_is_worked_on_as_often_as_it_should_and_written_back(counts) -> None:
    wanted = torch.tensor(counts)
    active = ActiveSet(torch.arange(len(counts)), left=wanted, done=torch.zeros_like(wanted), other=Doubled(wanted))
    result = torch.zeros_like(wanted)
    for _ in range(10):
        active.keep(active.left > 0)
        if len(active) == 0:
            break
        assert torch.equal(active.other.values, wanted[active.rows])  # all state stays side by side
        active.done, active.left = active.done + 1, active.left - 1
        result = active.write(result, active.done)
    assert torch.equal(result, wanted)


def test_an_active_set_writes_to_incumbents_and_knows_its_state() -> None:
    incumbent = Incumbent(torch.zeros(3, 2), torch.full((3,), torch.inf), torch.zeros(3, dtype=torch.long))
    active = ActiveSet(torch.arange(3), incumbent=incumbent)
    assert active.staying(torch.ones(3, dtype=torch.bool)) is None
    active.keep(torch.tensor([False, True, True]))
    assert active.rows.tolist() == [1, 2]
    nearer = active.incumbent.improved_by(torch.ones(2, 2), torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 1.0]), 4)
    written = active.write(incumbent, nearer)
    assert written.distance.tolist() == [torch.inf, 1.0, torch.inf]
    assert written.phase.tolist() == [0, 4, 0]
    assert written.points.tolist() == [[0, 0], [1, 1], [0, 0]]
    with pytest.raises(AttributeError, match="no state 'margin'"):
        _ = active.margin


@pytest.mark.parametrize("norm", [2, math.inf, 1])
def test_linearized_distances_of_a_linear_model_are_exact(norm) -> None:
    x = torch.tensor([[1.0, 0.5], [0.3, 0.3], [0.0, 0.0]], dtype=torch.float64)
    weight = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    problem = Problem(MarginOracle(lambda z: z @ weight.T, (x,), 0), box_of(None, (x,)), norm, torch.tensor(1e-12))
    dual = {2: 5**0.5, math.inf: 3.0, 1: 2.0}[norm]
    expected = torch.tensor([1.5, 0.3, 0.0], dtype=torch.float64) / dual  # the last lies on the boundary itself
    torch.testing.assert_close(problem.linearized_distance(problem.linearize(x)), expected)


def test_a_boundary_out_of_bounds_is_infinitely_far() -> None:
    x = torch.zeros(1, 2, dtype=torch.float64)
    oracle = MarginOracle(lambda z: torch.stack([1 - z[:, 0], 0 * z[:, 0]], dim=1), (x,))
    problem = Problem(oracle, box_of((-0.5, 0.5), (x,)), 2, torch.tensor(1e-12))
    assert torch.isinf(problem.linearized_distance(problem.linearize(x))).all()
