"""Maps against Captum's own, and their slopes against finite differences."""

from __future__ import annotations

import pytest
import torch
from captum.attr import IntegratedGradients, Saliency
from torch import nn

from captum_boundary._core.flat import pack
from captum_boundary._core.geometry import Box
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust._attribution_maps import AttributionMaps

OPTIONS = {
    "attribution": "ig",
    "baselines": None,
    "n_steps": 7,
    "softplus_beta": 40.0,
    "internal_batch_size": None,
}


def maps_of(model, inputs, target=None, arguments=None, **options):
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    return AttributionMaps(model, inputs, target, arguments, **{**OPTIONS, **options})


def shares(magnitudes):
    return magnitudes / magnitudes.sum(dim=1, keepdim=True)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double().eval()


@pytest.fixture
def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 5)
    ).double()


BASELINES = {
    "none": None,
    "number": 0.3,
    "of one example": torch.full((1, 3, 6, 6), -0.2, dtype=torch.float64),
    "of every example": torch.linspace(-1, 1, 3 * 3 * 36, dtype=torch.float64).view(3, 3, 6, 6),
    "tuple": (0.3,),
}


@pytest.mark.parametrize("baselines", BASELINES.values(), ids=BASELINES)
@pytest.mark.parametrize("batch_size", [None, 1, 5, 20])
def test_maps_are_captums_integrated_gradients(network, baselines, batch_size):
    images = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    target = torch.tensor([4, 0, 2])
    maps = maps_of(network, images, target, baselines=baselines, internal_batch_size=batch_size)
    baselines = baselines[0] if isinstance(baselines, tuple) else baselines
    expected = IntegratedGradients(network).attribute(images, baselines, target, n_steps=7)
    state = maps.at(maps.x)
    torch.testing.assert_close(state.magnitudes, expected.abs().sum(dim=1).flatten(1))
    torch.testing.assert_close(state.shares, shares(state.magnitudes))
    assert maps.map_shape == (6, 6)
    assert maps.is_image


def test_maps_away_from_the_inputs_are_those_of_the_same_class(network):
    images, others = torch.randn(2, 3, 3, 6, 6, dtype=torch.float64).unbind()
    label = network(images).argmax(dim=1)
    maps = maps_of(network, images)
    expected = IntegratedGradients(network).attribute(others, target=label, n_steps=7)
    state = maps.at(pack((others,)))
    torch.testing.assert_close(state.magnitudes, expected.abs().sum(dim=1).flatten(1))
    scores = network(others)
    rivals = scores.scatter(1, label[:, None], -torch.inf).amax(dim=1)
    torch.testing.assert_close(state.margin, scores.gather(1, label[:, None])[:, 0] - rivals)


def test_gradient_maps_are_captums_saliency(network):
    images = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    maps = maps_of(network, images, 2, attribution="gradient")
    expected = Saliency(network).attribute(images.clone().requires_grad_(), target=2, abs=True)
    torch.testing.assert_close(maps.at(maps.x).magnitudes, expected.sum(dim=1).flatten(1))


def test_several_inputs_and_arguments(mlp):
    image, vector, shift = (torch.randn(3, *shape, dtype=torch.float64) for shape in ((2, 1, 2), (2,), (6,)))

    def model(first, second, own, factor):
        return mlp(factor * (torch.cat([first.flatten(1), second], dim=1) + own))

    baselines = (0.1, torch.ones(3, 2, dtype=torch.float64))
    maps = maps_of(model, (image, vector), 1, (shift, 0.5), baselines=baselines, internal_batch_size=4)
    expected = IntegratedGradients(model).attribute(
        (image, vector), baselines, target=1, additional_forward_args=(shift, 0.5), n_steps=7
    )
    joined = torch.cat([expected[0].abs().sum(dim=1).flatten(1), expected[1].abs()], dim=1)
    torch.testing.assert_close(maps.at(maps.x).magnitudes, joined)
    assert maps.map_shape == (4,)
    assert not maps.is_image


@pytest.mark.parametrize("as_column", [True, False])
def test_a_single_output_is_attributed_on_both_sides(as_column):
    layer = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    model = layer if as_column else lambda x: layer(x).squeeze(1)
    inputs = torch.randn(6, 4, dtype=torch.float64)
    assert (layer(inputs) > 0).any()
    assert (layer(inputs) < 0).any()
    expected = IntegratedGradients(layer).attribute(inputs, target=0, n_steps=7).abs()
    maps = maps_of(model, inputs)
    torch.testing.assert_close(maps.at(maps.x).magnitudes, expected)
    assert (maps.at(maps.x).margin > 0).all()


def test_a_map_without_attribution_is_zero(mlp):
    maps = maps_of(mlp, torch.zeros(2, 6, dtype=torch.float64))
    assert maps.at(maps.x).shares.tolist() == [[0.0] * 6] * 2


# Slopes ---------------------------------------------------------------------------------------------------------------


def weighted_sum(maps, points, weights):
    return (maps.at(points).magnitudes * weights).sum(dim=1)


def finite_differences(maps, weights, width, sides=(1, -1)):
    """Differences of the weighted sum, coordinate by coordinate."""
    columns = []
    for step in width * torch.eye(maps.x.shape[1], dtype=maps.x.dtype):
        ends = [weighted_sum(maps, maps.x + side * step, weights) for side in sides]
        columns.append((ends[0] - ends[1]) / (width * (sides[0] - sides[1])))
    return torch.stack(columns, dim=1)


def everywhere(maps):
    return Box(torch.full_like(maps.x, -9), torch.full_like(maps.x, 9))


