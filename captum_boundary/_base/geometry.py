r"""Geometry of flat points ``(n, D)``, row by row: lengths, projections, and the crossing of a boundary on a segment.

Norms are 2, ``math.inf`` and 1. A :class:`Box` limits every coordinate; projections respect it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Box",
    "find_crossing",
    "length",
    "project_onto_ball",
    "project_onto_hyperplane",
    "row_dot",
]


class Box(NamedTuple):
    """Coordinates lie between ``lower`` and ``upper``, each ``(1 or n, D)``; infinite where there is no limit."""

    lower: Tensor
    upper: Tensor

    def clamp(self, points: Tensor) -> Tensor:
        return points.clamp(self.lower, self.upper)

    def of(self, rows: Tensor | slice) -> Box:
        """The limits of some rows of a batch."""
        return Box(*(side if len(side) == 1 else side[rows] for side in self))


def row_dot(first: Tensor, second: Tensor) -> Tensor:
    """Inner products ``(n,)`` of rows."""
    return (first * second).sum(dim=1)


def length(vectors: Tensor, norm: float) -> Tensor:
    """Norms ``(n,)`` of rows."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, ord=norm, dim=1)
    return lengths


def project_onto_hyperplane(x: Tensor, normal: Tensor, drop: Tensor, box: Box, norm: float) -> Tensor:
    r"""Nearest points ``(n, D)`` of ``{y in box : normal . (x - y) = drop}`` for ``x`` in the box and ``drop >= 0``.

    Where the box does not reach the hyperplane, the result is the point of the box that comes closest to it. A zero
    normal leaves ``x`` where it is.
    """
    if norm == 1:
        return _project_l1(x, normal, drop, box)
    # The nearest point is x moved along one direction and clipped, which leaves one unknown, the length t of the move.
    # What t achieves, normal . (x - y(t)), is concave and piecewise linear: Newton's method from 0 is monotone and
    # ends on the exact piece.
    direction = normal if norm == 2 else normal.sign()
    gain = normal * direction
    limit = torch.where(direction > 0, x - box.lower, box.upper - x)  # room for the move of each coordinate
    reach = torch.where(direction == 0, torch.zeros_like(x), limit / direction.abs().clamp_min(_tiny(x)))
    step = torch.zeros_like(drop)
    for _ in range(_MAX_NEWTON_STEPS):
        free = reach > step[:, None]
        missing = drop - torch.minimum(reach, step[:, None]).mul(gain).sum(dim=1)
        rate = (gain * free).sum(dim=1)
        advance = torch.where((rate > 0) & (missing > 0), missing / rate.clamp_min(_tiny(x)), torch.zeros_like(step))
        advanced = step + advance
        if torch.equal(advanced, step):
            break
        step = advanced
    move = torch.minimum(reach, step[:, None])
    return box.clamp(x - move * direction)


_MAX_NEWTON_STEPS = 50


def _project_l1(x: Tensor, normal: Tensor, drop: Tensor, box: Box) -> Tensor:
    """The l1 case is a fractional knapsack: use up the coordinates with the steepest slope one after the other."""
    room = torch.where(normal > 0, x - box.lower, box.upper - x)
    slope, order = normal.abs().sort(dim=1, descending=True, stable=True)
    wanted = drop[:, None] / slope.clamp_min(_tiny(x))  # more than any coordinate needs, and finite
    sorted_room = torch.minimum(room.gather(1, order), wanted)
    gain = slope * sorted_room
    before = gain.cumsum(dim=1) - gain
    missing = (drop[:, None] - before).clamp_min(0.0)
    move = torch.where(slope > 0, torch.minimum(sorted_room, missing / slope.clamp_min(_tiny(x))), torch.zeros_like(x))
    return box.clamp(x - torch.zeros_like(x).scatter_(1, order, move) * normal.sign())


