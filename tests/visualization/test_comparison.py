"""Comparison of maps: what is shown is what was given, in colors that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import visualization as captum_visualization
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import nn

from captum_boundary import BoundaryIntegratedGradients, BoundaryNotFoundWarning, NearestBoundary
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.visualization import compare_attributions

NAMES = ["zero", "one", "two"]
MEAN, STD = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def linear(n_features: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(n_features, 3))


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def pixels(axis) -> np.ndarray:
    (image,) = axis.images
    return np.asarray(image.get_array())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n_images", [1, 3])
def test_images_points_and_maps_are_shown_as_they_are(channels, n_images):
    images = rand(n_images, channels, 4, 6)
    boundary = NearestBoundary(linear(channels * 24), bounds=(0, 1)).find(images)
    maps = rand(n_images, channels, 4, 6, seed=1) - 0.5
    figure, axes = compare_attributions(images, {"A": maps, "B": maps.sum(dim=1)}, boundary=boundary)
    assert isinstance(figure, Figure)
    assert axes.shape == (n_images, 4)
    assert [axis.get_title() for axis in axes[0]] == ["input", "boundary point", "A", "B"]
    for row, panels in enumerate(axes):
        for axis, expected in ((panels[0], images[row]), (panels[1], boundary.points[row])):
            shown = pixels(axis).reshape(4, 6, channels)
            np.testing.assert_allclose(shown, expected.permute(1, 2, 0).numpy(), atol=1e-6)
        for axis in panels[2:]:
            np.testing.assert_allclose(pixels(axis), maps[row].sum(dim=0).numpy(), atol=1e-6)


def test_gray_is_gray_in_pictures_and_zero_is_white_in_maps():
    images = torch.full((1, 1, 2, 2), 0.5)
    _, axes = compare_attributions(images, {"A": torch.tensor([[[-1.0, 0.0], [0.5, 1.0]]])})
    gray = axes[0, 0].images[0].to_rgba(pixels(axes[0, 0]))[..., :3]
    assert np.ptp(gray, axis=-1).max() == 0
    assert gray == pytest.approx(0.5, abs=0.01)
    shown = axes[0, 1].images[0]
    negative, zero, _, positive = shown.to_rgba(pixels(axes[0, 1])).reshape(4, 4)[:, :3]
    assert negative.tolist() == [1.0, 0.0, 0.0]  # Captum's colors: red and green
    assert zero.min() > 0.95
    assert positive.argmax() == 1
    assert positive[[0, 2]].max() == 0


@pytest.mark.parametrize("sign", ["all", "positive", "negative", "absolute_value"])
@pytest.mark.parametrize("outlier_perc", [2, 20])
def test_maps_look_like_those_of_captum(sign, outlier_perc):
    images, maps = rand(2, 3, 7, 5), rand(2, 3, 7, 5, seed=1) - 0.4
    _, axes = compare_attributions(images, {"A": maps}, sign=sign, outlier_perc=outlier_perc)
    for row in range(2):
        figure = plt.figure()
        captum_visualization.visualize_image_attr(
            maps[row].permute(1, 2, 0).double().numpy(),
            sign=sign,
            outlier_perc=outlier_perc,
            cmap=axes[row, 1].images[0].get_cmap(),
            plt_fig_axis=(figure, figure.subplots()),
            use_pyplot=False,
        )
        theirs, ours = figure.axes[0].images[0], axes[row, 1].images[0]
        np.testing.assert_array_equal(ours.to_rgba(ours.get_array()), theirs.to_rgba(theirs.get_array()))


def test_the_number_below_a_map_is_what_its_full_color_stands_for():
    images = rand(2, 1, 3, 3)
    maps = torch.zeros(2, 3, 3)
    maps[0, 0, 0], maps[0, 1, 1] = -0.25, 0.125
    _, axes = compare_attributions(images, {"A": maps}, outlier_perc=0)
    assert axes[0, 1].get_xlabel() == "±0.25"
    assert axes[0, 1].images[0].get_clim() == (-0.25, 0.25)
    assert axes[1, 1].get_xlabel() == "all zero"


def test_a_shared_scale_is_one_for_all_maps():
    images = rand(2, 1, 3, 3)
    maps = {"small": rand(2, 3, 3, seed=1), "large": 10 * rand(2, 3, 3, seed=2)}
    figure, axes = compare_attributions(images, maps, share_scale=True, outlier_perc=0)
    largest = float(maps["large"].max())
    assert {axis.images[0].get_clim() for axis in axes[:, 1:].flat} == {(-largest, largest)}
    (bar,) = set(figure.axes) - set(axes.flat)
    assert [label.get_text() for label in bar.get_xticklabels()] == [f"{-largest:.2g}", "0", f"{largest:.2g}"]
    _, axes = compare_attributions(images, maps)
    assert len({axis.images[0].get_clim() for axis in axes[:, 1:].flat}) == 4


def test_classes_and_distances_stand_below_the_images():
    images = rand(3, 1, 4, 4)
    boundary = NearestBoundary(linear(16)).find(images)
    maps = {"A": images}
    _, named = compare_attributions(images, maps, boundary=boundary, class_names=NAMES)
    _, numbered = compare_attributions(images, maps, boundary=boundary)
    for row in range(3):
        target, adversarial = int(boundary.target[row]), int(boundary.adversarial[row])
        assert named[row, 0].get_xlabel() == NAMES[target]
        assert named[row, 1].get_xlabel() == f"{NAMES[adversarial]}\ndistance {boundary.distance[row]:.3g}"
        assert numbered[row, 1].get_xlabel().startswith(f"class {adversarial}\n")


def test_a_region_approached_from_outside_is_named_at_its_boundary_point():
    images = rand(2, 1, 4, 4)
    target = linear(16)(images).argmin(dim=1)
    boundary = NearestBoundary(linear(16)).find(images, target)
    _, axes = compare_attributions(images, {"A": images}, boundary=boundary, class_names=NAMES)
    assert axes[0, 0].get_xlabel() == f"not {NAMES[target[0]]}"
    assert axes[0, 1].get_xlabel().startswith(NAMES[target[0]])


def test_rows_without_a_boundary_point_say_so(missing):
    images = rand(2, 1, 4, 4)
    boundary = missing(NearestBoundary(linear(16)).find(images), images, [1])
    maps = BoundaryIntegratedGradients(linear(16)).attribute(images, boundary=boundary)
    assert maps[1].isnan().all()
    for share_scale in (False, True):
        figure, axes = compare_attributions(
            images, {"IG": images, "BIG": maps}, boundary=boundary, class_names=NAMES, share_scale=share_scale
        )
        for axis in axes[1, [1, 3]]:
            assert not axis.images
            assert texts(axis) == ["no boundary\npoint found"]
        assert axes[1, 0].get_xlabel() == NAMES[boundary.target[1]]
        assert axes[1, 2].images
        assert axes[0, 3].images
        figure.draw_without_rendering()
    _, axes = compare_attributions(images, {"BIG": maps})
    assert texts(axes[1, 1]) == ["NaN"]


def test_nothing_found_at_all():
    constant = lambda x: 0 * x[:, 0, 0, :2] + torch.tensor([2.0, 1.0])  # noqa: E731
    images = rand(2, 3, 4, 4)
    with pytest.warns(BoundaryNotFoundWarning):
        boundary = NearestBoundary(constant).find(images)
    figure, axes = compare_attributions(
        images, {"BIG": torch.full_like(images, torch.nan)}, boundary=boundary, share_scale=True
    )
    assert all(texts(axis) == ["no boundary\npoint found"] for axis in axes[:, 1:].flat)
    figure.draw_without_rendering()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_normalized_images_look_like_themselves(dtype):
    images = rand(2, 3, 4, 4).to(dtype)
    bounds = ((0 - MEAN) / STD, (1 - MEAN) / STD)
    normalized = ((images.double() - MEAN) / STD).to(dtype)
    _, axes = compare_attributions(normalized, {"A": normalized}, bounds=bounds)
    tolerance = 1e-6 if dtype == torch.float64 else 0.02
    np.testing.assert_allclose(pixels(axes[0, 0]), images[0].permute(1, 2, 0).double().numpy(), atol=tolerance)
    _, axes = compare_attributions(255 * images.double(), {"A": images}, bounds=(0, 255))
    np.testing.assert_allclose(pixels(axes[0, 0]), images[0].permute(1, 2, 0).double().numpy(), atol=1e-6)


def test_an_existing_figure_is_filled_and_pyplot_stays_out_of_it():
    figure = Figure(figsize=(8, 3))
    left, _ = figure.subfigures(1, 2)
    images = rand(1, 1, 4, 4)
    returned, axes = compare_attributions(images, {"A": images}, plt_fig_axis=(figure, None))
    assert returned is figure
    assert set(axes.flat) < set(figure.axes)
    returned, axes = compare_attributions(images, {"A": images}, plt_fig_axis=(left, None))
    assert returned is left
    given = Figure(figsize=(8, 3))
    panels = given.subplots(1, 2, squeeze=False)
    returned, axes = compare_attributions(images, {"A": images}, plt_fig_axis=(given, panels))
    assert (returned, axes.tolist()) == (given, panels.tolist())
    assert all(axis.images for axis in panels.flat)
    assert not plt.get_fignums()


def test_new_figures_belong_to_pyplot_and_can_be_closed():
    images = rand(1, 1, 4, 4)
    figure, _ = compare_attributions(images, {"A": images})
    assert plt.gcf() is figure
    plt.close(figure)
    assert not plt.get_fignums()


def test_the_caller_s_tensors_stay_as_they_are():
    images, maps = rand(1, 1, 4, 4).requires_grad_(), rand(1, 1, 4, 4).requires_grad_()
    copies = images.detach().clone(), maps.detach().clone()
    compare_attributions(images, {"A": maps * 1})
    assert torch.equal(images, copies[0])
    assert torch.equal(maps, copies[1])
    assert images.requires_grad
    assert images.grad is None


def test_long_names_are_broken_into_lines():
    images = rand(1, 1, 4, 4)
    maps = dict.fromkeys(("BoundaryIntegratedGradients", "B", "C", "D", "E", "F"), images)
    _, axes = compare_attributions(images, maps)
    assert axes[0, 1].get_title() == "Boundary\nIntegrated\nGradients"


IMAGES = rand(2, 3, 4, 4)
ROW = (Figure(), Figure().subplots(1, 2, squeeze=False))


@pytest.mark.parametrize(
    ("error", "message", "inputs", "attributions", "options"),
    [
        (BoundaryTypeError, "one Tensor of images, but it is a tuple of 1", (IMAGES,), {"A": IMAGES}, {}),
        (BoundaryTypeError, "floating point", IMAGES.int(), {"A": IMAGES}, {}),
        (BoundaryValueError, r"images \(N, C, H, W\).*shape is \(2, 3\)", rand(2, 3), {"A": IMAGES}, {}),
        (BoundaryValueError, r"one channel \(gray\) or three", rand(2, 4, 4, 4), {"A": IMAGES}, {}),
        (
            BoundaryValueError,
            r"\[0, 1\] to be shown, but they hold values from .* to .*Give bounds",
            3 * IMAGES,
            {"A": IMAGES},
            {},
        ),
        (BoundaryValueError, "must lie inside bounds", 3 * IMAGES, {"A": IMAGES}, {"bounds": (0, 2)}),
        (BoundaryValueError, "finite, with lower < upper", IMAGES, {"A": IMAGES}, {"bounds": (0, float("inf"))}),
        (BoundaryTypeError, "mapping from names to Tensors", IMAGES, IMAGES, {}),
        (BoundaryValueError, "at least one method", IMAGES, {}, {}),
        (BoundaryTypeError, r"attributions\['A'\] must be a Tensor", IMAGES, {"A": [1]}, {}),
        (BoundaryValueError, r"attributions\['A'\].*\(2, C, 4, 4\).*\(1, 3, 4, 4\)", IMAGES, {"A": IMAGES[:1]}, {}),
        (BoundaryValueError, r"attributions\['A'\] contains infinity", IMAGES, {"A": IMAGES / 0}, {}),
        (BoundaryValueError, "sign must be 'all'", IMAGES, {"A": IMAGES}, {"sign": "both"}),
        (BoundaryValueError, "outlier_perc must be at least 0", IMAGES, {"A": IMAGES}, {"outlier_perc": 100}),
        (BoundaryTypeError, "boundary must be BoundaryPoints", IMAGES, {"A": IMAGES}, {"boundary": IMAGES}),
        (BoundaryTypeError, "pair of a matplotlib Figure .* it is 3", IMAGES, {"A": IMAGES}, {"plt_fig_axis": 3}),
        (BoundaryTypeError, "or .figure, None. for", IMAGES, {"A": IMAGES}, {"plt_fig_axis": (None, None)}),
        (BoundaryValueError, r"shape \(2, 2\), as .* is \(1, 2\)", IMAGES, {"A": IMAGES}, {"plt_fig_axis": ROW}),
    ],
)
def test_errors(error, message, inputs, attributions, options):
    with pytest.raises(error, match=message):
        compare_attributions(inputs, attributions, **options)
    assert not plt.get_fignums()


def test_errors_of_boundary_and_class_names():
    boundary = NearestBoundary(linear(48)).find(IMAGES)
    with pytest.raises(BoundaryValueError, match=r"one point for each input.*boundary\[rows\]"):
        compare_attributions(IMAGES[:1], {"A": IMAGES[:1]}, boundary=boundary)
    with pytest.raises(BoundaryValueError, match=r"class_names must name every class.*has 1 names"):
        compare_attributions(IMAGES, {"A": IMAGES}, boundary=boundary, class_names=["zero"])
    with pytest.raises(
        BoundaryTypeError, match="sequence of names in the order of the model's outputs, but it is 'abc'"
    ):
        compare_attributions(IMAGES, {"A": IMAGES}, boundary=boundary, class_names="abc")


# Several models -------------------------------------------------------------------------------------------------------


def model_named(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(24, 3))


@pytest.fixture
def of_models():
    """Images, and the maps and boundary points of two models."""
    images = rand(3, 1, 4, 6)
    boundary = {name: NearestBoundary(model_named(seed)).find(images) for seed, name in enumerate(["plain", "robust"])}
    maps = {name: {"A": rand(3, 4, 6, seed=s) - 0.5, "B": rand(3, 4, 6, seed=s + 5)} for s, name in enumerate(boundary)}
    return images, maps, boundary


@pytest.mark.parametrize("with_points", [False, True])
def test_each_model_has_a_row_of_its_own_below_each_image(with_points, of_models):
    images, maps, boundary = of_models
    _, axes = compare_attributions(images, maps, boundary=boundary if with_points else None, class_names=NAMES)
    assert axes.shape == (6, 4 if with_points else 3)
    for place, panels in enumerate(axes):
        row, name = divmod(place, 2)[0], ["plain", "robust"][place % 2]
        assert panels[0].get_ylabel() == name
        np.testing.assert_allclose(pixels(panels[0]), images[row, 0].numpy(), atol=1e-6)
        for axis, values in zip(panels[-2:], maps[name].values(), strict=True):
            np.testing.assert_allclose(pixels(axis), values[row].numpy(), atol=1e-6)
        if with_points:
            points = boundary[name]
            assert panels[0].get_xlabel() == NAMES[points.target[row]]
            assert panels[1].get_xlabel() == f"{NAMES[points.adversarial[row]]}\ndistance {points.distance[row]:.3g}"
            np.testing.assert_allclose(pixels(panels[1]), points.points[row, 0].clamp(0, 1).numpy(), atol=1e-6)


def test_models_share_their_scale_on_request(of_models):
    images, maps, _ = of_models
    maps["robust"]["A"] = 10 * maps["robust"]["A"]
    _, axes = compare_attributions(images, maps, share_scale=True, outlier_perc=0)
    largest = float(maps["robust"]["A"].abs().max())
    assert {axis.images[0].get_clim() for axis in axes[:, 1:].flat} == {(-largest, largest)}


def test_one_model_may_have_a_name():
    images = rand(2, 1, 4, 6)
    _, axes = compare_attributions(images, {"plain": {"A": images}})
    assert axes.shape == (2, 2)
    assert axes[0, 0].get_ylabel() == "plain"
    _, axes = compare_attributions(images, {"A": images})
    assert axes[0, 0].get_ylabel() == ""


WRONG_MODELS = {
    "one boundary for two": (
        lambda maps, points: (maps, points["plain"]),
        BoundaryTypeError,
        r"each of the models \['plain', 'robust'\].*but it is BoundaryPoints",
    ),
    "another name": (
        lambda maps, points: (maps, {"plain": points["plain"], "other": points["robust"]}),
        BoundaryTypeError,
        r"but it is for \['plain', 'other'\]",
    ),
    "boundaries by name for one": (
        lambda maps, points: (maps["plain"], points),
        BoundaryTypeError,
        "boundary must be BoundaryPoints, .* but it is dict",
    ),
    "other methods": (
        lambda maps, points: ({"plain": maps["plain"], "robust": {"A": maps["robust"]["A"]}}, None),
        BoundaryValueError,
        r"for 'plain' they are \['A', 'B'\] and for 'robust' \['A'\]",
    ),
    "maps beside models": (
        lambda maps, points: ({"plain": maps["plain"], "A": maps["plain"]["A"]}, None),
        BoundaryTypeError,
        r"attributions\['A'\] must be a mapping from names to Tensors",
    ),
    "other images": (
        lambda maps, points: ({"plain": {"A": maps["plain"]["A"][:1]}}, None),
        BoundaryValueError,
        r"attributions\['plain'\]\['A'\] must hold one map for each input",
    ),
    "no method": (lambda maps, points: ({"plain": {}}, None), BoundaryValueError, r"attributions\['plain'\] must hold"),
}


@pytest.mark.parametrize(("change", "error", "message"), WRONG_MODELS.values(), ids=WRONG_MODELS)
def test_models_that_do_not_go_together_are_refused(change, error, message, of_models):
    images, maps, boundary = of_models
    maps, boundary = change(maps, boundary)
    with pytest.raises(error, match=message):
        compare_attributions(images, maps, boundary=boundary)
