"""Two methods that integrate gradients from black images otherwise, written from the descriptions in their papers.

Both explain the target's score for images ``(N, C, H, W)`` in [0, 1] and return attributions of the same shape.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def guided_integrated_gradients(
    model: nn.Module, images: Tensor, target: Tensor, n_steps: int = 50, fraction: float = 0.1, leash: float = 0.02
) -> Tensor:
    """Guided IG of Kapishnikov et al. (CVPR 2021, https://arxiv.org/abs/2106.09788).

    In every step those pixels move on towards the image whose gradients are smallest, a ``fraction`` of those that have
    not arrived, as far as an even pace in the l1 norm asks for. None strays farther from the straight line than
    ``leash``, as a share of the whole way.
    """
    start = torch.zeros_like(images)
    images = images.detach()
    way = images - start
    total_length = way.abs().flatten(1).sum(dim=1)
    points, total = start.clone(), torch.zeros_like(images)
    for step in range(1, n_steps + 1):
        slope = _slope(model, points, target)
        lowest, highest = (start + min(max(step / n_steps + side, 0), 1) * way for side in (-leash, leash))
        behind = (points - start).abs() < (lowest - start).abs()
        moved = torch.where(behind, lowest, points)
        wanted = (1 - step / n_steps) * total_length
        moved = torch.stack(
            [
                _follow_small_slopes(*row, fraction=fraction)
                for row in zip(moved, images, highest, slope.abs(), wanted, strict=True)
            ]
        )
        total += (moved - points) * slope
        points = moved
    return total


def _follow_small_slopes(
    point: Tensor, image: Tensor, highest: Tensor, steepness: Tensor, wanted: Tensor, fraction: float
) -> Tensor:
    """Move pixels of small slope until the l1 distance that is left is the one ``wanted``."""
    tolerance = 1e-6 * image.abs().sum()
    while (surplus := (image - point).abs().sum() - wanted) > tolerance:
        is_open = point != highest
        if not is_open.any():
            break
        chosen = is_open & (steepness <= steepness[is_open].kthvalue(max(1, int(fraction * is_open.sum()))).values)
        reach = (highest - point).abs()[chosen].sum()
        share = min(1.0, float(surplus / reach))
        point = torch.where(chosen, highest if share == 1 else point + share * (highest - point), point)
    return point


def integrated_decision_gradients(model: nn.Module, images: Tensor, target: Tensor, n_steps: int = 50) -> Tensor:
    """IDG of Walker et al. (AAAI 2024, https://arxiv.org/abs/2305.20052).

    Integrated Gradients whose points on the straight line count by how fast the score rises there. They are also
    denser there, by a first look at the scores, which takes no gradients.
    """
    return torch.stack(
        [
            _integrate_where_score_rises(model, image, label, n_steps)
            for image, label in zip(images, target, strict=True)
        ]
    )


def _integrate_where_score_rises(model: nn.Module, image: Tensor, label: Tensor, n_steps: int) -> Tensor:
    grid = torch.linspace(0, 1, n_steps + 1)
    with torch.no_grad():
        rises = _scores(model, grid[:, None, None, None] * image, label).diff()
    density = (rises - rises.min()).clamp_min(1e-12)
    passed = torch.cat([torch.zeros(1), density.cumsum(0) / density.sum()])
    wanted = (torch.arange(n_steps) + 0.5) / n_steps
    cell = torch.searchsorted(passed, wanted).clamp(1, n_steps) - 1
    within = (wanted - passed[cell]) / (passed[cell + 1] - passed[cell])
    positions = (cell + within.clamp(0, 1)) / n_steps
    widths = torch.cat([positions[:1], positions.diff()])

    points = positions[:, None, None, None] * image
    slopes = torch.cat([_slope(model, part, label.expand(len(part))) for part in points.split(10)])
    with torch.no_grad():
        scores = _scores(model, torch.cat([torch.zeros_like(image)[None], points]), label)
    steepness = scores.diff() / widths.clamp_min(1e-6)
    return image * (slopes * (steepness * widths)[:, None, None, None]).sum(dim=0)


def _scores(model: nn.Module, images: Tensor, label: Tensor) -> Tensor:
    return torch.cat([model(part)[:, label] for part in images.split(10)])


def _slope(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    leaves = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        score = model(leaves).gather(1, target[:, None]).sum()
    return torch.autograd.grad(score, leaves)[0]
