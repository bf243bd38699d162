"""Boundary attributions against Captum itself, called for one example at a time with the boundary points in hand."""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import (
    LRP,
    Deconvolution,
    DeepLift,
    DeepLiftShap,
    FeatureAblation,
    FeaturePermutation,
    GradientAttribution,
    GradientShap,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    LayerIntegratedGradients,
    Lime,
    NeuronGradient,
    NoiseTunnel,
    Occlusion,
    Saliency,
    ShapleyValues,
    ShapleyValueSampling,
)
from torch import Tensor, nn

from captum_boundary import (
    BoundaryAttribution,
    BoundaryIntegratedGradients,
    BoundaryNotFoundWarning,
    BoundaryPoints,
    BoundarySaliency,
    NearestBoundary,
)
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search import BoundarySearch

N, D, C = 5, 6, 4


def smooth_saliency(forward_func: Callable[..., Any]) -> NoiseTunnel:
    return NoiseTunnel(Saliency(forward_func))


def smooth_integrated_gradients(forward_func: Callable[..., Any]) -> NoiseTunnel:
    return NoiseTunnel(IntegratedGradients(forward_func))


def smooth_gradient_shap(forward_func: Callable[..., Any]) -> NoiseTunnel:
    return NoiseTunnel(GradientShap(forward_func))


def smooth_deep_lift(model: nn.Module) -> NoiseTunnel:
    return NoiseTunnel(DeepLift(model))


NO_NOISE = {"nt_samples": 3, "stdevs": 0.0}
BASELINE_METHODS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (IntegratedGradients, {}),
    (IntegratedGradients, {"n_steps": 12, "internal_batch_size": 7, "method": "riemann_trapezoid"}),
    (functools.partial(IntegratedGradients, multiply_by_inputs=False), {}),
    (DeepLift, {}),
    (DeepLiftShap, {}),
    (GradientShap, {"n_samples": 4, "stdevs": 0.1}),
    (FeatureAblation, {}),
    (FeatureAblation, {"perturbations_per_eval": 4}),
    (Occlusion, {"sliding_window_shapes": (2,), "strides": 2}),
    (ShapleyValueSampling, {"n_samples": 3}),
    (ShapleyValueSampling, {"n_samples": 3, "perturbations_per_eval": 2}),
    (ShapleyValues, {"feature_mask": torch.tensor([[0, 0, 1, 1, 2, 2]])}),
    (KernelShap, {}),
    (KernelShap, {"n_samples": 12, "perturbations_per_eval": 5}),
    (Lime, {"n_samples": 12}),
    (smooth_integrated_gradients, NO_NOISE),
    (smooth_integrated_gradients, {**NO_NOISE, "nt_samples_batch_size": 2}),
    (smooth_gradient_shap, {"nt_samples": 3, "stdevs": 0.1}),
    (smooth_deep_lift, NO_NOISE),
]
POINT_METHODS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (Saliency, {}),
    (Saliency, {"abs": False}),
    (InputXGradient, {}),
    (smooth_saliency, {**NO_NOISE, "abs": False}),
    (smooth_saliency, {**NO_NOISE, "nt_type": "smoothgrad_sq"}),
    (GuidedBackprop, {}),
    (Deconvolution, {}),
    (LRP, {}),
]
DRAWN_FOR_WHOLE_BATCH = (ShapleyValueSampling,)


def name_of(value: object) -> str | None:
    if isinstance(value, dict):
        return "-".join(value) or "plain"
    return getattr(value, "__name__", "partial") if callable(value) else str(value)


class Difference(nn.Module):
    """The margin of one fixed class over another, as a model for Captum."""

    def __init__(self, model: nn.Module, target: int, adversarial: int) -> None:
        super().__init__()
        self.model, self.target, self.adversarial = model, target, adversarial

    def forward(self, *inputs: Any) -> Tensor:
        scores = self.model(*inputs)
        return scores[:, self.target] - scores[:, self.adversarial]


