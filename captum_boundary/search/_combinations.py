"""The nearest valid row of a table: combinations of categories, and the other columns searched within them."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary._core.geometry import Box, length, project_onto_hyperplane, row_dot
from captum_boundary._core.oracle import MarginOracle
from captum_boundary.search._categories import Categories
from captum_boundary.search._differentiable_scores import DifferentiableScores
from captum_boundary.search._landing import move_onto_boundary
from captum_boundary.search._problem import Candidates, Problem
from captum_boundary.search.boundary_search import BoundarySearch
from captum_boundary.search.search_problem import Proposal, SearchProblem

__all__ = ["Combinations"]

# Combinations whose slopes are compared, those nearest to the boundary first, for every one that is searched.
_SCREENED = 4


class Combinations:
    """The model at n examples, with other categories than their own.

    Rows ``(P,)`` say which examples combinations ``(P, G)`` belong to; an example has many.
    """

    def __init__(
        self, problem: Problem, categories: Categories, fixed: tuple[int, ...], search: BoundarySearch, seed: int
    ) -> None:
        self.problem = problem
        self.categories = categories
        self.start = categories.combination_of(problem.x)
        self._search, self._seed = search, seed
        self._pinned = categories.columns.any(dim=0)
        self._pinned[list(fixed)] = True
        self._allowed = categories.allowed(problem.box)

    def nearest(self, n_searched: int) -> Candidates:
        """The nearest points found, at most ``n_searched`` searches for each number of groups that change."""
        problem = self.problem
        rows, combination = problem.oracle.all_rows, self.start
        best = self._searched(Candidates.none(problem), rows, combination)
        for _ in range(self.categories.n_groups):
            rows, combination = self._with_one_more_change(rows, combination)
            points = self.categories.put(problem.x[rows], combination)
            distance = length(points - problem.x[rows], problem.norm)
            near = (distance < best.distance[rows]).nonzero().flatten()
            if len(near) == 0:
                break
            rows, combination, points, distance = rows[near], combination[near], points[near], distance[near]
            depth, _ = problem.oracle.depth(points, rows)
            best = _or_nearer(best, rows, points, distance, depth)
            # Whatever else changes where the decision has changed already only lengthens the way.
            is_open = (depth >= 0) & torch.isfinite(depth) & (distance < best.distance[rows])
            open_ones = is_open.nonzero().flatten()
            rows, combination, depth = rows[open_ones], combination[open_ones], depth[open_ones]
            chosen = self._promising(rows, combination, depth, n_searched)
            rows, combination = rows[chosen], combination[chosen]
            best = self._searched(best, rows, combination)
        return best

    def _with_one_more_change(self, rows: Tensor, combination: Tensor) -> tuple[Tensor, Tensor]:
        """All combinations in which one group more differs from the example's own, each once."""
        group = self.categories.group
        options = torch.arange(len(group), device=group.device)
        own = self.start[rows]
        is_new = (options != own[:, group]) & (combination == own)[:, group]
        is_new &= self._allowed[rows] if len(self._allowed) > 1 else self._allowed
        which, option = is_new.nonzero(as_tuple=True)
        changed = combination[which].scatter(1, group[option, None], option[:, None])
        both = torch.unique(torch.cat([rows[which, None], changed], dim=1), dim=0)
        return both[:, 0], both[:, 1:]

    def _promising(self, rows: Tensor, combination: Tensor, depth: Tensor, n_searched: int) -> Tensor:
        """Which combinations to search: those whose linearised boundary is nearest."""
        screened = _first_of_each(rows, depth, _SCREENED * n_searched)
        if len(screened) == 0 or bool(self._pinned.all()):
            return screened
        distance = self._linearised_distance(rows[screened], combination[screened])
        return screened[_first_of_each(rows[screened], distance, n_searched)]

    def _linearised_distance(self, rows: Tensor, combination: Tensor) -> Tensor:
        """Distances ``(P,)`` at which the margin would vanish if it were linear; infinite where limits forbid it."""
        problem = self.problem
        x = problem.x[rows]
        points = self.categories.put(x, combination)
        plane = problem.oracle.linearize(points, rows)
        slope, drop = plane.slope * ~self._pinned, plane.value.clamp_min(0.0)
        nearest = project_onto_hyperplane(points, slope, drop, problem.box.of(rows), problem.norm)
        reaches = row_dot(slope, points - nearest) >= 0.99 * drop
        return torch.where(reaches, length(nearest - x, problem.norm), torch.inf)

    def _searched(self, best: Candidates, rows: Tensor, combination: Tensor) -> Candidates:
        """The nearer of these and of what a search of the columns without categories finds."""
        if len(rows) == 0 or bool(self._pinned.all()):
            return best
        problem = self.problem
        oracle, box = problem.oracle, problem.box.of(rows)
        points = self.categories.put(problem.x[rows], combination)

        def scores(points: Tensor, owners: Tensor) -> Tensor:
            given: Tensor = DifferentiableScores.apply(points, oracle, owners)
            return given

        inner = MarginOracle(scores, oracle.unpack(points), oracle.target[rows], rows, self._search.internal_batch_size)
        lower, upper = (torch.where(self._pinned, points, side) for side in (box.lower, box.upper))
        within = Problem(inner, Box(lower, upper), problem.norm, problem.noise)
        view = SearchProblem(within, self._seed, as_tuple=False, progress=lambda done: None)
        with torch.enable_grad():
            proposal = self._search.propose(view)
        ends = view.flatten(proposal.points if isinstance(proposal, Proposal) else proposal).detach()
        ends, depth = move_onto_boundary(within, ends)
        return _or_nearer(best, rows, ends, length(ends - problem.x[rows], problem.norm), depth)


def _or_nearer(best: Candidates, rows: Tensor, points: Tensor, distance: Tensor, depth: Tensor) -> Candidates:
    """The nearest, for each example, of the best and of points beyond the boundary; of equals, the deepest one."""
    beyond = (depth < 0).nonzero().flatten()
    order = beyond[depth[beyond].argsort(stable=True)]
    first = order[_first_of_each(rows[order], distance[order], 1)]
    if len(first) == 0:
        return best
    here = rows[first]
    return best.replaced(here, best.select(here).or_nearer(points[first], distance[first], depth[first]))


def _first_of_each(rows: Tensor, key: Tensor, n: int) -> Tensor:
    """The entries with the ``n`` least keys of every row."""
    order = key.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    ordered = rows[order]
    places = torch.arange(len(rows), device=rows.device) - torch.searchsorted(ordered, ordered)
    return order[places < n]
