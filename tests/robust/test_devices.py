"""What is asked of accelerators, and devices that are the default of the moment."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from synchronizations import synchronizations
from torch import Tensor, nn

from captum_boundary.robust import AttributionAttack, RARLoss, evaluate_attribution_robustness

METHODS = ("topk", "mass_center", "target", "random")


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def attack(network: nn.Module, method: str = "topk", **options: object) -> AttributionAttack:
    target_map = torch.eye(4) if method == "target" else None
    defaults = {"epsilon": 0.1, "bounds": (0, 1), "n_steps": 8, "attack_steps": 6, "target_map": target_map}
    return AttributionAttack(network, method, **{**defaults, **options})


@pytest.mark.parametrize("measure", [None, "kendall", "topk"])
@pytest.mark.parametrize("method", METHODS[:3])
def test_the_attack_waits_a_few_times_however_many_steps_it_makes(network, images, method, measure) -> None:
    def waits(**options: object) -> int:
        return synchronizations(lambda: attack(network, method, measure=measure, **options).perturb(images))

    assert waits(attack_steps=2) == waits(attack_steps=12) <= 12
    assert waits(internal_batch_size=1) == waits()


def test_the_evaluation_waits_a_few_times(network, images) -> None:
    assert synchronizations(lambda: evaluate_attribution_robustness(network, images, None, attack(network))) <= 13


@pytest.mark.parametrize("size", ["ig_norm", "ig_sum_norm", "sum"])
def test_training_waits_a_few_times_however_many_steps_it_makes(network, images, size) -> None:
    y = torch.tensor([0, 1, 2, 0, 1])

    def waits(**options: object) -> int:
        rar = RARLoss(network, size, epsilon=0.1, bounds=(0, 1), **options, warmup=0)
        return synchronizations(lambda: rar(images, y).backward())

    assert waits(attack_steps=2) == waits(attack_steps=9) <= 12
    assert waits(n_steps=5) == waits(n_steps=20) == waits(n_steps=20, internal_batch_size=7)


def call_in(device: str | None, call: Callable[[], object]) -> object:
    if device is None:
        return call()
    with torch.device(device):
        return call()


@pytest.mark.parametrize("attribution", ["ig", "gradient"])
@pytest.mark.parametrize("method", METHODS)
def test_the_attack_does_not_mind_the_default_device(network, images, method, attribution) -> None:
    target_map = torch.eye(4) if method == "target" else None

    def perturbed() -> Tensor:
        options = {"attribution": attribution, "target_map": target_map}
        return attack(network, method, **options).perturb(images)

    assert torch.equal(call_in("meta", perturbed), perturbed())


def test_the_evaluation_does_not_mind_the_default_device(network, images) -> None:
    target = torch.tensor([0, 1, 2, 0, 1])
    results = []
    for device in (None, "meta"):
        robustness = call_in(
            device,
            lambda: evaluate_attribution_robustness(network, images, target, attack(network, baselines=0.5)),
        )
        results.append([robustness.perturbed, robustness.kendall_tau, robustness.spearman_rho, robustness.center_shift])
        results[-1] += [robustness.control.kendall_tau, robustness.topk_intersection, robustness.cosine_similarity]
    for value, same in zip(*results, strict=True):
        assert torch.equal(value, same)


@pytest.mark.parametrize("size", ["ig_norm", "ig_sum_norm", "sum", "norm_power"])
@pytest.mark.parametrize("norm", [math.inf, 2])
@pytest.mark.parametrize("internal_batch_size", [None, 3])
def test_training_does_not_mind_the_default_device(network, images, size, norm, internal_batch_size) -> None:
    y = torch.tensor([0, 1, 2, 0, 1])
    results = []
    for device in (None, "meta"):

        def step() -> list[Tensor]:
            options = {"epsilon": 0.1, "norm": norm, "bounds": (0, 1), "n_steps": 4}
            rar = RARLoss(network, size, **options, internal_batch_size=internal_batch_size, warmup=0)
            network.zero_grad()
            loss = rar(images, y)
            loss.backward()
            return [loss.detach(), rar.parts.perturbed, *(parameter.grad for parameter in network.parameters())]

        results.append(call_in(device, step))
    for value, same in zip(*results, strict=True):
        assert torch.equal(value, same)
