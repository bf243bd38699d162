"""Integers and floats of NumPy are numbers, wherever a number can be given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    AttributionAttack,
    BoundaryEnergy,
    BoundaryIntegratedGradients,
    NearestBoundary,
    RARLoss,
    SmoothedModel,
    certified_radius,
    largest_stdev,
    metrics,
)

SCALE = 0.25  # a number that float32 holds as it is


def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
Number = Callable[[Any], Any]

CALLS: dict[str, Callable[[Number, Number], Any]] = {
    "SmoothedModel": lambda real, whole: SmoothedModel(model(), stdev=real(SCALE), n_samples=whole(4))(INPUTS),
    "certified_radius": lambda real, whole: (
        certified_radius(
            SmoothedModel(model(), stdev=real(SCALE)),
            INPUTS,
            n_samples=whole(20),
            alpha=real(SCALE),
            n_selection=whole(10),
        ).radius
    ),
    "largest_stdev": lambda real, whole: largest_stdev(model(), INPUTS, stdevs=[real(SCALE), real(2 * SCALE)]),
    "BoundaryEnergy": lambda real, whole: BoundaryEnergy(model(), stdev=real(SCALE)).attribute(
        INPUTS, n_samples=whole(4)
    ),
    "normals": lambda real, whole: AggregatedBoundaryNormals(model()).attribute(INPUTS, n_boundaries=whole(2)),
    "BIG": lambda real, whole: BoundaryIntegratedGradients(model()).attribute(INPUTS, whole(1), n_steps=int(whole(5))),
    "RARLoss": lambda real, whole: RARLoss(
        model(), epsilon=real(SCALE), weight=real(2 * SCALE), n_steps=whole(3), attack_steps=whole(2)
    )(INPUTS, torch.tensor([0, 1, 2, 0])),
    "AttributionAttack": lambda real, whole: AttributionAttack(
        model(), epsilon=real(SCALE), n_steps=whole(3), attack_steps=whole(2)
    ).perturb(INPUTS),
    "deletion": lambda real, whole: metrics.deletion(model(), INPUTS, INPUTS, whole(1), n_steps=whole(3)),
}


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_numbers_of_numpy_change_nothing(call):
    expected = call(float, int)
    for real, whole in ((np.float32, np.int64), (np.float64, np.int32)):
        torch.testing.assert_close(call(real, whole), expected)


TARGETED: dict[str, Callable[[torch.Tensor], Any]] = {
    "find": lambda target: NearestBoundary(model()).find(INPUTS, target).points,
    "BIG": lambda target: BoundaryIntegratedGradients(model()).attribute(INPUTS, target),
    "normals": lambda target: AggregatedBoundaryNormals(model()).attribute(INPUTS, target),
    "RARLoss": lambda target: RARLoss(model(), epsilon=SCALE, n_steps=3, attack_steps=2)(INPUTS, target),
    "AttributionAttack": lambda target: AttributionAttack(model(), epsilon=SCALE, attack_steps=2).perturb(
        INPUTS, target
    ),
    "deletion": lambda target: metrics.deletion(model(), INPUTS, INPUTS, target, n_steps=3),
}


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
@pytest.mark.parametrize("call", TARGETED.values(), ids=TARGETED)
def test_labels_of_every_integer_type_are_labels(call, dtype):
    target = torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(call(target.to(dtype)), call(target))