def project_onto_ball(vectors: Tensor, radius: Tensor, norm: float) -> Tensor:
    """Nearest vectors, in the Euclidean sense, whose ``norm`` is at most ``radius`` ``(n,)``."""
    if norm == 2:
        return vectors * (radius / length(vectors, 2).clamp_min(_tiny(vectors))).clamp_max(1.0)[:, None]
    if norm == math.inf:
        return vectors.clamp(-radius[:, None], radius[:, None])
    # Soft thresholding; the threshold that gives the right l1 norm is found among the sorted magnitudes.
    magnitude = vectors.abs()
    ordered = magnitude.sort(dim=1, descending=True).values
    rank = torch.arange(1, vectors.shape[1] + 1, device=vectors.device, dtype=vectors.dtype)
    thresholds = (ordered.cumsum(dim=1) - radius[:, None]) / rank
    n_kept = (ordered > thresholds).sum(dim=1, keepdim=True).clamp_min(1)
    threshold = thresholds.gather(1, n_kept - 1).clamp_min(0.0)
    return vectors.sign() * (magnitude - threshold).clamp_min(0.0)


_HOPEFUL_STEPS = 30


def find_crossing(
    depth: Callable[[Tensor, Tensor], Tensor],
    inside: Tensor,
    outside: Tensor,
    shallow: Tensor,
    deep: Tensor,
    resolution: float,
    max_steps: int = 60,
) -> tuple[Tensor, Tensor]:
    r"""Fractions ``t`` of the way at which a segment has just crossed the boundary: ``-deep <= depth(t) <= -shallow``.

    Bisection, hastened by regula falsi (Anderson and Bjorck's form, which keeps its order when one end stays put).

    Args:

        depth (Callable): ``depth(t, rows)`` evaluates fractions ``(n,)`` of the segments ``rows``.
        inside (Tensor): Depth at fraction 0, not negative.
        outside (Tensor): Depth at fraction 1, negative.
        shallow (Tensor): Smallest accepted amount beyond the boundary, ``(n,)``.
        deep (Tensor): Largest accepted amount beyond the boundary, ``(n,)``.
        resolution (float): Width of the bracket at which a row stops although its depth jumps over the band.
        max_steps (int): Evaluations a row at most.

    Returns:

        - **fraction** (*Tensor*): Fractions in (0, 1], always at a negative depth.
        - **depth** (*Tensor*): Depth at these fractions.
    """
    aim = (shallow * deep).sqrt()
    low, high = torch.zeros_like(outside), torch.ones_like(outside)
    low_value, high_value = inside + aim, outside + aim  # the root sought is depth = -aim
    best_depth = outside.clone()
    side = torch.zeros_like(outside)
    rows = torch.arange(len(outside), device=outside.device)
    for step in range(max_steps):
        open_ = (best_depth[rows] < -deep[rows]) & (high[rows] - low[rows] > resolution)
        rows = rows[open_]
        if len(rows) == 0:
            break
        a, b, fa, fb = low[rows], high[rows], low_value[rows], high_value[rows]
        secant = (a * fb - b * fa) / (fb - fa)
        # Every third step halves the bracket, and all late ones do, so that no shape of the function, nor a jump, can
        # stall the secant for long.
        halve = step % 3 == 2 or step >= _HOPEFUL_STEPS
        unsafe = ~((secant > a) & (secant < b)) | halve
        t = torch.where(unsafe, (a + b) / 2, secant)
        value = depth(t, rows)
        crossed = value <= -shallow[rows]
        best_depth[rows] = torch.where(crossed, value, best_depth[rows])
        shifted = value + aim[rows]
        last = side[rows]
        # Anderson-Bjorck: shrink the value of the end that stayed twice running.
        old = torch.where(crossed, fb, fa)
        ratio = 1 - shifted / torch.where(old == 0, torch.ones_like(old), old)
        shrink = torch.where(ratio > 0, ratio, torch.full_like(ratio, 0.5))
        high[rows], high_value[rows] = (
            torch.where(crossed, t, b),
            torch.where(crossed, shifted, torch.where(last == -1, fb * shrink, fb)),
        )
        low[rows], low_value[rows] = (
            torch.where(crossed, a, t),
            torch.where(crossed, torch.where(last == 1, fa * shrink, fa), shifted),
        )
        side[rows] = torch.where(crossed, 1.0, -1.0).to(side)
    return high, best_depth


def _tiny(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).tiny
