"""Where a segment crosses the boundary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["find_crossing"]

_HOPEFUL_STEPS = 30


def find_crossing(
    depth: Callable[[Tensor, Tensor | None], Tensor],
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

        depth (Callable): ``depth(t, rows)`` evaluates fractions ``(n,)`` of the segments ``rows``, None for all.
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
    aim = (shallow * deep).sqrt()  # the root sought is depth = -aim
    low, high = torch.zeros_like(outside), torch.ones_like(outside)
    state = torch.stack(
        [low, high, inside + aim, outside + aim, outside, torch.zeros_like(outside), shallow, deep, aim]
    )
    ends = torch.stack([high, outside])
    rows: Tensor | None = None
    for step in range(max_steps):
        low, high, low_value, high_value, reached, side, shallow, deep, aim = state.unbind()
        is_open = ((reached < -deep) & (high - low > resolution)).nonzero().flatten()
        if len(is_open) < len(low):
            rows = is_open if rows is None else rows[is_open]
            state = state[:, is_open]
            low, high, low_value, high_value, reached, side, shallow, deep, aim = state.unbind()
        if len(is_open) == 0:
            break
        width = high - low
        # Every third step halves the bracket, and all late ones do, so that no shape of the function, nor a jump, can
        # stall the secant for long. A secant that leads out of the bracket halves it as well.
        t = low + 0.5 * width
        if step % 3 != 2 and step < _HOPEFUL_STEPS:
            secant = high - high_value * (width / (high_value - low_value))
            t = torch.where((secant > low) & (secant < high), secant, t)
        value = depth(t, rows)
        crossed = value <= -shallow
        shifted = value + aim
        # Anderson-Bjorck: shrink the value of the end that stayed twice running.
        ratio = 1 - shifted / torch.where(crossed, high_value, low_value)
        shrink = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 0.5)
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
                shallow,
                deep,
                aim,
            ]
        )
        found = state[[1, 4]]
        ends = found if rows is None else ends.index_copy(1, rows, found)
    return ends[0], ends[1]
