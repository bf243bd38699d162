"""Boxes, and arithmetic of flat points ``(n, D)``, row by row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Box", "next_towards", "power_of_two", "ratio", "row_dot"]

_EXPONENT_BITS = {torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF0000000000000)}


class Box(NamedTuple):
    """Coordinates lie between ``lower`` and ``upper``, each ``(1 or n, 1 or D)``; infinite where there is no limit."""

    lower: Tensor
    upper: Tensor
    is_limited: bool = True  # whether any limit is finite

    def clamp(self, points: Tensor) -> Tensor:
        return points.clamp(self.lower, self.upper) if self.is_limited else points

    def of(self, rows: Tensor | slice) -> Box:
        """The limits of some rows of a batch."""
        lower, upper = (side if len(side) == 1 else side[rows] for side in (self.lower, self.upper))
        return Box(lower, upper, self.is_limited)


def row_dot(first: Tensor, second: Tensor) -> Tensor:
    """Inner products ``(n,)`` of rows."""
    products: Tensor = torch.linalg.vecdot(first, second)
    return products


def ratio(amount: Tensor, rate: Tensor) -> Tensor:
    """``amount / rate``, or zero where the rate is zero."""
    return (amount / rate).nan_to_num(0.0, 0.0, 0.0)


def power_of_two(vectors: Tensor) -> Tensor:
    """A power of two ``(n, 1)`` near the largest entry of each row, by which one divides without rounding."""
    size = vectors.abs().amax(dim=1, keepdim=True)
    integer, mask = _EXPONENT_BITS[size.dtype]
    # Without its fraction bits, a number is the power of two at or below it (IEEE 754).
    return (size.view(integer) & mask).view(size.dtype).clamp_min(torch.finfo(size.dtype).tiny)


def next_towards(values: Tensor, goals: Tensor) -> Tensor:
    """What ``torch.nextafter`` gives for unequal numbers, in half precision too, where not every device has it."""
    if values.dtype in _EXPONENT_BITS:
        return torch.nextafter(values, goals)
    is_up = goals > values
    # Numbers of one sign are ordered by their magnitude as their bits are, read as integers (IEEE 754).
    bits = values.view(torch.int16)
    stepped = torch.where(is_up == (values > 0), bits + 1, bits - 1).view(values.dtype)
    info = torch.finfo(values.dtype)
    smallest = torch.full_like(values, info.smallest_normal * info.eps)
    return torch.where(values == 0, torch.where(is_up, smallest, -smallest), stepped)
