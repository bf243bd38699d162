"""Bounds as users give them, turned into a box of flat points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_boundary._base.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary._base.geometry import Box

__all__ = ["Bounds", "box_of"]

Pair = tuple[float | Tensor, float | Tensor]
Bounds = Pair | tuple[Pair | None, ...] | None

# Inputs that left the bounds by rounding alone (a resized image at -3e-8, say) are not refused.
_ROUNDING = 1e-5


def box_of(bounds: Bounds, inputs: tuple[Tensor, ...]) -> Box:
    """The box ``(1 or N, D)`` that ``bounds`` make for ``inputs``, which must lie inside it."""
    pairs = _pairs(bounds, len(inputs))
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in inputs) else torch.float32
    lowers, uppers = [], []
    for index, (pair, tensor) in enumerate(zip(pairs, inputs, strict=True)):
        name = f"inputs[{index}]" if len(inputs) > 1 else "inputs"
        lower, upper = (_expand(side, tensor, dtype, name) for side in pair)
        if torch.isnan(lower).any() or torch.isnan(upper).any() or (lower > upper).any():
            raise BoundaryValueError(
                f"bounds must be (lower, upper) with lower <= upper everywhere, but for {name} they are {pair!r}."
            )
        _check_inside(tensor, lower, upper, name)
        # Never tighter than the input itself, so that an input off by rounding is a legal starting point.
        flat = tensor.detach().to(inputs[0].device, dtype).flatten(1) if tensor.ndim > 1 else tensor[:, None].to(dtype)
        lower, upper = lower.flatten(1), upper.flatten(1)
        lowers.append(lower if (flat >= lower).all() else torch.minimum(lower, flat))
        uppers.append(upper if (flat <= upper).all() else torch.maximum(upper, flat))
    n_rows = max(len(side) for side in lowers + uppers)
    return Box(*(torch.cat([side.expand(n_rows, -1) for side in sides], dim=1) for sides in (lowers, uppers)))


def _pairs(bounds: Any, n_inputs: int) -> list[Pair]:
    unlimited = (-torch.inf, torch.inf)
    if bounds is None:
        return [unlimited] * n_inputs
    if not isinstance(bounds, (tuple, list)):
        raise BoundaryTypeError(
            f"bounds must be None, a pair (lower, upper), or a tuple of such pairs, but it is {type(bounds).__name__}."
        )
    if all(pair is None or isinstance(pair, (tuple, list)) for pair in bounds):
        if len(bounds) != n_inputs:
            raise BoundaryValueError(
                f"bounds holds {len(bounds)} pair(s) for {n_inputs} input(s): give one pair for each, or one for all."
            )
        pairs = [unlimited if pair is None else pair for pair in bounds]
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


def _check_inside(tensor: Tensor, lower: Tensor, upper: Tensor, name: str) -> None:
    flat = tensor.detach().to(lower).reshape(len(tensor), -1)
    size = torch.where(torch.isfinite(upper - lower), upper - lower, torch.ones_like(lower))
    excess = torch.maximum(lower - flat, flat - upper)
    outside = (excess > _ROUNDING * size).any(dim=1)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise BoundaryValueError(
            f"{name} must lie inside bounds, but row {row} has values from {flat[row].min():.4g} to "
            f"{flat[row].max():.4g} where bounds allow {lower.min():.4g} to {upper.max():.4g}. Clip inputs that were "
            "moved (sensitivity_max takes a perturb_func that does). For normalised inputs, give bounds in normalised "
            "units: ((0 - mean) / std, (1 - mean) / std)."
        )
