"""What the package asks of an accelerator, beside the forward and backward passes of the model, stays within limits.

Kernels of small tensors take as long to launch as those of large ones, and a host that waits for the device launches
none: a search of many cheap operations leaves a GPU idle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from device_costs import Cost, Counts, counting
from torch import Tensor, nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    AttributionAttack,
    BoundaryIntegratedGradients,
    BoundarySaliency,
    NearestBoundary,
    PGDBoundary,
    RARLoss,
    evaluate_attribution_robustness,
    metrics,
)

# A step is a forward pass of the model, with a backward pass or without.
SEARCH = Cost(operations=60, synchronizations=2, copies=1)
CURVE = Cost(operations=14, synchronizations=1, copies=1)
ATTACK = Cost(operations=110, synchronizations=1, copies=1)
TRAINING = Cost(operations=25, synchronizations=1, copies=2)

# Synchronizations of a whole call, however many steps it makes.
OF_A_CURVE = 6
OF_AN_EVALUATION = 12
OF_A_TRAINING_STEP = 12
OF_AN_ATTRIBUTION = 4
OF_A_MEASURE = 4

BUDGET = 10


def images(device: str) -> tuple[nn.Module, Tensor]:
    """A convolutional network of 64 inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
        return nn.Sequential(*layers).eval().to(device), torch.rand(6, 1, 8, 8).to(device)


def large_images(device: str) -> tuple[nn.Module, Tensor]:
    """A convolutional network of 3072 inputs, where the search descends along the boundary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(512, 10)
        return nn.Sequential(*layers).eval().to(device), torch.rand(6, 3, 32, 32).to(device)


def plane(device: str) -> tuple[nn.Module, Tensor]:
    """A network of two inputs, where the search goes another way than in many dimensions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)
        return nn.Sequential(*layers).eval().to(device), torch.rand(6, 2).to(device)


def check_steps(counts: Counts, limit: Cost) -> None:
    """Each step costs no more than ``limit``, on average."""
    for kind, most in vars(limit).items():
        each = getattr(counts.own, kind) / counts.forward_calls
        assert each <= most, f"{each:.1f} {kind} a step, most of them here: {counts.lines[kind].most_common(8)}"


def check_synchronizations(counts: Counts, limit: int) -> None:
    assert counts.own.synchronizations <= limit, counts.lines["synchronizations"].most_common()


SEARCHES: dict[str, Callable[[nn.Module], Any]] = {
    f"l{norm}{' in bounds' if bounds else ''}": partial(NearestBoundary, norm=norm, bounds=bounds, budget=BUDGET)
    for norm in (2, math.inf, 1)
    for bounds in (None, (0.0, 1.0))
}
SEARCHES["PGD"] = partial(PGDBoundary, epsilons=(0.1, 0.5, 2.0), attack_steps=10)


@pytest.mark.parametrize("problem", [images, large_images, plane])
@pytest.mark.parametrize("name", SEARCHES)
def test_searches(name: str, problem: Callable[[str], tuple[nn.Module, Tensor]], pretended: str) -> None:
    model, inputs = problem(pretended)
    with counting() as counts:
        SEARCHES[name](model).find(inputs)
    check_steps(counts, SEARCH)


@pytest.mark.parametrize("sampling", ["classes", "random"])
def test_searches_of_several_boundaries(sampling: str, pretended: str) -> None:
    model, inputs = images(pretended)
    explainer = AggregatedBoundaryNormals(model, NearestBoundary(model, norm=math.inf, budget=BUDGET))
    with counting() as counts:
        explainer.attribute(inputs, n_boundaries=3, sampling=sampling)
    check_steps(counts, SEARCH)


@pytest.mark.parametrize("measure", [metrics.deletion, metrics.insertion])
def test_curves(measure: Callable[..., Tensor], pretended: str) -> None:
    model, inputs = images(pretended)
    with counting() as counts:
        measure(model, inputs, torch.randn_like(inputs), n_steps=64)
    check_steps(counts, CURVE)
    check_synchronizations(counts, OF_A_CURVE)


def test_attacks_of_attributions(pretended: str) -> None:
    model, inputs = images(pretended)
    attack = AttributionAttack(model, epsilon=0.05, n_steps=8, attack_steps=10, bounds=(0, 1))
    with counting() as counts:
        evaluate_attribution_robustness(model, inputs, None, attack)
    check_steps(counts, ATTACK)
    check_synchronizations(counts, OF_AN_EVALUATION)


@pytest.mark.parametrize("size", ["ig_norm", "ig_sum_norm", "sum", "norm_power"])
def test_robust_training(size: str, pretended: str) -> None:
    model, inputs = images(pretended)
    rar = RARLoss(model, size, epsilon=0.1, bounds=(0, 1))
    target = torch.zeros(len(inputs), dtype=torch.long, device=pretended)
    with counting() as counts:
        rar(inputs, target).backward()
    check_steps(counts, TRAINING)
    check_synchronizations(counts, OF_A_TRAINING_STEP)


@pytest.mark.parametrize("explainer", [BoundarySaliency, BoundaryIntegratedGradients])
def test_attributions_of_given_points(explainer: Callable[..., Any], pretended: str) -> None:
    model, inputs = images(pretended)
    boundary = NearestBoundary(model, norm=math.inf, budget=BUDGET).find(inputs)
    with counting() as counts:
        explainer(model).attribute(inputs, boundary=boundary)
    check_synchronizations(counts, OF_AN_ATTRIBUTION)


@pytest.mark.parametrize(
    "name", ["kendall_tau", "spearman_rho", "center_shift", "cosine_similarity", "attribution_gap"]
)
def test_measures_of_agreement(name: str, pretended: str) -> None:
    first, second = torch.randn(2, 6, 1, 8, 8, device=pretended)
    with counting() as counts:
        getattr(metrics, name)(first, second)
    check_synchronizations(counts, OF_A_MEASURE)


@pytest.mark.parametrize("name", ["localization", "energy_game", "positive_percentage", "concentration"])
def test_measures_of_localization(name: str, pretended: str) -> None:
    maps, masks = torch.randn(6, 8, 8, device=pretended), torch.eye(8, device=pretended).expand(6, 8, 8)
    with counting() as counts:
        getattr(metrics, name)(maps, masks)
    check_synchronizations(counts, OF_A_MEASURE)
