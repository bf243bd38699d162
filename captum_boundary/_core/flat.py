"""Tuples of inputs as one flat tensor of points ``(N, D)``, and back."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["geometry_dtype", "pack", "unpack", "widest_dtype"]


def geometry_dtype(tensors: tuple[Tensor, ...]) -> torch.dtype:
    """The precision in which points are moved: float32, or float64 where any input has it."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def widest_dtype(values: Tensor) -> torch.dtype:
    """The dtype in which sums of narrower numbers are exact, where the device has one."""
    return values.dtype if values.device.type == "mps" else torch.float64


def pack(tensors: tuple[Tensor, ...]) -> Tensor:
    """Flatten a tuple of ``(N, ...)`` tensors to one ``(N, D)`` tensor on the device of the first."""
    dtype = geometry_dtype(tensors)
    parts = [tensor.reshape(len(tensor), -1).to(tensors[0].device, dtype) for tensor in tensors]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def unpack(points: Tensor, templates: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Undo :func:`pack`: shapes, dtypes, devices and memory formats of the templates, for any number of points."""
    parts = torch.split(points, [template.shape[1:].numel() for template in templates], dim=1)
    return tuple(_like(part, template) for part, template in zip(parts, templates, strict=True))


def _like(part: Tensor, template: Tensor) -> Tensor:
    shaped = part.reshape(len(part), *template.shape[1:]).to(template)
    return shaped.contiguous(memory_format=_memory_format(template))


def _memory_format(template: Tensor) -> torch.memory_format:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(template.ndim)
    if last is not None and template.is_contiguous(memory_format=last) and not template.is_contiguous():
        return last
    return torch.contiguous_format
