"""The nearest valid row of a table: combinations of categories, and the other columns searched within them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.geometry import Box
from captum_boundary.search._categories import Categories
from captum_boundary.search._problem import linearized_boundary
from captum_boundary.search.boundary_search import BoundarySearch
from captum_boundary.search.boundary_status import BoundaryStatus
from captum_boundary.search.search_problem import SearchProblem

__all__ = ["Combinations", "Incumbent"]

# Combinations whose slopes are compared, those nearest to the boundary first, for every one that is searched.
_SCREENED = 4


class Incumbent(NamedTuple):
    """The nearest valid rows beyond the boundary that are known, at distance infinity where there is none yet.

    Attributes:

        points (Tensor): Rows, ``(n, D)``; the inputs where there is none.
        distance (Tensor): Their distances, ``(n,)``.
        status (Tensor): How they were found, ``(n,)``: values of :class:`BoundaryStatus`.
    """

    points: Tensor
    distance: Tensor
    status: Tensor

    @classmethod
    def none(cls, problem: SearchProblem) -> Incumbent:
        distance = problem.x.new_full((len(problem),), torch.inf)
        return cls(problem.x, distance, torch.full_like(problem.target, BoundaryStatus.FOUND))

    def improved_by(self, rows: Tensor, candidates: Incumbent, signed_margin: Tensor) -> Incumbent:
        """The nearest of these and of candidates beyond the boundary; of equal ones, that with the largest overshoot.

        ``rows`` ``(P,)`` says which example each candidate belongs to.
        """
        beyond = (signed_margin < 0).nonzero().flatten()
        order = beyond[signed_margin[beyond].argsort(stable=True)]
        first = order[_first_of_each(rows[order], candidates.distance[order], 1)]
        first = first[candidates.distance[first] < self.distance[rows[first]]]
        pairs = zip(self, candidates, strict=True)
        return Incumbent(*(known.index_copy(0, rows[first], new[first]) for known, new in pairs))


class Combinations:
    """The model at n examples, with other categories than their own.

    Rows ``(P,)`` say which examples combinations ``(P, G)`` belong to; an example has many.
    """

    def __init__(
        self, problem: SearchProblem, categories: Categories, fixed: tuple[int, ...], search: BoundarySearch
    ) -> None:
        self.problem = problem
        self.categories = categories
        self.start = categories.combination_of(problem.x)
        self._search = search
        self._pinned = categories.columns.any(dim=0)
        self._pinned[list(fixed)] = True
        self._allowed = categories.allowed(problem.lower, problem.upper)

    def nearest(self, n_searched: int) -> Incumbent:
        """The nearest rows found, at most ``n_searched`` searches for each number of groups that change."""
        problem = self.problem
        rows, combination = torch.arange(len(problem), device=problem.x.device), self.start
        incumbent = self._searched(Incumbent.none(problem), rows, combination)
        for n_changes in range(1, self.categories.n_groups + 1):
            problem.progress(n_changes / (self.categories.n_groups + 1))
            rows, combination = self._with_one_more_change(rows, combination)
            points = self.categories.put(problem.x[rows], combination)
            distance = problem.select(rows).distance(points)
            near = (distance < incumbent.distance[rows]).nonzero().flatten()
            if len(near) == 0:
                break
            rows, combination, points, distance = rows[near], combination[near], points[near], distance[near]
            margin = problem.select(rows).signed_margin(points)
            status = torch.full_like(rows, BoundaryStatus.CATEGORIES)
            incumbent = incumbent.improved_by(rows, Incumbent(points, distance, status), margin)
            # Whatever else changes where the decision has changed already only adds to the distance.
            is_open = (margin >= 0) & torch.isfinite(margin) & (distance < incumbent.distance[rows])
            open_ones = is_open.nonzero().flatten()
            rows, combination, margin = rows[open_ones], combination[open_ones], margin[open_ones]
            chosen = self._promising(rows, combination, margin, n_searched)
            rows, combination = rows[chosen], combination[chosen]
            incumbent = self._searched(incumbent, rows, combination)
        return incumbent

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

    def _promising(self, rows: Tensor, combination: Tensor, margin: Tensor, n_searched: int) -> Tensor:
        """Which combinations to search: those whose linearized boundary is nearest."""
        screened = _first_of_each(rows, margin, _SCREENED * n_searched)
        if len(screened) == 0 or bool(self._pinned.all()):
            return screened
        chunks = torch.split(screened, self._search.internal_batch_size or len(screened))
        distance = torch.cat([self._linearized_distance(rows[chunk], combination[chunk]) for chunk in chunks])
        return screened[_first_of_each(rows[screened], distance, n_searched)]

    def _linearized_distance(self, rows: Tensor, combination: Tensor) -> Tensor:
        """Distances ``(P,)`` to where the margin would vanish if it were linear, of columns without categories."""
        part = self.problem.select(rows)
        with torch.enable_grad():
            points = self.categories.put(part.x, combination).requires_grad_()
            margin = part.signed_margin(points)
            (slope,) = torch.autograd.grad(margin.sum(), points)
        points, slope, box = points.detach(), slope * ~self._pinned, Box(part.lower, part.upper)
        nearest, is_reached = linearized_boundary(part.norm, points, margin.detach(), slope, box)
        return torch.where(is_reached, part.distance(nearest), torch.inf)

    def _searched(self, incumbent: Incumbent, rows: Tensor, combination: Tensor) -> Incumbent:
        """The nearer of these and of what a search of the columns without categories finds."""
        if len(rows) == 0 or bool(self._pinned.all()):
            return incumbent
        part = self.problem.select(rows)
        points = self.categories.put(part.x, combination)
        lower, upper = (torch.where(self._pinned, points, side) for side in (part.lower, part.upper))
        solution = self._search.solve(self.problem.subproblem(points, rows, limits=(lower, upper)))
        found = Incumbent(solution.points, part.distance(solution.points), solution.status)
        return incumbent.improved_by(rows, found, solution.signed_margin)


def _first_of_each(rows: Tensor, key: Tensor, n: int) -> Tensor:
    """The entries with the ``n`` least keys of every row."""
    order = key.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    ordered = rows[order]
    places = torch.arange(len(rows), device=rows.device) - torch.searchsorted(ordered, ordered)
    return order[places < n]