class TwoInputs(nn.Module):
    """Two inputs, one additional argument with an entry for each example and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(4, 8), nn.Linear(2, 8), nn.ReLU()
        self.last = nn.Linear(8, C)

    def forward(self, first: Tensor, second: Tensor, shift: Tensor, scale: float = 1.0) -> Tensor:
        return self.last(self.relu(self.first(first) * scale + self.second(second) + shift))


@pytest.fixture(autouse=True)
def _seeds() -> Iterator[None]:
    with torch.random.fork_rng():
        seed(0)
        yield


def seed(value: int) -> None:
    torch.manual_seed(value)
    np.random.seed(value)  # noqa: NPY002


def quick_search(model: Callable[..., Any], **kwargs: Any) -> NearestBoundary:
    return NearestBoundary(model, budget=2, **kwargs)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(D, 12), nn.ReLU(), nn.Linear(12, C)).double().eval()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(N, D, dtype=torch.double, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def boundary(model: nn.Module, inputs: Tensor) -> BoundaryPoints:
    points = quick_search(model).find(inputs)
    assert points.found.all()
    assert len(points.target.unique()) > 1
    return points


def example(boundary: BoundaryPoints, index: int) -> BoundaryPoints:
    def row(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(part[[index]] for part in value)
        return value[[index]] if isinstance(value, Tensor) else value

    return BoundaryPoints(**{field.name: row(getattr(boundary, field.name)) for field in dataclasses.fields(boundary)})


def linear(n_classes: int = C) -> nn.Linear:
    return nn.Linear(D, n_classes).double()


def close(actual: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def captum(method: Callable[..., Any], model: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return method(model).attribute(*args, **kwargs)


def example_by_example(
    method: Callable[..., Any],
    model: nn.Module,
    inputs: Tensor,
    boundary: BoundaryPoints,
    score: str,
    options: dict[str, Any],
) -> Tensor:
    rows = []
    for i in range(len(inputs)):
        target: int | None = int(boundary.target[i])
        function = model
        if score == "margin":
            function, target = Difference(model, int(boundary.target[i]), int(boundary.adversarial[i])), None
        x, point = inputs[i : i + 1].clone(), boundary.points[i : i + 1].clone()
        if method in DRAWN_FOR_WHOLE_BATCH:
            seed(0)
        if method is DeepLiftShap:
            point = torch.cat([point, point])
        if (method, options) in BASELINE_METHODS:
            rows.append(captum(method, function, x, baselines=point, target=target, **options))
        else:
            rows.append(captum(method, function, point, target=target, **options))
    return torch.cat(rows).detach()


@pytest.mark.parametrize(
    ("method", "options", "score"),
    [
        (method, options, score)
        for method, options in BASELINE_METHODS + POINT_METHODS
        for score in ("output", "margin")
        if not (method is LRP and score == "margin")
    ],
    ids=name_of,
)
def test_is_captum_with_each_examples_own_point(
    method: Callable[..., Any],
    options: dict[str, Any],
    score: str,
    model: nn.Module,
    inputs: Tensor,
    boundary: BoundaryPoints,
) -> None:
    seed(0)
    actual = BoundaryAttribution(model, method, score=score).attribute(inputs, boundary=boundary, **options)
    seed(0)
    expected = example_by_example(method, model, inputs, boundary, score, options)
    assert actual.shape == inputs.shape
    assert not actual.requires_grad
    close(actual, expected, 1e-5 if actual.dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("score", ["output", "margin"])
def test_linear_model_has_its_weights_as_saliency_and_completes(score: str) -> None:
    model, inputs = linear(), torch.randn(N, D, dtype=torch.double)
    saliency, boundary = BoundarySaliency(model, score=score).attribute(inputs, return_boundary=True)
    slope = model.weight.detach()[boundary.target]
    if score == "margin":
        slope = slope - model.weight.detach()[boundary.adversarial]
        normal = inputs - boundary.points
        close(torch.cosine_similarity(saliency, normal), torch.ones(N).double(), 1e-4)
    close(saliency, slope)

    big = BoundaryIntegratedGradients(model, score=score)
    attributions, delta, again = big.attribute(inputs, return_convergence_delta=True, return_boundary=True)
    close(attributions, (inputs - again.points) * slope)
    assert delta.shape == (N,)
    assert delta.abs().max() < 1e-6
    if score == "output":
        difference = model(inputs).gather(1, again.target[:, None]) - model(again.points).gather(
            1, again.target[:, None]
        )
        close(attributions.sum(1), difference.detach().squeeze(1), 1e-6)


def test_boundary_saliency_is_signed_unless_told_otherwise(
    model: nn.Module, inputs: Tensor, boundary: BoundaryPoints
) -> None:
    signed = BoundarySaliency(model).attribute(inputs, boundary=boundary)
    assert (signed < 0).any()
    close(BoundarySaliency(model).attribute(inputs, boundary=boundary, abs=True), signed.abs())


def test_delta_is_completeness_error(model: nn.Module, inputs: Tensor, boundary: BoundaryPoints) -> None:
    for method in (IntegratedGradients, DeepLift, GradientShap, smooth_integrated_gradients):
        options = {"nt_samples": 2, "stdevs": 0.1} if method is smooth_integrated_gradients else {}
        bound = BoundaryAttribution(model, method)
        attributions, delta = bound.attribute(inputs, boundary=boundary, return_convergence_delta=True, **options)
        expected = bound.compute_convergence_delta(attributions, boundary.points, inputs, boundary.target)
        assert bound.has_convergence_delta()
        close(delta, expected)
    few, many = (
        BoundaryAttribution(model).attribute(
            inputs, boundary=boundary, return_convergence_delta=True, n_steps=n, method="riemann_middle"
        )[1]
        for n in (5, 500)
    )
    assert many.abs().max() < few.abs().max() / 10


def test_delta_of_the_margin_comes_with_the_attributions_alone(
    model: nn.Module, inputs: Tensor, boundary: BoundaryPoints
) -> None:
    bound = BoundaryAttribution(model, DeepLift, score="margin")
    attributions, delta = bound.attribute(inputs, boundary=boundary, return_convergence_delta=True)
    assert delta.abs().max() < 1e-9
    with pytest.raises(BoundaryValueError, match="return_convergence_delta=True"):
        bound.compute_convergence_delta(attributions, boundary.points, inputs, boundary.target)


def test_delta_of_lrp_is_its_own(model: nn.Module, inputs: Tensor, boundary: BoundaryPoints) -> None:
    attributions, delta = BoundaryAttribution(model, LRP).attribute(
        inputs, boundary=boundary, return_convergence_delta=True
    )
    output = model(boundary.points).gather(1, boundary.target[:, None]).squeeze(1).detach()
    close(delta, output - attributions.sum(1))


@pytest.mark.parametrize(
    ("method", "has_delta", "multiplies"),
    [
        (IntegratedGradients, True, True),
        (functools.partial(IntegratedGradients, multiply_by_inputs=False), True, False),
        (DeepLift, True, True),
        (Saliency, False, False),
        (InputXGradient, False, True),
        (FeatureAblation, False, True),
        (smooth_saliency, False, False),
        (smooth_integrated_gradients, True, True),
        (LRP, True, True),
        (lambda f: NoiseTunnel(LRP(f)), False, True),
    ],
    ids=name_of,
)
def test_facts_follow_the_method(
    method: Callable[..., Any], has_delta: bool, multiplies: bool, model: nn.Module, inputs: Tensor
) -> None:
    bound = BoundaryAttribution(model, method)
    assert bound.has_convergence_delta() is has_delta
    assert bound.multiplies_by_inputs is multiplies
    if not has_delta:
        with pytest.raises(BoundaryValueError, match="no convergence delta"):
            bound.attribute(inputs, return_convergence_delta=True)


def test_names_and_future(model: nn.Module) -> None:
    assert BoundaryAttribution.get_name() == "Boundary Attribution"
    assert BoundaryIntegratedGradients.get_name() == "Boundary Integrated Gradients"
    with pytest.raises(NotImplementedError, match="BoundarySaliency"):
        BoundarySaliency(model).attribute_future()


@pytest.mark.parametrize("score", ["output", "margin"])
@pytest.mark.parametrize(
    "method", [IntegratedGradients, DeepLift, Saliency, InputXGradient, KernelShap, FeatureAblation]
)
def test_model_with_one_output(method: Callable[..., Any], score: str) -> None:
    column = nn.Sequential(nn.Linear(D, 5), nn.ReLU(), nn.Linear(5, 1)).double()
    vector = nn.Sequential(column, nn.Flatten(0))
    inputs = torch.randn(8, D, dtype=torch.double)
    boundary = quick_search(column).find(inputs)
    assert len(boundary.target.unique()) == 2
    seed(0)
    if method in (Saliency, InputXGradient):
        expected = captum(method, column, boundary.points, target=0).detach()
    else:
        expected = captum(method, column, inputs, baselines=boundary.points, target=0).detach()
    if score == "margin" and method is not Saliency:
        expected = torch.where(column(inputs) > 0, expected, -expected)
    for model, target in itertools.product((column, vector), (None, 0, boundary.target, boundary.target.tolist())):
        seed(0)
        bound = BoundaryAttribution(model, method, score=score)
        close(bound.attribute(inputs, target, boundary=boundary), expected, 1e-5)
    for wrong, message in (
        (1, r"asks for the classes \[1, 1"),
        (1 - boundary.target, "can be read|lie on the positive side"),
    ):
        with pytest.raises(BoundaryValueError, match=message):
            bound.attribute(inputs, wrong, boundary=boundary)


ALL_QUICK_METHODS = [
    IntegratedGradients,
    DeepLift,
    DeepLiftShap,
    GradientShap,
    Saliency,
    InputXGradient,
    GuidedBackprop,
    FeatureAblation,
    KernelShap,
]
DETERMINISTIC = [m for m in ALL_QUICK_METHODS if m not in (GradientShap, KernelShap)]


@pytest.mark.parametrize("score", ["output", "margin"])
@pytest.mark.parametrize("method", DETERMINISTIC)
def test_tuples_and_additional_arguments_follow_their_rows(method: Callable[..., Any], score: str) -> None:
    model = TwoInputs().double()
    inputs = (torch.randn(N, 4).double(), torch.randn(N, 2).double())
    shift = torch.randn(N, 8).double()
    boundary = quick_search(model).find(inputs, None, (shift, 0.7))
    bound = BoundaryAttribution(model, method, score=score)
    together = bound.attribute(inputs, additional_forward_args=(shift, 0.7), boundary=boundary)
    assert isinstance(together, tuple)
    assert [part.shape for part in together] == [part.shape for part in inputs]
    for i in range(N):
        alone = bound.attribute(
            tuple(part[[i]] for part in inputs),
            additional_forward_args=(shift[[i]], 0.7),
            boundary=example(boundary, i),
        )
        close(tuple(part[[i]] for part in together), alone)


class Weighted(nn.Module):
    """Arguments that are the same for all examples, tensors too, around one that follows them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, C)

    def forward(self, x: Tensor, weights: Tensor, shift: Tensor, scale: Tensor, name: str = "a") -> Tensor:
        return self.last(self.act(self.first(x) + shift)) * weights * scale + len(name)


