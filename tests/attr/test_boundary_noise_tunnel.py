"""Boundary attributions over noisy copies: of the input's class, and of copies that have a boundary alone."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from captum.attr import NoiseTunnel, Saliency
from torch import Tensor, nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryEnergy,
    BoundaryIntegratedGradients,
    BoundaryNotFoundWarning,
    BoundarySaliency,
    NearestBoundary,
)
from captum_boundary.attr import BoundaryNoiseTunnel
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

N, D, C = 5, 6, 4


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(D, 12), nn.Tanh(), nn.Linear(12, C)).double().eval()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(N, D, dtype=torch.double, generator=torch.Generator().manual_seed(2))


def search(model: Any, **options: Any) -> NearestBoundary:
    return NearestBoundary(model, budget=6, **options)


@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("size", [None, 1, 2])
@pytest.mark.parametrize("explainer", [BoundaryIntegratedGradients, BoundarySaliency, AggregatedBoundaryNormals])
def test_is_captums_where_all_copies_have_a_boundary(explainer, size, nt_type, model, inputs):
    method = explainer(model, search(model))
    options = {"nt_type": nt_type, "nt_samples": 3, "nt_samples_batch_size": size, "stdevs": 0.2}
    target = model(inputs).argmax(1)
    torch.manual_seed(0)
    expected = NoiseTunnel(method).attribute(inputs, target=target, **options)
    for given in (target, None):
        torch.manual_seed(0)
        actual, n_found = BoundaryNoiseTunnel(method).attribute(inputs, target=given, return_n_found=True, **options)
        torch.testing.assert_close(actual, expected)
        assert n_found.tolist() == [3] * N


def test_copies_of_other_classes_are_explained_for_that_of_the_input(model, inputs):
    """With so much noise most copies are of other classes; the gradient of a linear model tells which one it was."""
    linear = nn.Linear(D, C).double()
    method = BoundarySaliency(linear, search(linear))
    maps = BoundaryNoiseTunnel(method).attribute(inputs, nt_samples=8, stdevs=5.0)
    torch.testing.assert_close(maps, linear.weight[linear(inputs).argmax(1)].detach())
    with pytest.warns(UserWarning, match="given no target.*BoundaryNoiseTunnel") as caught:
        mixed = NoiseTunnel(method).attribute(inputs, nt_samples=8, stdevs=5.0)
    assert caught[0].filename == __file__
    assert not torch.allclose(mixed, maps)


@pytest.mark.parametrize(
    "build", [AggregatedBoundaryNormals, BoundaryIntegratedGradients, lambda model: BoundaryEnergy(model, 1.0)]
)
def test_captums_own_around_any_method_says_that_classes_are_mixed(build, model, inputs):
    with pytest.warns(UserWarning, match="NoiseTunnel was given no target"):
        NoiseTunnel(build(model)).attribute(inputs, nt_samples=2, stdevs=0.1)
    NoiseTunnel(build(model)).attribute(inputs, nt_samples=2, stdevs=0.1, target=1)


class HalfFlat(nn.Module):
    """Has a boundary where the first feature is positive, and none, within reach, elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        score = torch.where(x[:, 0] > 0, x[:, 1], torch.ones_like(x[:, 1]))
        return torch.stack([score, -score], dim=1)


