"""What every attribution of this package promises to Captum's users, whichever it is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import DeepLift, GradientAttribution, IntegratedGradients, NoiseTunnel
from captum.log import log_usage
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryIntegratedGradients,
    BoundaryNotFoundWarning,
    BoundarySaliency,
    NearestBoundary,
)
from captum_boundary.errors import BoundaryNotFoundError, BoundaryTypeError, BoundaryValueError

N, D, C = 5, 6, 4


class RandomNormals(AggregatedBoundaryNormals):
    """Normals from random directions, by default."""

    @log_usage()  # NoiseTunnel looks beneath it
    def attribute(self, *args: Any, **kwargs: Any) -> Any:
        return super().attribute(*args, **{"n_boundaries": 2, "sampling": "random", **kwargs})


EXPLAINERS: list[Callable[..., Any]] = [
    BoundaryIntegratedGradients,
    BoundarySaliency,
    functools.partial(BoundaryAttribution, method=DeepLift, score="margin"),
    AggregatedBoundaryNormals,
    functools.partial(AggregatedBoundaryNormals, multiply_by_inputs=True),
    RandomNormals,
]
every_explainer = pytest.mark.parametrize(
    "explainer", EXPLAINERS, ids=["big", "saliency", "deep_lift", "normals", "normals_times_inputs", "random_normals"]
)


class TwoInputs(nn.Module):
    """Two inputs, one additional argument with an entry for each example and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(2, 8), nn.Linear(8, C)
        self.tanh = nn.Tanh()

    def forward(self, first: Tensor, second: Tensor, shift: Tensor, scale: float = 1.0) -> Tensor:
        return self.last(self.tanh(self.first(first) * scale + self.second(second) + shift))


class Fuse(nn.Module):
    """Passes tensors on until it has been called too often."""

    def __init__(self) -> None:
        super().__init__()
        self.calls_left = 10**6

    def forward(self, x: Tensor) -> Tensor:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise OverflowError("blown")
        return x


def quick_search(model: Callable[..., Any], **options: Any) -> NearestBoundary:
    return NearestBoundary(model, budget=6, **options)