@pytest.mark.parametrize("score", ["output", "margin"])
@pytest.mark.parametrize(
    "method",
    [IntegratedGradients, DeepLift, GradientShap, FeatureAblation, Saliency, GuidedBackprop, smooth_saliency],
    ids=name_of,
)
def test_tensors_that_are_the_same_for_all_examples(method: Callable[..., Any], score: str, inputs: Tensor) -> None:
    seed(1)
    model = Weighted().double().eval()
    shift, weights, scale = torch.randn(N, 8).double(), torch.rand(C).double() + 0.5, torch.tensor(1.5).double()

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return self.model(x, weights, shift, scale, "b")

    options = NO_NOISE if method is smooth_saliency else {}
    seed(0)
    actual, boundary = BoundaryAttribution(model, method, quick_search(model), score).attribute(
        inputs, additional_forward_args=(weights, shift, scale, "b"), return_boundary=True, **options
    )
    assert boundary.found.all()
    seed(0)
    same = BoundaryAttribution(Plain(), method, score=score)
    close(actual, same.attribute(inputs, additional_forward_args=shift, boundary=boundary, **options))


@pytest.mark.parametrize("method", ALL_QUICK_METHODS)
def test_tuple_of_one_is_a_tensor_in_a_tuple(
    method: Callable[..., Any], model: nn.Module, inputs: Tensor, boundary: BoundaryPoints
) -> None:
    bound = BoundaryAttribution(model, method)
    bare = bound.attribute(inputs, boundary=boundary)
    wrapped = bound.attribute((inputs,), boundary=dataclasses.replace(boundary, points=(boundary.points,)))
    assert isinstance(wrapped, tuple)
    close(wrapped, (bare,))


