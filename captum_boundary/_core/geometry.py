r"""Geometry of flat points ``(n, D)``, row by row: lengths, and projections onto balls and hyperplanes.

Norms are 2, ``math.inf`` and 1. A :class:`Box` limits every coordinate; projections respect it exactly. Nothing here
waits for an accelerator: loops have fixed lengths, and rows that are done are masked.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Box", "length", "project_onto_ball", "project_onto_hyperplane", "ratio", "row_dot"]


class Box(NamedTuple):
    """Coordinates lie between ``lower`` and ``upper``, each ``(1 or n, 1 or D)``; infinite where there is no limit."""

    lower: Tensor
    upper: Tensor
    is_limited: bool = True  # whether any limit is finite

    def clamp(self, points: Tensor) -> Tensor:
        return points.clamp(self.lower, self.upper) if self.is_limited else points

    def of(self, rows: Tensor | slice) -> Box:
        """The limits of some rows of a batch."""
        lower, upper = (side if len(side) == 1 else side[rows] for side in (self.lower, self.upper))
        return Box(lower, upper, self.is_limited)


def row_dot(first: Tensor, second: Tensor) -> Tensor:
    """Inner products ``(n,)`` of rows."""
    products: Tensor = torch.linalg.vecdot(first, second)
    return products


def length(vectors: Tensor, norm: float) -> Tensor:
    """Norms ``(n,)`` of rows."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, ord=norm, dim=1)
    return lengths


def project_onto_hyperplane(
    x: Tensor, normal: Tensor, drop: Tensor, box: Box, norm: float, n_steps: int = 32
) -> Tensor:
    r"""Nearest points ``(n, D)`` of ``{y in box : normal . (x - y) = drop}`` for ``x`` in the box and ``drop >= 0``.

    Where the box does not reach the hyperplane, the result is the point of the box that comes closest to it. A zero
    normal leaves ``x`` where it is.

    Args:

        x (Tensor): Points, ``(n, D)``.
        normal (Tensor): Normals of the hyperplanes, ``(n, D)``.
        drop (Tensor): What the inner product with the normal must lose, ``(n,)``.
        box (Box): Limits of the coordinates.
        norm (float): Norm of the distance.
        n_steps (int): Newton steps within a box, in the norms 2 and ``math.inf``. Each stops short of the hyperplane or
            ends on it; they are exact as soon as no further coordinate meets a limit, mostly after three.
    """
    if norm == 1:
        return _project_l1(x, normal, drop, box)
    # The nearest point is x moved along one direction and clipped, which leaves one unknown, the length t of the move.
    direction = normal if norm == 2 else normal.sign()
    gain = normal * direction
    t = ratio(drop, gain.sum(dim=1))[:, None]
    if not box.is_limited:
        return torch.addcmul(x, t, direction, value=-1)
    # What t achieves, normal . (x - y(t)), is concave and piecewise linear: Newton's method is monotone and exact.
    limit = torch.where(direction > 0, box.lower, box.upper)
    reach = x - limit  # the t where a coordinate meets its limit; of directions of zero, which gain nothing, any number
    reach = reach.abs() if norm == math.inf else (reach / direction).nan_to_num(nan=0.0, posinf=torch.inf)
    for _ in range(n_steps):
        missing = drop - row_dot(torch.minimum(reach, t), gain)
        t = t + ratio(missing, row_dot(gain, (reach > t).to(gain)))[:, None]
    return box.clamp(torch.addcmul(x, t, direction, value=-1))


def ratio(amount: Tensor, rate: Tensor) -> Tensor:
    """``amount / rate``, or zero where the rate is zero."""
    return (amount / rate).nan_to_num(0.0, 0.0, 0.0)


def _project_l1(x: Tensor, normal: Tensor, drop: Tensor, box: Box) -> Tensor:
    """The l1 case is a fractional knapsack: use up the coordinates with the steepest slope one after the other."""
    drop = drop[:, None]
    limit = torch.where(normal > 0, box.lower, box.upper)
    gain = torch.fmin(normal * (x - limit), drop)  # zero times infinity, where nothing is gained, counts as the drop
    order = normal.abs().argsort(dim=1, descending=True, stable=True)
    gain = gain.gather(1, order)
    missing = drop - (gain.cumsum(dim=1) - gain)
    used = torch.minimum(gain, missing).clamp_min(0.0)
    return box.clamp(x - ratio(x.scatter(1, order, used), normal))


def project_onto_ball(vectors: Tensor, radius: Tensor, norm: float) -> Tensor:
    """Nearest vectors, in the Euclidean sense, whose ``norm`` is at most ``radius`` ``(n,)``."""
    if norm == 2:
        return vectors * (radius / length(vectors, 2).clamp_min(_tiny(vectors))).clamp_max(1.0)[:, None]
    if norm == math.inf:
        return vectors.clamp(-radius[:, None], radius[:, None])
    # Soft thresholding. The threshold is the largest of those that would be right if the k largest values were kept.
    ordered = vectors.abs().sort(dim=1, descending=True).values
    n_kept = torch.arange(1, vectors.shape[1] + 1, device=vectors.device, dtype=vectors.dtype)
    thresholds = (ordered.cumsum(dim=1) - radius[:, None]) / n_kept
    threshold = thresholds.amax(dim=1, keepdim=True).clamp_min(0.0)
    return vectors - vectors.clamp(-threshold, threshold)


def _tiny(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny
