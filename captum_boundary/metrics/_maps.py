"""Attributions as maps of pixels, and objects as sets of pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["check_attributions", "check_pair", "flat_pair", "object_pixels", "pixel_maps", "summed_over_channels"]

Attributions = Tensor | tuple[Tensor, ...]


def check_attributions(attributions: object, name: str = "attributions") -> Tensor:
    """``attributions`` of at least one example, without graph, in float32 or better; NaN is a value like others."""
    if not isinstance(attributions, Tensor):
        raise BoundaryTypeError(f"{name} must be a Tensor, but it is {type(attributions).__name__}.")
    if not attributions.is_floating_point():
        raise BoundaryTypeError(f"{name} must be floating point, but its dtype is {attributions.dtype}.")
    if attributions.ndim == 0 or attributions.numel() == 0:
        raise BoundaryValueError(f"{name} must not be empty, but its shape is {tuple(attributions.shape)}.")
    if torch.isinf(attributions).any():
        rows = torch.isinf(attributions).reshape(len(attributions), -1).any(dim=1)
        raise BoundaryValueError(f"{name} contains infinity in row(s) {rows.nonzero().flatten().tolist()}.")
    attributions = attributions.detach()
    return attributions if attributions.dtype in (torch.float32, torch.float64) else attributions.float()


def check_pair(first: Attributions, second: Attributions) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Two attributions of the same examples and shapes, as tuples on one device."""
    tensors, others = (
        tuple(check_attributions(part, name) for part in (parts if isinstance(parts, tuple) else (parts,)))
        for parts, name in ((first, "first"), (second, "second"))
    )
    shapes, other_shapes = ([tuple(part.shape) for part in parts] for parts in (tensors, others))
    if not shapes or shapes != other_shapes or len({shape[0] for shape in shapes}) > 1:
        shown, other_shown = (each[0] if len(each) == 1 else each for each in (shapes, other_shapes))
        raise BoundaryValueError(
            "first and second must be attributions of the same inputs, with the same examples and shapes, but their "
            f"shapes are {shown} and {other_shown}."
        )
    one, other = (tuple(part.to(tensors[0].device) for part in parts) for parts in (tensors, others))
    return one, other


def flat_pair(first: Attributions, second: Attributions) -> tuple[Tensor, Tensor]:
    """Both attributions as vectors ``(N, D)``."""
    pair = check_pair(first, second)
    one, other = (torch.cat([part.reshape(len(part), -1) for part in parts], dim=1) for parts in pair)
    return one, other


def pixel_maps(attributions: object) -> Tensor:
    """One value for each pixel, ``(N, H, W)``: attributions ``(N, C, H, W)`` summed over channels, or maps as such.

    Each map is divided by its largest magnitude, so that no sum over pixels overflows. Zero stays zero.
    """
    values = check_attributions(attributions)
    largest = values.reshape(len(values), -1).abs().amax(dim=1).view(-1, *[1] * (values.ndim - 1))
    return summed_over_channels(values / largest.masked_fill(largest == 0, 1.0))


def summed_over_channels(maps: Tensor) -> Tensor:
    if maps.ndim not in (3, 4):
        raise BoundaryValueError(
            f"attributions must be those of images, (N, C, H, W) or (N, H, W), but their shape is {tuple(maps.shape)}."
        )
    return maps.sum(dim=1) if maps.ndim == 4 else maps


def object_pixels(masks: object, maps: Tensor) -> Tensor:
    """Which pixels of ``maps`` ``(N, H, W)`` lie on the object, from boxes ``(N, 4)`` or from masks; never none."""
    if not isinstance(masks, Tensor):
        raise BoundaryTypeError(f"masks must be a Tensor of masks or boxes, but it is {type(masks).__name__}.")
    masks = masks.detach().to(maps.device)
    pixels = _inside_boxes(masks, maps) if masks.ndim == 2 else _as_booleans(masks, maps)
    missing = ~pixels.flatten(1).any(dim=1)
    if missing.any():
        raise BoundaryValueError(
            "Every example needs an object, but masks has no pixel of the image on it in row(s) "
            f"{missing.nonzero().flatten().tolist()}. Leave these examples out."
        )
    return pixels


def _as_booleans(masks: Tensor, maps: Tensor) -> Tensor:
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.shape != maps.shape:
        raise BoundaryValueError(
            f"masks must have shape {tuple(maps.shape)}, one value for each pixel, or be boxes of shape "
            f"({len(maps)}, 4), but their shape is {tuple(masks.shape)}."
        )
    if not ((masks == 0) | (masks == 1)).all():
        raise BoundaryValueError(
            "masks must be 1 (or True) on the object and 0 elsewhere, but they hold values from "
            f"{masks.min().item():.4g} to {masks.max().item():.4g}. Compare them with a threshold first."
        )
    return masks.bool()


def _inside_boxes(boxes: Tensor, maps: Tensor) -> Tensor:
    """Pixels that a box touches: the one in row i and column j covers the square from (j, i) to (j + 1, i + 1)."""
    if boxes.shape != (len(maps), 4):
        raise BoundaryValueError(
            f"boxes must have shape ({len(maps)}, 4), x0, y0, x1, y1 for each example, but their shape is "
            f"{tuple(boxes.shape)}."
        )
    boxes = boxes.to(maps.dtype)
    left, top, right, bottom = boxes[:, :, None].unbind(dim=1)
    wrong = ~(torch.isfinite(boxes).all(dim=1) & (left < right)[:, 0] & (top < bottom)[:, 0])
    are_shares = (boxes.abs() <= 1).all() & (boxes != boxes.round()).any()
    if wrong.any() | are_shares:
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise BoundaryValueError(
                "boxes must be x0, y0, x1, y1 with x0 < x1 and y0 < y1 (not x, y, width, height), but row "
                f"{row} is {boxes[row].tolist()}."
            )
        raise BoundaryValueError(
            f"boxes must be in pixels, but all coordinates are at most 1, as shares of an image are. Multiply x by "
            f"{maps.shape[2]} and y by {maps.shape[1]}."
        )
    rows, columns = (torch.arange(size, device=maps.device) for size in maps.shape[1:])
    in_rows = (rows >= top.floor()) & (rows < bottom.ceil())
    in_columns = (columns >= left.floor()) & (columns < right.ceil())
    return in_rows[:, :, None] & in_columns[:, None, :]