def test_pooling_and_softmax_do_not_mix_examples() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3), nn.Softmax(dim=1)
    ).double()
    inputs = torch.randn(4, 1, 7, 7).double()
    boundary = quick_search(model).find(inputs)
    unchanged = boundary.points.clone()
    unchanged[..., 3:] = inputs[..., 3:]  # where nothing changes, Captum reads the first example's gradient for all
    distance = (unchanged - inputs).flatten(1).norm(dim=1)
    boundary = dataclasses.replace(boundary, points=unchanged, distance=distance)
    together = BoundaryAttribution(model, DeepLift).attribute(inputs, boundary=boundary)
    one_by_one = example_by_example(DeepLift, model, inputs, boundary, "output", {})
    close(together, one_by_one)
    mixed = captum(DeepLift, model, inputs, baselines=unchanged, target=boundary.target)
    assert not torch.allclose(mixed, one_by_one)


def test_shared_boundary_is_one_search(model: nn.Module, inputs: Tensor) -> None:
    search = quick_search(model)
    first, boundary = BoundaryAttribution(model, search=search).attribute(inputs, return_boundary=True)
    again, same = BoundaryAttribution(model, search=search).attribute(inputs, boundary=boundary, return_boundary=True)
    close(first, again)
    assert same is boundary
    assert isinstance(boundary, BoundaryPoints)


