"""Tuples of inputs as one flat tensor of points ``(N, D)``, and back."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["geometry_dtype", "pack", "unpack"]


def geometry_dtype(tensors: tuple[Tensor, ...]) -> torch.dtype:
    """The precision in which points are moved: float32, or float64 where any input has it."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def pack(tensors: tuple[Tensor, ...]) -> Tensor:
    """Flatten a tuple of ``(N, ...)`` tensors to one ``(N, D)`` tensor on the device of the first."""
    dtype = geometry_dtype(tensors)
    return torch.cat([tensor.reshape(len(tensor), -1).to(tensors[0].device, dtype) for tensor in tensors], dim=1)


def unpack(points: Tensor, templates: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Undo :func:`pack`: shapes, dtypes and devices of the templates, for any number of points."""
    parts = torch.split(points, [template[0].numel() for template in templates], dim=1)
    return tuple(
        part.reshape(len(points), *template.shape[1:]).to(template)
        for part, template in zip(parts, templates, strict=True)
    )
