"""Signed gradient descent with momentum on an objective of maps, and the best iterate that keeps the label.

Objectives are sums of the shares that features have of all attribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from captum_boundary._core.agreement import center_of_mass, center_shift, top_features
from captum_boundary._core.geometry import Box
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust._attribution_maps import AttributionMaps, MapState

__all__ = ["Objective", "minimize", "objective_of", "random_displacement"]

_MOMENTUM = 0.75
# With less than this share of the margin at the input, a step also ascends the margin.
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
    incumbent, lowest = state.points, measure(state.shares)
    momentum = torch.zeros_like(state.points)
    for step in tqdm(range(n_steps), desc="Attribution attack", unit="step", disable=not show_progress):
        momentum = _MOMENTUM * momentum + _ascent(maps, state, objective, box, tolerance)
        length = first_step * (1 - step / n_steps)
        state = maps.at(maps.rounded(box.clamp(state.points - length * momentum.sign())))
        value = measure(state.shares)
        better = (value < lowest) & maps.keeps_label(state.margin)
        incumbent = torch.where(better[:, None], state.points, incumbent)
        lowest = torch.where(better, value, lowest)
    return incumbent


def random_displacement(
    maps: AttributionMaps, box: Box, n_tries: int, generator: torch.Generator | None, seed: int = 0
) -> Tensor:
    """Every feature moved to its upper or lower limit at random; the input where no try keeps the label.

    ``seed`` is that of the draws where there is no ``generator``.
    """
    generator = torch.Generator("cpu").manual_seed(seed) if generator is None else generator
    points, is_moved = maps.x, torch.zeros_like(maps.all_rows, dtype=torch.bool)
    for _ in range(n_tries):
        signs = torch.randint(2, (1, points.shape[1]), generator=generator, device=generator.device)
        ends = maps.rounded(torch.where(signs.to(points.device) > 0, box.upper, box.lower))
        chosen = ~is_moved & maps.keeps_label(maps.margin(ends))
        points = torch.where(chosen[:, None], ends, points)
        is_moved |= chosen
        if is_moved.all():
            break
    return points


def _ascent(maps: AttributionMaps, state: MapState, objective: Objective, box: Box, tolerance: float) -> Tensor:
    """The slope of the objective; close to another label less that of the margin."""
    gradient = objective.gradient(state.magnitudes, state.shares)
    slope = _scaled(maps.descent(state, gradient, box, tolerance))
    is_low = state.margin < _LOW_MARGIN * maps.start_margin
    return slope - is_low[:, None] * _scaled(state.margin_slope)


def _scaled(slope: Tensor) -> Tensor:
    """Slopes of mean magnitude one, or zero."""
    slope = torch.nan_to_num(slope)
    return slope / slope.abs().mean(dim=1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)


class Objective(NamedTuple):
    """What an attack minimizes, as a function of maps given as shares ``(N, P)``: not negative, of sum one."""

    value: Callable[[Tensor], Tensor]  # (N,)
    coefficients: Callable[[Tensor], Tensor]  # (N, P) weights of the shares in a sum that has the same gradient there

    def gradient(self, magnitudes: Tensor, shares: Tensor) -> Tensor:
        """Gradient ``(N, P)`` of the sum with respect to the map before it is scaled to shares."""
        # Of shares s_i = m_i / sum_j m_j: d(sum_i c_i s_i) / dm_j = (c_j - sum_i c_i s_i) / sum_i m_i.
        coefficients = self.coefficients(shares)
        total = magnitudes.sum(dim=1, keepdim=True).clamp_min(torch.finfo(magnitudes.dtype).tiny)
        return (coefficients - (coefficients * shares).sum(dim=1, keepdim=True)) / total


def _mass_on_features(weights: Tensor) -> Objective:
    """Attribution leaves the features with positive weights, and goes to those with negative ones."""
    return Objective(lambda shares: (weights * shares).sum(dim=1), lambda _: weights)


def _shift_of_center(clean: Tensor, shape: tuple[int, ...]) -> Objective:
    """The center of mass of an image goes away from where it was."""
    clean = clean.view(-1, *shape)
    start = center_of_mass(clean)
    axes = [torch.arange(size, device=clean.device, dtype=clean.dtype) for size in shape]
    positions = torch.cartesian_prod(*axes)
    ends = positions[-1]

    def coefficients(shares: Tensor) -> Tensor:
        move = center_of_mass(shares.view_as(clean)) - start
        to_far_corner = torch.where(start < ends / 2, ends, 0) - start
        has_moved = (move.abs() > 1e-6 * ends.clamp_min(1)).any(dim=1, keepdim=True)
        # The center is sum_i p_i s_i: along its unit move u, -|center - start| has the slope -u . p_i by share i.
        return -normalize(torch.where(has_moved, move, to_far_corner)) @ positions.T

    return Objective(lambda shares: -center_shift(clean, shares.view_as(clean)), coefficients)


def objective_of(name: str, maps: AttributionMaps, clean: Tensor, k: int, target_map: Any) -> Objective:
    """The objective of an attack on the map ``clean`` ``(N, P)``."""
    if name == "topk":
        return _mass_on_features(top_features(clean, k).to(clean))
    if name == "target":
        return _mass_on_features(-_format_target_map(target_map, maps).to(clean))
    if not maps.is_image:
        raise BoundaryValueError(
            'method="mass_center" needs one input of images, (N, C, H, W), since only maps of pixels have a center.'
        )
    return _shift_of_center(clean, maps.map_shape)


def _format_target_map(target_map: Any, maps: AttributionMaps) -> Tensor:
    if not isinstance(target_map, Tensor):
        raise BoundaryTypeError(
            f'target_map must be a Tensor with method="target", but it is {type(target_map).__name__}.'
        )
    shape = (len(maps.x), *maps.map_shape)
    if target_map.shape not in (shape[1:], (1, *shape[1:]), shape):
        raise BoundaryValueError(
            f"target_map must have the shape of a map, {shape[1:]}, or of one for each example, {shape}, but its shape "
            f"is {tuple(target_map.shape)}."
        )
    weights = target_map.detach().to(maps.x).expand(shape).flatten(1)
    is_possible = torch.isfinite(weights).all() & (weights >= 0).all() & (weights > 0).any(dim=1).all()
    if not is_possible:
        raise BoundaryValueError(
            "target_map must be positive where attribution is wanted and 0 elsewhere, in every example, but it holds "
            f"values from {weights.min().item():.4g} to {weights.max().item():.4g}."
        )
    return weights