def test_default_search_is_the_nearest_boundary(model: nn.Module) -> None:
    assert isinstance(BoundaryAttribution(model).search, NearestBoundary)
    search = quick_search(model)
    assert BoundarySaliency(model, search).search is search


@pytest.mark.parametrize("method", [*ALL_QUICK_METHODS, LRP])
def test_rows_without_a_point_are_nan(
    method: Callable[..., Any], model: nn.Module, inputs: Tensor, boundary: BoundaryPoints
) -> None:
    missing = torch.tensor([False, True, False, False, True])
    partial = dataclasses.replace(
        boundary,
        points=torch.where(missing[:, None], inputs, boundary.points),
        adversarial=torch.where(missing, -1, boundary.adversarial),
        found=~missing,
    )
    for score in ("output",) if method is LRP else ("output", "margin"):
        bound = BoundaryAttribution(model, method, score=score)
        whole = bound.attribute(inputs, boundary=boundary)
        some = bound.attribute(inputs, boundary=partial)
        assert some[missing].isnan().all()
        if method not in (GradientShap, KernelShap):
            close(some[~missing], whole[~missing])


def test_missing_rows_warn_and_leave_the_others_alone(model: nn.Module, inputs: Tensor) -> None:
    distance = quick_search(model).find(inputs).distance
    search = quick_search(model, max_distance=float(distance.median()))
    big = BoundaryIntegratedGradients(model, search)
    with pytest.warns(BoundaryNotFoundWarning, match="row"):
        attributions, delta, boundary = big.attribute(inputs, return_convergence_delta=True, return_boundary=True)
    assert 0 < boundary.found.sum() < N
    assert torch.equal(attributions.isnan().all(1), ~boundary.found)
    assert torch.equal(attributions.isnan().any(1), ~boundary.found)
    assert torch.equal(delta.isnan(), ~boundary.found)


