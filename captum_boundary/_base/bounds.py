"""Bounds as users give them, turned into a box of flat points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_boundary._base.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary._base.flat import geometry_dtype, pack
from captum_boundary._base.geometry import Box

__all__ = ["Bounds", "box_of"]

Pair = tuple[float | Tensor, float | Tensor]
Bounds = Pair | tuple[Pair | None, ...] | None

# Inputs that left the bounds by rounding alone (a resized image at -3e-8, say) are not refused.
_ROUNDING = 1e-5
_UNLIMITED = (-torch.inf, torch.inf)


def box_of(bounds: Bounds, inputs: tuple[Tensor, ...]) -> Box:
    """The box ``(1 or N, D)`` that ``bounds`` make for ``inputs``, which must lie inside it.

    Limits that the dtype of an input cannot represent are rounded inwards, so that no point leaves them by rounding.
    """
    pairs = _pairs(bounds, len(inputs))
    dtype, device = geometry_dtype(inputs), inputs[0].device
    if all(pair is _UNLIMITED for pair in pairs):
        sides = [
            torch.cat(
                [tensor.new_full((1, tensor.shape[1:].numel()), side, dtype=dtype, device=device) for tensor in inputs],
                dim=1,
            )
            for side in _UNLIMITED
        ]
        return Box(*sides, is_limited=False)
    names = [f"inputs[{index}]" if len(inputs) > 1 else "inputs" for index in range(len(inputs))]
    limits = [
        tuple(_expand(side, tensor, dtype, name) for side in pair)
        for pair, tensor, name in zip(pairs, inputs, names, strict=True)
    ]
    flat = [pack((tensor,)).to(dtype) for tensor in inputs]
    faults = torch.stack(
        [
            torch.stack([fault.any().to(device) for fault in _faults(*sides, points)])
            for sides, points in zip(limits, flat, strict=True)
        ]
    ).tolist()
    for (unordered, outside, _), name, pair, sides, points in zip(faults, names, pairs, limits, flat, strict=True):
        if unordered:
            raise BoundaryValueError(
                f"bounds must be (lower, upper) with lower <= upper everywhere, but for {name} they are {pair!r}."
            )
        if outside:
            raise BoundaryValueError(_outside_message(name, *sides, points))
    sides = []
    for (_, _, is_off), (lower, upper), points, tensor in zip(faults, limits, flat, inputs, strict=True):
        lower, upper = -_rounded_down(-lower, tensor.dtype), _rounded_down(upper, tensor.dtype)
        if is_off or tensor.dtype != dtype:
            # Never tighter than the input itself, so that an input off by rounding is a legal starting point.
            lower, upper = torch.minimum(lower, points), torch.maximum(upper, points)
        sides.append((lower.to(device), upper.to(device)))
    n_rows = max(len(side) for pair in sides for side in pair)
    return Box(*(torch.cat([side.expand(n_rows, -1) for side in column], dim=1) for column in zip(*sides, strict=True)))


def _faults(lower: Tensor, upper: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where limits are in the wrong order, where points lie outside, and where they do by rounding alone."""
    size = torch.where(torch.isfinite(upper - lower), upper - lower, torch.ones_like(lower))
    excess = torch.maximum(lower - points, points - upper)
    return ~(lower <= upper), excess > _ROUNDING * size, excess > 0


def _rounded_down(limit: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest numbers of ``dtype`` at or below ``limit``, in its own dtype."""
    nearest = limit.to(dtype)
    below = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    return torch.where(nearest.to(limit) > limit, below, nearest).to(limit)


def _pairs(bounds: Any, n_inputs: int) -> list[Pair]:
    if bounds is None:
        return [_UNLIMITED] * n_inputs
    if not isinstance(bounds, (tuple, list)):
        raise BoundaryTypeError(
            f"bounds must be None, a pair (lower, upper), or a tuple of such pairs, but it is {type(bounds).__name__}."
        )
    if all(pair is None or isinstance(pair, (tuple, list)) for pair in bounds):
        if len(bounds) != n_inputs:
            raise BoundaryValueError(
                f"bounds holds {len(bounds)} pair(s) for {n_inputs} input(s): give one pair for each, or one for all."
            )
        pairs = [_UNLIMITED if pair is None else pair for pair in bounds]
    else:
        pairs = [bounds] * n_inputs
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(side, (int, float, Tensor)) for side in pair):
            raise BoundaryValueError(f"Each pair of bounds must be two numbers or two Tensors, but one is {pair!r}.")
    return pairs


def _expand(side: float | Tensor, tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """One side of the bounds with the shape of one example, or of all of them where it differs between examples."""
    value = torch.as_tensor(side, dtype=dtype, device=tensor.device).detach()
    for shape in (tensor[:1].shape, tensor.shape):
        try:
            expanded = value.broadcast_to(shape)
        except RuntimeError:
            continue
        return expanded.reshape(len(expanded), -1)
    raise BoundaryValueError(
        f"A bound of shape {tuple(value.shape)} does not broadcast to {name} of shape {tuple(tensor.shape)}. "
        "Bounds per channel of an image have shape (C, 1, 1)."
    )


def _outside_message(name: str, lower: Tensor, upper: Tensor, points: Tensor) -> str:
    row = int(_faults(lower, upper, points)[1].any(dim=1).nonzero()[0])
    return (
        f"{name} must lie inside bounds, but row {row} has values from {points[row].min():.4g} to "
        f"{points[row].max():.4g} where bounds allow {lower.min():.4g} to {upper.max():.4g}. Clip inputs that were "
        "moved (sensitivity_max takes a perturb_func that does). For normalised inputs, give bounds in normalised "
        "units: ((0 - mean) / std, (1 - mean) / std)."
    )
