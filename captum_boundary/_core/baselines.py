"""Baselines in Captum's forms: numbers and tensors."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["baseline_values", "format_baselines"]


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
    value = baseline_values(value, tensor)
    if value.ndim and value.shape not in (tensor.shape, tensor[:1].shape):
        raise BoundaryValueError(
            f"A baseline must be a number, or have the shape of its input, {tuple(tensor.shape)}, or that of one "
            f"example, {tuple(tensor[:1].shape)}, but its shape is {tuple(value.shape)}."
        )
    return value.expand_as(tensor)


def baseline_values(baseline: Any, tensor: Tensor) -> Tensor:
    """Finite values of a number or Tensor, in its own shape, with the dtype and on the device of an input."""
    if isinstance(baseline, Tensor):
        values = baseline.detach().to(tensor)
        is_finite = bool(torch.isfinite(values).all())
    else:  # an accelerator need not be asked about it
        values = tensor.new_full((), float(baseline))
        is_finite = math.isfinite(baseline)
    if not is_finite:
        raise BoundaryValueError("baselines must be finite, but they contain NaN or infinity.")
    return values
