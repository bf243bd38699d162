"""Points, normals and weights of several boundaries of every example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.captum_helpers import format_output
from captum_boundary._core.flat import pack
from captum_boundary._core.oracle import MarginOracle
from captum_boundary.attr._weighting import Weighting, weigh
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search._given import check_distances
from captum_boundary.search._neighbors import Neighbors

__all__ = ["BoundaryNormals", "check_given", "collect", "flat"]


@dataclass(frozen=True)
class BoundaryNormals:
    r"""Several boundaries of every example, the nearest first.

    Rows have ``K`` places, the number of boundaries wanted or, with ``sampling="classes"``, that of the other
    classes if it is smaller. Places without a boundary come last, with ``found=False``.

    Attributes:

        points (Tensor or tuple[Tensor, ...]): Boundary points, ``(N, K, ...)`` for inputs ``(N, ...)``; the input
            itself where none was found.
        normals (Tensor or tuple[Tensor, ...]): Normals at the points, shaped like ``points``: the directions, of
            Euclidean length 1 over all inputs together, in which the neighboring class gains most on the adversarial
            one; zero where none was found. At kinks and corners, where several pieces meet, that of their combinations
            which is nearest to the direction of the input.
        weights (Tensor): Weights ``(N, K)``, which sum to one over those that were found.
        distance (Tensor): Distances ``(N, K)`` of the points from the inputs, in the search's norm; infinite where none
            was found.
        target (Tensor): Class of each example that is explained, ``(N,)`` integers.
        adversarial (Tensor): Class on the other side of each boundary, ``(N, K)`` integers; -1 where none was found.
        neighbor (Tensor): Class on this side of each boundary, ``(N, K)`` integers; -1 where none was found. It is the
            target, except where the region of a third class lies between the target's and the adversarial one's.
        found (Tensor): Whether there is a boundary, ``(N, K)`` booleans.
        n_forward (Tensor): Forward passes spent on each example, ``(N,)`` integers.
        n_gradient (Tensor): Backward passes spent on each example, ``(N,)`` integers.
        norm (float): Norm of the search. Default: 2
    """

    points: Tensor | tuple[Tensor, ...]
    normals: Tensor | tuple[Tensor, ...]
    weights: Tensor
    distance: Tensor
    target: Tensor
    adversarial: Tensor
    neighbor: Tensor
    found: Tensor
    n_forward: Tensor
    n_gradient: Tensor
    norm: float = 2


torch.serialization.add_safe_globals([BoundaryNormals])  # torch.load may make it by default: tensors and numbers


def flat(vectors: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Points or normals as vectors ``(N, K, D)``."""
    tensors = vectors if isinstance(vectors, tuple) else (vectors,)
    packed = pack(tuple(tensor.detach().flatten(0, 1) for tensor in tensors))
    return packed.view(*tensors[0].shape[:2], -1)


def check_given(boundary: object, inputs: tuple[Tensor, ...]) -> None:
    """That boundaries which were found before can be those of these inputs."""
    if not isinstance(boundary, BoundaryNormals):
        raise BoundaryTypeError(
            "boundary must be BoundaryNormals, as AggregatedBoundaryNormals.attribute(..., return_boundary=True) "
            f"returns them, but it is {type(boundary).__name__}."
        )
    points = boundary.points if isinstance(boundary.points, tuple) else (boundary.points,)
    n_places = boundary.distance.shape[1]
    needed = [((len(t), n_places, *t.shape[1:]), t.dtype, t.device) for t in inputs]
    given = [(tuple(t.shape), t.dtype, t.device) for t in points]
    if given != needed:
        raise BoundaryValueError(
            f"boundary must hold points of these inputs, of shapes, dtypes and devices {needed}, but it holds {given}. "
            "Leave it out to have them searched, as one must where NoiseTunnel or sensitivity_max move the inputs."
        )
    check_distances(inputs, flat(boundary.points), boundary.distance, boundary.found, boundary.norm)


def collect(
    oracle: MarginOracle, neighbors: Neighbors, n_places: int, weighting: Weighting, norm: Any, as_tuple: bool
) -> BoundaryNormals:
    """The neighbors of each example, in the order of their distances."""
    rows, boundary = neighbors.rows, neighbors.boundary
    order = boundary.distance.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    sorted_rows = rows[order]
    places = torch.arange(len(rows), device=rows.device) - torch.searchsorted(sorted_rows, sorted_rows)

    def table(values: Tensor, empty: Tensor | float) -> Tensor:
        shape = (len(oracle), n_places, *values.shape[1:])
        filled = torch.as_tensor(empty, dtype=values.dtype, device=values.device).expand(shape).clone()
        filled[sorted_rows, places] = values[order]
        return filled

    def like_inputs(vectors: Tensor) -> Any:
        tensors = oracle.unpack(vectors.flatten(0, 1))
        return format_output(as_tuple, tuple(tensor.view(-1, n_places, *tensor.shape[1:]) for tensor in tensors))

    found = table(boundary.found, False)
    distance = table(boundary.distance, torch.inf)
    points = boundary.points if isinstance(boundary.points, tuple) else (boundary.points,)
    return BoundaryNormals(
        points=like_inputs(table(oracle.pack(points), oracle.x[:, None])),
        normals=like_inputs(torch.where(found[:, :, None], table(neighbors.normals, 0.0), 0.0)),
        weights=weigh(weighting, distance),
        distance=distance,
        target=oracle.target,
        adversarial=table(neighbors.adversarial, -1),
        neighbor=table(neighbors.neighbor, -1),
        found=found,
        n_forward=oracle.n_forward,
        n_gradient=oracle.n_gradient,
        norm=norm,
    )
