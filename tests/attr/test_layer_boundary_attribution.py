"""Attributions in a layer, from boundary points in the layer."""

from __future__ import annotations

import functools
from typing import Any

import captum.attr
import pytest
import torch
from captum.attr import (
    DeepLift,
    FeatureAblation,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    LayerActivation,
    LayerAttribution,
    LayerConductance,
    LayerDeepLift,
    LayerDeepLiftShap,
    LayerFeatureAblation,
    LayerGradCam,
    LayerGradientShap,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    LayerLRP,
    NoiseTunnel,
    Saliency,
)
from captum.metrics import sensitivity_max
from torch import Tensor, nn

from captum_boundary import (
    BoundaryAttribution,
    BoundaryNotFoundWarning,
    LayerBoundaryAttribution,
    ModelFromLayer,
    NearestBoundary,
    PGDBoundary,
)
from captum_boundary.errors import BoundaryNotFoundError, BoundaryTypeError, BoundaryValueError
from captum_boundary.search import ClosestBoundary

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum")  # of hooks and gradients, by Captum's DeepLift

N, C = 4, 3
METHODS = [
    LayerIntegratedGradients,
    LayerDeepLift,
    LayerDeepLiftShap,
    LayerGradientShap,
    LayerGradientXActivation,
    LayerConductance,
    captum.attr.InternalInfluence,
    LayerFeatureAblation,
    LayerGradCam,
    LayerActivation,
]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


