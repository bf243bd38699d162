"""How a search says which phase found a point and why it ended."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from captum_boundary import BoundaryNotFoundWarning, NearestBoundary
from captum_boundary.search import BoundarySearch, BoundaryStatus, ClosestBoundary, PGDBoundary, Proposal


class Reporting(BoundarySearch):
    """Steps along the first coordinate, and says of its end what it is told to."""

    def __init__(self, forward_func, status, step=10.0, **options):
        super().__init__(forward_func, **options)
        self.status, self.step = status, step

    def propose(self, problem):
        points = problem.x.clone()
        points[:, 0] += self.step
        return Proposal(points, torch.full((len(points),), self.status))


def beyond_one(x):
    return x[:, 0] - 1


INPUTS = torch.tensor([[0.0, 0.0], [0.5, 1.0]], dtype=torch.float64)


def names(boundary):
    return [BoundaryStatus(value).name for value in boundary.status.tolist()]


@pytest.mark.parametrize("status", BoundaryStatus)
def test_every_status_is_one_sentence(status):
    sentence = str(status)
    assert sentence.endswith(".")
    assert sentence.count(".") == 1
    assert ("ran into its budget" in sentence) == status.ran_into_budget
    assert status.is_found == sentence.startswith("Found by")
    assert status.ran_into_budget == status.name.endswith("BUDGET")


def test_sentences_differ():
    assert len({str(status) for status in BoundaryStatus}) == len(BoundaryStatus)


def test_every_phase_has_every_end():
    assert {int(status) for status in BoundaryStatus if status.is_found} == {
        10 * phase + end for phase in range(1, 8) for end in range(4)
    }


def test_a_status_that_a_search_tells_is_kept():
    boundary = Reporting(beyond_one, BoundaryStatus.RESTART_STALLED).find(INPUTS)
    assert boundary.status.dtype == torch.long
    assert names(boundary) == ["RESTART_STALLED"] * 2


def test_a_search_that_tells_nothing_has_found_or_not():
    assert names(PGDBoundary(beyond_one, epsilons=(3.0,)).find(INPUTS)) == ["FOUND", "FOUND"]
    with pytest.warns(BoundaryNotFoundWarning):
        boundary = PGDBoundary(beyond_one, epsilons=(0.7,)).find(INPUTS)
    assert names(boundary) == ["NOT_FOUND", "FOUND"]


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_where_nothing_is_found_the_status_says_why():
    assert names(Reporting(beyond_one, BoundaryStatus.FOUND_BUDGET, step=0.1).find(INPUTS)) == ["NOT_FOUND_BUDGET"] * 2
    assert names(Reporting(beyond_one, BoundaryStatus.DESCENT_OPTIMAL, step=0.1).find(INPUTS)) == ["NOT_FOUND"] * 2
    far = Reporting(beyond_one, BoundaryStatus.NEWTON_OPTIMAL, max_distance=0.7).find(INPUTS)
    assert names(far) == ["TOO_FAR", "NEWTON_OPTIMAL"]


def test_a_label_that_is_not_kept_is_named():
    calls = 0

    def fickle(x):
        nonlocal calls
        calls += 1
        return x[:, 0] - 1 if calls != last else -torch.ones_like(x[:, 0])

    last = math.inf
    Reporting(fickle, BoundaryStatus.FOUND).find(INPUTS)
    last, calls = calls, 0
    with pytest.warns(BoundaryNotFoundWarning):
        boundary = Reporting(fickle, BoundaryStatus.FOUND).find(INPUTS)
    assert names(boundary) == ["LABEL_NOT_KEPT"] * 2


def test_a_search_that_gave_up_beside_the_boundary_has_found_it():
    """Landing looks a little further along the line."""
    boundary = Reporting(beyond_one, BoundaryStatus.NOT_FOUND).find(INPUTS)
    assert names(boundary) == ["FOUND"] * 2


def test_the_nearest_search_says_when_its_budget_is_spent():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4))
        inputs = torch.randn(8, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        hasty = NearestBoundary(model, budget=2).find(inputs)
    assert all(BoundaryStatus(value).ran_into_budget for value in hasty.status.tolist())
    linear = NearestBoundary(nn.Linear(6, 2)).find(inputs)
    assert not any(BoundaryStatus(value).ran_into_budget for value in linear.status.tolist())


def test_rows_keep_their_status_and_the_nearest_of_several_searches_brings_its_own():
    first = Reporting(beyond_one, BoundaryStatus.NEWTON_BUDGET)
    second = Reporting(lambda x: x[:, 0] - 1, BoundaryStatus.FOUND, step=-1.0)
    assert names(first.find(INPUTS)[1:]) == ["NEWTON_BUDGET"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        second.forward_func = beyond_one
        assert names(ClosestBoundary([second, first]).find(INPUTS)) == ["NEWTON_BUDGET"] * 2
