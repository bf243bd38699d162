"""Baselines of the Integrated Gradients, in Captum's forms."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["format_baselines"]


def format_baselines(baselines: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Captum's forms of ``baselines`` as tensors like the inputs."""
    values = baselines if isinstance(baselines, tuple) else (baselines,) * (len(inputs) if baselines is None else 1)
    if len(values) != len(inputs):
        raise BoundaryValueError(f"baselines must hold one entry for each of {len(inputs)} inputs, not {len(values)}.")
    return tuple(map(_format_baseline, values, inputs))


def _format_baseline(baseline: Any, tensor: Tensor) -> Tensor:
    value = 0 if baseline is None else baseline
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, Tensor)):
        raise BoundaryTypeError(
            f"baselines must be None, numbers, Tensors or a tuple of them, but one is {type(value).__name__}."
        )
    if isinstance(value, Tensor):
        value = value.detach().to(tensor)
        is_finite = bool(torch.isfinite(value).all())
    else:  # an accelerator need not be asked about it
        is_finite = math.isfinite(value)
        value = tensor.new_full((), float(value))
    if not is_finite:
        raise BoundaryValueError("baselines must be finite, but they contain NaN or infinity.")
    if value.ndim and value.shape not in (tensor.shape, tensor[:1].shape):
        raise BoundaryValueError(
            f"A baseline must be a number, or have the shape of its input, {tuple(tensor.shape)}, or that of one "
            f"example, {tuple(tensor[:1].shape)}, but its shape is {tuple(value.shape)}."
        )
    return value.expand_as(tensor)
