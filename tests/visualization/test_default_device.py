"""Pictures are the same where the user has set a default device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_boundary import (
    AttributionAttack,
    BoundaryPoints,
    BoundarySaliency,
    NearestBoundary,
    evaluate_attribution_robustness,
)
from captum_boundary.visualization import (
    compare_attributions,
    plot_boundary_slice,
    show_boundary_point,
    show_stability,
)

Drawing = Callable[[], tuple[Any, object]]


def of_point(model: nn.Module, images: Tensor, boundary: BoundaryPoints) -> Drawing:
    return lambda: show_boundary_point(images, boundary, bounds=(-5, 5))


def of_maps(model: nn.Module, images: Tensor, boundary: BoundaryPoints) -> Drawing:
    maps = {"BSM": BoundarySaliency(model).attribute(images, boundary=boundary)}
    return lambda: compare_attributions(images, maps, boundary=boundary, bounds=(-5, 5))


def of_slice(model: nn.Module, images: Tensor, boundary: BoundaryPoints) -> Drawing:
    return lambda: plot_boundary_slice(model, images, boundary)


def of_stability(model: nn.Module, images: Tensor, boundary: BoundaryPoints) -> Drawing:
    attack = AttributionAttack(model, epsilon=0.1, n_steps=2, bounds=(0, 1))
    robustness = evaluate_attribution_robustness(model, images, None, attack, k=2)
    return lambda: show_stability(images, robustness)


@pytest.mark.parametrize(
    ("picture", "n_outputs"), [(of_point, 3), (of_maps, 3), (of_slice, 3), (of_slice, 1), (of_stability, 3)]
)
def test_a_default_device_changes_no_picture(picture: Callable[..., Drawing], n_outputs: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, n_outputs))
        images = torch.rand(2, 3, 2, 2)
    draw = picture(model, images, NearestBoundary(model, budget=10).find(images))
    expected = pixels_of(draw)
    with torch.device("meta"):
        actual = pixels_of(draw)
    assert np.array_equal(actual, expected)


def pixels_of(draw: Drawing) -> np.ndarray:
    canvas = draw()[0].canvas
    canvas.draw()
    return np.array(canvas.buffer_rgba())
