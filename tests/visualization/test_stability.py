"""Maps before and after an attack: marks, counts and the numbers beside them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust import (
    AttributionAttack,
    AttributionRobustness,
    MapAgreement,
    evaluate_attribution_robustness,
)
from captum_boundary.visualization import show_stability

KEPT, LOST, GAINED = 1, 2, 3


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(axis) -> np.ndarray:
    (image,) = axis.images
    return np.asarray(image.get_array())


def made_by_hand(before: torch.Tensor, after: torch.Tensor, perturbed, k: int = 2) -> AttributionRobustness:
    measures = {field.name: torch.full((len(before),), 0.25) for field in dataclasses.fields(MapAgreement)}
    control = MapAgreement(**{**measures, "kendall_tau": torch.full((len(before),), 0.75)})
    return AttributionRobustness(**measures, perturbed=perturbed, before=before, after=after, control=control, k=k)


@pytest.fixture(scope="module")
def attacked():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(75, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    images = rand(2, 3, 5, 5)
    attack = AttributionAttack(model, epsilon=0.1, n_steps=5, bounds=(0, 1))
    return images, evaluate_attribution_robustness(model, images, None, attack, k=4)


def test_images_and_maps_are_those_of_the_attack(attacked):
    images, robustness = attacked
    figure, axes = show_stability(images, robustness, k=4)
    assert [axis.get_title() for axis in axes[0]] == ["input", "attacked", "map before", "map after", "top 4"]
    for row, panels in enumerate(axes):
        for axis, expected in ((panels[0], images), (panels[1], robustness.perturbed)):
            np.testing.assert_allclose(pixels(axis), expected[row].permute(1, 2, 0).numpy(), atol=1e-6)
        np.testing.assert_allclose(pixels(panels[2]), robustness.before[row].numpy())
        np.testing.assert_allclose(pixels(panels[3]), robustness.after[row].numpy())
        largest = max(robustness.before[row].max(), robustness.after[row].max())
        for axis in panels[2:4]:
            assert axis.images[0].get_clim() == pytest.approx((0, float(largest)))
        assert panels[1].get_xlabel() == f"moved by up to {(robustness.perturbed - images)[row].abs().max():.2g}"
    figure.draw_without_rendering()


def test_the_numbers_are_those_of_the_evaluation(attacked):
    images, robustness = attacked
    _, axes = show_stability(images, robustness)
    for row, panels in enumerate(axes):
        assert f"{robustness.kendall_tau[row]:.2f}" in panels[3].get_xlabel().split("\n")[0]
        assert f"{robustness.control.kendall_tau[row]:.2f}" in panels[3].get_xlabel().split("\n")[1]
        shares = robustness.topk_intersection[row], robustness.control.topk_intersection[row]
        assert panels[4].get_xlabel() == "{:.0%} remain\nrandom: {:.0%}".format(*shares)
        assert (pixels(panels[4]) == KEPT).sum() == round(4 * robustness.topk_intersection[row].item())


@pytest.mark.parametrize("k", [1, 3, 7, 25])
def test_each_map_has_k_marks(attacked, k):
    images, robustness = attacked
    _, axes = show_stability(images, robustness, k=k)
    for row, panels in enumerate(axes):
        assert "random" not in panels[4].get_xlabel()  # the evaluation was for another k
        marks = pixels(panels[4])
        for kinds, maps in (((KEPT, LOST), robustness.before), ((KEPT, GAINED), robustness.after)):
            marked = np.isin(marks, kinds)
            assert marked.sum() == k
            values = maps[row].numpy()
            assert values[marked].min() >= np.where(marked, -np.inf, values).max()


def test_marks_by_hand():
    before = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
    after = torch.tensor([[[4.0, 1.0], [2.0, 3.0]]])
    images = rand(1, 1, 2, 2)
    figure, axes = show_stability(images, made_by_hand(before, after, images))
    np.testing.assert_array_equal(pixels(axes[0, 4]), [[KEPT, LOST], [0, GAINED]])
    assert axes[0, 4].get_xlabel() == "50% remain\nrandom: 25%"
    image = axes[0, 4].images[0]
    (legend,) = figure.legends
    for handle, text, kind in zip(legend.legend_handles, legend.get_texts(), (KEPT, LOST, GAINED), strict=True):
        assert text.get_text() == {KEPT: "in both", LOST: "before only", GAINED: "after only"}[kind]
        np.testing.assert_allclose(handle.get_facecolor(), image.to_rgba(np.array([[float(kind)]]))[0, 0])


def test_k_is_that_of_the_evaluation_by_default(attacked):
    _, axes = show_stability(*attacked)
    assert axes[0, 4].get_title() == "top 4"


def test_maps_that_are_zero_and_subfigures():
    images = rand(1, 1, 3, 3)
    robustness = made_by_hand(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3), images)
    left, _ = Figure(figsize=(12, 3)).subfigures(1, 2)
    returned, axes = show_stability(images, robustness, plt_fig_axis=(left, None))
    assert returned is left
    assert axes[0, 2].images[0].get_clim() == (0, 1)
    left.figure.draw_without_rendering()


def test_normalized_images(attacked):
    images, robustness = attacked
    moved = dataclasses.replace(robustness, perturbed=(robustness.perturbed - 0.5) / 0.25)
    _, axes = show_stability((images - 0.5) / 0.25, moved, bounds=(-2, 2))
    np.testing.assert_allclose(pixels(axes[1, 1]), robustness.perturbed[1].permute(1, 2, 0).numpy(), atol=1e-6)


def test_errors(attacked):
    images, robustness = attacked
    with pytest.raises(BoundaryTypeError, match="AttributionRobustness that evaluate_attribution_robustness returns"):
        show_stability(images, robustness.control)
    with pytest.raises(BoundaryValueError, match=r"of shape \(1, 3, 5, 5\), but it is that of \(2, 3, 5, 5\)"):
        show_stability(images[:1], robustness)
    with pytest.raises(BoundaryValueError, match="that of several inputs"):
        show_stability(images, dataclasses.replace(robustness, perturbed=(images,)))
    with pytest.raises(BoundaryValueError, match="k must be at most the 25 features"):
        show_stability(images, robustness, k=26)
    with pytest.raises(BoundaryValueError, match="k must be a positive integer"):
        show_stability(images, robustness, k=0)
    with pytest.raises(BoundaryTypeError, match="one Tensor of images"):
        show_stability((images,), robustness)
