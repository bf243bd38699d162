"""How normal a network's attributions look, image by image."""

from __future__ import annotations

import math
from itertools import combinations

import torch
from captum.attr import IntegratedGradients, Saliency
from intervals import Values
from rar_evaluation import pgd
from rar_settings import Evaluation
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_boundary import BoundaryIntegratedGradients, BoundarySaliency, NearestBoundary
from captum_boundary.metrics import (
    attribution_gap,
    concentration,
    cosine_similarity,
    energy_game,
    first_order_optimality,
    normal_alignment,
    positive_percentage,
)

BATCH = 100
BOUNDS = (0.0, 1.0)
N_STEPS = 50  # of integrated gradients
N_NEIGHBORS, NEIGHBOR_BUDGET = 3, 10  # boundaries with other classes, and gradients for each
STEP = 0.5  # l2
ON_OBJECT = {"EG": energy_game, "PP": positive_percentage, "Con": concentration}


def evaluate(
    network: nn.Module, images: Tensor, labels: Tensor, attack: Evaluation, n_explained: int, budget: int
) -> dict[str, Values]:
    """Columns of one number for each image: accuracies of all, the rest of the first ``n_explained`` where correct."""
    parts = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    correct = torch.cat([is_correct(network, *part) for part in parts])
    attacked = (pgd(network, *part, attack, torch.Generator().manual_seed(i)) for i, part in enumerate(parts))
    robust = torch.cat(
        [
            is_correct(network, moved, part[1])
            for moved, part in zip(tqdm(attacked, "PGD", len(parts), unit="batch"), parts, strict=True)
        ]
    )
    columns = {"accuracy": correct.double(), "robust accuracy": robust.double()}

    rows = correct[:n_explained].nonzero().flatten()
    if len(rows) == 0:
        raise ValueError(
            f"The network classifies none of the first {n_explained} test images correctly: train for longer."
        )
    batches = tqdm(rows.split(BATCH), "Measuring", unit="batch")
    measured = [measure(network, images[batch], labels[batch], budget) for batch in batches]
    for name in measured[0]:
        values = torch.cat([part[name] for part in measured]).double()
        columns[name] = values.new_full((n_explained,), torch.nan).index_copy_(0, rows, values)
    return {
        name: [value if math.isfinite(value) else None for value in values.tolist()] for name, values in columns.items()
    }


def is_correct(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images).argmax(dim=1) == labels


def measure(network: nn.Module, images: Tensor, labels: Tensor, budget: int) -> dict[str, Tensor]:
    """Columns ``(N,)`` of images that are classified correctly; not finite where there is no boundary point."""
    boundary = NearestBoundary(network, bounds=BOUNDS, budget=budget).find(images, labels)
    on_boundary = {"boundary": boundary, "n_steps": N_STEPS}
    maps = {
        "SM": Saliency(network).attribute(images.clone().requires_grad_(), labels, abs=False).detach(),
        "BSM": BoundarySaliency(network).attribute(images, labels, boundary=boundary),
        "IG": IntegratedGradients(network).attribute(images, target=labels, n_steps=N_STEPS).detach(),
        "BIG": BoundaryIntegratedGradients(network).attribute(images, labels, **on_boundary),
    }
    return {
        "distance": boundary.distance,
        "optimality": first_order_optimality(network, images, boundary, bounds=BOUNDS),
        "alignment": normal_alignment(network, images, boundary, labels),
        "alignment of margins": normal_alignment(network, images, boundary, labels, score="margin"),
        "gradient kept": gradient_kept(network, images, labels, boundary.points),
        "neighbors": neighbor_alignment(network, images, labels),
        **{f"|{name}|": values.flatten(1).norm(dim=1) for name, values in maps.items()},
        "|SM - BSM|": attribution_gap(maps["SM"], maps["BSM"]),
        "|IG - BIG|": attribution_gap(maps["IG"], maps["BIG"]),
        "|SM - BSM| at unit length": attribution_gap(unit(maps["SM"]), unit(maps["BSM"])),
        "|IG - BIG| at unit length": attribution_gap(unit(maps["IG"]), unit(maps["BIG"])),
        **{
            f"{measure_name} {map_name}": on_object(values, images[:, 0] > 0)
            for measure_name, on_object in ON_OBJECT.items()
            for map_name, values in maps.items()
        },
    }


def unit(maps: Tensor) -> Tensor:
    """Maps of l2 norm 1."""
    return maps / maps.flatten(1).norm(dim=1).view(-1, *[1] * (maps.ndim - 1))


def gradient_kept(network: nn.Module, images: Tensor, labels: Tensor, points: Tensor) -> Tensor:
    """Cosine ``(N,)`` of the gradients at the image and one ``STEP`` from it towards its boundary point."""
    ahead = images + STEP * unit(points - images)
    gradients = (
        Saliency(network).attribute(places.clone().requires_grad_(), labels, abs=False) for places in (images, ahead)
    )
    return cosine_similarity(*(gradient.detach() for gradient in gradients))


def neighbor_alignment(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cosine ``(N,)`` of the normals where the image comes nearest to the boundaries with its strongest rivals.

    Each pair of classes has a boundary of its own here, as if there were no others.
    """
    with torch.no_grad():
        scores = network(images).scatter(1, labels[:, None], -torch.inf)
    n_neighbors = min(N_NEIGHBORS, scores.shape[1] - 1)
    rivals = scores.topk(n_neighbors, dim=1).indices
    of_pair = PairOfClasses(network)
    normals = []
    for rival in rivals.unbind(dim=1):
        pair = torch.stack([labels, rival], dim=1)
        boundary = NearestBoundary(of_pair, bounds=BOUNDS, budget=NEIGHBOR_BUDGET).find(images, 0, pair)
        normal = BoundarySaliency(of_pair, score="margin").attribute(
            images, additional_forward_args=pair, boundary=boundary
        )
        normals.append(normal)
    return torch.stack([cosine_similarity(*both) for both in combinations(normals, 2)]).nanmean(dim=0)


class PairOfClasses(nn.Module):
    """The scores of two classes alone, which may be others for every image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, pair: Tensor) -> Tensor:
        scores: Tensor = self.network(images)
        return scores.gather(1, pair)