@pytest.mark.parametrize("attribution", ["ig", "gradient"])
@pytest.mark.parametrize("batch_size", [None, 1, 10])
def test_slopes_agree_with_finite_differences(mlp, attribution, batch_size):
    inputs = torch.randn(4, 6, dtype=torch.float64)
    maps = maps_of(mlp, inputs, attribution=attribution, internal_batch_size=batch_size)
    weights = torch.randn_like(maps.x)
    slope = maps.descent(maps.at(maps.x), weights, everywhere(maps), 1e-9)
    torch.testing.assert_close(slope, finite_differences(maps, weights, 1e-5), rtol=1e-6, atol=1e-8)


def test_slopes_of_images_reach_every_channel():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double()
    maps = maps_of(network, torch.randn(2, 3, 4, 4, dtype=torch.float64), baselines=0.1)
    weights = torch.randn(2, 16, dtype=torch.float64)
    slope = maps.descent(maps.at(maps.x), weights, everywhere(maps), 1e-9)
    torch.testing.assert_close(slope, finite_differences(maps, weights, 1e-5), rtol=1e-6, atol=1e-8)


def test_only_the_curvature_is_that_of_the_smooth_model():
    """With ReLUs the slope is their own where the smooth model's Hessian vanishes, and finite differences see it."""
    network = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3)).double()
    inputs = torch.randn(3, 5, dtype=torch.float64)
    weights = torch.randn(3, 5, dtype=torch.float64)
    sharp = maps_of(network, inputs, softplus_beta=1e9)
    state = sharp.at(sharp.x)
    slope = sharp.descent(state, weights, everywhere(sharp), 1e-9)
    torch.testing.assert_close(slope, weights * state.gradient.abs() * inputs.sign())
    torch.testing.assert_close(slope, finite_differences(sharp, weights, 1e-7), rtol=1e-5, atol=1e-6)
    soft = maps_of(network, inputs, softplus_beta=2.0)
    assert not torch.allclose(soft.descent(state, weights, everywhere(soft), 1e-9), slope)


@pytest.mark.parametrize("room", ["both", "up", "down"])
def test_at_the_baseline_the_slope_is_that_of_the_falling_side(mlp, room):
    inputs = torch.randn(8, 6, dtype=torch.float64)
    inputs[:, :4] = 0.0
    maps = maps_of(mlp, inputs)
    weights = torch.randn_like(inputs)
    box = everywhere(maps)
    if room == "up":
        box.lower[:, :4] = 0.0
    if room == "down":
        box.upper[:, :4] = 0.0
    slope = maps.descent(maps.at(maps.x), weights, box, 1e-9)[:, :4]

    up, down = (finite_differences(maps, weights, 1e-6, (side, 0))[:, :4] for side in (1, -1))
    assert (up - down).abs().max() > 0.01  # there is a kink
    falls_up, falls_down = (up < 0) & (room != "down"), (down > 0) & (room != "up")
    torch.testing.assert_close(slope[falls_up & ~falls_down], up[falls_up & ~falls_down], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(slope[falls_down & ~falls_up], down[falls_down & ~falls_up], rtol=1e-4, atol=1e-6)
    assert (slope[~falls_up & ~falls_down] == 0).all()
    both = falls_up & falls_down
    steeper = torch.where(-up > down, up, down)
    torch.testing.assert_close(slope[both], steeper[both], rtol=1e-4, atol=1e-6)
    assert room != "both" or both.any()


def test_a_little_off_the_baseline_counts_as_at_it(mlp):
    inputs = torch.randn(3, 6, dtype=torch.float64)
    inputs[:, :3] = 0.0
    nearly = inputs.clone()
    nearly[:, :3] = -1e-7
    weights = -torch.ones_like(inputs)
    slopes = []
    for points in (inputs, nearly):
        maps = maps_of(mlp, points)
        box = Box(maps.x.clone(), maps.x + 1)  # no room below
        slopes.append(maps.descent(maps.at(maps.x), weights, box, 1e-6))
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-5)


def test_models_without_curvature():
    maps = maps_of(lambda x: x[:, :3].clone(), torch.randn(2, 4, dtype=torch.float64), 1)
    state = maps.at(maps.x)
    slope = maps.descent(state, torch.ones_like(maps.x), everywhere(maps), 1e-9)
    torch.testing.assert_close(slope, state.gradient.abs() * maps.x.sign())


def test_models_without_gradients_are_refused():
    maps = maps_of(lambda x: (x * 0).detach()[:, :3] + 1.0 * torch.arange(3), torch.randn(2, 4, dtype=torch.float64), 1)
    with pytest.raises(BoundaryValueError, match="carry no gradient of its inputs"):
        maps.at(maps.x)


# Baselines ------------------------------------------------------------------------------------------------------------

BAD_BASELINES = {
    "text": ("black", BoundaryTypeError, "one is str"),
    "bool": (True, BoundaryTypeError, "one is bool"),
    "list": ([0.0], BoundaryTypeError, "one is list"),
    "NaN": (torch.tensor(torch.nan), BoundaryValueError, "must be finite"),
    "distribution": (
        torch.zeros(5, 6),
        BoundaryValueError,
        r"\(2, 6\), or that of one example, \(1, 6\), but .* \(5, 6\)",
    ),
    "row": (torch.zeros(6), BoundaryValueError, r"but its shape is \(6,\)"),
    "too many": ((0.0, 0.0), BoundaryValueError, "one entry for each of 1 inputs, not 2"),
}


@pytest.mark.parametrize(("baselines", "error", "message"), BAD_BASELINES.values(), ids=BAD_BASELINES)
def test_bad_baselines_are_refused(mlp, baselines, error, message):
    with pytest.raises(error, match=message):
        maps_of(mlp, torch.zeros(2, 6, dtype=torch.float64), baselines=baselines)
