"""Bounds as users give them, turned into a box of flat points."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.checks import plain_number
from captum_boundary._core.flat import geometry_dtype, pack, unpack
from captum_boundary._core.geometry import Box
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = [
    "Bounds",
    "are_same_bounds",
    "bounds_of_limits",
    "bounds_of_rows",
    "box_of",
    "check_bounds",
    "joined_bounds",
    "limits_of_examples",
]

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
        widths = torch.full(
            (1, sum(tensor.shape[1:].numel() for tensor in inputs)), torch.inf, dtype=dtype, device=device
        )
        return Box(-widths, widths, is_limited=False)
    sides = [
        _Sides.of(pair, tensor, dtype, f"inputs[{index}]" if len(inputs) > 1 else "inputs")
        for index, (pair, tensor) in enumerate(zip(pairs, inputs, strict=True))
    ]
    # One question for all inputs, since an accelerator has to be waited for to answer it.
    faults = torch.stack([side.faults().to(device) for side in sides]).tolist()
    for side, pair, (is_unordered, is_outside, _) in zip(sides, pairs, faults, strict=True):
        if is_unordered:
            raise BoundaryValueError(
                f"bounds must be (lower, upper) with lower <= upper everywhere, but for {side.name} they are {pair!r}."
            )
        if is_outside:
            raise BoundaryValueError(side.outside_message())
    limits = [
        side.limits(tensor.dtype, is_off=is_off or tensor.dtype != dtype)
        for side, tensor, (_, _, is_off) in zip(sides, inputs, faults, strict=True)
    ]
    n_rows = max(len(limit) for pair in limits for limit in pair)
    lower, upper = (
        torch.cat([limit.to(device).expand(n_rows, -1) for limit in column], dim=1)
        for column in zip(*limits, strict=True)
    )
    return Box(lower, upper)


def check_bounds(bounds: Any) -> Bounds:
    """Return bounds with NumPy's numbers as Python's, or say what is wrong with them before there are any inputs."""
    pairs = _pairs(bounds, None)
    for pair in pairs:
        lower, upper = (torch.as_tensor(side, device="cpu").detach() for side in map(plain_number, pair))
        try:
            is_ordered = bool((lower <= upper).all())
        except RuntimeError:
            raise BoundaryValueError(
                f"The two sides of bounds must broadcast to an input, but their shapes are {tuple(lower.shape)} and "
                f"{tuple(upper.shape)}."
            ) from None
        if not is_ordered:
            raise BoundaryValueError(
                f"bounds must be (lower, upper) with lower <= upper everywhere, but they are {pair!r}."
            )
    checked: Bounds = bounds if all(map(_is_plain, pairs)) else _plain(bounds)
    return checked


def bounds_of_rows(bounds: Bounds, points: tuple[Tensor, ...], choose: Callable[[Tensor], Tensor]) -> Bounds:
    """The bounds of some rows of ``points``, in the same form: limits of single examples follow their rows."""

    def of_pair(pair: Any, tensor: Tensor) -> Any:
        return pair if pair is None else tuple(of_side(side, tensor) for side in pair)

    def of_side(side: Any, tensor: Tensor) -> Any:
        is_per_example = isinstance(side, Tensor) and side.ndim == tensor.ndim and len(side) == len(tensor)
        return choose(side) if is_per_example else side

    if bounds is None:
        return None
    if all(pair is None or isinstance(pair, (tuple, list)) for pair in bounds):
        return tuple(of_pair(pair, tensor) for pair, tensor in zip(bounds, points, strict=True))
    pair: Pair = of_pair(bounds, points[0])
    return pair


def are_same_bounds(one: Any, other: Any) -> bool:
    """Whether bounds are certainly the same; values of tensors are not compared."""
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(are_same_bounds, one, other))
    return one is other or not (isinstance(one, Tensor) or isinstance(other, Tensor) or one != other)


def limits_of_examples(bounds: Bounds, points: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Lower and upper limits of every coordinate of every example, ``(N, D)`` each."""
    box, size = box_of(bounds, points), (len(points[0]), -1)
    return box.lower.expand(size), box.upper.expand(size)


def bounds_of_limits(lower: Tensor, upper: Tensor, templates: tuple[Tensor, ...], as_tuple: bool) -> Bounds:
    """Bounds with a row for each example, from limits ``(N, D)`` each, for inputs shaped like ``templates``."""
    pairs = tuple(zip(unpack(lower, templates), unpack(upper, templates), strict=True))
    return pairs if as_tuple else pairs[0]