def test_copies_without_a_boundary_are_left_out_and_counted():
    model = HalfFlat()
    x = torch.tensor([[0.0, 0.5], [30.0, 0.5], [-30.0, 0.5]], dtype=torch.double)
    method = BoundarySaliency(model, NearestBoundary(model, budget=6, max_distance=4.0))
    tunnel = BoundaryNoiseTunnel(method)
    torch.manual_seed(0)
    with pytest.warns(BoundaryNotFoundWarning, match=r"of 60 noisy copies.*row\(s\) 0, 2") as caught:
        maps, n_found = tunnel.attribute(x, nt_samples=20, stdevs=1.0, target=0, return_n_found=True)
    assert caught[0].filename == __file__
    assert len(caught) == 1
    assert 3 < n_found[0] < 20
    assert n_found[1:].tolist() == [20, 0]
    assert maps[2].isnan().all()
    torch.testing.assert_close(maps[1], torch.tensor([0.0, 1.0]).double())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        torch.manual_seed(0)
        copies = x.repeat_interleave(20, 0) + torch.normal(0.0, torch.ones(60, 2))
        each, boundary = method.attribute(copies, 0, return_boundary=True)
        torch.testing.assert_close(maps[0], each[:20][boundary.found[:20]].mean(0))
        assert NoiseTunnel(method).attribute(x, nt_samples=20, stdevs=1.0, target=0)[0].isnan().any()


def test_the_delta_is_a_mean_over_copies(model, inputs):
    tunnel = BoundaryNoiseTunnel(BoundaryIntegratedGradients(model, search(model)))
    maps, delta, n_found = tunnel.attribute(
        inputs, nt_samples=3, stdevs=0.1, return_convergence_delta=True, return_n_found=True
    )
    assert delta.shape == n_found.shape == (N,)
    assert delta.abs().max() < 1e-4
    assert maps.shape == inputs.shape


def test_tuples_and_arguments_follow_their_copies():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = nn.Linear(4, 3).double()

    def model(x: Tensor, y: Tensor, scale: Tensor, name: str) -> Tensor:
        return layer(torch.cat([x, y], dim=1)) * scale[:, None] * len(name)

    x, y, scale = torch.randn(N, 3).double(), torch.randn(N, 1).double(), torch.arange(1.0, N + 1).double()
    tunnel = BoundaryNoiseTunnel(BoundarySaliency(model, search(model)))
    maps = tunnel.attribute((x, y), nt_samples=2, stdevs=(0.1, 0.0), target=[0, 1, 2, 1, 0],
                            additional_forward_args=(scale, "ab"))  # fmt: skip
    assert isinstance(maps, tuple)
    expected = layer.weight[[0, 1, 2, 1, 0]].detach() * 2 * scale[:, None]
    torch.testing.assert_close(torch.cat(maps, dim=1), expected)


def test_one_output_and_the_callers_state(inputs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Linear(D, 1).double()
    x = inputs.clone().requires_grad_()
    tunnel = BoundaryNoiseTunnel(BoundarySaliency(model, search(model)))
    maps = tunnel.attribute(x, nt_samples=2, stdevs=3.0)
    torch.testing.assert_close(maps, model.weight.detach().expand(N, D))
    assert x.grad is None
    assert torch.equal(x.detach(), inputs)


def test_bad_arguments_say_how_to_mend_them(model, inputs):
    for method in (Saliency(model), BoundaryEnergy(model, 0.1), None):
        with pytest.raises(BoundaryTypeError, match="finds boundary points"):
            BoundaryNoiseTunnel(method)
    method = BoundaryAttribution(model, Saliency, search(model))
    tunnel = BoundaryNoiseTunnel(method)
    with pytest.raises(BoundaryValueError, match="nt_type must be "):
        tunnel.attribute(inputs, "smooth")
    with pytest.raises(BoundaryValueError, match="nt_samples must be a positive integer"):
        tunnel.attribute(inputs, nt_samples=0)
    with pytest.raises(BoundaryValueError, match=r"stdevs holds 2 number\(s\) for 1"):
        tunnel.attribute(inputs, stdevs=(0.1, 0.1))
    with pytest.raises(BoundaryValueError, match="stdev must be positive"):
        tunnel.attribute(inputs, stdevs=-0.1)
    with pytest.raises(BoundaryValueError, match="boundary of its own"):
        tunnel.attribute(inputs, boundary=method.search.find(inputs))
    with pytest.raises(BoundaryTypeError, match="does not know the argument"):
        tunnel.attribute(inputs, n_steps=5)
