"""Photographs from slightly other points of view."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_ANGLE = 15.0  # degrees
MAX_SHIFT = 2.5 / 32  # of the side
MAX_WARP = 0.1  # what the far corner loses of its distance


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images ``(N, C, H, W)`` turned, shifted and tilted, each by random amounts; edges are continued outwards."""
    angle, right, down, tilt_x, tilt_y = (2 * torch.rand(5, len(images), generator=generator) - 1).to(images)
    angle = math.radians(MAX_ANGLE) * angle
    one = torch.ones_like(angle)
    rows = [
        [angle.cos(), -angle.sin(), 2 * MAX_SHIFT * right],
        [angle.sin(), angle.cos(), 2 * MAX_SHIFT * down],
        [MAX_WARP * tilt_x, MAX_WARP * tilt_y, one],
    ]
    homography = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(_centers(height, images), _centers(width, images), indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1).flatten(0, 1) @ homography.mT
    grid = (points[..., :2] / points[..., 2:]).view(len(images), height, width, 2)
    return torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _centers(n_pixels: int, like: Tensor) -> Tensor:
    return (torch.arange(n_pixels).to(like) * 2 + 1) / n_pixels - 1
