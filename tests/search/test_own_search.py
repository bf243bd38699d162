"""A search of one's own: what it is given, what it may return, and searches that are made of others."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_boundary import AggregatedBoundaryNormals, BoundaryNotFoundWarning, NearestBoundary
from captum_boundary._core.norms import L1
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search import BoundarySearch, BoundaryStatus, CategoricalBoundary, ClosestBoundary, Proposal

INPUTS = torch.tensor([[0.5, 0.0, -1.0], [-0.5, 2.0, 0.3], [3.0, 1.0, 0.0]])


def first_beyond_one(x, *arguments):
    return x[:, 0] - 1


class Search(BoundarySearch):
    """A search that proposes what a function makes of the problem."""

    def __init__(self, forward_func, function, **options):
        super().__init__(forward_func, **options)
        self.function = function

    def propose(self, problem):
        return self.function(problem)


def along(problem, step=5.0):
    direction = torch.zeros_like(problem.x)
    direction[:, 0] = torch.where(problem.x[:, 0] < 1, step, -step)
    return problem.x + direction


def test_points_come_from_anywhere_beyond_and_end_on_the_boundary():
    boundary = Search(first_beyond_one, along).find(INPUTS)
    assert boundary.found.all()
    torch.testing.assert_close(boundary.distance, torch.tensor([0.5, 1.5, 2.0]), rtol=1e-4, atol=0)
    assert boundary.target.tolist() == [0, 0, 1]


def test_what_a_search_is_given():
    seen = []

    def look(problem):
        seen.append(problem)
        return problem.x

    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    images = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    target = [0, 1, 2, 0]
    scores = model(images).detach()
    with pytest.warns(BoundaryNotFoundWarning):
        Search(model, look, bounds=(-4, 4), norm=1).find(images, target, mask=torch.tensor([[1, 0], [1, 1]]))
    (problem,) = seen
    assert torch.equal(problem.x, images.flatten(1))
    assert torch.equal(problem.inputs, images)
    assert torch.equal(problem.unflatten(problem.x), images)
    assert torch.equal(problem.flatten(images), problem.x)
    assert len(problem) == 4
    assert problem.norm is L1
    assert problem.n_classes == 3
    assert problem.target.tolist() == target
    assert torch.equal(problem.targeted, scores.argmax(1) != torch.tensor(target))
    torch.testing.assert_close(problem.scores(images), scores)
    signs = torch.where(problem.targeted, -1.0, 1.0)
    rows = torch.arange(4)
    others = scores.scatter(1, problem.target[:, None], -math.inf).amax(dim=1)
    torch.testing.assert_close(problem.signed_margin(problem.x), signs * (scores[rows, problem.target] - others))
    assert (problem.signed_margin(problem.x) >= 0).all()
    moved = problem.clamp(problem.x + 100)
    assert torch.equal(moved[:, 1], problem.x[:, 1])  # fixed by the mask
    assert (moved[:, [0, 2, 3]] == 4).all()
    assert torch.equal(problem.distance(moved), (moved - problem.x).abs().sum(dim=1))
    part = problem.select(torch.tensor([2, 0]))
    assert part.example_index.tolist() == [2, 0]
    assert torch.equal(part.x, problem.x[[2, 0]])
    assert torch.equal(problem.select(problem.targeted).targeted, problem.targeted[problem.targeted])


def test_scores_have_the_gradient_of_the_model_and_every_evaluation_counts():
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def propose(problem):
        points = problem.x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(problem.scores(points)[:, 1].sum(), points)
        expected = torch.func.vmap(torch.func.grad(lambda x: model(x)[1]))(problem.x)
        torch.testing.assert_close(slope, expected)
        before.append(int(problem._problem.oracle.n_forward[0]))
        part = problem.select(torch.tensor([True, False, False]))
        for _ in range(5):
            part.scores(part.x)
        return problem.x

    before: list[int] = []
    passed: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, given: passed.append(len(given[0])) if given[0].ndim > 1 else None
    )
    with pytest.warns(BoundaryNotFoundWarning):
        boundary = Search(model, propose).find(INPUTS)
    handle.remove()
    assert boundary.n_gradient.tolist() == [1, 1, 1]
    assert int(boundary.n_forward.sum()) == sum(passed)
    assert boundary.n_forward[0] - boundary.n_forward[2] >= 5
    assert all(parameter.grad is None for parameter in model.parameters())


RETURNS = {
    "flat": along,
    "shaped": lambda problem: problem.unflatten(along(problem)),
    "proposal": lambda problem: Proposal(along(problem)),
    "proposal of shaped points": lambda problem: Proposal(problem.unflatten(along(problem))),
    "another dtype": lambda problem: along(problem).double(),
    "a graph": lambda problem: along(problem).requires_grad_() * 1,
}


@pytest.mark.parametrize("propose", RETURNS.values(), ids=RETURNS)
@pytest.mark.parametrize("as_tuple", [False, True])
def test_all_forms_of_points_will_do(propose, as_tuple):
    inputs = (INPUTS[:, :1], INPUTS[:, 1:, None]) if as_tuple else INPUTS
    boundary = Search(first_beyond_one, propose).find(inputs)
    points = torch.cat([part.flatten(1) for part in boundary.points], dim=1) if as_tuple else boundary.points
    torch.testing.assert_close(points, Search(first_beyond_one, along).find(INPUTS).points)
    assert not points.requires_grad


BAD_RETURNS = {
    "None": (lambda problem: None, BoundaryTypeError, "points must be a Tensor.*NoneType"),
    "array": (lambda problem: problem.x.numpy(), BoundaryTypeError, "ndarray"),
    "some rows": (lambda problem: problem.x[:2], BoundaryValueError, r"flat, \(3, 3\), .* shapes are \[\(2, 3\)\]"),
    "other features": (lambda problem: problem.x[:, :2], BoundaryValueError, r"shapes are \[\(3, 2\)\]"),
}


@pytest.mark.parametrize(("propose", "error", "message"), BAD_RETURNS.values(), ids=BAD_RETURNS)
def test_points_that_are_none_are_refused(propose, error, message):
    with pytest.raises(error, match=message):
        Search(first_beyond_one, propose).find(INPUTS)


def test_points_without_a_number_are_not_found():
    def propose(problem):
        points = along(problem)
        points[0, 1], points[1, 0] = math.nan, math.inf
        return points

    with pytest.warns(BoundaryNotFoundWarning, match=r"row\(s\) 1:"):
        boundary = Search(first_beyond_one, propose).find(INPUTS)
    assert boundary.found.tolist() == [True, False, True]
    assert torch.isfinite(boundary.points).all()


def test_a_search_may_write_into_what_it_is_given():
    def propose(problem):
        images = problem.inputs
        images += 3
        problem.x.add_(torch.tensor([5.0, 0, 0]))
        return problem.x

    inputs = INPUTS[:2].clone()
    boundary = Search(first_beyond_one, propose).find(inputs)
    assert torch.equal(inputs, INPUTS[:2])
    torch.testing.assert_close(boundary.distance, torch.tensor([0.5, 1.5]), rtol=1e-4, atol=0)


def test_random_numbers_do_not_depend_on_the_batch_and_leave_the_callers_alone():
    drawn = []

    def propose(problem):
        with problem.seeded():
            drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))  # noqa: NPY002
        drawn.append(torch.rand(1, generator=problem.generator).item())
        return along(problem)

    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    Search(first_beyond_one, propose).find(INPUTS)
    Search(first_beyond_one, propose, internal_batch_size=1).find(INPUTS)
    assert len(set(drawn[::2])) == len(set(drawn[1::2])) == 1
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    del drawn[:]
    Search(first_beyond_one, propose, generator=torch.Generator().manual_seed(5)).find(INPUTS)
    Search(first_beyond_one, propose, generator=torch.Generator().manual_seed(6)).find(INPUTS)
    assert len(set(drawn)) == 4


def test_progress_is_shown_in_shares(capsys):
    def propose(problem):
        for share in (0.25, 0.5, 1.0):
            problem.progress(share)
        return along(problem)

    Search(first_beyond_one, propose, internal_batch_size=2).find(INPUTS)
    assert capsys.readouterr().err == ""
    Search(first_beyond_one, propose, show_progress=True, internal_batch_size=2).find(INPUTS)
    shown = capsys.readouterr().err
    assert "100%" in shown
    closest = ClosestBoundary([Search(first_beyond_one, propose, show_progress=True)] * 2)
    closest.find(INPUTS)
    assert "Closest boundary: 100%" in capsys.readouterr().err


# Searches made of others ----------------------------------------------------------------------------------------------


def test_a_subproblem_counts_for_both_and_keeps_to_both_limits():
    seen = {}

    def propose(problem):
        rows = torch.tensor([2, 0, 0])
        points = problem.x[rows] + torch.tensor([[0.0], [0.0], [0.25]])
        limits = problem.x.new_full((3, 3), -50), problem.x.new_full((3, 3), 2.0)
        limits[1][0] = 50
        part = problem.subproblem(points, rows, bounds=(-4, torch.tensor([9.0, 9.0, 3.0])), limits=limits)
        assert torch.equal(part.x, points)
        assert part.example_index.tolist() == [2, 0, 0]
        assert part.target.tolist() == problem.target[rows].tolist()
        moved = part.clamp(part.x + 100)
        assert moved.tolist() == [[9, 9, 3], [2, 2, 2], [2, 2, 2]]
        assert (part.clamp(part.x - 100) == -4).all()
        before = problem._problem.oracle.n_forward.clone()
        part.scores(part.x)
        assert (problem._problem.oracle.n_forward - before).tolist() == [2, 0, 1]
        seen["solution"] = Search(first_beyond_one, along).solve(part)
        return along(problem)

    Search(first_beyond_one, propose, bounds=(-9, 9)).find(INPUTS)
    solution = seen["solution"]
    assert solution.found.all()
    assert (solution.signed_margin < 0).all()
    torch.testing.assert_close(solution.points[:, 0], torch.ones(3), rtol=1e-4, atol=0)


def test_the_closest_of_own_searches_and_of_any_kind():
    far = Search(first_beyond_one, lambda problem: along(problem) + torch.tensor([0.0, 30.0, 0.0]))
    near = Search(first_beyond_one, along)
    both = ClosestBoundary([far, NearestBoundary(first_beyond_one, max_distance=1.0), near]).find(INPUTS)
    torch.testing.assert_close(both.distance, torch.tensor([0.5, 1.5, 2.0]), rtol=1e-4, atol=0)


def test_rows_of_a_table_stay_valid_in_the_closest_of_searches():
    """No point of theirs is moved towards the input, through what lies between categories."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
        inputs = torch.randn(12, 5)
    inputs[:, 2:] = torch.eye(3)[torch.arange(12) % 3]
    few, many = (CategoricalBoundary(NearestBoundary(model, budget=5), [[2, 3, 4]], fixed=fixed) for fixed in ([0], []))
    boundary = ClosestBoundary([few, many]).find(inputs)
    alone = [search.find(inputs).distance for search in (few, many)]
    torch.testing.assert_close(boundary.distance, torch.minimum(*alone))
    categories = boundary.points[:, 2:]
    assert torch.equal(categories.sort(dim=1).values, torch.tensor([0.0, 0, 1]).expand(12, 3))
    assert (categories != inputs[:, 2:]).any()
    names = {BoundaryStatus(value).name for value in boundary.status.tolist()}
    assert "CATEGORIES" in names
    with pytest.raises(BoundaryValueError, match="must be one table"):
        ClosestBoundary([few]).find(inputs[:, None])
    with pytest.raises(BoundaryValueError, match="takes no mask"):
        ClosestBoundary([few]).find(inputs, mask=torch.ones(5))


