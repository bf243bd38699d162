"""Line search: from a point beyond the boundary back to the boundary itself, along the straight line to the input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_boundary.search._problem import Incumbent, Problem

__all__ = ["find_crossing", "line_search", "project_to_boundary"]

# Points that are not final may lie beyond the boundary by this fraction of the input's depth, or of the line.
_COARSE, _COARSE_WIDTH = 0.02, 1e-3
# Points at less than this fraction of the input's depth are so near that a slightly longer line may cross.
_NEAR = 0.05
_EXTENSIONS = (1e-4, 1e-3, 1e-2, 5e-2)
# Of the root finding: steps of which two of three are secants.
_HOPEFUL_STEPS = 30


def project_to_boundary(
    problem: Problem,
    points: Tensor,
    depth: Tensor | None = None,
    max_overshoot: Tensor | None = None,
    resolution: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Move ``points`` ``(n, D)`` along the straight lines from their inputs onto the boundary.

    Args:

        problem (Problem): The search.
        points (Tensor): Points, wherever a search ended.
        depth (Tensor, optional): Their depths ``(n,)``, where known.
        max_overshoot (Tensor, optional): Largest amount beyond the boundary that will do, ``(n,)``.
            Default: as for final ones.
        resolution (float, optional): Fraction of a line by which a point may be beyond a jump of the scores.
            Default: the precision of the numbers.

    Returns:

        - **points** (*Tensor*): Points beyond the boundary, within the band; unchanged where it was not crossed.
        - **depth** (*Tensor*): Their depths, ``(n,)``, negative where the boundary was crossed.
    """
    x, min_overshoot = problem.x, problem.min_overshoot
    max_overshoot = problem.max_overshoot if max_overshoot is None else max_overshoot
    points = problem.box.clamp(points)
    if depth is None:
        depth = problem.signed_margin(points)

    # A point may lie on the boundary itself, or just short of it: look a little further along its line.
    for extension in _EXTENSIONS:
        near = ((depth > -min_overshoot) & (depth < _NEAR * problem.scale + min_overshoot)).nonzero().flatten()
        if len(near) == 0:
            break
        part = problem.select(near)
        further = part.box.clamp(torch.lerp(part.x, points[near], 1 + extension))
        reached = part.signed_margin(further)
        is_deeper = reached < depth[near]
        points = points.index_copy(0, near, torch.where(is_deeper[:, None], further, points[near]))
        depth = depth.index_copy(0, near, torch.where(is_deeper, reached, depth[near]))

    too_deep = (depth < -max_overshoot).nonzero().flatten()
    if len(too_deep) == 0:
        return points, depth
    part = problem.select(too_deep)
    ends = points[too_deep]

    def depth_at(fraction: Tensor, rows: Tensor | None) -> Tensor:
        here = part if rows is None else part.select(rows)
        there = ends if rows is None else ends[rows]
        return here.signed_margin(here.box.clamp(torch.lerp(here.x, there, fraction[:, None])))

    fraction, reached = find_crossing(
        depth_at,
        part.oracle.start_depth,
        depth[too_deep],
        part.min_overshoot,
        max_overshoot[too_deep],
        torch.finfo(x.dtype).eps if resolution is None else resolution,
    )
    landed = part.box.clamp(torch.lerp(part.x, ends, fraction[:, None]))
    return points.index_copy(0, too_deep, landed), depth.index_copy(0, too_deep, reached)


def line_search(problem: Problem, points: Tensor, phase: int, depth: Tensor | None = None) -> Incumbent:
    """An incumbent within some per cent of the boundary, on the lines from the inputs to ``points``."""
    max_overshoot = torch.maximum(problem.max_overshoot, _COARSE * problem.scale)
    points, depth = project_to_boundary(problem, points, depth, max_overshoot, _COARSE_WIDTH)
    return Incumbent.none(problem).improved_by(points, problem.distance(points), depth, phase)


def find_crossing(
    depth: Callable[[Tensor, Tensor | None], Tensor],
    inside: Tensor,
    outside: Tensor,
    min_overshoot: Tensor,
    max_overshoot: Tensor,
    resolution: float,
    max_steps: int = 60,
) -> tuple[Tensor, Tensor]:
    r"""Fractions ``t`` of a segment at which it has just crossed the boundary.

    There ``-max_overshoot <= depth(t) <= -min_overshoot``.

    Bisection, hastened by regula falsi (Anderson and Bjorck's form, which keeps its order when one end stays put).

    Args:

        depth (Callable): ``depth(t, rows)`` evaluates fractions ``(n,)`` of the segments ``rows``, None for all.
        inside (Tensor): Depth at fraction 0, not negative.
        outside (Tensor): Depth at fraction 1, negative.
        min_overshoot (Tensor): Smallest accepted amount beyond the boundary, ``(n,)``.
        max_overshoot (Tensor): Largest accepted amount beyond the boundary, ``(n,)``.
        resolution (float): Width of the bracket at which a row stops although its depth jumps over the band.
        max_steps (int): Evaluations a row at most.

    Returns:

        - **fraction** (*Tensor*): Fractions in (0, 1], always at a negative depth.
        - **depth** (*Tensor*): Depth at these fractions.
    """
    aim = (min_overshoot * max_overshoot).sqrt()  # the root sought is depth = -aim
    low, high = torch.zeros_like(outside), torch.ones_like(outside)
    # The values that are accepted lie between the lowest and the highest.
    state = torch.stack(
        [
            low,
            high,
            inside + aim,
            outside + aim,
            outside,
            torch.zeros_like(outside),
            -min_overshoot,
            -max_overshoot,
            aim,
        ]
    )
    ends = torch.stack([high, outside])
    rows: Tensor | None = None
    for step in range(max_steps):
        low, high, low_value, high_value, reached, side, highest, lowest, aim = state.unbind()
        is_open = ((reached < lowest) & (high - low > resolution)).nonzero().flatten()
        if len(is_open) < len(low):
            rows = is_open if rows is None else rows[is_open]
            state = state[:, is_open]
            low, high, low_value, high_value, reached, side, highest, lowest, aim = state.unbind()
        if len(is_open) == 0:
            break
        # Every third step halves the bracket, and all late ones do, so that no shape of the function, nor a jump, can
        # stall the secant for long. A secant that leads out of the bracket halves it as well.
        t = torch.lerp(low, high, 0.5)
        if step % 3 != 2 and step < _HOPEFUL_STEPS:
            secant = torch.addcdiv(high, high_value * (high - low), high_value - low_value, value=-1)
            t = torch.where((secant > low) & (secant < high), secant, t)
        value = depth(t, rows)
        crossed = value <= highest
        shifted = value + aim
        # Anderson-Bjorck: shrink the value of the end that stayed twice running.
        ratio = (1 - shifted / torch.where(crossed, high_value, low_value)).nan_to_num(0.0, 0.0, 0.0)
        shrink = torch.where(ratio > 0, ratio, 0.5)
        moved = torch.where(crossed, 1.0, -1.0).to(side)
        kept = torch.where(side == moved, shrink, 1.0)
        state = torch.stack(
            [
                torch.where(crossed, low, t),
                torch.where(crossed, t, high),
                torch.where(crossed, low_value * kept, shifted),
                torch.where(crossed, shifted, high_value * kept),
                torch.where(crossed, value, reached),
                moved,
                highest,
                lowest,
                aim,
            ]
        )
        found = torch.stack([state[1], state[4]])
        ends = found if rows is None else ends.index_copy(1, rows, found)
    return ends[0], ends[1]
