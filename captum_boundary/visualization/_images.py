"""Tensors as things to look at: images between 0 and 1, and attributions as maps of pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_boundary._core.bounds import Bounds, box_of
from captum_boundary._core.checks import check_inputs
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.metrics._maps import check_attributions

__all__ = ["SIGNS", "Array", "check_images", "displayed", "maps_of", "scale_of"]

Array = NDArray[np.float64]

# Which part of an attribution is shown, by Captum's names.
SIGNS: Mapping[str, Callable[[Array], Array]] = {
    "all": lambda values: values,
    "positive": lambda values: values.clip(min=0),
    "negative": lambda values: (-values).clip(min=0),
    "absolute_value": np.abs,
}


def check_images(inputs: object) -> Tensor:
    """``inputs`` as the images ``(N, C, H, W)`` that they must be, gray or in color."""
    if isinstance(inputs, tuple):
        raise BoundaryTypeError(
            f"inputs must be one Tensor of images, but it is a tuple of {len(inputs)}. Give the images alone, and "
            "what belongs to them in the same way."
        )
    (images,) = check_inputs(inputs)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise BoundaryValueError(
            "inputs must be images (N, C, H, W) with one channel (gray) or three (red, green, blue), but their shape "
            f"is {tuple(images.shape)}. Of images with other channels, choose three to look at."
        )
    return images.detach()


def displayed(images: Tensor, like: Tensor, bounds: Bounds) -> Array:
    """``images`` as ``(N, H, W, C)``, black at 0 and white at 1, from the ``bounds`` of the inputs ``like``."""
    try:
        box = box_of((0, 1) if bounds is None else bounds, (like,))
    except BoundaryValueError as error:
        if bounds is not None:
            raise
        raise BoundaryValueError(
            f"inputs must lie in [0, 1] to be shown, but they hold values from {like.min().item():.4g} to "
            f"{like.max().item():.4g}. Give bounds, the values of black and white: (0, 255), say, or for normalized "
            "inputs ((0 - mean) / std, (1 - mean) / std), as a search takes them."
        ) from error
    if not (torch.isfinite(box.lower).all() and torch.isfinite(box.upper).all() and (box.lower < box.upper).all()):
        raise BoundaryValueError(
            "bounds must be finite, with lower < upper, for they are the values shown as black and white, but they "
            f"are {bounds!r}."
        )
    shares = (images.to(box.lower).flatten(1) - box.lower) / (box.upper - box.lower)
    return _array(shares.view(images.shape).permute(0, 2, 3, 1))


def maps_of(attributions: object, images: Tensor, name: str) -> Array:
    """One value for each pixel, ``(N, H, W)``: attributions ``(N, C, H, W)`` summed over channels, or maps as such."""
    maps = check_attributions(attributions, name)
    n_images, (height, width) = len(images), images.shape[2:]
    if maps.ndim not in (3, 4) or len(maps) != n_images or maps.shape[-2:] != images.shape[2:]:
        raise BoundaryValueError(
            f"{name} must hold one map for each input, ({n_images}, C, {height}, {width}) or ({n_images}, {height}, "
            f"{width}), but their shape is {tuple(maps.shape)}."
        )
    return _array(maps.sum(dim=1) if maps.ndim == 4 else maps)


def scale_of(values: Array, outlier_perc: float) -> float:
    """The magnitude shown in full color; the larger ones beyond it make up ``outlier_perc`` per cent of the total."""
    magnitudes = np.sort(np.abs(values[np.isfinite(values)]))
    if len(magnitudes) == 0:
        return 0.0
    total = magnitudes.cumsum()
    index = np.searchsorted(total, total[-1] * (1 - outlier_perc / 100))
    return float(magnitudes[min(index, len(magnitudes) - 1)])


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.cpu().double().numpy()
    return array
