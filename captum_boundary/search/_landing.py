"""From a point beyond the boundary back to the boundary itself, along the straight line to the input."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary.search._crossing import find_crossing
from captum_boundary.search._problem import Candidates, Problem

__all__ = ["move_onto_boundary", "pull_back"]

# Points that are not final may lie beyond the boundary by this fraction of the input's depth.
_COARSE = 0.02
# Points at less than this fraction of the input's depth are so near that a slightly longer line may cross.
_NEAR = 0.05
_EXTENSIONS = (1e-4, 1e-3, 1e-2, 5e-2)


def move_onto_boundary(
    problem: Problem, points: Tensor, depth: Tensor | None = None, deep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Move ``points`` ``(n, D)`` along the straight lines from their inputs onto the boundary.

    Args:

        problem (Problem): The search.
        points (Tensor): Points, wherever a search ended.
        depth (Tensor, optional): Their depths ``(n,)``, where known.
        deep (Tensor, optional): Largest amount beyond the boundary that will do, ``(n,)``. Default: as for final ones.

    Returns:

        - **points** (*Tensor*): Points beyond the boundary, within the band; unchanged where it was not crossed.
        - **depth** (*Tensor*): Their depths, ``(n,)``, negative where the boundary was crossed.
    """
    x, shallow = problem.x, problem.shallow
    deep = problem.deep if deep is None else deep
    points = problem.box.clamp(points)
    if depth is None:
        depth = problem.depth(points)

    # A point may lie on the boundary itself, or just short of it: look a little further along its line.
    for extension in _EXTENSIONS:
        near = ((depth > -shallow) & (depth < _NEAR * problem.scale + shallow)).nonzero().flatten()
        if len(near) == 0:
            break
        part = problem.select(near)
        further = part.box.clamp(torch.lerp(part.x, points[near], 1 + extension))
        reached = part.depth(further)
        is_deeper = reached < depth[near]
        points = points.index_copy(0, near, torch.where(is_deeper[:, None], further, points[near]))
        depth = depth.index_copy(0, near, torch.where(is_deeper, reached, depth[near]))

    too_deep = (depth < -deep).nonzero().flatten()
    if len(too_deep) == 0:
        return points, depth
    part = problem.select(too_deep)
    ends = points[too_deep]

    def depth_at(fraction: Tensor, rows: Tensor | None) -> Tensor:
        here = part if rows is None else part.select(rows)
        there = ends if rows is None else ends[rows]
        return here.depth(here.box.clamp(torch.lerp(here.x, there, fraction[:, None])))

    fraction, reached = find_crossing(
        depth_at,
        part.oracle.start_depth,
        depth[too_deep],
        part.shallow,
        deep[too_deep],
        torch.finfo(x.dtype).eps,
    )
    landed = part.box.clamp(torch.lerp(part.x, ends, fraction[:, None]))
    return points.index_copy(0, too_deep, landed), depth.index_copy(0, too_deep, reached)


def pull_back(problem: Problem, points: Tensor, depth: Tensor | None = None) -> Candidates:
    """Candidates within some per cent of the boundary, on the lines from the inputs to ``points``."""
    deep = torch.maximum(problem.deep, _COARSE * problem.scale)
    points, depth = move_onto_boundary(problem, points, depth, deep)
    return Candidates.none(problem).or_nearer(points, problem.distance(points), depth)
