"""Baselines that occlude parts of the image, and products of Guided Backprop: for a few gradients, or for none.

All explain the target's score for images ``(N, C, H, W)`` in [0, 1] and return attributions of the same shape.
"""

from __future__ import annotations

import torch
from captum.attr import GuidedBackprop, Occlusion
from smoothed_methods import window
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur

from captum_boundary.attr import separate_activations

N_MASKS = 250  # of RISE; its paper takes 4,000 to 8,000
CELLS = 7  # of a mask's coarse grid, on a side, as in the paper
AT_ONCE = 20  # images that pass through the network at once


def occlusion(mean_color: Tensor, model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Captum's, with the mean color in squares of a seventh of the side: 197 forward passes on ImageNet."""
    side = images.shape[-1] // 7
    method = Occlusion(model)
    squares = (images.shape[1], side, side)
    strides = (images.shape[1], side // 2, side // 2)
    with torch.no_grad():
        return method.attribute(images, squares, strides, mean_color.expand_as(images[:1]), target)


def rise(model: nn.Module, images: Tensor, target: Tensor, n_masks: int = N_MASKS) -> Tensor:
    """RISE of Petsiuk et al. (BMVC 2018, https://arxiv.org/abs/1806.07421).

    The mean of random masks, each weighted by the target's probability where the mask leaves only parts of the image.
    """
    side = images.shape[-1]
    cell = -(-side // CELLS)
    coarse = (torch.rand(n_masks, 1, CELLS + 1, CELLS + 1) < 0.5).float()
    large = functional.interpolate(coarse, (CELLS + 1) * cell, mode="bilinear")
    corners = torch.randint(cell, (n_masks, 2)).tolist()
    masks = torch.stack([m[:, y : y + side, x : x + side] for m, (y, x) in zip(large, corners, strict=True)])
    with torch.no_grad():
        maps = [_weighted_mean(model, image, label, masks) for image, label in zip(images, target, strict=True)]
    return torch.stack(maps).expand_as(images)


def _weighted_mean(model: nn.Module, image: Tensor, label: Tensor, masks: Tensor) -> Tensor:
    scores = torch.cat([model(image * part).softmax(dim=1)[:, label] for part in masks.split(AT_ONCE)])
    return (scores[:, None, None, None] * masks).mean(dim=0) / 0.5  # the expected value of a mask


def guided_backprop(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Guided Backprop (https://arxiv.org/abs/1412.6806)."""
    return GuidedBackprop(separate_activations(model, images[:1])).attribute(images, target).detach()


def averaged(maps: Tensor) -> Tensor:
    """In the window of :class:`BoundaryEnergy`."""
    return gaussian_blur(maps, 2 * int(3 * window(maps)) + 1, window(maps))
