"""Localization measures against numbers worked out by hand, slow replicas of the formulas, and what must not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import center_of_mass

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.metrics import concentration, energy_game, localization, positive_percentage

thorough = settings(max_examples=60, deadline=None, derandomize=True, database=None)

MEASURES = (localization, energy_game, positive_percentage, concentration)

MAP = torch.tensor([[4.0, -1.0, 0.0], [2.0, -3.0, 1.0]])
ON_OBJECT = torch.tensor([[1, 1, 0], [0, 1, 0]])


def test_overlap_by_hand():
    # positive: 4, 2, 1; object: 4, -1, -3; both: 4; either: five pixels
    assert localization(MAP[None], ON_OBJECT[None]).tolist() == [pytest.approx(1 / 5)]


def test_energy_game_by_hand():
    assert energy_game(MAP[None], ON_OBJECT[None]).tolist() == [pytest.approx(4 / 7)]


def test_positive_percentage_by_hand():
    assert positive_percentage(MAP[None], ON_OBJECT[None]).tolist() == [pytest.approx(4 / 8)]


def test_concentration_by_hand():
    # Masses 1 and 3 at the ends of a row of five pixels: the center is in column 3.
    maps = torch.tensor([[[1.0, 0.0, 0.0, 0.0, -3.0]]])
    diagonal = math.sqrt(26)
    left, right = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[4, 0, 5, 1]])
    assert concentration(maps, left).item() == pytest.approx(1 / 4 / 3 * diagonal)
    assert concentration(maps, right).item() == pytest.approx(3 / 4 / 1 * diagonal)


def test_a_pixel_at_the_center_of_mass_is_half_a_pixel_away():
    maps = torch.zeros(1, 5, 5)
    maps[0, 2, 3] = 2.0
    assert concentration(maps, torch.ones(1, 5, 5)).item() == pytest.approx(2 * math.sqrt(50))


def slow_measures(z: np.ndarray, on_object: np.ndarray) -> list[float]:
    """The four formulas for one map ``(H, W)``, pixel by pixel."""
    height, width = z.shape
    center = center_of_mass(np.abs(z))
    both = either = positive_on = positive = absolute_on = absolute = nearness = 0.0
    for i in range(height):
        for j in range(width):
            both += z[i, j] > 0 and on_object[i, j]
            either += z[i, j] > 0 or on_object[i, j]
            positive += max(z[i, j], 0)
            absolute += abs(z[i, j])
            if on_object[i, j]:
                positive_on += max(z[i, j], 0)
                absolute_on += abs(z[i, j])
                distance = max(math.dist((i, j), center), 0.5) / math.sqrt(height**2 + width**2)
                nearness += abs(z[i, j]) / distance
    return [both / either, positive_on / positive, positive_on / absolute_on, nearness / absolute]


@st.composite
def maps_and_masks(draw):
    """Attributions ``(N, C, H, W)`` in float64 and masks with something on the object in every example."""
    n, channels, height, width = (draw(st.integers(1, high)) for high in (4, 3, 7, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    attributions = torch.randn(n, channels, height, width, generator=generator, dtype=torch.float64)
    masks = torch.rand(n, height, width, generator=generator) < draw(st.floats(0.1, 0.9))
    masks[:, draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
    # something positive everywhere, so that nothing is undefined
    attributions[:, 0, 0, 0] = attributions.abs().sum(dim=1)[:, 0, 0]
    return attributions, masks


@thorough
@given(maps_and_masks())
def test_slow_replicas_agree(case):
    attributions, masks = case
    expected = [slow_measures(z.sum(axis=0), mask) for z, mask in zip(attributions.numpy(), masks.numpy(), strict=True)]
    actual = torch.stack([measure(attributions, masks) for measure in MEASURES], dim=1)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30, 1e37])
def test_scale_does_not_matter_at_the_ends_of_single_precision(scale):
    attributions = 2 * torch.linspace(0, 60, 2 * 3 * 64).sin().sign().reshape(2, 3, 8, 8)
    boxes = torch.tensor([[1, 1, 6, 5], [0, 3, 8, 8]])
    for measure in MEASURES:
        torch.testing.assert_close(measure(attributions * scale, boxes), measure(attributions, boxes))


@thorough
@given(maps_and_masks(), st.floats(-60, 60))
def test_scale_does_not_matter(case, exponent):
    attributions, masks = case
    for measure in MEASURES:
        scaled = measure(attributions * 2**exponent, masks)
        torch.testing.assert_close(scaled, measure(attributions, masks), rtol=1e-9, atol=1e-12)


@thorough
@given(maps_and_masks())
def test_the_batch_does_not_matter(case):
    attributions, masks = case
    for measure in MEASURES:
        alone = torch.cat([measure(attributions[i : i + 1], masks[i : i + 1]) for i in range(len(masks))])
        torch.testing.assert_close(measure(attributions, masks), alone, rtol=0, atol=1e-12)


@thorough
@given(maps_and_masks(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_lower_precision_gives_nearly_the_same_in_float32(case, dtype):
    attributions, masks = case
    maps = attributions.sum(dim=1).to(dtype)
    for measure in MEASURES:
        value = measure(maps, masks)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), measure(maps.double(), masks), rtol=1e-4, atol=1e-5)


@thorough
@given(maps_and_masks())
def test_forms_of_masks_agree(case):
    attributions, masks = case
    for measure in MEASURES:
        expected = measure(attributions, masks)
        for form in (masks.float(), masks.byte(), masks[:, None], masks[:, None].int()):
            assert torch.equal(measure(attributions, form), expected)


@thorough
@given(maps_and_masks())
def test_the_object_and_the_rest_share_the_energy(case):
    attributions, masks = case
    masks[:, 0, 0] = False  # something is left of both
    masks[:, -1, -1] = True
    if masks[0].numel() == 1:
        return
    both = energy_game(attributions, masks) + energy_game(attributions, ~masks)
    torch.testing.assert_close(both, torch.ones_like(both))


@thorough
@given(
    st.tuples(st.floats(0, 6), st.floats(0, 4)),
    st.tuples(st.floats(0.01, 9), st.floats(0.01, 9)),
)
def test_boxes_hold_the_pixels_that_they_touch(corner, size):
    height, width = 5, 7
    (x0, y0), (x1, y1) = corner, (corner[0] + size[0], corner[1] + size[1])
    mask = torch.tensor(
        [[max(j, x0) < min(j + 1, x1) and max(i, y0) < min(i + 1, y1) for j in range(width)] for i in range(height)]
    )
    box = torch.tensor([[x0, y0, x1, y1]], dtype=torch.float64)
    if (box <= 1).all() and (box != box.round()).any():
        return  # looks like shares of an image, which is an error
    attributions = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for measure in MEASURES:
        assert torch.equal(measure(attributions, box), measure(attributions, mask[None]))


def test_boxes_of_integers_are_slices():
    attributions = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 6, 8)
    mask[0, 2:5, 1:7] = 1
    for measure in MEASURES:
        assert torch.equal(measure(attributions, torch.tensor([[1, 2, 7, 5]])), measure(attributions, mask))


def test_boxes_of_real_images_hold_the_pixels_of_their_masks(zoo):
    images, _, boxes = zoo.load_boxed_images("imagenet_val50_boxes")
    with np.load(zoo.data_folder() / "imagenet_val50_boxes.npz") as arrays:
        masks = torch.from_numpy(arrays["masks"])
    attributions = images - images.mean(dim=(1, 2, 3), keepdim=True)
    for measure in MEASURES:
        assert torch.equal(measure(attributions, boxes), measure(attributions, masks))


def test_random_signs_score_as_documented():
    maps = torch.randn(1, 400, 400, generator=torch.Generator().manual_seed(0))
    half = torch.tensor([[0, 0, 400, 200]])
    assert localization(maps, half).item() == pytest.approx(0.5 / 1.5, abs=0.01)
    assert energy_game(maps, half).item() == pytest.approx(0.5, abs=0.01)
    assert positive_percentage(maps, half).item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("size", [60, 240])
def test_concentration_of_an_even_map_hardly_depends_on_resolution(size):
    """The mean of 1 / r over a square of side 1 is 4 asinh(1)."""
    box = torch.tensor([[size // 4, size // 4, 3 * size // 4, 3 * size // 4]])
    exact = 4 * math.asinh(1) * math.sqrt(2) * 0.5
    assert concentration(torch.ones(1, size, size), box).item() == pytest.approx(exact, rel=0.02)


def test_what_is_undefined_is_nan():
    zero, negative = torch.zeros(1, 2, 2), -torch.ones(1, 2, 2)
    box = torch.tensor([[0, 0, 1, 2]])
    assert [measure(zero, box).item() for measure in MEASURES] == pytest.approx(
        [0, math.nan, math.nan, math.nan], nan_ok=True
    )
    assert [measure(negative, box).item() for measure in MEASURES[:3]] == pytest.approx([0, math.nan, 0], nan_ok=True)
    assert concentration(negative, box).item() > 0


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("pixel", [(0, 0), (1, 1)])  # on the object, and off it
def test_maps_with_nan_are_nan_and_alone(measure, pixel):
    attributions = torch.ones(2, 3, 2, 2)
    attributions[(0, 1, *pixel)] = torch.nan
    value = measure(attributions, torch.tensor([[0, 0, 1, 2]] * 2))
    assert value.isnan().tolist() == [True, False]


def test_arguments_stay_as_they_were():
    attributions = torch.randn(2, 3, 4, 4, requires_grad=True)
    before = attributions.detach().clone()
    boxes = torch.tensor([[0, 0, 2, 2]] * 2)
    for measure in MEASURES:
        assert not measure(attributions, boxes).requires_grad
    assert torch.equal(attributions, before)
    assert attributions.grad is None


MAPS = torch.ones(2, 3, 4, 5)
BOXES = torch.tensor([[0.0, 0.0, 2.0, 2.0]] * 2)


@pytest.mark.parametrize(
    ("attributions", "masks", "error", "message"),
    [
        (MAPS.numpy(), BOXES, BoundaryTypeError, "attributions must be a Tensor, but it is ndarray"),
        (MAPS.long(), BOXES, BoundaryTypeError, r"attributions must be floating point, but its dtype is torch\.int64"),
        (MAPS[:, :, 0, 0], BOXES, BoundaryValueError, r"\(N, C, H, W\) or \(N, H, W\), but their shape is \(2, 3\)"),
        (MAPS[:0], BOXES, BoundaryValueError, r"attributions must not be empty, but its shape is \(0, 3, 4, 5\)"),
        (MAPS / 0, BOXES, BoundaryValueError, r"attributions contains infinity in row\(s\) \[0, 1\]"),
        (MAPS, BOXES.numpy(), BoundaryTypeError, "masks must be a Tensor of masks or boxes, but it is ndarray"),
        (MAPS, BOXES[:1], BoundaryValueError, r"boxes must have shape \(2, 4\).*their shape is \(1, 4\)"),
        (MAPS, MAPS, BoundaryValueError, r"masks must have shape \(2, 4, 5\).*their shape is \(2, 3, 4, 5\)"),
        (MAPS, MAPS[:, 0, :, :4], BoundaryValueError, r"masks must have shape \(2, 4, 5\).*shape is \(2, 4, 4\)"),
        (MAPS, MAPS[:, 0] * 255, BoundaryValueError, "masks must be 1 .* on the object and 0 elsewhere.* 255 to 255"),
        (MAPS, MAPS[:, 0] * torch.nan, BoundaryValueError, "masks must be 1"),
        (MAPS, MAPS[:, 0] * 0, BoundaryValueError, r"no pixel of the image on it in row\(s\) \[0, 1\]"),
        (MAPS, BOXES + 7, BoundaryValueError, r"no pixel of the image on it in row\(s\) \[0, 1\]"),
        (MAPS, BOXES.flip(1), BoundaryValueError, r"x0 < x1 and y0 < y1 \(not x, y, width, height\), but row 0 is"),
        (MAPS, BOXES * torch.nan, BoundaryValueError, "row 0 is .*nan"),
        (MAPS, BOXES / 3, BoundaryValueError, "boxes must be in pixels.*Multiply x by 5 and y by 4"),
    ],
)
def test_errors_say_what_is_wrong(attributions, masks, error, message):
    for measure in MEASURES:
        with pytest.raises(error, match=message):
            measure(attributions, masks)
