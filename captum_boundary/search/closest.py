"""The nearest boundary point that any of several searches finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.bounds import are_same_bounds
from captum_boundary._core.mask import Mask
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search._same_model import check_same_model
from captum_boundary.search.boundary_search import BoundarySearch
from captum_boundary.search.search_problem import Proposal, SearchProblem

__all__ = ["ClosestBoundary"]


class ClosestBoundary(BoundarySearch):
    r"""For every example the nearest of the boundary points that several searches find.

    All searches see all examples, so the cost is the sum of theirs, and ``n_forward`` and ``n_gradient`` of the result
    say so. The boundary attribution paper (https://arxiv.org/abs/2103.11257) takes the closest of several attacks.

    Args:

        searches (Sequence[BoundarySearch]): Searches of the same model in the same norm, at least one. Each keeps its
            own bounds, budget and ``max_distance``; where two distances are equal the earlier search wins.
        strict (bool, optional): Raise a :class:`BoundaryNotFoundError` where no search found a point for some example,
            in place of a :class:`BoundaryNotFoundWarning`. The searches' own ``strict`` is ignored.
            Default: False

    Raises:

        BoundaryValueError: For no searches at all, and for searches in different norms or of different models.
        BoundaryTypeError: For anything that is not a :class:`BoundarySearch`.

    Examples::

        >>> from captum_boundary import NearestBoundary, PGDBoundary
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> search = ClosestBoundary([NearestBoundary(model), PGDBoundary(model)])
        >>> boundary = search.find(torch.tensor([[1.0, 0.0]]))
        >>> bool((boundary.distance - 0.5**0.5).abs() < 1e-3)
        True
    """

    def __init__(self, searches: Sequence[BoundarySearch], *, strict: bool = False) -> None:
        if not isinstance(searches, Sequence):
            raise BoundaryTypeError(f"searches must be a list of searches, but it is {type(searches).__name__}.")
        if len(searches) == 0:
            raise BoundaryValueError("searches must hold at least one BoundarySearch, but it is empty.")
        for index, search in enumerate(searches):
            if not isinstance(search, BoundarySearch):
                raise BoundaryTypeError(
                    f"searches[{index}] must be a BoundarySearch, but it is {type(search).__name__}."
                )
        for index, search in enumerate(searches):
            check_same_model(searches[0].forward_func, search.forward_func, f"searches[{index}]")
        norms = [search.norm for search in searches]
        if any(norm != norms[0] for norm in norms):
            raise BoundaryValueError(
                f"searches must share their norm, for their distances to be compared, but their norms are {norms}."
            )
        sizes = [search.internal_batch_size for search in searches if search.internal_batch_size is not None]
        generators = [search.generator for search in searches if search.generator is not None]
        is_shared = all(are_same_bounds(searches[0].bounds, search.bounds) for search in searches)
        super().__init__(
            searches[0].forward_func,
            bounds=searches[0].bounds if is_shared else None,
            norm=norms[0],
            strict=strict,
            generator=generators[0] if generators else None,
            show_progress=any(search.show_progress for search in searches),
            internal_batch_size=min(sizes, default=None),
        )
        self.searches = tuple(searches)
        self._has_shared_bounds = is_shared

    takes_starts = True  # if all searches do
    _description = "Closest boundary"

    def with_forward_func(self, forward_func: Callable[..., Any]) -> ClosestBoundary:
        r"""The same searches for another function."""
        searches = [search.with_forward_func(forward_func) for search in self.searches]
        return ClosestBoundary(searches, strict=self.strict)

    def check(self, inputs: tuple[Tensor, ...], mask: Mask) -> None:
        r"""Refuse inputs that one of the searches is not meant for."""
        for search in self.searches:
            search.check(inputs, mask)

    def check_starts(self) -> None:
        r"""Refuse to search near other points, where one of the searches does not."""
        for search in self.searches:
            search.check_starts()

    def propose(self, problem: SearchProblem) -> Proposal:
        r"""The nearest of the points that the searches find, each within its own bounds."""
        points, distance = problem.x, problem.x.new_full((len(problem),), torch.inf)
        status = limits = None
        has_own_limits = not self._has_shared_bounds
        for index, search in enumerate(self.searches):
            share = index / len(self.searches), (index + 1) / len(self.searches)
            part = problem.subproblem(bounds=search.bounds, share=share)
            solution = search.solve(part)
            reached = torch.where(solution.found, problem.distance(solution.points), torch.inf)
            is_nearer = reached < distance
            distance = torch.where(is_nearer, reached, distance)
            points = torch.where(is_nearer[:, None], solution.points, points)
            status = solution.status if status is None else torch.where(is_nearer, solution.status, status)
            has_own_limits |= solution.limits is not None
            sides = [side.expand_as(points) for side in solution.limits or (part.lower, part.upper)]
            if limits is not None:
                sides = [torch.where(is_nearer[:, None], *pair) for pair in zip(sides, limits, strict=True)]
            limits = sides[0], sides[1]
        return Proposal(points, status, is_final=True, limits=limits if has_own_limits else None)