class Classifier(nn.Module):
    """Images: one in-place activation for all, a skip connection, and functions in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3)
        self.act, self.last = nn.ReLU(inplace=True), nn.Linear(16, C)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x = self.act(self.first(x))
        x = self.act(self.second(x) + x)
        x = nn.functional.relu(self.third(x))
        x = x if scale is None else x * scale[:, None, None, None]
        return self.last(x.flatten(1))


class Texts(nn.Module):
    """Token ids and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.hidden, self.last = nn.Embedding(30, 5), nn.Linear(5, 8), nn.Linear(8, C)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = torch.tanh(self.hidden(self.tokens(ids)))
        return self.last((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class Branches(nn.Module):
    """A layer that returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.left, self.right = Split(), nn.Linear(4, C), nn.Linear(2, C)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.split(x)
        return torch.tanh(self.left(left)) + torch.tanh(self.right(right))


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(36, 4), nn.Linear(36, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x.flatten(1)), self.right(x.flatten(1))


def built(kind: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        return kind().double().eval()


@pytest.fixture
def model() -> Classifier:
    return built(Classifier)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(N, 1, 6, 6, generator=torch.Generator().manual_seed(4)).double()


IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0], [8, 9, 0, 0], [10, 11, 12, 13]])
REAL = (IDS > 0).long()


def close(actual: Any, expected: Any, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def quick(model: Any, **options: Any) -> NearestBoundary:
    return NearestBoundary(model, budget=8, **options)


def from_third(model: Classifier) -> nn.Module:
    """What follows the third convolution, written as a model of its own."""
    return nn.Sequential(nn.ReLU(), nn.Flatten(), model.last)


# --------------------------------------------------------------------------------------------------- what they are


@every_method
def test_drops_in_next_to_captums_layer_methods(method, model, images):
    options = {"baselines": torch.zeros_like(images)} if "Shap" in method.__name__ else {}
    explainers = [method, functools.partial(LayerBoundaryAttribution, method=method)]
    if method in (LayerDeepLift, LayerDeepLiftShap):  # Captum's own needs an activation for each call
        model = nn.Sequential(model.first, nn.ReLU(), model.third, nn.ReLU(), nn.Flatten(), nn.Linear(16, C).double())
        layer = model[2]
        options = {"baselines": torch.zeros(2, 1, 6, 6).double()} if method is LayerDeepLiftShap else {}
    else:
        layer = model.third
    captums, ours = (explainer(model, layer) for explainer in explainers)
    target = {} if method is LayerActivation else {"target": [2, 1, 0, 2]}
    expected = captums.attribute(images, **options, **target)
    maps = ours.attribute(images, target=[2, 1, 0, 2])
    assert isinstance(ours, LayerAttribution)
    assert maps.shape == expected.shape
    assert maps.dtype == expected.dtype
    assert maps.isfinite().all()
    assert not maps.requires_grad
    assert ours.multiplies_by_inputs == captums.multiplies_by_inputs
    assert ours.get_name() == "Layer Boundary Attribution"


PAIRS = [
    (LayerIntegratedGradients, IntegratedGradients),
    (LayerDeepLift, DeepLift),
    (LayerGradientXActivation, InputXGradient),
    (LayerFeatureAblation, FeatureAblation),
    (LayerConductance, IntegratedGradients),
]


@pytest.mark.parametrize("score", ["output", "margin"])
@pytest.mark.parametrize(("method", "plain"), PAIRS, ids=lambda method: method.__name__)
def test_the_same_as_in_a_model_that_begins_at_the_layer(method, plain, score, model, images):
    upper = from_third(model)
    layer_inputs = model.third(model.act(model.second(h := model.act(model.first(images))) + h)).detach()
    reference = BoundaryAttribution(upper, plain, quick(upper), score=score)
    expected, boundary = reference.attribute(layer_inputs, return_boundary=True)
    for given in (method, plain):
        ours = LayerBoundaryAttribution(model, model.third, given, quick(model), score=score)
        maps, found = ours.attribute(images, return_boundary=True)
        close(found.distance, boundary.distance)
        if method is LayerConductance and given is method:
            close(maps, expected, 0.05)  # other sums along the same path
        else:
            close(maps, expected, 1e-6)


@pytest.mark.parametrize("layer", ["first", "second", "third", "last"])
@pytest.mark.parametrize("at_input", [False, True])
def test_deep_lift_adds_up_wherever_it_begins(layer, at_input, model, images):
    scale = torch.tensor([1.0, 2.0, 0.5, 1.5]).double()
    explainer = LayerBoundaryAttribution(model, getattr(model, layer), LayerDeepLift, quick(model), score="margin")
    maps, delta, boundary = explainer.attribute(
        images, None, scale, at_input, return_convergence_delta=True, return_boundary=True
    )
    close(delta, torch.zeros(N).double())
    scores = model(images, scale).detach()
    pairs = torch.stack([boundary.target, boundary.adversarial], dim=1)
    gap = scores.gather(1, pairs)
    close(maps.flatten(1).sum(1), gap[:, 0] - gap[:, 1], 1e-6)


def test_deep_lift_in_containers_activations_and_models_that_cannot_be_traced(images):
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 3), nn.Flatten())
            self.act, self.last = nn.ReLU(), nn.Linear(12, C)

        def forward(self, x: Tensor) -> Tensor:
            if x.isnan().any():
                raise ValueError
            return self.last(self.act(self.features(x)))

    for model in (
        built(Untraceable),
        built(lambda: nn.Sequential(Untraceable().features, nn.ReLU(), nn.Linear(12, C))),
    ):
        for layer in (next(model.children()), next(model.children())[1], list(model.children())[1]):
            explainer = LayerBoundaryAttribution(model, layer, LayerDeepLift, quick(model))
            maps, delta = explainer.attribute(images, return_convergence_delta=True)
            assert maps.isfinite().all()
            close(delta, torch.zeros(N).double())


def test_activations_that_cannot_be_separated_are_named_without_what_marks_the_layer(images):
    class Untraceable(Classifier):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            x = self.act(self.third(self.first(x)))
            return self.last(torch.tanh(x.flatten(1)) if x.sum() > -1 else x)

    model = built(Untraceable)
    explainer = LayerBoundaryAttribution(model, model.third, LayerDeepLift, quick(model))
    with pytest.raises(BoundaryValueError, match=r"module '' \(Untraceable\) calls the function tanh") as caught:
        explainer.attribute(images)
    assert "Marked" not in str(caught.value)


def test_convergence_delta_falls_with_the_number_of_steps(model, images):
    explainer = LayerBoundaryAttribution(model, model.second, search=quick(model))
    boundary = explainer.attribute(images, return_boundary=True)[1]
    deltas = [
        explainer.attribute(images, boundary=boundary, return_convergence_delta=True, n_steps=n)[1].abs().max()
        for n in (5, 50, 500)
    ]
    assert deltas[2] < deltas[0]
    assert deltas[2] < 1e-3


def test_attributions_of_tokens(images):
    model = built(Texts)
    explainer = LayerBoundaryAttribution(model, model.tokens)
    mask = REAL[..., None]
    maps, delta, boundary = explainer.attribute(
        IDS, None, REAL, mask=mask, return_convergence_delta=True, return_boundary=True
    )
    assert maps.shape == (N, 4, 5)
    words = maps.sum(-1)
    assert (words[REAL == 0] == 0).all()
    assert delta.abs().max() < 1e-5
    assert torch.equal(boundary.points[REAL == 0], model.tokens(IDS)[REAL == 0])
    for row in range(N):
        alone = explainer.attribute(IDS[[row]], None, REAL[[row]], mask=mask[[row]])
        close(alone, maps[[row]], 1e-6)


def test_tuples_in_and_out_and_a_batch_as_one_by_one(images):
    model = built(Branches)
    for method in (LayerIntegratedGradients, LayerDeepLift, LayerGradientXActivation, Saliency):
        explainer = LayerBoundaryAttribution(model, model.split, method, score="margin")
        maps, boundary = explainer.attribute(images, return_boundary=True)
        assert [part.shape for part in maps] == [(N, 4), (N, 2)]
        assert isinstance(boundary.points, tuple)
        for row in range(N):
            close(explainer.attribute(images[[row]]), tuple(part[[row]] for part in maps), 1e-6)


@every_method
def test_a_recurrent_layer_whose_state_nothing_reads(method):
    class Recurrent(Texts):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.act = nn.LSTM(5, 8, batch_first=True), nn.Tanh()

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            outputs, _ = self.lstm(self.tokens(ids))
            return self.last(self.act((outputs * mask[..., None]).sum(1)))

    model = built(Recurrent)
    explainer = LayerBoundaryAttribution(model, model.lstm, method, quick(model), score="margin")
    maps = explainer.attribute(IDS, None, REAL, mask=REAL[..., None])
    assert maps.shape == (N, 4, 8) if method is not LayerGradCam else (N, 1, 8)
    assert maps.isfinite().all()


@every_method
def test_a_batch_is_explained_as_one_by_one(method, model, images):
    if method is LayerGradientShap:
        pytest.skip("draws random numbers")
    explainer = LayerBoundaryAttribution(model, model.third, method, quick(model))
    scale = torch.tensor([1.0, 2.0, 0.5, 1.5]).double()
    together = explainer.attribute(images, [0, 1, 2, 0], scale)
    for row in range(N):
        alone = explainer.attribute(images[[row]], [[0, 1, 2, 0][row]], scale[[row]])
        close(alone, together[[row]], 1e-6)


def test_one_output(images):
    class Binary(Classifier):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            return super().forward(x, scale)[:, :1]

    model = built(Binary)
    maps, boundary = LayerBoundaryAttribution(model, model.third).attribute(images, return_boundary=True)
    flat = LayerBoundaryAttribution(lambda x: model(x).flatten(), model.third)
    close(flat.attribute(images, boundary=boundary), maps)
    close(flat.attribute(images, target=boundary.target, boundary=boundary), maps)


def test_settings_of_the_search_are_those_of_the_layer(model, images):
    norms = []
    for norm in (2, 1, float("inf")):
        explainer = LayerBoundaryAttribution(model, model.third, search=quick(model, norm=norm))
        boundary = explainer.attribute(images, return_boundary=True)[1]
        moved = boundary.points - ModelFromLayer(model, model.third).at(images)[0]
        norms.append(torch.linalg.vector_norm(moved.flatten(1), ord=norm, dim=1))
        close(norms[-1], boundary.distance)
    search = ClosestBoundary([quick(model), PGDBoundary(model, epsilons=(0.5, 1, 2), attack_steps=5)])
    both = LayerBoundaryAttribution(model, model.third, search=search).attribute(images, return_boundary=True)[1]
    assert (both.distance <= norms[0] * (1 + 1e-9)).all()
    assert search.forward_func is model


def test_rows_without_a_boundary_warn_and_are_nan(model, images):
    from_layer = ModelFromLayer(model, model.third)
    activations, arguments = from_layer.at(images)
    distances = quick(from_layer).find(activations, additional_forward_args=arguments).distance
    limit = float(distances.min()) * (1 + 1e-6)
    search = quick(model, max_distance=limit)
    explainer = LayerBoundaryAttribution(model, model.third, search=search)
    with pytest.warns(BoundaryNotFoundWarning, match="row"):
        maps = explainer.attribute(images)
    missing = maps.flatten(1).isnan().all(1)
    assert torch.equal(missing, distances > limit)
    assert 0 < missing.sum() < N
    search.strict = True
    with pytest.raises(BoundaryNotFoundError, match="row"):
        LayerBoundaryAttribution(model, model.third, search=search).attribute(images)


# ----------------------------------------------------------------------------------------------- inside and around


def test_noise_tunnel_around_and_inside(model, images):
    explainer = LayerBoundaryAttribution(model, model.third, search=quick(model))
    target = model(images).argmax(1)
    around = NoiseTunnel(explainer)
    still = around.attribute(images, nt_samples=2, stdevs=0.0, target=target)
    close(still, explainer.attribute(images, target))
    assert around.attribute(images, nt_samples=2, stdevs=0.1, target=target).isfinite().all()

    def smooth(forward_func: Any, layer: nn.Module) -> NoiseTunnel:
        return NoiseTunnel(LayerIntegratedGradients(forward_func, layer))

    inside = LayerBoundaryAttribution(model, model.third, smooth, quick(model))
    close(inside.attribute(images, target, nt_samples=2, stdevs=0.0), still, 1e-6)


def test_sensitivity_max_around(model, images):
    explainer = LayerBoundaryAttribution(model, model.third, search=quick(model))
    target = model(images).argmax(1)

    def explain(inputs: tuple[Tensor, ...], **options: Any) -> tuple[Tensor]:
        return (explainer.attribute(inputs, **options),)  # as sensitivity_max wants of layer methods, Captum's too

    assert sensitivity_max(explain, images, n_perturb_samples=2, target=target).shape == (N,)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", [LayerIntegratedGradients, LayerDeepLift])
def test_works_without_grad(method, mode, model, images):
    explainer = LayerBoundaryAttribution(model, model.third, method, quick(model))
    expected = explainer.attribute(images)
    with mode():
        close(explainer.attribute(images.clone()), expected)


# ------------------------------------------------------------------------------------------------ state, wrappers


def fingerprint(model: nn.Module) -> list[Any]:
    modules = [
        (name, sorted(vars(m)), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for name, m in model.named_modules()
    ]
    tensors = [(t.detach().clone().tolist(), t.requires_grad, t.grad, t._version) for t in model.parameters()]
    hooks = nn.modules.module
    states = [torch.get_rng_state().tolist(), torch.is_grad_enabled()]
    return [modules, tensors, states, len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)]


@every_method
def test_the_model_is_as_before_also_after_exceptions(method, model, images):
    model.first.weight.requires_grad_(False)
    explainer = LayerBoundaryAttribution(model, model.third, method, quick(model))
    x = images.clone().requires_grad_()
    before = fingerprint(model)
    explainer.attribute(x)
    assert fingerprint(model) == before
    assert x.grad is None
    calls_left = 0

    def blow(*_: Any) -> None:
        nonlocal calls_left
        calls_left -= 1
        if calls_left < 0:
            raise OverflowError("blown")

    handle = model.last.register_forward_hook(blow)
    before = fingerprint(model)
    for calls in (0, 1, 2, 3, 6, 20):
        calls_left = calls
        with pytest.raises((OverflowError, BoundaryValueError)):
            explainer.attribute(images)
        assert fingerprint(model) == before
    handle.remove()


@pytest.mark.parametrize("kind", ["parallel", "distributed", "compiled"])
@pytest.mark.parametrize("method", [LayerIntegratedGradients, LayerDeepLift])
def test_parallel_and_compiled_models(kind, method, model, images, process_group):
    wrap = {
        "parallel": nn.DataParallel,
        "distributed": nn.parallel.DistributedDataParallel,
        "compiled": functools.partial(torch.compile, backend="eager"),
    }[kind]
    expected = LayerBoundaryAttribution(model, model.third, method, quick(model)).attribute(images)
    wrapper = wrap(model)
    wrapper(images)
    explainer = LayerBoundaryAttribution(wrapper, model.third, method, quick(wrapper))
    close(explainer.attribute(images), expected)


# ------------------------------------------------------------------------------------------------------ bad arguments


def test_bad_arguments_say_how_to_mend_them(model, images):
    with pytest.raises(BoundaryValueError, match="Classifier does not contain this Linear"):
        LayerBoundaryAttribution(model, nn.Linear(2, 2))
    with pytest.raises(BoundaryTypeError, match="layer must be a torch.nn.Module of the model"):  # noqa: RUF043
        LayerBoundaryAttribution(model, "third")
    with pytest.raises(BoundaryValueError, match="score must be 'output' or 'margin'"):
        LayerBoundaryAttribution(model, model.third, score="logit")
    with pytest.raises(BoundaryTypeError, match="method must be a callable"):
        LayerBoundaryAttribution(model, model.third, method="LayerIntegratedGradients")
    with pytest.raises(BoundaryTypeError, match="LRP has no rule for a model that is evaluated from a layer on"):
        LayerBoundaryAttribution(model, model.third, LayerLRP)
    with pytest.raises(BoundaryTypeError, match="FeaturePermutation shuffles features"):
        LayerBoundaryAttribution(model, model.third, captum.attr.LayerFeaturePermutation)
    with pytest.raises(BoundaryTypeError, match="one output is the neuron's less a threshold"):
        LayerBoundaryAttribution(model, model.third, captum.attr.NeuronGradient)
    with pytest.raises(BoundaryTypeError, match="hooks the layers of a model, so that forward_func must be"):
        LayerBoundaryAttribution(lambda x: model(x), model.third, LayerDeepLift)
    with pytest.raises(BoundaryTypeError, match="search must be a BoundarySearch"):
        LayerBoundaryAttribution(model, model.third, search=model)
    with pytest.raises(BoundaryValueError, match="search must look for the boundary of the model itself"):
        LayerBoundaryAttribution(model, model.third, search=NearestBoundary(nn.Linear(3, 2)))
    explainer = LayerBoundaryAttribution(model, model.third, search=quick(model))
    with pytest.raises(BoundaryTypeError, match="does not know the argument 'steps'"):
        explainer.attribute(images, steps=3)
    with pytest.raises(BoundaryValueError, match="baselines cannot be given"):
        explainer.attribute(images, baselines=0)
    with pytest.raises(BoundaryValueError, match="target must be between 0 and 2"):
        explainer.attribute(images, target=7)
    other = NearestBoundary(model).find(images)
    with pytest.raises(BoundaryValueError, match="boundary must hold one point for each input"):
        explainer.attribute(images, boundary=other)
    boundary = explainer.attribute(images, return_boundary=True)[1]
    with pytest.raises(BoundaryValueError, match="the boundary was given"):
        explainer.attribute(images, boundary=boundary, mask=torch.ones(1))
    with pytest.raises(NotImplementedError, match="attribute_future is not implemented for LayerBoundary"):
        explainer.attribute_future()
    with pytest.raises(BoundaryValueError, match="no convergence delta"):
        LayerBoundaryAttribution(model, model.third, LayerGradCam).attribute(images, return_convergence_delta=True)


def test_methods_that_hook_modules_are_not_given_a_model_from_a_layer_on(model, images):
    from_layer = ModelFromLayer(model, model.third)
    activations, arguments = from_layer.at(images)
    explainer = BoundaryAttribution(from_layer, DeepLift, quick(from_layer))
    with pytest.raises(BoundaryTypeError, match="Use LayerBoundaryAttribution, which gives it a copy"):
        explainer.attribute(activations, additional_forward_args=arguments)
    with pytest.raises(BoundaryTypeError, match="or LayerBoundaryAttribution, whose boundary points lie in the layer"):
        BoundaryAttribution(model, functools.partial(LayerIntegratedGradients, layer=model.third))
    plain = BoundaryAttribution(from_layer, GradientShap, quick(from_layer))
    assert plain.attribute(activations, additional_forward_args=arguments).isfinite().all()


@pytest.mark.parametrize("traces", [True, False])
def test_deep_lift_in_a_layer_with_two_names(traces, images):
    class TwoNames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
            self.called, self.act, self.last = self.layer, nn.ReLU(), nn.Linear(32, C)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.called(x)
            if not traces and hidden.isnan().any():
                raise ValueError
            return self.last(self.act(hidden - 0.3).flatten(1))

    model = built(TwoNames)
    explainer = LayerBoundaryAttribution(model, model.layer, LayerDeepLift, quick(model))
    maps, delta = explainer.attribute(images, return_convergence_delta=True)
    assert maps.shape == (N, 2, 4, 4)
    close(delta, torch.zeros(N).double())


def test_a_layer_that_is_lost_in_the_copy_that_is_hooked(images):
    class Reached(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.beside = (self.third,)

        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            if x.isnan().any():
                raise ValueError
            return self.last(self.beside[0](self.first(x)).flatten(1))

    model = built(Reached)
    assert LayerBoundaryAttribution(model, model.third, search=quick(model)).attribute(images).isfinite().all()
    with pytest.raises(BoundaryValueError, match="The layer, Conv2d, cannot be found in the copy of the model"):
        LayerBoundaryAttribution(model, model.third, LayerDeepLift, quick(model)).attribute(images)
