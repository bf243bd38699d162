"""Captum's own test configuration, run over our attributions and compared with Captum's from the same baselines.

Most of its toy models never change their decision. So a row without a boundary point gets a point beside the input:
what a method does with its baseline does not depend on where that lies.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
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
    GradientShap,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    InternalInfluence,
    KernelShap,
    LayerActivation,
    LayerConductance,
    LayerDeepLift,
    LayerDeepLiftShap,
    LayerFeatureAblation,
    LayerGradCam,
    LayerGradientShap,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    LayerLRP,
    Lime,
    NoiseTunnel,
    Occlusion,
    Saliency,
    ShapleyValueSampling,
)
from torch import Tensor, nn

from captum_boundary import (
    BoundaryAttribution,
    BoundaryNotFoundWarning,
    BoundaryPoints,
    LayerBoundaryAttribution,
    NearestBoundary,
)
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

config = pytest.importorskip("captum.testing.attr.helpers.test_config", reason="shipped since captum 0.9").config

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum")  # of hooks and gradients, by Captum's DeepLift

FROM_BASELINES = (IntegratedGradients, DeepLift, FeatureAblation, ShapleyValueSampling, KernelShap, Lime, Occlusion)
AT_POINTS = (Saliency, InputXGradient, GuidedBackprop, Deconvolution, LRP)
RANDOM = (GradientShap, DeepLiftShap)  # whose baselines are a distribution
LAYER_FROM_BASELINES = (LayerIntegratedGradients, LayerDeepLift, LayerDeepLiftShap)
LAYER_AT_POINTS = (LayerGradientXActivation, LayerGradCam, LayerActivation)
# Along a path of inputs to Captum, along one of activations to us: the same as an input method above the layer.
LAYER_ALONG_PATHS = {LayerConductance: True, InternalInfluence: False}


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def seed(value: int) -> None:
    torch.manual_seed(value)
    np.random.seed(value)  # noqa: NPY002


def close(actual: Any, expected: Any, tolerance: float = 1e-4) -> None:
    for part, other in zip(as_tuple(actual), as_tuple(expected), strict=True):
        torch.testing.assert_close(part, other.detach().to(part), rtol=tolerance, atol=tolerance)


def question(entry: dict[str, Any]) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Inputs, target, further arguments, and options of the method."""
    options = dict(entry["attribute_args"])
    inputs, target = options.pop("inputs"), options.pop("target", None)
    arguments = options.pop("additional_forward_args", None)
    options.pop("baselines", None)
    return inputs, target, arguments, options


def names_places(target: Any) -> bool:
    """Whether the target is one of outputs that have more dimensions than classes."""
    return isinstance(target, list) and isinstance(target[0], tuple) and len(target[0]) > 1


def beside(inputs: Any) -> Any:
    numbers = torch.Generator().manual_seed(7)
    moved = tuple(x + 0.5 + 0.3 * torch.randn(x.shape, generator=numbers).to(x) for x in as_tuple(inputs))
    return moved if isinstance(inputs, tuple) else moved[0]


def distances(inputs: Any, points: Any) -> Tensor:
    moves = [(x - y).flatten(1) for x, y in zip(as_tuple(inputs), as_tuple(points), strict=True)]
    return torch.cat(moves, dim=1).norm(dim=1)


def with_a_point_everywhere(boundary: BoundaryPoints, inputs: Any) -> BoundaryPoints:
    found = boundary.found

    def filled(point: Tensor, other: Tensor) -> Tensor:
        return torch.where(found.view(-1, *[1] * (point.ndim - 1)), point, other)

    parts = tuple(map(filled, as_tuple(boundary.points), as_tuple(beside(inputs))))
    points = parts if isinstance(inputs, tuple) else parts[0]
    distance = torch.where(found, boundary.distance, distances(inputs, points))
    return dataclasses.replace(
        boundary,
        points=points,
        distance=distance,
        found=torch.ones_like(found),
        adversarial=boundary.adversarial.clamp_min(0),
    )


