"""An example and its map as one small picture, side by side."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from captum_boundary._core.bounds import Bounds, box_of

__all__ = ["is_image", "picture"]

Pixels = NDArray[np.uint8]

# From against the class, over nothing, to for it: told apart by colour-blind eyes too.
_COLOURS = np.array([[33, 102, 172], [146, 197, 222], [247, 247, 247], [244, 165, 130], [178, 24, 43]], dtype=float)
_OUTLIERS = 0.995  # share of pixels whose magnitudes are told apart
_SMALL = 64  # pixels up to which every one counts


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether an example of this shape can be looked at."""
    return len(shape) == 3 and shape[0] in (1, 3)


def picture(image: Tensor, attributions: Tensor | None, bounds: Bounds, size: int) -> bytes:
    """WebP of an image ``(C, H, W)`` beside its attributions, each ``size`` pixels wide and high at most."""
    left = Image.fromarray(_pixels_of_image(image, bounds))
    maps = Image.new("RGB", left.size, (128, 128, 128)) if attributions is None else _map(attributions)
    if max(left.size) > size:
        left.thumbnail((size, size), Image.Resampling.LANCZOS)
    both = Image.new("RGB", (2 * left.width, left.height))
    both.paste(left, (0, 0))
    both.paste(maps.resize(left.size, Image.Resampling.BOX), (left.width, 0))
    buffer = io.BytesIO()
    both.save(buffer, "webp", lossless=max(left.size) <= _SMALL, quality=85)
    return buffer.getvalue()


def _pixels_of_image(image: Tensor, bounds: Bounds) -> Pixels:
    """Black at the lower bound and white at the upper; at the image's own extremes where there are none."""
    values = image.float()
    if bounds is None and values.min() >= 0 and values.max() <= 1:
        bounds = (0.0, 1.0)
    if bounds is None:
        shares = (values - values.min()) / (values.max() - values.min()).clamp_min(torch.finfo(values.dtype).tiny)
    else:
        box = box_of(bounds, (values[None],))
        shares = (values - box.lower.view_as(values)) / (box.upper - box.lower).view_as(values)
    pixels = (shares.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)
    return pixels.permute(1, 2, 0).contiguous().numpy()


def _map(attributions: Tensor) -> Image.Image:
    """Attributions, summed over channels, in colours from minus to plus their largest magnitudes."""
    values: Any = (attributions.sum(dim=0) if attributions.ndim == 3 else attributions).double().numpy()
    if not np.isfinite(values).all():
        return Image.new("RGB", values.shape[::-1], (128, 128, 128))
    scale = np.quantile(np.abs(values), _OUTLIERS) or np.abs(values).max() or 1.0
    places = (np.clip(values / scale, -1, 1) + 1) * (len(_COLOURS) - 1) / 2
    channels = [np.interp(places, range(len(_COLOURS)), colour) for colour in _COLOURS.T]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))