def test_all_rows_missing_never_calls_the_method(model: nn.Module, inputs: Tensor) -> None:
    class Untouchable(IntegratedGradients):
        def attribute(self, inputs: Any, baselines: Any = None, target: Any = None) -> None:
            raise AssertionError

    def forward(x: Tensor, y: Tensor) -> Tensor:
        return model(x) + y.sum(1, keepdim=True)

    bound = BoundaryAttribution(forward, Untouchable, quick_search(forward, max_distance=1e-9))
    with pytest.warns(BoundaryNotFoundWarning):
        attributions, delta = bound.attribute((inputs, inputs[:, :2]), return_convergence_delta=True)
    assert [part.shape for part in attributions] == [inputs.shape, (N, 2)]
    assert all(part.isnan().all() for part in (*attributions, delta))
    assert delta.shape == (N,)


def fingerprint(model: nn.Module, *tensors: Tensor) -> list[Any]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), sorted(vars(m)), m.training)
        for name, m in model.named_modules()
    ]
    parameters = [(p.detach().clone().tolist(), p.requires_grad, p.grad, p._version) for p in model.parameters()]
    leaves = [(t.detach().clone().tolist(), t.requires_grad, t.grad, t._version) for t in tensors]
    return [hooks, parameters, leaves, torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2]]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("method", [*ALL_QUICK_METHODS, LRP, smooth_saliency])
def test_everything_is_as_before(method: Callable[..., Any], requires_grad: bool, inputs: Tensor) -> None:
    model = nn.Sequential(nn.Linear(D, 12), nn.ReLU(inplace=True), nn.Linear(12, C)).double()
    x = inputs.clone().requires_grad_(requires_grad)
    bound = BoundaryAttribution(model, method, quick_search(model), "output" if method is LRP else "margin")
    before = fingerprint(model, x)
    _, boundary = bound.attribute(x, return_boundary=True)
    assert fingerprint(model, x) == before
    points = boundary.points.clone()
    with torch.no_grad():
        bound.attribute(x, boundary=boundary)
        assert not torch.is_grad_enabled()
    assert torch.equal(points, boundary.points)
    assert fingerprint(model, x) == before


class Fuse(nn.Module):
    """Passes tensors on until it has been called too often."""

    calls_left = 10**6

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls_left -= 1
        if self.calls_left < 0:
            raise OverflowError("blown")
        return x


