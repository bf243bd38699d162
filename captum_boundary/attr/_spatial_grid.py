"""The activations of a layer as a grid of positions, or a reason why they are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["ReshapeTransform", "grid_of"]

ReshapeTransform = Callable[[Any], Tensor]

# By how much the proportions of a grid may differ from those of the image, beyond one position more or less.
_DISTORTION = 1.5
_TOKENS = "lambda x: x[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2) for a class token and a grid of 14 x 14"
_CHANNELS_LAST = "lambda x: x.permute(0, 3, 1, 2) for channels that come last"


def grid_of(values: Any, reshape: ReshapeTransform | None, image: torch.Size, n_rows: int) -> Tensor:
    """``values`` of a layer as ``(N, C, h, w)``, whose ``h`` and ``w`` are certainly positions of the image.

    A map of other dimensions, enlarged to the size of the image, would look as valid as a right one.
    """
    grid = values if reshape is None else reshape(values)
    source = "The layer's output" if reshape is None else "reshape_transform must return what"
    if not isinstance(grid, Tensor):
        raise BoundaryTypeError(
            f"{source} must be a Tensor (N, C, h, w), but it is {type(grid).__name__}. Choose from it with "
            "reshape_transform, such as lambda outputs: outputs[0]."
        )
    if grid.ndim != 4 or len(grid) != n_rows or not grid.is_floating_point():
        raise BoundaryValueError(
            f"{source} must have the shape (N, C, h, w) with N = {n_rows} images, but it has {tuple(grid.shape)} and "
            f"dtype {grid.dtype}. Give reshape_transform: {_TOKENS}, {_CHANNELS_LAST}; or take a layer before pooling."
        )
    height, width = grid.shape[2:]
    if height * width == 1:
        raise BoundaryValueError(
            "The layer has one position only, so that its map would be the same everywhere. Choose a layer before the "
            "pooling over all positions."
        )
    if not _has_proportions(height, width, *image):
        last = " Its channels may come last." if _has_proportions(*grid.shape[1:3], *image) else ""
        raise BoundaryValueError(
            f"The last two dimensions of the layer's grid, {height} x {width}, do not have the proportions of the "
            f"image, {image[0]} x {image[1]}, so that they are no positions.{last} Give reshape_transform: {_TOKENS}, "
            f"{_CHANNELS_LAST}."
        )
    if reshape is not None:
        _check_order(values, reshape)
    return grid


def _has_proportions(height: int, width: int, image_height: int, image_width: int) -> bool:
    stretch = height * image_width / (width * image_height)
    is_near = 1 / _DISTORTION <= stretch <= _DISTORTION
    return is_near or abs(height - width * image_height / image_width) <= 1


def _check_order(values: Any, reshape: ReshapeTransform) -> None:
    """That each dimension of the layer becomes rows, channels or positions, and positions keep their order.

    Every value is replaced by its number, and the numbers tell where ``reshape`` has moved it: a ``reshape`` or
    ``view`` where a permutation is needed gives the right shape and mixes channels with positions.
    """
    leaves, spec = tree_flatten(values)
    is_moved = [isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves]
    for index, leaf in enumerate(leaves):
        if not is_moved[index]:
            continue
        numbers = torch.arange(leaf.numel(), device="cpu", dtype=torch.float64).view(leaf.shape).to(leaf.device)
        others = [torch.full_like(each, -1.0, dtype=torch.float64) if is_moved[i] else each
                  for i, each in enumerate(leaves)]  # fmt: skip
        others[index] = numbers
        moved = reshape(tree_unflatten(others, spec)).detach().cpu()
        if (moved < 0).all():  # of another tensor of the layer
            continue
        places = moved.round().long()
        if (places != moved).any() or (places < 0).any():
            raise BoundaryValueError("reshape_transform must move the values of a layer, and not compute with them.")
        _check_places(places, leaf.shape)


def _check_places(places: Tensor, shape: torch.Size) -> None:
    """From the numbers of the values ``(N, C, h, w)`` in the layer's tensor, of that ``shape``."""
    by_position = places.flatten(2)
    position, stride = torch.zeros_like(by_position[0, 0]), 1
    for size in reversed(shape):
        index = by_position % size
        by_position = by_position.div(size, rounding_mode="floor")
        varies = [index.amin(dim).ne(index.amax(dim)).any() for dim in range(3)]  # with rows, channels, positions
        if sum(map(bool, varies)) > 1:
            raise BoundaryValueError(
                "reshape_transform mixes positions, channels or images: one dimension of the layer, of size "
                f"{size}, becomes several of (N, C, h, w). Permute dimensions where it reshapes them: {_TOKENS}, "
                f"{_CHANNELS_LAST}."
            )
        if varies[2]:
            position = position + stride * index[0, 0]
            stride *= size
    if not (position.diff() > 0).all():
        raise BoundaryValueError(
            "reshape_transform must keep positions in their order, row by row of the image, but it moves them about."
        )
