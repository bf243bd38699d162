"""What stands in the place of features that an input loses."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor
from torch.nn import functional

from captum_boundary._core.baselines import baseline_values
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["baselines_for"]

# RISE's blur: a kernel of 11 x 11 pixels with a deviation of 5.
_RADIUS, _DEVIATION = 5, 5.0


def baselines_for(inputs: tuple[Tensor, ...], baselines: object) -> tuple[Tensor, ...]:
    """``baselines``, one for each input or one for all, with the shapes, dtypes and devices of ``inputs``."""
    given = baselines if isinstance(baselines, tuple) else (baselines,) * len(inputs)
    if len(given) != len(inputs):
        raise BoundaryValueError(
            f"baselines must be one, or one for each of {len(inputs)} inputs, but are {len(given)}."
        )
    return tuple(_baseline_for(tensor, values) for tensor, values in zip(inputs, given, strict=True))


def _baseline_for(inputs: Tensor, baselines: object) -> Tensor:
    if isinstance(baselines, str) and baselines == "blur":
        return _blurred(inputs)
    if isinstance(baselines, bool) or not isinstance(baselines, (numbers.Real, Tensor)):
        raise BoundaryTypeError(f'baselines must be a number, a Tensor or "blur", but it is {baselines!r}.')
    values = baseline_values(baselines, inputs)
    # Of fewer dimensions, only those of one example: (N,) would silently become one value for each column.
    if values.ndim in (0, inputs.ndim - 1, inputs.ndim):
        try:
            return values.broadcast_to(inputs.shape)
        except RuntimeError:
            pass
    raise BoundaryValueError(
        "baselines must be a number, or broadcast to inputs or one of them, with as many dimensions: inputs have shape "
        f"{tuple(inputs.shape)}, baselines {tuple(values.shape)}. One value for each channel of an image has shape "
        "(C, 1, 1)."
    )


def _blurred(images: Tensor) -> Tensor:
    """Images after a Gaussian blur, their border pixels continued outwards."""
    if images.ndim != 4:
        raise BoundaryValueError(
            f'baselines="blur" needs images (N, C, H, W), but inputs have shape {tuple(images.shape)}. Give a number '
            "or a Tensor, for instance the mean of the training data."
        )
    values = images if images.dtype == torch.float64 else images.float()
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, device=values.device, dtype=values.dtype)
    kernel = torch.exp(-0.5 * (offsets / _DEVIATION) ** 2)
    kernel /= kernel.sum()
    n_channels = values.shape[1]
    padded = functional.pad(values, [_RADIUS] * 4, mode="replicate")
    for weight in (kernel[:, None], kernel[None, :]):
        padded = functional.conv2d(padded, weight.expand(n_channels, 1, *weight.shape), groups=n_channels)
    return padded.to(images)