def captum(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return method.attribute(*args, **kwargs)


def entries(*algorithms: Any) -> list[Any]:
    return [
        pytest.param(entry, algorithm, id=f"{entry['name']}-{algorithm.__name__}")
        for entry in config
        for algorithm in entry["algorithms"]
        if algorithm in algorithms
    ]


@pytest.mark.parametrize(("entry", "algorithm"), entries(*FROM_BASELINES, *AT_POINTS, *RANDOM))
def test_methods_of_inputs(entry: dict[str, Any], algorithm: Callable[..., Any]) -> None:
    inputs, target, arguments, options = question(entry)
    model = entry["model"]
    search = NearestBoundary(model, budget=2)
    method: Callable[..., Any] = algorithm
    if entry.get("noise_tunnel"):
        method = lambda f: NoiseTunnel(algorithm(f))  # noqa: E731
    bound = BoundaryAttribution(model, method, search)
    if names_places(target):
        with pytest.raises(BoundaryValueError, match="Wrap it"):
            bound.attribute(inputs, target, arguments, **options)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        found = search.find(inputs, target, arguments)
    with_missing = bound.attribute(inputs, target, arguments, boundary=found, **options)
    for part in as_tuple(with_missing):
        assert torch.equal(part.isnan().flatten(1).any(1), ~found.found)

    boundary = with_a_point_everywhere(found, inputs)
    seed(0)
    actual = bound.attribute(inputs, target, arguments, boundary=boundary, **options)
    assert isinstance(actual, tuple) == isinstance(inputs, tuple)
    if algorithm in RANDOM:
        assert all(part.isfinite().all() for part in as_tuple(actual))
        return
    common = {"target": None if target is None else boundary.target, "additional_forward_args": arguments, **options}
    seed(0)
    if algorithm in AT_POINTS:
        close(actual, captum(method(model), boundary.points, **common))
    else:
        close(actual, captum(method(model), inputs, baselines=boundary.points, **common))


class FromActivations(nn.Module):
    """The model as a function of a layer's activations, which take the place of what the layer returns."""

    def __init__(self, model: nn.Module, layer: nn.Module, inputs: Any, arguments: Any) -> None:
        super().__init__()
        self.model, self.layer, self.inputs, self.arguments = model, layer, as_tuple(inputs), arguments

    def forward(self, *activations: Tensor) -> Tensor:
        def replace(module: nn.Module, given: Any, output: Any) -> Any:
            return activations if isinstance(output, tuple) else activations[0]

        times = len(activations[0]) // len(self.inputs[0])  # Captum puts the steps of a path one after the other

        def repeated(value: Any) -> Any:
            return torch.cat([value] * times) if isinstance(value, Tensor) else value

        handle = self.layer.register_forward_hook(replace)
        try:
            return self.model(*map(repeated, self.inputs), *map(repeated, as_tuple(self.arguments or ())))
        finally:
            handle.remove()


def activations_at(model: nn.Module, layer: Any, inputs: Any, arguments: Any) -> Any:
    if isinstance(layer, list):
        return tuple(part for one in layer for part in as_tuple(activations_at(model, one, inputs, arguments)))
    kept: list[Any] = []
    handle = layer.register_forward_hook(lambda module, given, output: kept.append(output))
    with torch.no_grad():
        model(*as_tuple(inputs), *as_tuple(arguments or ()))
    handle.remove()
    (output,) = kept
    cloned = tuple(part.clone() for part in as_tuple(output))
    return cloned if isinstance(output, tuple) else cloned[0]


LAYER_METHODS = (
    *LAYER_FROM_BASELINES,
    *LAYER_AT_POINTS,
    *LAYER_ALONG_PATHS,
    LayerFeatureAblation,
    LayerGradientShap,
)


@pytest.mark.parametrize(("entry", "algorithm"), entries(*LAYER_METHODS))
def test_methods_of_layers(entry: dict[str, Any], algorithm: Callable[..., Any]) -> None:
    inputs, target, arguments, options = question(entry)
    model = entry["model"].eval()
    of_several = isinstance(entry["layer"], list)
    layers = [model.get_submodule(name) for name in (entry["layer"] if of_several else [entry["layer"]])]
    layer: Any = layers if of_several else layers[0]
    bound = LayerBoundaryAttribution(model, layer, algorithm, NearestBoundary(model, budget=2))
    if names_places(target):
        with pytest.raises(BoundaryValueError, match="Wrap it"):
            bound.attribute(inputs, target, arguments, **options)
        return
    if of_several and "linear0" in entry["layer"]:  # which "linear1" is computed from
        with pytest.raises(BoundaryValueError, match="side by side"):
            bound.attribute(inputs, target, arguments, **options)
        return
    # Points that inputs lead to, so that Captum can be given the same baselines.
    below = beside(inputs)
    at, points = (activations_at(model, layer, x, arguments) for x in (inputs, below))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        searched, found = bound.attribute(inputs, target, arguments, return_boundary=True, **options)
    for part in as_tuple(searched):
        assert torch.equal(part.isnan().flatten(1).any(1), ~found.found)
    boundary = dataclasses.replace(
        found,
        points=points,
        distance=distances(at, points),
        found=torch.ones_like(found.found),
        adversarial=found.adversarial.clamp_min(0),
    )
    seed(0)
    actual = bound.attribute(inputs, target, arguments, boundary=boundary, **options)
    assert [part.shape for part in as_tuple(actual)] == [part.shape for part in as_tuple(at)] or (
        algorithm is LayerGradCam  # which sums over channels
    )
    if algorithm is LayerGradientShap:
        assert all(part.isfinite().all() for part in as_tuple(actual))
        return
    common = {"target": None if target is None else boundary.target, "additional_forward_args": arguments, **options}
    if algorithm is LayerActivation:
        del common["target"]
    if algorithm in LAYER_AT_POINTS:
        expected = captum(algorithm(model, layer), below, **common)
    elif algorithm is LayerFeatureAblation:
        common["target"] = target  # Captum's takes no target of each example where perturbations_per_eval exceeds 1
        expected = captum(algorithm(model, layer), inputs, layer_baselines=points, **common)
    elif algorithm in LAYER_ALONG_PATHS:
        above = FromActivations(model, layer, inputs, arguments)
        path = IntegratedGradients(above, multiply_by_inputs=LAYER_ALONG_PATHS[algorithm])
        expected = captum(path, at, baselines=points, target=common["target"])
        close(actual, expected, 2e-3 if algorithm is LayerConductance else 1e-4)  # whose rule is a sum of differences
        return
    else:  # DeepLiftShap with one baseline for each example is DeepLift
        of_layer = LayerDeepLift if algorithm is LayerDeepLiftShap else algorithm
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Multiple layers provided")
            expected = captum(of_layer(model, layer), inputs, baselines=below, **common)
        if of_several:
            expected = tuple(part for each in expected for part in as_tuple(each))
    close(actual, expected)


@pytest.mark.parametrize(("entry", "algorithm"), entries(FeaturePermutation))
def test_feature_permutation_has_no_use_for_boundary_points(entry: dict[str, Any], algorithm: Any) -> None:
    with pytest.raises(BoundaryTypeError, match="has no use for boundary points"):
        BoundaryAttribution(entry["model"], algorithm)


@pytest.mark.parametrize(("entry", "algorithm"), entries(LayerLRP))
def test_lrp_has_no_rule_for_a_model_above_a_layer(entry: dict[str, Any], algorithm: Any) -> None:
    model = entry["model"].eval()
    with pytest.raises(BoundaryTypeError, match="LRP has no rule for a model that is evaluated from a layer on"):
        LayerBoundaryAttribution(model, model.get_submodule(entry["layer"]), algorithm)


def test_guided_grad_cam_explains_activations_at_their_boundary_points() -> None:
    """Captum's multiplies maps of the input and of the layer; here the layer is the input."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()
    images = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    maps, boundary = LayerBoundaryAttribution(model, model[0], GuidedGradCam).attribute(images, return_boundary=True)
    points = boundary.points.clone().requires_grad_()
    scores = model[3](model[2](torch.relu(points))).gather(1, boundary.target[:, None])
    (gradient,) = torch.autograd.grad(scores.sum(), points)
    guided = gradient.clamp_min(0)  # of a ReLU at the points, whose gradients are guided
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(maps, guided * (weights * boundary.points).sum(1, keepdim=True).relu())


def test_every_method_of_the_configuration_is_looked_at() -> None:
    """Those of neurons explain an activation, not a decision: no boundary belongs to them."""
    seen = {*FROM_BASELINES, *AT_POINTS, *RANDOM, *LAYER_METHODS, FeaturePermutation, GuidedGradCam, LayerLRP}
    others = {algorithm for entry in config for algorithm in entry["algorithms"]} - seen
    assert not [algorithm.__name__ for algorithm in others if not algorithm.__name__.startswith("Neuron")]


@pytest.mark.parametrize("together", [False, True])
def test_feature_ablation_across_tensors(together: bool) -> None:
    """One group of features may lie in several tensors, all of which then become their boundary values at once."""
    weights = torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, -1.0]], dtype=torch.float64)

    def model(x: Tensor, y: Tensor) -> Tensor:
        score = torch.tanh(x) @ weights[0] * (1 + torch.tanh(y) @ weights[1])
        return torch.stack([score, -score], dim=1)

    numbers = torch.Generator().manual_seed(3)
    inputs = tuple(torch.randn(5, 3, generator=numbers, dtype=torch.float64) for _ in range(2))
    boundary = NearestBoundary(model, budget=20).find(inputs)
    assert boundary.found.all()
    points = as_tuple(boundary.points)
    masks = tuple(torch.tensor([group]) for group in ([[0, 1, 1], [0, 2, 3]] if together else [[0, 1, 2], [3, 4, 5]]))
    actual = BoundaryAttribution(model, FeatureAblation).attribute(inputs, boundary=boundary, feature_mask=masks)
    whole = model(*inputs).gather(1, boundary.target[:, None]).squeeze(1)
    for part, mask in zip(actual, masks, strict=True):
        for column, group in enumerate(mask[0].tolist()):
            without = (torch.where(ids == group, b, x) for x, b, ids in zip(inputs, points, masks, strict=True))
            left = model(*without).gather(1, boundary.target[:, None]).squeeze(1)
            torch.testing.assert_close(part[:, column], whole - left)
