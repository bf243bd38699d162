"""Softplus in the place of kinks: what is replaced, by what, and what stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_boundary.robust._smooth_activations import smooth_activations

BETA = 3.0
VALUES = torch.linspace(-8, 8, 41, dtype=torch.float64)


def soft(values):
    return torch.log1p(torch.exp(BETA * values)) / BETA


RELU = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU(inplace)": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu(inplace)": lambda x: F.relu(x, inplace=True),
    "F.relu(True)": lambda x: F.relu(x, True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "keyword": lambda x: F.relu(input=x),
    "Tensor.clamp(min=0)": lambda x: x.clamp(min=0),
    "Tensor.clamp(0)": lambda x: x.clamp(0),
    "Tensor.clamp_": lambda x: x.clamp_(min=0.0),
    "Tensor.clip": lambda x: x.clip(min=0),
    "Tensor.clamp_min": lambda x: x.clamp_min(0),
    "Tensor.clamp_min_": lambda x: x.clamp_min_(0),
    "torch.clamp": lambda x: torch.clamp(x, min=0),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0.0),
}
OTHERS = {
    "nn.LeakyReLU": (nn.LeakyReLU(0.1), lambda x: 0.1 * x + 0.9 * soft(x)),
    "nn.LeakyReLU(inplace)": (nn.LeakyReLU(0.1, inplace=True), lambda x: 0.1 * x + 0.9 * soft(x)),
    "F.leaky_relu": (F.leaky_relu, lambda x: 0.01 * x + 0.99 * soft(x)),
    "F.leaky_relu_": (lambda x: F.leaky_relu_(x, 0.2), lambda x: 0.2 * x + 0.8 * soft(x)),
    "nn.PReLU": (nn.PReLU(init=0.3).double(), lambda x: 0.3 * x + 0.7 * soft(x)),
    "nn.ReLU6": (nn.ReLU6(), lambda x: soft(x) - soft(x - 6)),
    "nn.ReLU6(inplace)": (nn.ReLU6(inplace=True), lambda x: soft(x) - soft(x - 6)),
    "F.relu6": (F.relu6, lambda x: soft(x) - soft(x - 6)),
    "nn.Hardtanh": (nn.Hardtanh(), lambda x: soft(x + 1) - soft(x - 1) - 1),
    "nn.Hardtanh(-2, 3)": (nn.Hardtanh(-2.0, 3.0), lambda x: soft(x + 2) - soft(x - 3) - 2),
    "F.hardtanh_": (F.hardtanh_, lambda x: soft(x + 1) - soft(x - 1) - 1),
    "nn.Hardsigmoid": (nn.Hardsigmoid(), lambda x: (soft(x + 3) - soft(x - 3)) / 6),
    "nn.RReLU": (nn.RReLU(0.1, 0.3).eval(), lambda x: 0.2 * x + 0.8 * soft(x)),
    "nn.Softshrink": (nn.Softshrink(0.4), lambda x: soft(x - 0.4) - soft(-x - 0.4)),
    "nn.Threshold": (nn.Threshold(0.7, 0.7), lambda x: 0.7 + soft(x - 0.7)),
    "nn.Threshold(inplace)": (nn.Threshold(0.0, 0.0, inplace=True), soft),
    "F.threshold": (lambda x: F.threshold(x, -0.2, -0.2), lambda x: soft(x + 0.2) - 0.2),
    "clamp to [0, 1]": (lambda x: x.clamp(0, 1), lambda x: soft(x) - soft(x - 1)),
    "clamp_ to [-2, 1]": (lambda x: x.clamp_(-2, 1), lambda x: soft(x + 2) - soft(x - 1) - 2),
    "clamp at -0.5": (lambda x: x.clamp_min(-0.5), lambda x: soft(x + 0.5) - 0.5),
    "clamp from above": (lambda x: x.clamp(max=0), lambda x: -soft(-x)),
    "Tensor.clamp_max": (lambda x: x.clamp_max(2), lambda x: 2 - soft(2 - x)),
    "torch.clamp_max_": (lambda x: torch.clamp_max_(x, 2.0), lambda x: 2 - soft(2 - x)),
    "clamp by a tensor": (lambda x: x.clamp(min=torch.full((1,), 0.3).to(x)), lambda x: 0.3 + soft(x - 0.3)),
    "torch.maximum": (lambda x: torch.maximum(x, 0.5 * x), lambda x: 0.5 * x + soft(0.5 * x)),
    "Tensor.max of two": (lambda x: x.max(torch.ones_like(x)), lambda x: 1 + soft(x - 1)),
    "torch.max(other=)": (lambda x: torch.max(x, other=torch.ones_like(x)), lambda x: 1 + soft(x - 1)),
    "torch.fmax": (lambda x: torch.fmax(x, torch.zeros_like(x)), soft),
    "torch.minimum": (lambda x: torch.minimum(x, torch.ones_like(x)), lambda x: 1 - soft(1 - x)),
    "torch.min of two": (lambda x: torch.min(torch.ones_like(x), x), lambda x: x - soft(x - 1)),
}
SMOOTHED = {**{name: (function, soft) for name, function in RELU.items()}, **OTHERS}
UNTOUCHED = {
    "nn.Tanh": nn.Tanh(),
    "nn.GELU": nn.GELU(),
    "nn.ELU": nn.ELU(),
    "nn.Hardswish": nn.Hardswish(),
    "clamp at 1e-3": lambda x: x.clamp_min(1e-3),
    "clamp with out": lambda x: torch.clamp(x, min=0, out=torch.empty_like(x)),
    "clamp of integers": lambda x: x.long().clamp_min(0),
    "maximum along a dimension": lambda x: torch.max(x.view(1, -1), 1).values,
    "maximum of all": lambda x: x.max(),
    "maximum along a named dimension": lambda x: x.view(1, -1).max(dim=1, keepdim=True).values,
    "max_pool1d": lambda x: F.max_pool1d(x[None], 3)[0],
}


@pytest.mark.parametrize(("function", "expected"), SMOOTHED.values(), ids=SMOOTHED)
def test_kinks_become_softplus(function, expected):
    with smooth_activations(BETA):
        result = function(VALUES.clone())
    torch.testing.assert_close(result, expected(VALUES))


@pytest.mark.parametrize("function", UNTOUCHED.values(), ids=UNTOUCHED)
def test_other_functions_stay(function):
    with smooth_activations(BETA):
        inside = function(VALUES.clone())
    assert torch.equal(inside, function(VALUES.clone()))


@pytest.mark.parametrize(("function", "expected"), SMOOTHED.values(), ids=SMOOTHED)
def test_there_is_a_second_derivative(function, expected):
    points = VALUES[1::3].clone().requires_grad_()
    with smooth_activations(BETA):
        assert torch.autograd.gradgradcheck(lambda x: function(x.clone()), points)
        result = function(points.clone())
        (slope,) = torch.autograd.grad(result.sum(), points, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), points)
    assert (bend.abs() > 0).any()


@pytest.mark.parametrize(("function", "expected"), SMOOTHED.values(), ids=SMOOTHED)
def test_a_sharp_softplus_is_the_activation_itself(function, expected):
    with smooth_activations(1e6):
        sharp = function(VALUES.clone())
    torch.testing.assert_close(sharp, function(VALUES.clone()), rtol=0, atol=1e-5)


IN_PLACE = {name: RELU[name] for name in ("nn.ReLU(inplace)", "F.relu_", "Tensor.relu_", "Tensor.clamp_")}


@pytest.mark.parametrize("function", IN_PLACE.values(), ids=IN_PLACE)
def test_in_place_functions_write_to_their_input(function):
    values = VALUES.clone()
    with smooth_activations(BETA):
        result = function(values)
    assert result is values
    torch.testing.assert_close(values, soft(VALUES))


@pytest.mark.parametrize("name", ["nn.ReLU", "F.relu", "Tensor.clamp_min"])
def test_others_leave_their_input(name):
    values = VALUES.clone()
    with smooth_activations(BETA):
        RELU[name](values)
    assert torch.equal(values, VALUES)


def test_slopes_too_small_to_matter_are_zero():
    """Products of such slopes would be denormal numbers, and slow."""
    points = torch.tensor([-1.0, -0.1, 0.0, 0.1, 1.0], requires_grad=True)
    with smooth_activations(100.0):
        (slope,) = torch.autograd.grad(F.relu(points).sum(), points)
    assert slope.tolist() == [0.0, pytest.approx(4.54e-5, rel=1e-3), 0.5, pytest.approx(1 - 4.54e-5), 1.0]


def test_channels_have_slopes_of_their_own():
    activation = nn.PReLU(3).double()
    activation.weight.data = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    values = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with smooth_activations(1e6):
        smooth = activation(values)
    torch.testing.assert_close(smooth, activation(values), rtol=0, atol=1e-5)


def test_models_are_as_before():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    inputs = torch.randn(3, 4)
    before = model(inputs)
    with smooth_activations(BETA):
        smooth = model(inputs)
    assert not torch.allclose(smooth, before)
    assert torch.equal(model(inputs), before)


def test_the_context_ends_with_an_exception():
    with pytest.raises(RuntimeError, match="inside"), smooth_activations(BETA):
        raise RuntimeError("inside")
    assert torch.equal(F.relu(VALUES), VALUES.clamp_min(0))


def test_attention_has_its_feed_forward_smoothed():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True).eval()
    inputs = torch.randn(2, 3, 8, requires_grad=True)
    with smooth_activations(BETA):
        smooth = layer(inputs)
    assert not torch.allclose(smooth, layer(inputs))
