"""Gaussian noise that is the same on every device and in every precision, and copies of examples that carry it."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.checks import check_count
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["check_pairs", "checked_stdevs", "noisy_copies", "normal_noise"]


def normal_noise(
    n_samples: int, inputs: tuple[Tensor, ...], stdevs: tuple[float, ...], source: torch.Generator
) -> tuple[Tensor, ...]:
    """For each input ``(N, ...)``, the noise ``(n_samples, ...)`` of that many copies of any example.

    All examples of a batch share it, so that results do not depend on the others in it. It is drawn on the CPU in
    single precision, whatever the inputs are.
    """
    options: dict[str, Any] = {"generator": source, "device": "cpu", "dtype": torch.float32}
    return tuple(
        (stdev * torch.randn(n_samples, *tensor.shape[1:], **options)).to(tensor.device, tensor.dtype)
        for tensor, stdev in zip(inputs, stdevs, strict=True)
    )


def noisy_copies(
    inputs: tuple[Tensor, ...], noise: tuple[Tensor, ...], examples: slice, copies: slice
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Noisy copies ``(n * n_copies, ...)`` of n examples, example by example, and which example each is of."""
    noisy = tuple((x[examples, None] + e[copies]).flatten(0, 1) for x, e in zip(inputs, noise, strict=True))
    rows = torch.arange(examples.start, examples.stop, device=inputs[0].device)
    return noisy, rows.repeat_interleave(copies.stop - copies.start)


def check_pairs(n_samples: int) -> None:
    """Refuse numbers of copies that are no pairs."""
    check_count("n_samples", n_samples)
    if n_samples % 2:
        raise BoundaryValueError(
            f"n_samples must be even, since noise comes in pairs of a vector and its negative, but it is {n_samples}."
        )


def checked_stdevs(stdev: float | tuple[float, ...]) -> tuple[float, ...]:
    """One standard deviation for each input."""
    stdevs = stdev if isinstance(stdev, tuple) else (stdev,)
    for value in stdevs:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise BoundaryTypeError(
                f"stdev must be a number, or a tuple with one for each input, but it contains {type(value).__name__}."
            )
    if not all(0 <= value < math.inf for value in stdevs) or not any(stdevs):
        raise BoundaryValueError(
            f"stdev must be positive and finite (0 only in a tuple, for inputs without noise), but it is {stdev!r}."
        )
    return tuple(float(value) for value in stdevs)
