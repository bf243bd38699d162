"""Process-wide settings: random states of all devices stay as they are, and a default device changes nothing."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import (
    LRP,
    DeepLift,
    FeatureAblation,
    GradientShap,
    GuidedBackprop,
    IntegratedGradients,
    KernelShap,
    NoiseTunnel,
    Occlusion,
    Saliency,
    ShapleyValueSampling,
)
from torch import Tensor, nn

from captum_boundary import BoundaryAttribution, BoundaryPoints, NearestBoundary
from captum_boundary._core.random_state import preserve_rng_state
from captum_boundary.attr import separate_activations

N, D = 4, 6


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        first, last = nn.Linear(D, 12), nn.Linear(6, 3)
        pool = nn.Sequential(nn.Unflatten(1, (2, 6)), nn.MaxPool1d(2), nn.Flatten())
        return nn.Sequential(first, nn.ReLU(inplace=True), pool, last).double().eval()


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(N, D, dtype=torch.double, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def boundary(model: nn.Module, inputs: Tensor) -> BoundaryPoints:
    return NearestBoundary(model, budget=5).find(inputs)


class Accelerator:
    """The random numbers of two devices that there are not."""

    def __init__(self) -> None:
        self.states = [1, 2]

    def draw(self) -> None:
        self.states = [state + 10 for state in self.states]

    def get_all(self) -> list[int]:
        return list(self.states)

    def set_all(self, states: list[int]) -> None:
        self.states = list(states)


@pytest.fixture(params=["cuda", "xpu", "mps"])
def accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    devices = Accelerator()
    module = getattr(torch, request.param)
    one = "" if request.param == "mps" else "_all"
    monkeypatch.setattr(module, f"get_rng_state{one}", devices.get_all)
    monkeypatch.setattr(module, f"set_rng_state{one}", devices.set_all)
    if request.param == "mps":
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    else:
        monkeypatch.setattr(module, "is_initialized", lambda: True)
    return devices


class Noisy(nn.Module):
    """Draws from every global random state."""

    def __init__(self, accelerator: object = None) -> None:
        super().__init__()
        self.drawn_from = accelerator

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.drawn_from, Accelerator):
            self.drawn_from.draw()
        return nn.functional.dropout(x, 0.5) * float(1 + random.random() + np.random.rand())  # noqa: NPY002


def global_states() -> list[Any]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist(), numpy_state[2]]


def test_all_generators_are_restored_after_an_exception(accelerator: Accelerator) -> None:
    before = global_states()
    with pytest.raises(OverflowError), preserve_rng_state():  # noqa: PT012
        Noisy(accelerator)(torch.ones(9))
        raise OverflowError
    assert global_states() == before
    assert accelerator.states == [1, 2]


class Untraceable(nn.Module):
    """Random, and dependent on data, so that it must be compared with its copy to be trusted."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        self.relu, self.noise = nn.ReLU(), Noisy(SimpleNamespace())
        self.noise.__dict__["drawn_from"] = accelerator

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(self.relu(x)) if x.sum() < 1e9 else x

    def __deepcopy__(self, memo: dict[int, Any]) -> Untraceable:
        return Untraceable(self.noise.drawn_from)


def test_separation_of_a_random_model_seeds_nothing(
    accelerator: Accelerator, inputs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, before = Untraceable(accelerator), global_states()
    for name in ("seed", "manual_seed"):
        monkeypatch.setattr(torch, name, lambda *_: pytest.fail("every generator of every device was seeded"))
    separated = separate_activations(model, inputs)
    assert isinstance(separated, Untraceable)
    assert global_states() == before
    assert accelerator.states == [1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_cuda_generator_is_as_before(model: nn.Module, inputs: Tensor, boundary: BoundaryPoints) -> None:
    torch.cuda.init()
    before = [state.tolist() for state in torch.cuda.get_rng_state_all()]
    BoundaryAttribution(model, DeepLift).attribute(inputs, boundary=boundary)
    assert [state.tolist() for state in torch.cuda.get_rng_state_all()] == before


METHODS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "big": (IntegratedGradients, {}),
    "gauss_legendre in parts": (IntegratedGradients, {"internal_batch_size": 5}),
    "riemann": (IntegratedGradients, {"method": "riemann_trapezoid"}),
    "bsm": (Saliency, {"abs": False}),
    "deep_lift": (DeepLift, {}),
    "gradient_shap": (GradientShap, {"n_samples": 2, "stdevs": 0.1}),
    "ablation": (FeatureAblation, {}),
    "occlusion": (Occlusion, {"sliding_window_shapes": (2,)}),
    "shapley": (ShapleyValueSampling, {"n_samples": 2}),
    "kernel_shap": (KernelShap, {"n_samples": 4}),
    "guided_backprop": (GuidedBackprop, {}),
    "noise_tunnel": (lambda f: NoiseTunnel(Saliency(f)), {"nt_samples": 2, "stdevs": 0.1}),
}


@pytest.mark.parametrize("score", ["output", "margin"])
@pytest.mark.parametrize(("method", "options"), METHODS.values(), ids=METHODS)
def test_a_default_device_changes_nothing(
    method: Callable[..., Any],
    options: dict[str, Any],
    score: str,
    model: nn.Module,
    inputs: Tensor,
    boundary: BoundaryPoints,
) -> None:
    bound = BoundaryAttribution(model, method, score=score)
    ask = functools.partial(bound.attribute, inputs, boundary=boundary, **options)
    if bound.has_convergence_delta():
        ask = functools.partial(ask, return_convergence_delta=True)
    expected = ask()
    with torch.device("meta"):
        actual = ask()
        assert torch.empty(0).device.type == "meta"
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_lrp_and_separation_under_a_default_device(model: nn.Module, inputs: Tensor, boundary: BoundaryPoints) -> None:
    without_pool = nn.Sequential(model[0], nn.ReLU(), nn.Linear(12, 3)).double()
    points = NearestBoundary(without_pool, budget=5).find(inputs)
    bound = BoundaryAttribution(without_pool, LRP)
    expected = bound.attribute(inputs, boundary=points)
    with torch.device("meta"):
        separated = separate_activations(model, inputs)
        actual = bound.attribute(inputs, boundary=points)
    assert torch.equal(actual, expected)
    assert torch.equal(separated(inputs), model(inputs))


def test_a_model_may_rely_on_the_default_device(inputs: Tensor) -> None:
    class WithFactory(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3] * torch.tensor([1.0, 2.0, 3.0])

    model = WithFactory()
    boundary = NearestBoundary(model, budget=5).find(inputs)
    expected = BoundaryAttribution(model).attribute(inputs, boundary=boundary)
    with torch.device("meta"):
        assert torch.equal(BoundaryAttribution(model).attribute(inputs, boundary=boundary), expected)
