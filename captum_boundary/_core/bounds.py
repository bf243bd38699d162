"""Bounds as users give them, turned into a box of flat points."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.checks import plain_number
from captum_boundary._core.flat import geometry_dtype, pack, unpack
from captum_boundary._core.geometry import Box, next_towards
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = [
    "Bounds",
    "are_same_bounds",
    "bounds_of_limits",
    "bounds_of_rows",
    "box_of",
    "check_bounds",
    "joined_bounds",
]

Pair = tuple[float | Tensor, float | Tensor]
Bounds = Pair | tuple[Pair | None, ...] | None

# Inputs that left the bounds by rounding alone (a resized image at -3e-8, say) are not refused.
_ROUNDING = 1e-5
_UNLIMITED = (-torch.inf, torch.inf)


def box_of(bounds: Bounds, inputs: tuple[Tensor, ...]) -> Box:
    """The box ``(1 or N, D)`` that ``bounds`` make for ``inputs``, which must lie inside it.

    Limits that the dtype of an input cannot represent are rounded inwards, so that no point leaves them by rounding;
    but never beyond the input, so that it is a legal start.
    """
    pairs = _pairs(bounds, len(inputs))
    dtype, device = geometry_dtype(inputs), inputs[0].device
    sizes = [tensor.shape[1:].numel() for tensor in inputs]
    if all(pair is _UNLIMITED for pair in pairs):
        widths = torch.full((1, sum(sizes)), torch.inf, dtype=dtype, device=device)
        return Box(-widths, widths, is_limited=False)
    names = [f"inputs[{index}]" for index in range(len(inputs))] if len(inputs) > 1 else ["inputs"]
    sides = [
        [_expand(side, tensor, dtype, name).to(device) for side in pair]
        for pair, tensor, name in zip(pairs, inputs, names, strict=True)
    ]
    n_rows = max(len(side) for pair in sides for side in pair)
    lower, upper = (
        torch.cat([side.expand(n_rows, -1) for side in column], dim=1) for column in zip(*sides, strict=True)
    )
    x = pack(tuple(tensor.detach() for tensor in inputs))
    excess, width = torch.maximum(lower - x, x - upper), upper - lower
    is_outside = excess > _ROUNDING * torch.where(torch.isfinite(width), width, 1.0)
    # One question for all inputs, since an accelerator has to be waited for to answer it.
    faults = torch.stack([~(lower <= upper).all(), is_outside.any(), (excess > 0).any()])
    is_unordered, any_outside, is_off = faults.tolist()
    if is_unordered or any_outside:
        columns = (torch.split(each, sizes, dim=1) for each in (lower.expand_as(x), x, upper.expand_as(x), is_outside))
        for name, pair, *of_input in zip(names, pairs, *columns, strict=True):
            _refuse(name, pair, *of_input)

    def rounded(limits: Tensor) -> Tensor:
        parts = zip(torch.split(limits, sizes, dim=1), inputs, strict=True)
        return torch.cat([_rounded_down(part, tensor.dtype) for part, tensor in parts], dim=1)

    lower, upper = -rounded(-lower), rounded(upper)
    if is_off or any(tensor.dtype != dtype for tensor in inputs):
        lower, upper = torch.minimum(lower, x), torch.maximum(upper, x)
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
        return pair if pair is None else tuple(choose(side) if _follows(side, tensor) else side for side in pair)

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
    boxes = [(box_of(*part), (len(part[1][0]), -1)) for part in parts]
    lower, upper = (torch.cat([getattr(box, side).expand(size) for box, size in boxes]) for side in ("lower", "upper"))
    return bounds_of_limits(lower, upper, points, as_tuple)


def _has_examples(bounds: Bounds, points: tuple[Tensor, ...]) -> bool:
    """Whether any limit is that of a single example."""
    pairs = zip(_pairs(bounds, len(points)), points, strict=True)
    return any(_follows(side, tensor) for pair, tensor in pairs for side in pair)


def _follows(side: object, tensor: Tensor) -> bool:
    return isinstance(side, Tensor) and side.ndim == tensor.ndim and len(side) == len(tensor)


def _refuse(name: str, pair: Pair, lower: Tensor, values: Tensor, upper: Tensor, is_outside: Tensor) -> None:
    """Say what is wrong with the limits of one input, ``(N, D)`` each, if anything is."""
    if not (lower <= upper).all():
        raise BoundaryValueError(
            f"bounds must be (lower, upper) with lower <= upper everywhere, but for {name} they are {pair!r}."
        )
    if is_outside.any():
        row = int(is_outside.any(dim=1).nonzero()[0])
        values, lower, upper = (side[row][is_outside[row]] for side in (values, lower, upper))
        raise BoundaryValueError(
            f"{name} must lie inside bounds, but row {row} has values from {values.min():.4g} to {values.max():.4g} "
            f"where bounds allow {lower.min():.4g} to {upper.max():.4g}. Clip inputs that were moved (sensitivity_max "
            "takes a perturb_func that does). For normalized inputs, give bounds in normalized units: "
            "((0 - mean) / std, (1 - mean) / std)."
        )


def _rounded_down(limit: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest numbers of ``dtype`` at or below ``limit``, in its own dtype."""
    nearest = limit.to(dtype)
    below = next_towards(nearest, torch.full_like(nearest, -torch.inf))
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