@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize("method", [IntegratedGradients, GradientShap, DeepLift, Saliency, GuidedBackprop, LRP])
def test_everything_is_as_before_after_an_exception(
    method: Callable[..., Any], calls: int, inputs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse = Fuse()
    if method is LRP:
        fuse.rule = None
    model = nn.Sequential(nn.Linear(D, 12), nn.ReLU(inplace=True), fuse, nn.Linear(12, C)).double()
    x = inputs.clone()
    bound = BoundaryAttribution(model, method)
    boundary = quick_search(model).find(x)
    before = fingerprint(model, x)
    monkeypatch.setattr(Fuse, "calls_left", calls)
    with pytest.raises(Exception):  # noqa: B017, PT011, tracing may report it in its own words
        bound.attribute(x, boundary=boundary, **({"n_samples": 1} if method is GradientShap else {}))
    assert fingerprint(model, x) == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", [*ALL_QUICK_METHODS, LRP])
def test_works_without_grad(
    mode: Callable[[], Any], method: Callable[..., Any], model: nn.Module, inputs: Tensor, boundary: BoundaryPoints
) -> None:
    bound = BoundaryAttribution(model, method)
    expected = bound.attribute(inputs, boundary=boundary)
    with mode():
        actual = bound.attribute(inputs.clone(), boundary=boundary)
        searched = BoundaryAttribution(model, method, quick_search(model)).attribute(inputs.clone())
    close(actual, expected)
    assert searched.shape == inputs.shape


def test_weights_may_change_between_calls(inputs: Tensor) -> None:
    model = nn.Sequential(nn.Linear(D, 12), nn.ReLU(), nn.Linear(12, C)).double()
    bound = BoundaryAttribution(model, DeepLift)
    bound.attribute(inputs, boundary=quick_search(model).find(inputs))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    boundary = quick_search(model).find(inputs)
    actual, delta = bound.attribute(inputs, boundary=boundary, return_convergence_delta=True)
    close(actual, captum(DeepLift, model, inputs, baselines=boundary.points, target=boundary.target).detach())
    assert delta.abs().max() < 1e-9


def test_delta_inside_noise_tunnel(model: nn.Module, inputs: Tensor) -> None:
    tunnel = NoiseTunnel(BoundaryAttribution(model, search=quick_search(model)))
    _, delta = tunnel.attribute(inputs, nt_samples=2, stdevs=0.1, target=[0, 1, 2, 3, 0], return_convergence_delta=True)
    assert len(delta) == 2 * N


def test_guided_grad_cam_finds_the_layer_of_the_users_model() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).double()
    inputs = torch.randn(2, 1, 4, 4).double()
    method = functools.partial(GuidedGradCam, layer=model[0])
    boundary = quick_search(model).find(inputs)
    for score in ("output", "margin"):
        actual = BoundaryAttribution(model, method, score=score).attribute(inputs, boundary=boundary)
        assert actual.shape == inputs.shape
    actual = BoundaryAttribution(model, method).attribute(inputs, boundary=boundary)
    close(actual, captum(method, model, boundary.points, target=boundary.target).detach())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (IntegratedGradients(nn.Linear(1, 1)), "Pass the class"),
        (functools.partial(GuidedGradCam), "could not be built"),
        (LayerIntegratedGradients, "or LayerBoundaryAttribution, whose boundary points lie in the layer"),
        (lambda f: LayerIntegratedGradients(f, f[0]), "LayerIntegratedGradients explains a layer"),
        (NeuronGradient, "NeuronGradient explains a neuron"),
        (FeaturePermutation, "FeatureAblation"),
        (lambda f: "attribution", "must build"),
        (lambda f: NoiseTunnel(FeaturePermutation(f)), "FeatureAblation"),
        (lambda f: NoiseTunnel(DeepLiftShap(f)), "Wrap DeepLift"),
    ],
)
def test_methods_that_cannot_work_say_why(method: Any, message: str, model: nn.Module) -> None:
    with pytest.raises(BoundaryTypeError, match=message):
        BoundaryAttribution(model, method)


def test_module_methods_refuse_functions(model: nn.Module) -> None:
    for method in (DeepLift, LRP, GuidedBackprop):
        with pytest.raises(BoundaryTypeError):
            BoundaryAttribution(lambda x: model(x), method)


def test_a_search_of_another_model_is_refused(model: nn.Module) -> None:
    other = nn.Linear(D, C).double()
    for forward in (other, other.forward, torch.nn.DataParallel(other)):
        with pytest.raises(BoundaryValueError, match=r"search must look for the boundary of the model itself"):
            BoundaryAttribution(model, search=quick_search(forward))
    for forward in (model.forward, torch.nn.DataParallel(model), lambda x: model(x)):
        BoundaryAttribution(model, search=quick_search(forward))


