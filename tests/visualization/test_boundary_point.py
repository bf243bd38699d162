"""Boundary points beside their inputs: the difference is what it says, amplified as it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from captum_boundary import NearestBoundary
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.visualization import show_boundary_point
from captum_boundary.visualization.boundary_point import _round_factor


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def linear(n_features: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(n_features, 3)).double()


def pixels(axis) -> np.ndarray:
    (image,) = axis.images
    return np.asarray(image.get_array())


def written_factor(axis) -> float:
    text, factor = axis.get_title().rsplit(" ", 1)
    assert text.startswith("difference")
    return float(factor)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("amplification", [None, 0.7, 3])
def test_the_difference_is_amplified_as_its_title_says(channels, amplification):
    images = 0.3 + 0.4 * rand(3, channels, 4, 5)
    boundary = NearestBoundary(linear(20 * channels)).find(images)
    _, axes = show_boundary_point(images, boundary, amplification=amplification)
    for row, panels in enumerate(axes):
        factor = written_factor(panels[2])
        assert amplification is None or factor == amplification
        difference = (boundary.points - images)[row].permute(1, 2, 0).numpy()
        expected = np.clip(0.5 + factor * difference, 0, 1)
        np.testing.assert_allclose(pixels(panels[2]).reshape(4, 5, channels), expected, atol=1e-12)
        assert panels[2].get_xlabel() == f"up to {np.abs(difference).max():.2g}"


@pytest.mark.parametrize(
    ("largest", "factor"),
    [(1.0, 0.5), (0.5, 1), (0.26, 1), (0.25, 2), (0.1, 5), (0.04, 10), (2 / 255, 50), (1e-3, 500)],
)
def test_the_factor_is_the_largest_round_one_that_clips_nothing(largest, factor):
    assert _round_factor(np.array([-largest, largest / 3])) == pytest.approx(factor)


def test_no_difference_is_not_amplified():
    assert _round_factor(np.zeros(3)) == 1


def test_points_beyond_black_and_white_count_in_full():
    images = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    model = lambda x: torch.stack([x.flatten(1).sum(dim=1) + 1, torch.zeros(len(x), dtype=x.dtype)], dim=1)  # noqa: E731
    boundary = NearestBoundary(model).find(images)  # each pixel moves to -1/4
    _, axes = show_boundary_point(images, boundary)
    assert pixels(axes[0, 1]).max() == 0
    assert written_factor(axes[0, 2]) in (1, 2)  # 2 but for the hair beyond the boundary
    assert axes[0, 2].get_xlabel() == "up to 0.25"


def test_classes_and_distance():
    images = rand(2, 1, 4, 4)
    boundary = NearestBoundary(linear(16)).find(images)
    names = ["a", "b", "c"]
    _, axes = show_boundary_point(images, boundary, class_names=names)
    for row in range(2):
        assert axes[row, 0].get_xlabel() == names[boundary.target[row]]
        expected = f"{names[boundary.adversarial[row]]}\ndistance {boundary.distance[row]:.3g}"
        assert axes[row, 1].get_xlabel() == expected


def test_normalized_images_differ_in_shares_of_their_range():
    images = 0.3 + 0.4 * rand(1, 3, 4, 4)
    boundary = NearestBoundary(linear(48)).find(images)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1).double(), 0.25
    normalized = type(boundary)(
        **{**vars(boundary), "points": (boundary.points - mean) / std, "distance": boundary.distance / std}
    )
    _, plain = show_boundary_point(images, boundary)
    _, same = show_boundary_point((images - mean) / std, normalized, bounds=((0 - mean) / std, (1 - mean) / std))
    for first, second in zip(plain.flat, same.flat, strict=True):
        np.testing.assert_allclose(pixels(first), pixels(second), atol=1e-5)


def test_rows_without_a_point_say_so(missing):
    images = rand(2, 1, 4, 4)
    boundary = missing(NearestBoundary(linear(16)).find(images), images, [0])
    figure, axes = show_boundary_point(images, boundary, plt_fig_axis=(Figure(), None))
    assert [axis.texts[0].get_text() for axis in axes[0, 1:]] == ["no boundary\npoint found"] * 2
    assert not axes[0, 1].images
    assert axes[1, 2].images
    figure.draw_without_rendering()


@pytest.mark.parametrize("amplification", [0, -1, float("inf"), float("nan")])
def test_errors(amplification):
    images = rand(1, 1, 4, 4)
    boundary = NearestBoundary(linear(16)).find(images)
    with pytest.raises(BoundaryValueError, match="amplification must be a positive number"):
        show_boundary_point(images, boundary, amplification=amplification)
    with pytest.raises(BoundaryTypeError, match="boundary must be BoundaryPoints"):
        show_boundary_point(images, boundary.points)
