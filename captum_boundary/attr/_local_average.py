"""Maps of images, averaged over neighboring positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["local_average"]

_RADIUS = 3  # of the window, in standard deviations


def local_average(maps: Tensor, width: float) -> Tensor:
    """Maps ``(N, C, H, W)`` averaged in a Gaussian window; at the edges, over those positions that there are."""
    values = maps if maps.dtype == torch.float64 else maps.float()
    for dim in (2, 3):
        values = _windowed(values, dim, width) / _windowed(torch.ones_like(values[:1, :1]), dim, width)
    return values.to(maps.dtype)


def _windowed(values: Tensor, dim: int, width: float) -> Tensor:
    radius = min(math.ceil(_RADIUS * width), values.shape[dim] - 1)
    offsets = torch.arange(-radius, radius + 1, device=values.device, dtype=values.dtype)
    window = torch.exp(-0.5 * (offsets / width).square())
    kernel, padding = (window[:, None], (radius, 0)) if dim == 2 else (window[None], (0, radius))
    rows = values.reshape(-1, 1, *values.shape[2:])
    return functional.conv2d(rows, kernel[None, None], padding=padding).reshape(values.shape)
