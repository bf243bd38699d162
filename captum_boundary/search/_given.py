"""Searches and boundary points that users hand over: are they what is needed?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.checks import shown
from captum_boundary._core.flat import pack
from captum_boundary._core.mask import Mask
from captum_boundary._core.norms import Norm, norm_of
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search.boundary_points import BoundaryPoints
from captum_boundary.search.boundary_search import BoundarySearch
from captum_boundary.search.nearest import NearestBoundary

__all__ = ["check_distances", "check_same_target", "points_for", "refuse_mask", "search_for"]

# By how much distances that are measured again may differ: relatively, and in roundings of the input.
_RELATIVE_TOLERANCE = 1e-3
_ROUNDINGS = 8
_ADVICE = (
    "Search the boundary of these very inputs, choose rows of both alike (inputs[rows], boundary[rows]), or leave "
    "boundary out where that can be done, as one must where NoiseTunnel or sensitivity_max move the inputs."
)


def search_for(forward_func: Callable[..., Any], search: object) -> BoundarySearch:
    """The search that was given, or the default one."""
    if search is None:
        return NearestBoundary(forward_func)
    if not isinstance(search, BoundarySearch):
        raise BoundaryTypeError(
            f"search must be a BoundarySearch, such as NearestBoundary(model), but it is {type(search).__name__}."
        )
    return search


def points_for(inputs: tuple[Tensor, ...], boundary: object, same_kind: bool = True) -> tuple[Tensor, ...]:
    """The points of a boundary that was given, if they are those of these inputs: the one check of all who take any.

    Their dtypes and devices must be those of the inputs, too, unless ``same_kind`` is False; they are moved then.
    """
    if not isinstance(boundary, BoundaryPoints):
        raise BoundaryTypeError(
            f"boundary must be BoundaryPoints, as a search's find returns them, but it is {type(boundary).__name__}."
        )
    points = boundary.points if isinstance(boundary.points, tuple) else (boundary.points,)
    given, needed = ([_kind(tensor, same_kind) for tensor in tensors] for tensors in (points, inputs))
    if given != needed:
        of = "shapes, dtypes and devices" if same_kind else "shapes"
        raise BoundaryValueError(
            f"boundary must hold one point for each input, of {of} {needed}, but it holds {given}. {_ADVICE}"
        )
    points = tuple(point.detach().to(tensor.device) for point, tensor in zip(points, inputs, strict=True))
    check_distances(inputs, pack(points)[:, None], boundary.distance[:, None], boundary.found[:, None], boundary.norm)
    return points


def check_distances(
    inputs: tuple[Tensor, ...], points: Tensor, distance: Tensor, found: Tensor, norm: float | Norm
) -> None:
    """That flat points ``(N, K, D)`` lie at their distances ``(N, K)`` from these inputs, or on them if not ``found``.

    A search measures distances just so, which leaves rounding: that of sums, and that of an input, for activations of a
    layer are computed again, maybe in another batch.
    """
    x = pack(tuple(tensor.detach() for tensor in inputs))
    flat_norm = norm_of(norm).for_inputs(inputs)
    size, resolution = flat_norm.safe_length(x), max(torch.finfo(tensor.dtype).eps for tensor in inputs)
    moves = (points.to(x) - x[:, None]).flatten(0, 1)
    actual, stored = flat_norm.safe_length(moves).view(distance.shape), distance.to(x)
    expected = torch.where(found.to(x.device), stored, 0.0)
    tolerance = _RELATIVE_TOLERANCE * expected + _ROUNDINGS * resolution * size[:, None]
    is_off = ~((actual - expected).abs() <= tolerance)
    if is_off.any():
        row = int(is_off.any(dim=1).nonzero()[0])
        place = int(is_off[row].nonzero()[0])
        raise BoundaryValueError(
            f"boundary must be that of these very inputs, but its points are not where it says, for row(s) "
            f"[{shown(is_off.any(dim=1))}]: that of row {row} lies at a distance of {float(actual[row, place]):.4g} "
            f"from the input, and should at {float(expected[row, place]):.4g}. {_ADVICE}"
        )


def _kind(tensor: Tensor, is_whole: bool) -> tuple[Any, ...]:
    return (tuple(tensor.shape), tensor.dtype, tensor.device) if is_whole else tuple(tensor.shape)


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
