"""What boundary points are worth, measured apart from the package that found them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def distances(model: nn.Module, images: Tensor, labels: Tensor, points: Tensor, norm: float = 2) -> Tensor:
    """Distances ``(N,)``, infinite where the point does not lie strictly beyond the boundary."""
    with torch.no_grad():
        margin = margins(model(points), labels)
    return torch.where(margin < 0, (images - points).flatten(1).norm(norm, dim=1), torch.inf)


def quality(model: nn.Module, images: Tensor, labels: Tensor, points: Tensor, batch_size: int = 1000) -> dict[str, Any]:
    """Numbers of one table row, all from fresh evaluations of the model."""
    parts = zip(*(tensor.split(batch_size) for tensor in (images, labels, points)), strict=True)
    columns = zip(*(_evaluate(model, *part) for part in parts), strict=True)
    start_margin, margin, margin_alone, distance, cosine = (torch.cat(column) for column in columns)
    found = margin < 0
    overshoot = margin.abs() / start_margin
    return {
        "found": int(found.sum()),
        "valid alone": int((margin_alone < 0).sum()),
        "distance mean": distance[found].mean().item(),
        "distance median": distance[found].median().item(),
        "cosine": cosine[found].mean().item(),
        "overshoot median": overshoot.median().item(),
        "overshoot max": overshoot.max().item(),
    }


def margins(scores: Tensor, target: Tensor) -> Tensor:
    """Score of ``target`` less the highest other one, ``(N,)``."""
    rival = scores.scatter(1, target[:, None], -torch.inf).amax(dim=1)
    return scores.gather(1, target[:, None]).squeeze(1) - rival


def local_optimality(distance: Tensor, best: Tensor) -> float:
    """AttackBench's measure (https://arxiv.org/abs/2404.19460) for images that are all classified correctly.

    The area under the curve of robust accuracy over distance, up to d, is the mean of the distances clipped at d.
    """
    limit = best.max()
    return (1 - (distance.clamp_max(limit).mean() - best.mean()) / (limit - best.mean())).item()


def _evaluate(model: nn.Module, images: Tensor, labels: Tensor, points: Tensor) -> tuple[Tensor, ...]:
    """Margins at the images, at the points and at every point alone; distances; cosines of move and unit normal."""
    with torch.no_grad():
        start_margin = margins(model(images), labels)
        margin_alone = torch.cat(
            [margins(model(point), label) for point, label in zip(points.split(1), labels.split(1), strict=True)]
        )
    leaves = points.clone().requires_grad_()
    margin = margins(model(leaves), labels)
    (normal,) = torch.autograd.grad(margin.sum(), leaves)
    move = (images - points).flatten(1)
    cosine = torch.cosine_similarity(move, normal.flatten(1), dim=1)
    return start_margin, margin.detach(), margin_alone, move.norm(dim=1), cosine
