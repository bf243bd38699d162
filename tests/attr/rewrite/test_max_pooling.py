"""Max pooling under DeepLift: all examples at once, and what Captum says of each alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from captum.attr import DeepLift, DeepLiftShap, NoiseTunnel
from torch import Tensor, nn

from captum_boundary import BoundaryAttribution, BoundaryPoints, NearestBoundary
from captum_boundary.attr import separate_activations

N = 5

pytestmark = pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network(n_dimensions: int, kernel: int = 2, **settings: Any) -> tuple[nn.Module, Tensor]:
    """Two poolings, the second of which follows a ReLU, and inputs."""
    convolution, pool = (getattr(nn, f"{name}{n_dimensions}d") for name in ("Conv", "MaxPool"))
    layers = [
        convolution(2, 3, 2),
        pool(kernel, **settings),
        convolution(3, 3, 2),
        nn.ReLU(inplace=True),
        pool(2),
        nn.Flatten(),
        nn.LazyLinear(4),
    ]
    inputs = torch.randn(N, 2, *[11] * n_dimensions, dtype=torch.double)
    model = nn.Sequential(*layers).double().eval()
    model(inputs)
    return model, inputs


def points_of(model: nn.Module, inputs: Tensor) -> BoundaryPoints:
    """Boundary points that equal their inputs in a corner, where DeepLift falls back on the gradient."""
    boundary = NearestBoundary(model, budget=3).find(inputs)
    assert isinstance(boundary.points, Tensor)
    boundary.points[..., 4:] = inputs[..., 4:]
    return dataclasses.replace(boundary, distance=(boundary.points - inputs).flatten(1).norm(dim=1))


def one_by_one(model: nn.Module, inputs: Tensor, boundary: BoundaryPoints) -> Tensor:
    """Captum's DeepLift with its own rule for max pooling."""
    deep_lift = DeepLift(separate_activations(model, inputs))
    rows = [
        deep_lift.attribute(inputs[[i]].clone().requires_grad_(), boundary.points[[i]], int(boundary.target[i]))
        for i in range(N)
    ]
    return torch.cat(rows).detach()


@pytest.mark.parametrize("n_dimensions", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [{}, {"kernel": 3, "stride": 2, "padding": 1}, {"kernel": 3, "ceil_mode": True}, {"stride": 2, "dilation": 2}],
    ids=["plain", "overlapping", "ceil", "dilated"],
)
def test_all_examples_at_once_equal_captum_on_each(n_dimensions: int, settings: dict[str, Any]) -> None:
    model, inputs = network(n_dimensions, **settings)
    boundary = points_of(model, inputs)
    together, delta = BoundaryAttribution(model, DeepLift).attribute(
        inputs, boundary=boundary, return_convergence_delta=True
    )
    assert together.abs().max() > 0
    torch.testing.assert_close(together, one_by_one(model, inputs, boundary), rtol=1e-9, atol=1e-12)
    assert delta.abs().max() < 1e-9


def test_the_forward_passes_do_not_grow_with_the_examples() -> None:
    model, inputs = network(2)
    boundary = points_of(model, inputs)
    sizes: list[int] = []
    model[0].register_forward_hook(lambda module, arguments, output: sizes.append(len(arguments[0])))
    bound = BoundaryAttribution(model, DeepLift)
    bound.attribute(inputs[:1], boundary=boundary[:1])
    n_calls = len(sizes)
    sizes.clear()
    bound.attribute(inputs, boundary=boundary)
    assert len(sizes) == n_calls
    assert max(sizes) == 2 * N


@pytest.mark.parametrize("score", ["output", "margin"])
def test_margin_shap_and_noise(score: str) -> None:
    model, inputs = network(2)
    boundary = points_of(model, inputs)
    expected = BoundaryAttribution(model, DeepLift, score=score).attribute(inputs, boundary=boundary)
    alone = [
        BoundaryAttribution(model, DeepLift, score=score).attribute(inputs[[i]], boundary=boundary[i]) for i in range(N)
    ]
    torch.testing.assert_close(torch.cat(alone), expected, rtol=1e-9, atol=1e-12)
    shap = BoundaryAttribution(model, DeepLiftShap, score=score).attribute(inputs, boundary=boundary)
    torch.testing.assert_close(shap, expected, rtol=1e-9, atol=1e-12)
    tunnel = BoundaryAttribution(model, lambda f: NoiseTunnel(DeepLift(f)), score=score)
    still = tunnel.attribute(inputs, boundary=boundary, nt_samples=3, stdevs=0.0)
    torch.testing.assert_close(still, expected, rtol=1e-9, atol=1e-12)


def test_the_precision_of_multipliers_is_the_users() -> None:
    model, inputs = network(2)
    boundary = points_of(model, inputs)
    coarse = BoundaryAttribution(model, lambda f: DeepLift(f, eps=0.1)).attribute(inputs, boundary=boundary)
    fine = BoundaryAttribution(model, DeepLift).attribute(inputs, boundary=boundary)
    assert not torch.allclose(coarse, fine)


def test_hooks_of_the_user_are_heeded() -> None:
    model, inputs = network(2)
    model[1].register_forward_hook(lambda module, arguments, output: 3 * output)
    boundary = points_of(model, inputs)
    together, delta = BoundaryAttribution(model, DeepLift).attribute(
        inputs, boundary=boundary, return_convergence_delta=True
    )
    torch.testing.assert_close(together, one_by_one(model, inputs, boundary), rtol=1e-9, atol=1e-12)
    assert delta.abs().max() < 1e-9
