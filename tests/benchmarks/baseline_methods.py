"""Two methods that sum gradients on paths to other classes, written from the descriptions in their papers.

Both explain images ``(N, C, H, W)`` in [0, 1] and return attributions of the same shape.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def adversarial_gradient_integration(
    model: nn.Module, images: Tensor, target: Tensor, n_classes: int = 20, step: float = 0.05, max_steps: int = 20
) -> Tensor:
    """AGI of Pan, Li and Zhu (IJCAI 2021), with the paper's settings for ImageNet.

    From the image, a path of steepest ascent (in the maximum norm) leads to each of the most probable false classes.
    Along it, the gradient of the true class's probability is integrated backwards; the integrals are summed.
    """
    return torch.stack(
        [
            _integrate_to_false_classes(model, image, int(label), n_classes, step, max_steps)
            for image, label in zip(images, target, strict=True)
        ]
    )


def _integrate_to_false_classes(
    model: nn.Module, image: Tensor, label: int, n_classes: int, step: float, max_steps: int
) -> Tensor:
    with torch.no_grad():
        scores = model(image[None])[0]
    scores[label] = -torch.inf
    goal = scores.topk(min(n_classes, len(scores) - 1)).indices
    points = image.expand(len(goal), *image.shape)
    total = torch.zeros_like(image)
    for _ in range(max_steps):
        leaves = points.clone().requires_grad_()
        scores = model(leaves)
        probabilities = scores.softmax(dim=1)
        on_the_way = scores.argmax(dim=1) != goal
        if not on_the_way.any():
            break
        (ascent,) = torch.autograd.grad(
            probabilities.gather(1, goal[:, None])[on_the_way].sum(), leaves, retain_graph=True
        )
        (slope,) = torch.autograd.grad(probabilities[on_the_way, label].sum(), leaves)
        moved = (points + step * ascent.sign()).clamp(0, 1)
        total += (slope * (points - moved)).sum(dim=0)  # a path that has arrived has no slope
        points, goal = moved[on_the_way], goal[on_the_way]
    return total


def boundary_path_attribution(
    model: nn.Module, images: Tensor, target: Tensor, n_steps: int = 10, step: float = 0.01
) -> Tensor:
    """MFABA of Zhu et al. (AAAI 2024), in its "sharp" form: steps along the normalized gradient of the loss.

    The attribution is the sum of gradient times step, until the label changes. A step is as long, in the l2 norm, as
    one that changes every pixel by ``step``.
    """
    total = torch.zeros_like(images)
    rows = torch.arange(len(images), device=images.device)
    points = images
    for _ in range(n_steps):
        leaves = points.clone().requires_grad_()
        scores = model(leaves)
        inside = scores.argmax(dim=1) == target[rows]
        if not inside.any():
            break
        loss = functional.cross_entropy(scores[inside], target[rows][inside], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaves)
        rows, points, gradient = rows[inside], points[inside], gradient[inside]
        length = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
        moved = points + step * points[0].numel() ** 0.5 * gradient / length[:, None, None, None]
        moved = moved.clamp(0, 1)
        total[rows] += gradient * (moved - points)
        points = moved
    return total
