"""How many points pass through a model at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_boundary._core.batch_sizes import saved_bytes
from captum_boundary.robust import AttributionAttack, _attribution_maps


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 7, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def largest_pass(side: int, **options: int) -> int:
    model = network()
    passed: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    AttributionAttack(model, epsilon=0.01, attack_steps=1, **options).perturb(images)
    return max(passed)


@pytest.mark.parametrize(("side", "expected"), [(16, 50), (64, 21), (224, 10)])
def test_the_attack_takes_several_points_of_large_images_at_once(side, expected) -> None:
    assert largest_pass(side) == expected
    assert largest_pass(side, internal_batch_size=3) == 3


def test_what_a_pass_keeps_is_bounded(monkeypatch) -> None:
    model = network()
    image = torch.rand(1, 3 * 224 * 224).view(1, 3, 224, 224).requires_grad_()  # a view, as of a flat point
    saved = saved_bytes(model, lambda: model(image))
    monkeypatch.setattr(_attribution_maps, "_CPU_BYTES", 3 * saved)
    assert largest_pass(224) == 3
    monkeypatch.setattr(_attribution_maps, "_CPU_BYTES", 1)
    assert largest_pass(224) == 1
    assert largest_pass(64) == 21  # as suits the caches, however much that keeps
