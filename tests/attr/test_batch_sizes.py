"""What passes through a model at once: by default as many path points as fit, never more than the user allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import (
    IntegratedGradients,
    InternalInfluence,
    LayerConductance,
    LayerIntegratedGradients,
    NoiseTunnel,
)
from torch import Tensor, nn

from captum_boundary import BoundaryAttribution, BoundaryIntegratedGradients, LayerBoundaryAttribution, NearestBoundary
from captum_boundary._core import batch_sizes
from captum_boundary._core.batch_sizes import saved_bytes
from captum_boundary.errors import BoundaryValueError


class Watched(nn.Module):
    """A network that notes the largest batch it is given."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.largest, self.evaluated = body, 0, 0

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        self.largest = max(self.largest, len(x))
        self.evaluated += len(x)
        return self.body(x)


def network(width: int, n_features: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        return nn.Sequential(*stem, nn.Linear(n_features, 3)).eval()


class Wide(nn.Module):
    """Little arithmetic and much memory: activations of 5.7 MiB for an image of 224 x 224."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        copies = torch.stack([x] * 5).abs()
        return self.last(copies.square().mean(dim=(0, 3, 4)))


def test_an_image_of_224_pixels_never_needs_more_than_fits() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Watched(Wide().eval())
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    boundary = NearestBoundary(model, budget=5).find(images)
    assert boundary.found.all()
    model.largest = model.evaluated = 0
    maps = BoundaryIntegratedGradients(model).attribute(images, boundary=boundary)
    assert 2 < model.largest <= 256 / 5.7
    assert model.evaluated <= 2 * 50 + 2 + 2  # path points, two examples for the scores' form, and two to measure
    at_once = IntegratedGradients(model).attribute(images, boundary.points, boundary.target, n_steps=50)
    assert model.largest == 2 * 50
    torch.testing.assert_close(maps, at_once, rtol=1e-4, atol=1e-4 * float(at_once.abs().max()))


def test_the_model_is_evaluated_at_the_inputs_once() -> None:
    """Once for the search; besides, four rows for their rounding and two for the form of the scores."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()
    inputs = torch.randn(20, 4, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    at_inputs = 0

    def model(x: Tensor) -> Tensor:
        nonlocal at_inputs
        at_inputs += int((x[:, None] == inputs).all(dim=2).any(dim=1).sum())
        return body(x)

    big = BoundaryIntegratedGradients(model, NearestBoundary(model, budget=8))
    _, boundary = big.attribute(inputs, return_boundary=True)
    newton = 20  # the first gradient of every search is taken there
    assert at_inputs <= 20 + newton + 4 + 2
    at_inputs = 0
    big.attribute(inputs, boundary=boundary)
    assert at_inputs <= 2
    big.attribute(inputs, boundary.target, boundary=boundary)
    assert at_inputs <= 4


def test_double_precision_is_equal_to_machine_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Watched(network(4, 16).double())
    images = torch.rand(3, 3, 56, 56, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    boundary = NearestBoundary(model, budget=2).find(images)
    big = BoundaryIntegratedGradients(model)
    at_once = big.attribute(images, boundary=boundary)
    assert model.largest == 3 * 50
    monkeypatch.setattr(batch_sizes, "_SMALL", 0)
    monkeypatch.setattr(batch_sizes, "_CPU_BYTES", 2**18)
    model.largest = 0
    divided = big.attribute(images, boundary=boundary)
    assert model.largest < 20
    torch.testing.assert_close(divided, at_once, rtol=1e-12, atol=1e-12 * float(at_once.abs().max()))


@pytest.mark.parametrize("size", [1, 2, 5, 8, 1000])
@pytest.mark.parametrize("score", ["output", "margin"])
def test_no_more_than_the_user_allows(size: int, score: str) -> None:
    model = Watched(network(2, 8).double())
    images = torch.rand(4, 3, 9, 9, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    boundary = NearestBoundary(model, budget=6).find(images)
    assert boundary.found.all()
    big = BoundaryIntegratedGradients(model, score=score)
    expected = big.attribute(images, boundary=boundary, n_steps=7)
    model.largest = 0
    divided = big.attribute(images, boundary=boundary, n_steps=7, internal_batch_size=size)
    assert model.largest <= max(size, 4)  # all four images once, for the form of the scores
    torch.testing.assert_close(divided, expected, rtol=1e-12, atol=1e-14)
    model.largest = 0
    one = boundary[:1]
    big.attribute(images[:1], boundary=one, n_steps=7, internal_batch_size=size)
    assert model.largest <= size


@pytest.mark.parametrize("method", [LayerIntegratedGradients, LayerConductance, InternalInfluence])
def test_every_layer_method_with_steps(method: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(2, 8).double()
    images = torch.rand(3, 3, 9, 9, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    explainer = LayerBoundaryAttribution(model, model[0], method, NearestBoundary(model, budget=6))
    at_once = explainer.attribute(images)
    sizes = []
    model[1].register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    monkeypatch.setattr(batch_sizes, "_SMALL", 0)
    monkeypatch.setattr(batch_sizes, "_CPU_BYTES", 2**13)
    divided = explainer.attribute(images)
    assert max(sizes) < 3 * 50 / 2
    torch.testing.assert_close(divided, at_once, rtol=1e-11, atol=1e-14)


def test_noise_is_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Watched(network(2, 8).double())
    images = torch.rand(3, 3, 9, 9, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    boundary = NearestBoundary(model, budget=6).find(images)
    explainer = BoundaryAttribution(model, lambda f: NoiseTunnel(IntegratedGradients(f)))
    torch.manual_seed(0)
    at_once = explainer.attribute(images, boundary=boundary, nt_samples=3, stdevs=0.1)
    monkeypatch.setattr(batch_sizes, "_SMALL", 0)
    monkeypatch.setattr(batch_sizes, "_CPU_BYTES", 1)
    model.largest = 0
    divided = explainer.attribute(images, boundary=boundary, nt_samples=3, stdevs=0.1)
    assert model.largest == 9
    torch.testing.assert_close(divided, at_once, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_sizes_that_make_no_sense(size: Any) -> None:
    model = network(2, 8)
    with pytest.raises(BoundaryValueError, match="internal_batch_size must be a positive integer"):
        BoundaryIntegratedGradients(model).attribute(torch.rand(2, 3, 9, 9), internal_batch_size=size)


@pytest.mark.parametrize("is_module", [True, False])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_bytes_are_those_of_activations(is_module: bool, requires_grad: bool) -> None:
    model = nn.Sequential(nn.Linear(1000, 500), nn.Tanh(), nn.Linear(500, 10)).requires_grad_(requires_grad)
    function = model if is_module else model.forward
    x = torch.rand(8, 1000, requires_grad=True).clone()
    saved = saved_bytes(function, lambda: function(x))
    outputs = 8 * 500 * 4
    assert saved <= outputs + x.nbytes + (0 if is_module or requires_grad else model[0].weight.nbytes + 20_000)
    assert saved >= outputs
    assert all(parameter.grad is None for parameter in model.parameters())
