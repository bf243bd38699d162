"""From a point beyond the boundary back to the boundary itself."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary._base.geometry import Box, find_crossing
from captum_boundary._base.oracle import MarginOracle

__all__ = ["land", "landing_band"]

# How far beyond the boundary a final point lies, relative to the depth of its input: near enough to *be* the boundary
# (distances are right to the larger number), far enough to keep its label when it is evaluated in another batch.
_BAND = {torch.float64: (1e-10, 4e-9), torch.float32: (1.5e-5, 6e-5)}
# Rounding errors of scores, in units of the resolution times the largest score, that a label must survive.
_NOISE = 2.0
# A coarse landing stops at this fraction of the input's depth.
_COARSE = 0.02
# Points at less than this fraction of the input's depth are so near that a slightly longer line may cross.
_NEAR = 0.05
_EXTENSIONS = (1e-4, 1e-3, 1e-2, 5e-2)


def landing_band(oracle: MarginOracle, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest amount ``(n,)`` by which final points may lie beyond the boundary."""
    shallow, deep = _BAND[oracle.dtype]
    depth = oracle.start_depth[rows]
    noise = _NOISE * oracle.resolution * oracle.start_scores[rows].abs().amax(dim=1).to(depth)
    least = torch.maximum(shallow * depth, noise).clamp_min(torch.finfo(depth.dtype).tiny)
    return least, torch.maximum(deep * depth, 2 * least)


def land(oracle: MarginOracle, box: Box, points: Tensor, rows: Tensor, coarse: bool = False) -> tuple[Tensor, Tensor]:
    """Move ``points`` ``(n, D)`` along the straight lines from their inputs onto the boundary.

    Args:

        oracle (MarginOracle): The model.
        box (Box): Limits of the points of these rows.
        points (Tensor): Points of the examples ``rows``, wherever a search ended.
        rows (Tensor): Examples the points belong to, ``(n,)``.
        coarse (bool): Land within some per cent of the boundary only, for a point that is not final.

    Returns:

        - **points** (*Tensor*): Points beyond the boundary, within the band; unchanged where it was not crossed.
        - **crossed** (*Tensor*): Whether the points returned lie beyond the boundary, ``(n,)``.
    """
    shallow, deep = landing_band(oracle, rows)
    if coarse:
        deep = torch.maximum(deep, _COARSE * oracle.start_depth[rows])
    x = oracle.x[rows]
    points = box.clamp(points)
    depth, _ = oracle.depth(points, rows)

    # A point may lie on the boundary itself, or just short of it: look a little further along its line.
    for extension in _EXTENSIONS:
        near = ((depth > -shallow) & (depth < _NEAR * oracle.start_depth[rows] + shallow)).nonzero().flatten()
        if len(near) == 0:
            break
        further = box.of(near).clamp(x[near] + (1 + extension) * (points[near] - x[near]))
        further_depth, _ = oracle.depth(further, rows[near])
        better = further_depth < depth[near]
        points[near[better]], depth[near[better]] = further[better], further_depth[better]

    crossed = depth < 0
    move = points - x

    def depth_at(fraction: Tensor, index: Tensor) -> Tensor:
        index = crossed_index[index]
        return oracle.depth(point_at(fraction, index), rows[index])[0]

    def point_at(fraction: Tensor, index: Tensor) -> Tensor:
        return box.of(index).clamp(x[index] + fraction[:, None] * move[index])

    crossed_index = crossed.nonzero().flatten()
    fraction, _ = find_crossing(
        depth_at,
        oracle.start_depth[rows[crossed]],
        depth[crossed],
        shallow[crossed],
        deep[crossed],
        torch.finfo(oracle.dtype).eps,
    )
    moved = fraction < 1  # a row that stays where it was keeps its exact bits
    points[crossed_index[moved]] = point_at(fraction[moved], crossed_index[moved])
    return points, crossed