def joined_bounds(parts: list[tuple[Bounds, tuple[Tensor, ...]]], as_tuple: bool) -> Bounds:
    """The bounds of several batches of points, given with these, as those of one batch."""
    (first, points), *others = parts
    is_shared = all(are_same_bounds(first, bounds) for bounds, _ in others) and not _has_examples(first, points)
    if is_shared or not others:
        return first
    lower, upper = (torch.cat(side) for side in zip(*(limits_of_examples(*part) for part in parts), strict=True))
    return bounds_of_limits(lower, upper, points, as_tuple)


def _has_examples(bounds: Bounds, points: tuple[Tensor, ...]) -> bool:
    """Whether any limit is that of a single example."""
    seen: list[Tensor] = []

    def look_at(side: Tensor) -> Tensor:
        seen.append(side)
        return side

    bounds_of_rows(bounds, points, look_at)
    return bool(seen)


class _Sides(NamedTuple):
    """The limits of one input, ``(1 or N, D)``, and its values ``(N, D)``."""

    lower: Tensor
    upper: Tensor
    values: Tensor
    name: str

    @classmethod
    def of(cls, pair: Pair, tensor: Tensor, dtype: torch.dtype, name: str) -> _Sides:
        lower, upper = (_expand(side, tensor, dtype, name) for side in pair)
        return cls(lower, upper, pack((tensor.detach(),)).to(dtype), name)

    def faults(self) -> Tensor:
        """Whether limits are in the wrong order, values lie outside of them, and do so by rounding alone: ``(3,)``."""
        excess = self._excess()
        return torch.stack([~(self.lower <= self.upper).all(), self._is_outside(excess).any(), (excess > 0).any()])

    def limits(self, dtype: torch.dtype, is_off: bool) -> tuple[Tensor, Tensor]:
        """The limits in numbers of ``dtype``; never tighter than the input, so that it is a legal start."""
        lower, upper = -_rounded_down(-self.lower, dtype), _rounded_down(self.upper, dtype)
        if not is_off:
            return lower, upper
        return torch.minimum(lower, self.values), torch.maximum(upper, self.values)

    def outside_message(self) -> str:
        is_outside = self._is_outside(self._excess())
        row = int(is_outside.any(dim=1).nonzero()[0])
        values, lower, upper = (
            side.expand_as(self.values)[row][is_outside[row]] for side in (self.values, self.lower, self.upper)
        )
        return (
            f"{self.name} must lie inside bounds, but row {row} has values from {values.min():.4g} to "
            f"{values.max():.4g} where bounds allow {lower.min():.4g} to {upper.max():.4g}. Clip "
            "inputs that were moved (sensitivity_max takes a perturb_func that does). For normalized inputs, give "
            "bounds in normalized units: ((0 - mean) / std, (1 - mean) / std)."
        )

    def _excess(self) -> Tensor:
        return torch.maximum(self.lower - self.values, self.values - self.upper)

    def _is_outside(self, excess: Tensor) -> Tensor:
        size = self.upper - self.lower
        return excess > _ROUNDING * torch.where(torch.isfinite(size), size, 1.0)


def _rounded_down(limit: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest numbers of ``dtype`` at or below ``limit``, in its own dtype."""
    nearest = limit.to(dtype)
    below = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    return torch.where(nearest.to(limit) > limit, below, nearest).to(limit)


def _is_plain(pair: Pair) -> bool:
    return all(plain_number(side) is side for side in pair)


def _plain(bounds: Any) -> Any:
    return tuple(map(_plain, bounds)) if isinstance(bounds, (tuple, list)) else plain_number(bounds)


def _pairs(bounds: Any, n_inputs: int | None) -> list[Pair]:
    """A pair for each input, of which there may be any number that suits the bounds if it is None."""
    if bounds is None:
        return [_UNLIMITED] * (n_inputs or 1)
    if not isinstance(bounds, (tuple, list)):
        raise BoundaryTypeError(
            f"bounds must be None, a pair (lower, upper), or a tuple of such pairs, but it is {type(bounds).__name__}."
        )
    if all(pair is None or isinstance(pair, (tuple, list)) for pair in bounds):
        if n_inputs is not None and len(bounds) != n_inputs:
            raise BoundaryValueError(
                f"bounds holds {len(bounds)} pair(s) for {n_inputs} input(s): give one pair for each, or one for all."
            )
        pairs = [_UNLIMITED if pair is None else pair for pair in bounds]
    else:
        pairs = [bounds] * (n_inputs or 1)
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(side, (numbers.Real, Tensor)) for side in pair):
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