def test_wrong_arguments_say_how_to_mend_them(model: nn.Module, inputs: Tensor, boundary: BoundaryPoints) -> None:
    bound = BoundaryAttribution(model)
    with pytest.raises(BoundaryValueError, match="one output"):
        BoundaryAttribution(model, LRP, score="margin")
    with pytest.raises(BoundaryValueError, match="'output' or 'margin'"):
        BoundaryAttribution(model, score="logit")
    with pytest.raises(BoundaryTypeError, match="BoundarySearch"):
        BoundaryAttribution(model, search=model)
    with pytest.raises(BoundaryValueError, match="baselines cannot be given"):
        bound.attribute(inputs, baselines=torch.zeros_like(inputs))
    with pytest.raises(BoundaryTypeError, match=r"'steps'.*n_steps"):
        bound.attribute(inputs, steps=3)
    with pytest.raises(BoundaryTypeError, match="sliding_window_shapes"):
        BoundaryAttribution(model, Occlusion).attribute(inputs)
    with pytest.raises(BoundaryValueError, match="draw_baseline_from_distrib"):
        BoundaryAttribution(model, smooth_integrated_gradients).attribute(inputs, draw_baseline_from_distrib=True)
    with pytest.raises(BoundaryTypeError, match="must be BoundaryPoints"):
        bound.attribute(inputs, boundary=boundary.points)
    with pytest.raises(BoundaryValueError, match="these very inputs"):
        bound.attribute(inputs[:2], boundary=boundary)
    with pytest.raises(BoundaryValueError, match="these very inputs"):
        bound.attribute(inputs.float(), boundary=boundary)
    with pytest.raises(BoundaryValueError, match="these very inputs"):
        bound.attribute((inputs, inputs), boundary=boundary)
    with pytest.raises(BoundaryValueError, match="target asks for"):
        bound.attribute(inputs, target=(boundary.target + 1) % C, boundary=boundary)
    with pytest.raises(BoundaryTypeError, match="floating point"):
        bound.attribute(torch.ones(2, D, dtype=torch.long))


class SharedRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.first, self.second, self.last = nn.Linear(D, 8), nn.Linear(8, 8), nn.Linear(8, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.second(self.relu(self.first(x)))))


@pytest.mark.parametrize("score", ["output", "margin"])
@pytest.mark.parametrize("method", [DeepLift, DeepLiftShap])
def test_deep_lift_on_a_shared_activation(method: Callable[..., Any], score: str, inputs: Tensor) -> None:
    model = SharedRelu().double()
    boundary = quick_search(model).find(inputs)
    _, delta = BoundaryAttribution(model, method, score=score).attribute(
        inputs, boundary=boundary, return_convergence_delta=True
    )
    assert delta.abs().max() < 1e-9


def test_resnet_as_it_comes() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(weights=None).eval()
    inputs = torch.randn(2, 3, 64, 64)
    boundary = NearestBoundary(model, budget=5).find(inputs)
    assert boundary.found.all()
    modules = [type(module) for module in model.modules()]
    for score in ("output", "margin"):
        attributions, delta = BoundaryAttribution(model, DeepLift, score=score).attribute(
            inputs, boundary=boundary, return_convergence_delta=True
        )
        assert attributions.shape == inputs.shape
        assert delta.abs().max() < 1e-3
    big = BoundaryIntegratedGradients(model).attribute(inputs, boundary=boundary, n_steps=4)
    assert torch.isfinite(big).all()
    assert BoundarySaliency(model).attribute(inputs, boundary=boundary).abs().max() > 0
    assert BoundaryAttribution(model, GuidedBackprop).attribute(inputs, boundary=boundary).abs().max() > 0
    assert [type(module) for module in model.modules()] == modules
    assert not any(module._forward_hooks for module in model.modules())


def test_all_methods_are_gradient_attributions_to_captum(model: nn.Module) -> None:
    for bound in (BoundaryAttribution(model), BoundarySaliency(model), BoundaryIntegratedGradients(model)):
        assert isinstance(bound, GradientAttribution)
        assert isinstance(bound.search, BoundarySearch)
        assert hasattr(bound.attribute, "__wrapped__")
