"""Searches and boundary points that users hand over: are they what is needed?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_boundary._base.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search.boundary_points import BoundaryPoints
from captum_boundary.search.boundary_search import BoundarySearch
from captum_boundary.search.nearest import NearestBoundary

__all__ = ["points_for", "search_for"]


def search_for(forward_func: Callable[..., Any], search: object) -> BoundarySearch:
    """The search that was given, or the default one."""
    if search is None:
        return NearestBoundary(forward_func)
    if not isinstance(search, BoundarySearch):
        raise BoundaryTypeError(
            f"search must be a BoundarySearch, such as NearestBoundary(model), but it is {type(search).__name__}."
        )
    return search


def points_for(inputs: tuple[Tensor, ...], boundary: object) -> tuple[Tensor, ...]:
    """The points of a boundary that was given, if they can be those of these inputs."""
    if not isinstance(boundary, BoundaryPoints):
        raise BoundaryTypeError(
            f"boundary must be BoundaryPoints, as a search's find returns them, but it is {type(boundary).__name__}."
        )
    points = boundary.points if isinstance(boundary.points, tuple) else (boundary.points,)
    given, needed = ([(tuple(t.shape), t.dtype, t.device) for t in tensors] for tensors in (points, inputs))
    if given != needed:
        raise BoundaryValueError(
            f"boundary must hold one point for each input, of shapes, dtypes and devices {needed}, but it holds "
            f"{given}. Search the boundary of these very inputs, or leave boundary out where that can be done, as one "
            "must where NoiseTunnel or sensitivity_max move the inputs."
        )
    return points