def test_several_boundaries_of_the_closest_of_searches_also_within_bounds_of_each_example():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
        inputs = torch.randn(5, 4)
    limit = torch.linspace(3, 4, 5)[:, None].expand(5, 4)
    searches = [NearestBoundary(model, budget=10, bounds=bounds) for bounds in ((-limit, limit), (-9, 9))]
    for sampling in ("classes", "random"):
        found = []
        for search in (ClosestBoundary(searches), searches[1]):
            normals = AggregatedBoundaryNormals(model, search)
            found.append(normals.attribute(inputs, n_boundaries=3, sampling=sampling, return_boundary=True)[1])
        assert found[0].found.any(dim=1).all()
        assert (found[0].distance[:, 0] <= found[1].distance[:, 0] * 1.001).all()


class Own(nn.Module):
    """A model with a part that a search of one's own can be pointed at."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] - 1


def test_a_search_can_be_pointed_at_another_function():
    search = Search(first_beyond_one, along, norm=1, bounds=(-9, 9))
    other = search.with_forward_func(Own())
    assert isinstance(other.forward_func, Own)
    assert (other.norm, other.bounds, other.function) == (1, (-9, 9), along)
    assert search.forward_func is first_beyond_one
    assert torch.equal(other.find(INPUTS).points, search.find(INPUTS).points)
