"""The nearest of several searches, example by example."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from captum_boundary import BoundaryNotFoundWarning, NearestBoundary, PGDBoundary
from captum_boundary.errors import BoundaryNotFoundError, BoundaryTypeError, BoundaryValueError
from captum_boundary.search import BoundarySearch, ClosestBoundary


class Detour(BoundarySearch):
    """Crosses the boundary along one fixed direction."""

    def __init__(self, forward_func, direction, **options):
        super().__init__(forward_func, **options)
        self.direction = torch.tensor(direction, dtype=torch.float64)

    def propose(self, problem):
        return problem.x + 10 * self.direction


def corner(x):
    """Class 1 where either coordinate exceeds 1."""
    return x.amax(dim=1) - 1


INPUTS = torch.tensor([[0.5, 0.0], [0.0, 0.8], [-1.0, -3.0]], dtype=torch.float64)
ACROSS, UP = Detour(corner, (1.0, 0.0)), Detour(corner, (0.0, 1.0))


def test_every_example_gets_its_nearest_point():
    boundary = ClosestBoundary([ACROSS, UP]).find(INPUTS)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -3.0]], dtype=torch.float64)
    torch.testing.assert_close(boundary.points, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(boundary.distance, torch.tensor([0.5, 0.2, 2.0]).double(), rtol=0, atol=1e-6)
    assert boundary.target.tolist() == [0, 0, 0]
    assert boundary.adversarial.tolist() == [1, 1, 1]


def test_a_row_is_taken_whole_from_one_search():
    closest, across, up = (search.find(INPUTS) for search in (ClosestBoundary([ACROSS, UP]), ACROSS, UP))
    for row, chosen in enumerate([across, up, across]):
        for name in ("points", "target", "adversarial", "distance", "margin", "found"):
            assert torch.equal(getattr(closest, name)[row], getattr(chosen, name)[row])


def test_a_row_keeps_to_the_bounds_of_its_search():
    across = Detour(corner, (1.0, 0.0), bounds=(-9, torch.tensor([2.0, 5.0])))
    up = Detour(corner, (0.0, 1.0), bounds=(-7, 7))
    closest = ClosestBoundary([across, up]).find(INPUTS)
    lower, upper = closest.bounds
    assert lower.tolist() == [[-9, -9], [-7, -7], [-9, -9]]
    assert upper.tolist() == [[2, 5], [7, 7], [2, 5]]
    assert closest[1:].bounds[1].tolist() == [[7, 7], [2, 5]]
    as_tuple = ClosestBoundary([across, up]).find((INPUTS,)).bounds
    assert torch.equal(as_tuple[0][1], upper)
    assert ClosestBoundary([across, across]).find(INPUTS).bounds is across.bounds
    assert ClosestBoundary([ACROSS, UP]).find(INPUTS).bounds is None
    unlimited = ClosestBoundary([across, UP]).find(INPUTS)
    assert unlimited.bounds[1].tolist() == [[2, 5], [math.inf, math.inf], [2, 5]]


def test_all_evaluations_of_all_searches_are_counted():
    passed: list[int] = []
    gradients: list[Tensor] = []

    def counted(x):
        passed.append(len(x))
        if x.requires_grad:
            x.register_hook(gradients.append)
        return corner(x)

    searches = [NearestBoundary(counted, budget=6), PGDBoundary(counted, epsilons=(1.0, 4.0), attack_steps=5)]
    boundary = ClosestBoundary(searches).find(INPUTS)
    assert int(boundary.n_forward.sum()) == sum(passed)
    assert int(boundary.n_gradient.sum()) == sum(map(len, gradients))
    assert (boundary.n_gradient > 5).all()


def test_the_earlier_search_wins_a_tie():
    inputs = torch.zeros(1, 2, dtype=torch.float64)
    assert torch.equal(ClosestBoundary([UP, ACROSS]).perturb(inputs), UP.perturb(inputs))


def test_it_can_be_nested_and_holds_one_search():
    expected = ClosestBoundary([ACROSS, UP]).perturb(INPUTS)
    assert torch.equal(ClosestBoundary([ClosestBoundary([ACROSS]), UP]).perturb(INPUTS), expected)


def test_inputs_of_a_tuple_stay_together():
    def model(first, second):
        return corner(torch.cat([first, second], dim=1))

    searches = [Detour(model, (1.0, 0.0)), Detour(model, (0.0, 1.0))]
    first, second = ClosestBoundary(searches).find((INPUTS[:, :1], INPUTS[:, 1:])).points
    assert torch.equal(torch.cat([first, second], dim=1), ClosestBoundary([ACROSS, UP]).perturb(INPUTS))


def test_only_what_no_search_finds_is_reported():
    searches = [Detour(corner, direction, max_distance=1.0, strict=True) for direction in [(1.0, 0.0), (0.0, 1.0)]]
    with pytest.warns(BoundaryNotFoundWarning, match=r"1 of 3 examples, row\(s\) 2") as caught:
        boundary = ClosestBoundary(searches).find(INPUTS)
    assert len(caught) == 1
    assert boundary.found.tolist() == [True, True, False]
    assert torch.equal(boundary.points[2], INPUTS[2])
    assert boundary.distance[2] == math.inf
    assert boundary.adversarial[2] == -1
    with pytest.raises(BoundaryNotFoundError, match=r"row\(s\) 2"):
        ClosestBoundary(searches, strict=True).find(INPUTS)


def test_its_model_and_norm_are_those_of_the_searches():
    model = nn.Linear(2, 2)
    searches = [PGDBoundary(model, norm=math.inf), PGDBoundary(model, norm=math.inf)]
    closest = ClosestBoundary(searches)
    assert closest.forward_func is model
    assert closest.norm == math.inf


def test_bad_searches_are_refused():
    with pytest.raises(BoundaryValueError, match="at least one BoundarySearch"):
        ClosestBoundary([])
    with pytest.raises(BoundaryTypeError, match="must be a list of searches, but it is Detour"):
        ClosestBoundary(UP)
    with pytest.raises(BoundaryTypeError, match=r"searches\[1\] must be a BoundarySearch, but it is function"):
        ClosestBoundary([UP, corner])
    with pytest.raises(BoundaryValueError, match=r"share their norm.* but their norms are \[2, inf\]"):
        ClosestBoundary([UP, Detour(corner, (1.0, 0.0), norm=math.inf)])
