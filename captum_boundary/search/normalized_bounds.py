"""Bounds of images that were normalized, in the units in which the model receives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["bounds_of"]

# What libraries call the mean and the standard deviation: torchvision, and image processors of Hugging Face.
_NAMES = (("mean", "std"), ("image_mean", "image_std"))


def bounds_of(transform: Any, std: Sequence[float] | Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""The bounds of images in [0, 1] after normalization, as a search takes them.

    A search moves inputs of the model. For images that were normalized as ``(images - mean) / std``, black and white
    are ``(0 - mean) / std`` and ``(1 - mean) / std``.

    Args:

        transform (Any): What normalizes: torchvision's ``Normalize``, a composition that contains it (several are
            applied one after the other), ``weights.transforms()`` of a pretrained model, an image processor of Hugging
            Face; or the mean of each channel, or a pair ``(mean, std)``.
        std (Sequence[float] or Tensor, optional): Standard deviation of each channel, where the mean is given.
            Default: None

    Returns:

        - **bounds** (*tuple[Tensor, Tensor]*): The lower and the upper limit of each channel, ``(C, 1, 1)``, float32
          or the dtype of the tensors given.

    Raises:

        BoundaryTypeError: If there is no normalization in ``transform``.
        BoundaryValueError: If mean and standard deviation differ in length, or are not finite and positive.

    Examples::

        >>> from captum_boundary import NearestBoundary, bounds_of
        >>> lower, upper = bounds_of((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        >>> lower.shape
        torch.Size([3, 1, 1])
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5)).eval()
        >>> search = NearestBoundary(model, bounds=(lower, upper))
    """
    if std is not None:
        steps = [(transform, std)]
    elif isinstance(transform, tuple | list) and len(transform) == 2 and all(map(_is_numbers, transform)):
        steps = [(transform[0], transform[1])]
    else:
        steps = list(_normalizations(transform))
    if not steps:
        raise BoundaryTypeError(
            f"There is no normalization in {type(transform).__name__}: bounds_of takes a transform with a mean and a "
            "standard deviation, such as weights.transforms(), or both, as in bounds_of(mean, std). Bounds of images "
            "in [0, 1] are (0, 1)."
        )
    channels = [_checked(*step) for step in steps]
    lower, upper = torch.zeros_like(channels[0][0]), torch.ones_like(channels[0][0])
    for mean, deviation in channels:
        lower, upper = (lower - mean) / deviation, (upper - mean) / deviation
    return lower.view(-1, 1, 1), upper.view(-1, 1, 1)


def _normalizations(transform: Any) -> Iterator[tuple[Any, Any]]:
    """Means and standard deviations in a transform, in the order in which they are applied."""
    for names in _NAMES:
        mean, std = (getattr(transform, name, None) for name in names)
        if mean is not None and std is not None and not callable(mean):  # as those of a tensor are
            if getattr(transform, "do_normalize", True):
                yield mean, std
            return
    parts = getattr(transform, "transforms", transform)
    if isinstance(parts, Iterable) and not isinstance(parts, str | bytes | dict | Tensor):
        for part in parts:
            yield from _normalizations(part)


def _is_numbers(value: object) -> bool:
    if isinstance(value, Tensor):
        return True
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, int | float) for v in value)


def _checked(mean: Any, std: Any) -> tuple[Tensor, Tensor]:
    try:
        means, deviations = (
            (value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float32, device="cpu"))
            .detach()
            .flatten()
            for value in (mean, std)
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise BoundaryTypeError(
            f"mean and std must be numbers of each channel, but they are {mean!r} and {std!r}."
        ) from error
    if len(means) != len(deviations) or len(means) == 0:
        raise BoundaryValueError(
            f"mean and std must hold a number for each channel, but they hold {len(means)} and {len(deviations)}."
        )
    if not (torch.isfinite(means).all() and torch.isfinite(deviations).all() and (deviations > 0).all()):
        raise BoundaryValueError(
            f"mean must be finite, and std finite and positive, but they are {means.tolist()} and "
            f"{deviations.tolist()}."
        )
    return means, deviations
