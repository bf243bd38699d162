r"""Do attributions lie on the object? Four measures of images with a box or a mask around what their class names.

The measures of "Robust Models Are More Interpretable Because Attributions Look Normal"
(https://arxiv.org/abs/2103.11257), higher is better for each. Write :math:`z_i` for the attribution of pixel
:math:`i`, summed over channels, and :math:`B` for the pixels of the object. None of the measures changes when a map is
multiplied by a positive number.

Where a measure divides zero by zero it is NaN, not a number that would enter an average unseen; so is every measure of
a map that contains NaN, as boundary attributions do for examples without a boundary point. ``nanmean`` leaves both out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_boundary._core.agreement import center_of_mass
from captum_boundary.metrics._maps import object_pixels, pixel_maps

__all__ = ["concentration", "energy_game", "localization", "positive_percentage"]


def localization(attributions: Tensor, masks: Tensor) -> Tensor:
    r"""Overlap of the pixels with positive attribution with the object: intersection over union.

    .. math:: |\{i : z_i > 0\} \cap B| \; / \; |\{i : z_i > 0\} \cup B|

    After Chattopadhay et al., "Grad-CAM++" (https://arxiv.org/abs/1710.11063). It depends on signs alone: half of the
    pixels positive at random score about ``b / (1 + b)`` on an object that covers a share ``b`` of the image.

    Args:

        attributions (Tensor): Attributions ``(N, C, H, W)``, which are summed over channels, or maps ``(N, H, W)``.
        masks (Tensor): Where the object is: masks ``(N, H, W)`` or ``(N, 1, H, W)``, 1 or True on the object and 0
            elsewhere, or boxes ``(N, 4)`` of x0, y0, x1, y1 in pixels, to which every pixel belongs that they touch.

    Returns:

        - **overlap** (*Tensor*): Between 0 and 1, shape ``(N,)``. 0 where no pixel is positive.

    Raises:

        BoundaryTypeError: If an argument is no Tensor, or ``attributions`` is not floating point.
        BoundaryValueError: For shapes that do not fit, infinite attributions, values of masks other than 0 and 1, boxes
            turned inside out, and examples without an object.

    Examples::

        >>> import torch
        >>> attributions = torch.tensor([[[1.0, 2.0], [-1.0, 3.0]]])
        >>> localization(attributions, torch.tensor([[0, 0, 2, 1]]))
        tensor([0.6667])
    """
    maps = pixel_maps(attributions)
    pixels = object_pixels(masks, maps)
    positive = maps > 0
    shared, either = (_over_pixels(area).to(maps) for area in (positive & pixels, positive | pixels))
    return (shared / either).masked_fill(maps.isnan().any(dim=(1, 2)), torch.nan)


def energy_game(attributions: Tensor, masks: Tensor) -> Tensor:
    r"""Share of the positive attribution that lies on the object, or "energy-based pointing game".

    .. math:: \sum_{i \in B} \max(z_i, 0) \; / \; \sum_i \max(z_i, 0)

    After Wang et al., "Score-CAM" (https://arxiv.org/abs/1910.01279). An even map scores the share of the image that
    the object covers.

    Args:

        attributions (Tensor): Attributions ``(N, C, H, W)``, which are summed over channels, or maps ``(N, H, W)``.
        masks (Tensor): Masks or boxes, as for :func:`localization`.

    Returns:

        - **share** (*Tensor*): Between 0 and 1, shape ``(N,)``. NaN where no pixel is positive.

    Raises:

        BoundaryTypeError: As :func:`localization`.
        BoundaryValueError: As :func:`localization`.

    Examples::

        >>> import torch
        >>> attributions = torch.tensor([[[1.0, 2.0], [-1.0, 3.0]]])
        >>> energy_game(attributions, torch.tensor([[0, 0, 2, 1]]))
        tensor([0.5000])
    """
    maps = pixel_maps(attributions)
    pixels = object_pixels(masks, maps)
    positive = maps.clamp_min(0)
    return _over_pixels(positive * pixels) / _over_pixels(positive)


def positive_percentage(attributions: Tensor, masks: Tensor) -> Tensor:
    r"""Share of the attribution on the object that is positive.

    .. math:: \sum_{i \in B} \max(z_i, 0) \; / \; \sum_{i \in B} |z_i|

    The measure in which boundary attributions differ most from ordinary ones. Signs at random score 0.5.

    Args:

        attributions (Tensor): Attributions ``(N, C, H, W)``, which are summed over channels, or maps ``(N, H, W)``.
        masks (Tensor): Masks or boxes, as for :func:`localization`.

    Returns:

        - **share** (*Tensor*): Between 0 and 1, shape ``(N,)``. 0 where all attribution on the object is negative, NaN
          where there is none.

    Raises:

        BoundaryTypeError: As :func:`localization`.
        BoundaryValueError: As :func:`localization`.

    Examples::

        >>> import torch
        >>> attributions = torch.tensor([[[1.0, 2.0], [-1.0, 3.0]]])
        >>> positive_percentage(attributions, torch.tensor([[0, 0, 1, 2]]))
        tensor([0.5000])
    """
    maps = pixel_maps(attributions)
    pixels = object_pixels(masks, maps)
    share = _over_pixels(maps.clamp_min(0) * pixels) / _over_pixels(maps.abs() * pixels)
    return share.masked_fill(maps.isnan().any(dim=(1, 2)), torch.nan)


def concentration(attributions: Tensor, masks: Tensor) -> Tensor:
    r"""How close to its center of mass, and how much on the object, the attribution lies.

    .. math:: \sum_{i \in B} \frac{|z_i|}{\sum_j |z_j|} \cdot \frac{1}{d_i}

    where :math:`d_i` is the distance from the middle of pixel :math:`i` to the center of mass of :math:`|z|` over the
    whole image, as a share of the image's diagonal, and at least half a pixel's side, so that it is never zero. An even
    map on a square object in the middle of a square image scores about 5 times the object's side over the image's. In
    this unit, values are of the order of those that the paper reports, around 4.

    Args:

        attributions (Tensor): Attributions ``(N, C, H, W)``, which are summed over channels, or maps ``(N, H, W)``.
        masks (Tensor): Masks or boxes, as for :func:`localization`.

    Returns:

        - **concentration** (*Tensor*): Not negative, shape ``(N,)``. 0 where all attribution lies off the object, NaN
          where there is none.

    Raises:

        BoundaryTypeError: As :func:`localization`.
        BoundaryValueError: As :func:`localization`.

    Examples::

        >>> import torch
        >>> attributions = torch.tensor([[[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]])
        >>> concentration(attributions, torch.tensor([[0, 0, 4, 1]]))  # half of it, a fifth of the diagonal away
        tensor([2.5000])
    """
    maps = pixel_maps(attributions)
    pixels = object_pixels(masks, maps)
    share = maps.abs() / _over_pixels(maps.abs())[:, None, None]
    center = center_of_mass(maps)
    rows, columns = (torch.arange(size, device=maps.device, dtype=maps.dtype) for size in maps.shape[1:])
    offsets = (rows - center[:, :1])[:, :, None], (columns - center[:, 1:])[:, None, :]
    distance, diagonal = torch.hypot(*offsets).clamp_min(0.5), math.hypot(*maps.shape[1:])
    return _over_pixels(share * pixels / distance) * diagonal


def _over_pixels(values: Tensor) -> Tensor:
    return values.sum(dim=(1, 2))
