"""Signed gradient descent with momentum on an objective of maps, and the best iterate that keeps the label."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_boundary._core.geometry import Box
from captum_boundary.robust._attack_objectives import Objective
from captum_boundary.robust._attribution_maps import AttributionMaps, MapState

__all__ = ["minimize", "random_move"]

_MOMENTUM = 0.75
# With less than this share of the margin at the input, a step also heads back into the region of the label.
_LOW_MARGIN = 0.1


def minimize(
    maps: AttributionMaps,
    start: MapState,
    box: Box,
    objective: Objective,
    measure: Callable[[Tensor], Tensor],
    *,
    n_steps: int,
    first_step: float,
    tolerance: float,
    show_progress: bool,
) -> Tensor:
    """The iterates ``(N, D)`` of the lowest ``measure`` of maps ``(N, P)``, the start or others that keep the label.

    Steps shrink linearly to zero. Features nearer to the baseline than ``tolerance`` count as lying at it.
    """
    state = start
    kept, lowest = state.points, measure(state.shares)
    momentum = torch.zeros_like(state.points)
    for step in tqdm(range(n_steps), desc="Attribution attack", unit="step", disable=not show_progress):
        momentum = _MOMENTUM * momentum + _ascent(maps, state, objective, box, tolerance)
        length = first_step * (1 - step / n_steps)
        state = maps.at(maps.rounded(box.clamp(state.points - length * momentum.sign())))
        value = measure(state.shares)
        better = (value < lowest) & maps.keeps_label(state.margin)
        kept = torch.where(better[:, None], state.points, kept)
        lowest = torch.where(better, value, lowest)
    return kept


def random_move(maps: AttributionMaps, box: Box, n_tries: int, generator: torch.Generator | None) -> Tensor:
    """Every feature moved to its upper or lower limit at random; the input where no try keeps the label."""
    generator = torch.Generator("cpu").manual_seed(0) if generator is None else generator
    points, moved = maps.x, torch.zeros_like(maps.all_rows, dtype=torch.bool)
    for _ in range(n_tries):
        signs = torch.randint(2, (1, points.shape[1]), generator=generator, device=generator.device)
        ends = maps.rounded(torch.where(signs.to(points.device) > 0, box.upper, box.lower))
        chosen = ~moved & maps.keeps_label(maps.margin(ends))
        points = torch.where(chosen[:, None], ends, points)
        moved |= chosen
        if moved.all():
            break
    return points


def _ascent(maps: AttributionMaps, state: MapState, objective: Objective, box: Box, tolerance: float) -> Tensor:
    """Where not to go: up the slope of the objective and, close to another label, down that of the margin."""
    gradient = objective.gradient(state.magnitudes, state.shares)
    slope = _scaled(maps.descent(state, gradient, box, tolerance))
    is_low = state.margin < _LOW_MARGIN * maps.start_margin
    return slope - is_low[:, None] * _scaled(state.margin_slope)


def _scaled(slope: Tensor) -> Tensor:
    """Slopes of mean magnitude one, or zero."""
    slope = torch.nan_to_num(slope)
    return slope / slope.abs().mean(dim=1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
