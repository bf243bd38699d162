"""Boxes, and arithmetic of flat points ``(n, D)``, row by row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Box", "power_of_two", "ratio", "row_dot"]

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
    return (size.view(integer) & mask).view(size.dtype).clamp_min(torch.finfo(size.dtype).tiny)
