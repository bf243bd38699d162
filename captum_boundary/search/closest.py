"""The nearest boundary point that any of several searches finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.bounds import Bounds, are_same_bounds, bounds_of_limits, limits_of_examples
from captum_boundary._core.captum_helpers import TargetType, format_output, is_tuple
from captum_boundary._core.mask import Mask
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search._problem import Problem
from captum_boundary.search._same_model import check_same_model
from captum_boundary.search.boundary_points import BoundaryPoints
from captum_boundary.search.boundary_search import BoundarySearch
from captum_boundary.search.search_problem import SearchProblem

__all__ = ["ClosestBoundary"]


class ClosestBoundary(BoundarySearch):
    r"""For every example the nearest of the boundary points that several searches find.

    All searches see all examples, so the cost is the sum of theirs, and ``n_forward`` and ``n_gradient`` of the result
    say so. The boundary attribution paper (https://arxiv.org/abs/2103.11257) takes the closest of several attacks.

    Args:

        searches (Sequence[BoundarySearch]): Searches of the same model in the same norm, at least one. Each keeps its
            own bounds, budget and ``max_distance``; where two distances are equal the earlier search wins.
        strict (bool, optional): Raise a :class:`BoundaryNotFoundError` where no search found a point for some example,
            in place of a :class:`BoundaryNotFoundWarning`. The searches' own ``strict`` is not heeded.
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
        super().__init__(
            searches[0].forward_func, norm=norms[0], strict=strict, internal_batch_size=min(sizes, default=None)
        )
        self.searches = tuple(searches)

    def with_forward_func(self, forward_func: Callable[..., Any]) -> ClosestBoundary:
        r"""The same searches for another function."""
        searches = [search.with_forward_func(forward_func) for search in self.searches]
        return ClosestBoundary(searches, strict=self.strict)

    def _find(
        self, inputs: Any, target: TargetType, additional_forward_args: object, mask: Mask = None
    ) -> BoundaryPoints:
        results = (search._find(inputs, target, additional_forward_args, mask) for search in self.searches)
        return reduce(_nearer, results)

    def _find_pairs(
        self,
        problem: Problem,
        rows: Tensor,
        target: Tensor,
        starts: Tensor | None = None,
        one_each: bool = False,
    ) -> BoundaryPoints:
        return reduce(
            _nearer, (search._find_pairs(problem, rows, target, starts, one_each) for search in self.searches)
        )

    def propose(self, problem: SearchProblem) -> Tensor:
        r"""Not used: the finished results of the searches are compared."""
        raise NotImplementedError("ClosestBoundary compares the finished results of its searches.")


def _nearer(first: BoundaryPoints, second: BoundaryPoints) -> BoundaryPoints:
    """Example by example the nearer of two results, for the price of both."""
    better = second.distance < first.distance

    def choose(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(better.to(one.device).view(-1, *[1] * (one.ndim - 1)), other, one)

    pairs = zip(_as_tuple(first.points), _as_tuple(second.points), strict=True)
    return BoundaryPoints(
        points=format_output(is_tuple(first.points), tuple(choose(one, other) for one, other in pairs)),
        target=choose(first.target, second.target),
        adversarial=choose(first.adversarial, second.adversarial),
        distance=choose(first.distance, second.distance),
        margin=choose(first.margin, second.margin),
        found=first.found | second.found,
        n_forward=first.n_forward + second.n_forward,
        n_gradient=first.n_gradient + second.n_gradient,
        status=choose(first.status, second.status),
        norm=first.norm,
        bounds=_chosen_bounds(first, second, better),
    )


def _chosen_bounds(first: BoundaryPoints, second: BoundaryPoints, better: Tensor) -> Bounds:
    """For every example the bounds of the search that found its point."""
    if are_same_bounds(first.bounds, second.bounds):
        return first.bounds
    points = _as_tuple(first.points)
    pairs = (limits_of_examples(each.bounds, _as_tuple(each.points)) for each in (first, second))
    lower, upper = (torch.where(better[:, None], other, one) for one, other in zip(*pairs, strict=True))
    return bounds_of_limits(lower, upper, points, is_tuple(first.points))


def _as_tuple(points: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return points if isinstance(points, tuple) else (points,)