def random_model() -> nn.Sequential:
    """Smooth, since nearest points of ReLU networks often lie on kinks, where rounding decides about the normal."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(D, 12), nn.Tanh(), nn.Linear(12, C)).double().eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return random_model()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(N, D, dtype=torch.double, generator=torch.Generator().manual_seed(2))


def close(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@every_explainer
@pytest.mark.filterwarnings("ignore::UserWarning:captum")  # of hooks and gradients, by Captum's own DeepLift
def test_drops_in_next_to_captums_methods(explainer, model, inputs):
    for method in (IntegratedGradients, DeepLift, explainer):
        attributions = method(model).attribute(inputs, target=[2, 1, 0, 3, 2])
        assert isinstance(attributions, Tensor)
        assert attributions.shape == inputs.shape
        assert attributions.dtype == inputs.dtype
    assert isinstance(explainer(model), GradientAttribution)
    assert not attributions.requires_grad


@every_explainer
def test_target_defaults_to_the_prediction_and_takes_captums_forms(explainer, model, inputs):
    method = explainer(model, search=quick_search(model))
    close(method.attribute(inputs), method.attribute(inputs, model(inputs).argmax(1)))
    expected = method.attribute(inputs, torch.full((N,), 2))
    for target in (2, torch.tensor(2), torch.tensor([2]), [2] * N, (2,), [(2,)] * N):
        close(method.attribute(inputs, target), expected)


@every_explainer
def test_batch_equals_one_by_one(explainer, model, inputs):
    for target in (None, [0, 1, 2, 3, 0]):
        method = explainer(model, search=quick_search(model))
        alone = [method.attribute(inputs[[i]], None if target is None else target[i : i + 1]) for i in range(N)]
        close(method.attribute(inputs, target), torch.cat(alone))


@every_explainer
def test_tuples_and_additional_arguments_follow_their_rows(explainer):
    model = TwoInputs().double()
    inputs = (torch.randn(N, 4).double(), torch.randn(N, 2).double())
    shift = torch.randn(N, 8).double()
    method = explainer(model, search=quick_search(model))
    together = method.attribute(inputs, None, (shift, 0.7))
    assert isinstance(together, tuple)
    assert [part.shape for part in together] == [part.shape for part in inputs]
    for i in range(N):
        alone = method.attribute(tuple(part[[i]] for part in inputs), None, (shift[[i]], 0.7))
        close(tuple(part[[i]] for part in together), alone)


@every_explainer
def test_tuple_of_one_is_a_tensor_in_a_tuple(explainer, model, inputs):
    method = explainer(model, search=quick_search(model))
    wrapped = method.attribute((inputs,))
    assert isinstance(wrapped, tuple)
    close(wrapped, (method.attribute(inputs),))


@every_explainer
def test_rows_without_a_boundary_warn_and_are_nan(explainer, model, inputs):
    median = float(quick_search(model).find(inputs).distance.median())
    search = quick_search(model, max_distance=median)
    with pytest.warns(BoundaryNotFoundWarning, match="row") as warned:
        attributions = explainer(model, search=search).attribute(inputs)
    missing = attributions.isnan().all(dim=1)
    assert 0 < missing.sum() < N
    assert torch.equal(missing, attributions.isnan().any(dim=1))
    assert all(warning.category is BoundaryNotFoundWarning for warning in warned)
    search.strict = True
    with pytest.raises(BoundaryNotFoundError, match="row"):
        explainer(model, search=search).attribute(inputs)


@every_explainer
def test_both_shapes_of_one_output(explainer, model, inputs):
    column = nn.Sequential(*model, nn.Linear(C, 1).double())
    nn.init.ones_(column[-1].weight)
    expected = explainer(column).attribute(inputs)
    assert expected.isfinite().all()
    close(explainer(nn.Sequential(column, nn.Flatten(0))).attribute(inputs), expected)
    close(explainer(column).attribute(inputs, 0), expected)


def fingerprint(model: nn.Module, *tensors: Tensor) -> list[Any]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), m.training)
        for name, m in model.named_modules()
    ]
    leaves = [
        (t.detach().clone().tolist(), t.requires_grad, t.grad, t._version) for t in (*model.parameters(), *tensors)
    ]
    random_states = [torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2]]
    return [hooks, leaves, random_states, torch.is_grad_enabled()]


@every_explainer
@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_callers_state_is_as_before(explainer, requires_grad, inputs):
    model, x = random_model(), inputs.clone().requires_grad_(requires_grad)
    model[0].weight.requires_grad_(False)
    before = fingerprint(model, x)
    explainer(model).attribute(x)
    assert fingerprint(model, x) == before


@every_explainer
def test_the_callers_state_is_as_before_after_an_exception(explainer, inputs):
    fuse = Fuse()
    model, x = nn.Sequential(nn.Linear(D, 12), fuse, nn.Linear(12, C)).double(), inputs.clone()
    method = explainer(model, search=quick_search(model))
    before = fingerprint(model, x)
    for calls in (0, 1, 4):
        fuse.calls_left = calls
        with pytest.raises(Exception):  # noqa: B017, PT011, tracing may report it in its own words
            method.attribute(x)
        assert fingerprint(model, x) == before


@every_explainer
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_without_grad(explainer, mode, model, inputs):
    method = explainer(model, search=quick_search(model))
    expected = method.attribute(inputs)
    with mode():
        close(method.attribute(inputs.clone()), expected)


@every_explainer
def test_inside_noise_tunnel(explainer, model, inputs):
    method = explainer(model, search=quick_search(model))
    target = model(inputs).argmax(1)
    smooth = NoiseTunnel(method).attribute(inputs, nt_samples=2, stdevs=0.1, target=target)
    assert smooth.shape == inputs.shape
    close(NoiseTunnel(method).attribute(inputs, nt_samples=2, stdevs=0.0, target=target), method.attribute(inputs))
    assert isinstance(NoiseTunnel(method).attribute((inputs,), nt_samples=2, target=target), tuple)


@every_explainer
def test_inside_captums_metrics(explainer, model, inputs):
    method = explainer(model, search=quick_search(model))
    target = model(inputs).argmax(1)
    sensitivity = sensitivity_max(method.attribute, inputs, n_perturb_samples=2, target=target)
    assert sensitivity.shape == (N,)
    assert (sensitivity >= 0).all()

    def nudge(x: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.01 * torch.randn_like(x)
        return noise, x - noise

    unfaithful = infidelity(model, nudge, inputs, method.attribute(inputs, target), target=target)
    assert unfaithful.shape == (N,)
    assert torch.isfinite(unfaithful).all()


@every_explainer
def test_lower_precision_stays_what_it_is(explainer, inputs):
    model = random_model().to(torch.bfloat16)
    attributions = explainer(model, search=quick_search(model)).attribute(inputs.bfloat16())
    assert attributions.isfinite().all()
    if isinstance(explainer(model), AggregatedBoundaryNormals):  # Captum integrates in float32
        assert attributions.dtype == torch.bfloat16


@every_explainer
def test_bad_arguments_say_how_to_mend_them(explainer, model, inputs):
    with pytest.raises(BoundaryTypeError, match="must be a BoundarySearch"):
        explainer(model, search=model)
    method = explainer(model)
    with pytest.raises(BoundaryTypeError, match="floating point"):
        method.attribute(torch.ones(2, D, dtype=torch.long))
    with pytest.raises(BoundaryValueError, match="NaN"):
        method.attribute(inputs.masked_fill(inputs > 1, torch.nan))
    with pytest.raises(BoundaryValueError, match="target"):
        method.attribute(inputs, target=C)
    with pytest.raises(BoundaryValueError, match="bounds"):
        explainer(model, search=NearestBoundary(model, bounds=(0, 1))).attribute(inputs)
    with pytest.raises(NotImplementedError, match="attribute_future is not implemented for"):
        method.attribute_future()
