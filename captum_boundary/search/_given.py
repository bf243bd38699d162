"""Searches and boundary points that users hand over: are they what is needed?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.mask import Mask
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search.boundary_points import BoundaryPoints
from captum_boundary.search.boundary_search import BoundarySearch
from captum_boundary.search.nearest import NearestBoundary

__all__ = ["check_same_target", "points_for", "refuse_mask", "search_for"]


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


def check_same_target(asked: Tensor, given: Tensor) -> None:
    """That a boundary which was given is that of the classes ``(N,)`` that are asked for."""
    if not torch.equal(asked, given):
        raise BoundaryValueError(
            f"target asks for the classes {asked.tolist()}, but the given boundary is that of the classes "
            f"{given.tolist()}. Leave target out, or search the boundary of the classes to explain."
        )


def refuse_mask(mask: Mask) -> None:
    """A mask where the boundary was given, and nothing is searched."""
    if mask is not None:
        raise BoundaryValueError(
            "mask tells a search which values may move, but the boundary was given. Give the mask to the search that "
            "finds it: search.find(inputs, mask=mask)."
        )
