"""What training was worth: accuracy, accuracy under attack, and how still attributions hold under attack."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from rar_data import Data, pixels
from rar_settings import Evaluation
from rar_training import Run, loss_function
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_boundary.robust import AttributionAttack, AttributionRobustness, evaluate_attribution_robustness

BATCH = 100
SHOWN = 20  # attacked images that are kept for the picture
# Columns of the table, and their units.
MEASURES = {
    "IN %": ("topk_intersection", 100),
    "CO": ("kendall_tau", 1),
    "Spearman": ("spearman_rho", 1),
    "cosine": ("cosine_similarity", 1),
}


def evaluate(run: Run, data: Data, settings: Evaluation) -> dict[str, Any]:
    """A table ``row`` of plain numbers, and what a picture needs of the first attacked images, ``shown``."""
    network, labels = run.network, data.test_labels
    correct = torch.cat([_correct(network, *batch) for batch in _batches(data, torch.arange(len(labels)))])
    resists = torch.cat(
        [
            _correct(network, pgd(network, *batch, settings, torch.Generator().manual_seed(i)), batch[1])
            for i, batch in enumerate(_batches(data, torch.arange(len(labels))[: settings.pgd_images], "PGD"))
        ]
    )
    attacked = correct.nonzero().flatten()[: settings.attack_images]
    robustness, shown = attribution_robustness(network, data, attacked, settings)
    row = {
        "NA %": 100 * correct.float().mean().item(),
        "AA %": 100 * resists.float().mean().item(),
        **robustness,
        "images": len(attacked),
        "seconds / step": run.seconds / run.n_done,
        "gradients / step": gradients_per_step(run),
    }
    return {"row": row, "shown": shown}


def pgd(network: nn.Module, images: Tensor, labels: Tensor, settings: Evaluation, generator: torch.Generator) -> Tensor:
    """Images moved against their labels within ``settings.epsilon``, from a random start."""
    lower, upper = (images - settings.epsilon).clamp_min(0), (images + settings.epsilon).clamp_max(1)
    start = 2 * torch.rand(images.shape, generator=generator).to(images) - 1
    points = (images + settings.epsilon * start).clamp(lower, upper)
    for _ in range(settings.pgd_steps):
        points.requires_grad_()
        loss = nn.functional.cross_entropy(network(points), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        points = (points.detach() + settings.pgd_step_size * gradient.sign()).clamp(lower, upper)
    return points


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In %."""
    parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    return 100 * torch.cat([_correct(network, *part) for part in parts]).double().mean().item()


def attribution_robustness(
    network: nn.Module, data: Data, attacked: Tensor, settings: Evaluation
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Means over the ``attacked`` test images, under attacks and under a random move of their size.

    Top-k intersection is that under an attack on just those features, correlations are those under one on as many as an
    object has: what lowers one of them most may leave the other higher than chance does. Without images, all are NaN.
    """
    if len(attacked) == 0:
        names = [f"{name}{suffix}" for name in MEASURES for suffix in ("", " random")]
        return dict.fromkeys(names, math.nan), {"rows": attacked.cpu()}
    on_top = _attacked(network, data, attacked, settings, k=settings.k, measure="topk")
    on_ranks = _attacked(network, data, attacked, settings, k=settings.attack_k, measure="kendall")
    row = {}
    for name, (measure, unit) in MEASURES.items():
        results = on_top if measure == "topk_intersection" else on_ranks
        row[name] = unit * torch.cat([getattr(result, measure) for result in results]).mean().item()
        row[f"{name} random"] = unit * torch.cat([getattr(result.control, measure) for result in results]).mean().item()
    first = on_top[0]
    tensors = {
        "intersection": first.topk_intersection,
        "tau": first.kendall_tau,
        "before": first.before,
        "after": first.after,
    }
    shown = {name: tensor[:SHOWN].cpu() for name, tensor in tensors.items()}
    return row, {"rows": attacked[:SHOWN].cpu(), **shown}


def _attacked(
    network: nn.Module, data: Data, rows: Tensor, settings: Evaluation, **aim: Any
) -> list[AttributionRobustness]:
    attack = AttributionAttack(
        network,
        epsilon=settings.epsilon,
        bounds=(0, 1),
        attack_steps=settings.attack_steps,
        attack_step_size=settings.attack_step_size,
        n_steps=settings.n_steps,
        **aim,
    )
    return [
        evaluate_attribution_robustness(network, *batch, attack, k=settings.k)
        for batch in _batches(data, rows, f"Attack on {aim['measure']}")
    ]


def gradients_per_step(run: Run) -> float:
    """How often a training step passes an image of its batch, or one made from it, through the network and back."""
    network = copy.deepcopy(run.network)
    n_passed = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal n_passed
        n_passed += len(inputs[0])

    network.register_forward_pre_hook(count)
    images, labels = pixels(run.batches.images[:4]), run.batches.labels[:4]
    loss_function(network, run.settings, run.n_done, torch.Generator())(images, labels)
    return n_passed / len(images)


def _batches(data: Data, rows: Tensor, title: str | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    for part in tqdm(rows.split(BATCH), title, unit="batch", disable=title is None):
        yield pixels(data.test_images[part]), data.test_labels[part]


def _correct(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images).argmax(dim=1) == labels
