"""Models that wrap their scores, through everything that evaluates a model: the same numbers as without wrapping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import LRP, DeepLift, FeatureAblation, GuidedBackprop, IntegratedGradients, NoiseTunnel, Saliency
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import captum_boundary
from captum_boundary import (
    AggregatedBoundaryNormals,
    AttributionAttack,
    BoundaryAttribution,
    BoundaryIntegratedGradients,
    NearestBoundary,
    PGDBoundary,
    RARLoss,
    evaluate_attribution_robustness,
    metrics,
    visualization,
)
from captum_boundary.datasets import explain_dataset
from captum_boundary.errors import BoundaryTypeError
from captum_boundary.search import ClosestBoundary

INPUTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Output(dict):
    """In the manner of Hugging Face: a mapping with attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Model(nn.Module):
    """A small network with a shared in-place activation, which returns its scores in some form."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any], n_outputs: int) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Linear(4, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, n_outputs))
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.body(x), x)


WRAPS = {
    "mapping": lambda scores, x: Output(loss=None, logits=scores, hidden_states=(x,)),
    "tuple": lambda scores, x: (scores, x[:, :, None]),
    "tuple of one": lambda scores, x: (scores,),
}


@pytest.fixture(params=[3, 1], ids=["classes", "one output"])
def n_outputs(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(params=WRAPS.values(), ids=WRAPS)
def models(request: pytest.FixtureRequest, n_outputs: int) -> tuple[Model, Model]:
    """A model with plain scores, and the same with wrapped ones."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        plain, wrapped = Model(lambda scores, x: scores, n_outputs), Model(request.param, n_outputs)
    wrapped.load_state_dict(plain.state_dict())
    return plain.eval(), wrapped.eval()


def fields(value: Any) -> Any:
    """What a result is made of, for comparison."""
    if hasattr(value, "__dataclass_fields__"):
        return [fields(getattr(value, name)) for name in value.__dataclass_fields__]
    return value


def assert_same(call: Callable[[Model], Any], models: tuple[Model, Model]) -> None:
    results = []
    for model in models:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            results.append(fields(call(model)))
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)


SEARCHES = {
    "nearest": NearestBoundary,
    "descent": lambda model: PGDBoundary(model, epsilons=(1.0, 4.0, 16.0)),
    "closest": lambda model: ClosestBoundary([NearestBoundary(model, budget=10), PGDBoundary(model, attack_steps=5)]),
}


@pytest.mark.parametrize("make", SEARCHES.values(), ids=SEARCHES)
def test_searches(make, models):
    assert_same(lambda model: make(model).find(INPUTS), models)


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_foolbox(models):
    pytest.importorskip("foolbox")
    from foolbox.attacks import LinfPGD

    attack, search = LinfPGD(steps=20), captum_boundary.search.FoolboxBoundary
    assert_same(lambda model: search(model, attack, bounds=(-20, 20), epsilons=(1, 4, 16)).find(INPUTS), models)


METHODS = {
    "IG": IntegratedGradients,
    "DeepLift": DeepLift,
    "Saliency": Saliency,
    "GuidedBackprop": GuidedBackprop,
    "FeatureAblation": FeatureAblation,
    "NoiseTunnel": lambda function: NoiseTunnel(Saliency(function)),
}


def explainer(model: nn.Module, method: Callable[..., Any], **options: Any) -> BoundaryAttribution:
    return BoundaryAttribution(model, method, NearestBoundary(model, budget=5), **options)


@pytest.mark.parametrize("score", ["output", "margin"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_captum_methods(method, score, models):
    assert_same(lambda model: explainer(model, method, score=score).attribute(INPUTS), models)


def test_methods_with_rules_of_their_own(models):
    assert_same(lambda model: explainer(model, LRP).attribute(INPUTS), models)


@pytest.mark.parametrize("method", [DeepLift, Saliency])
def test_parallel_models(method, models):
    assert_same(lambda model: explainer(nn.DataParallel(model), method).attribute(INPUTS), models)


def test_plain_functions(models):
    assert_same(lambda model: BoundaryIntegratedGradients(lambda x: model(x)).attribute(INPUTS), models)


def test_convergence_deltas(models):
    def deltas(model):
        big = BoundaryIntegratedGradients(model)
        maps, delta, boundary = big.attribute(INPUTS, return_convergence_delta=True, return_boundary=True)
        again = big.compute_convergence_delta(maps, boundary.points, INPUTS, boundary.target)
        torch.testing.assert_close(again, delta)
        return delta

    assert_same(deltas, models)


def test_normals(models):
    assert_same(lambda model: AggregatedBoundaryNormals(model).attribute(INPUTS, sampling="random"), models)


def test_metrics(models):
    boundary = NearestBoundary(models[0]).find(INPUTS)
    maps = INPUTS - boundary.points
    assert_same(lambda model: metrics.normal_alignment(model, INPUTS, boundary), models)
    assert_same(lambda model: metrics.first_order_optimality(model, INPUTS, boundary), models)
    assert_same(lambda model: metrics.deletion(model, INPUTS, maps), models)
    assert_same(lambda model: metrics.insertion(model, INPUTS, maps, baselines=0.0), models)


def test_robust_training_and_attack(models, n_outputs):
    target = torch.arange(5) % max(n_outputs, 2)

    def loss(model):
        value = RARLoss(model, epsilon=0.1, attack_steps=2, n_steps=5)(INPUTS, target)
        return torch.autograd.grad(value, list(model.parameters()))

    def robustness(model):
        attack = AttributionAttack(model, epsilon=0.1, attack_steps=3, n_steps=5)
        return evaluate_attribution_robustness(model, INPUTS, None, attack)

    assert_same(loss, models)
    assert_same(robustness, models)


def test_pictures(models):
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot as plt

    boundary = NearestBoundary(models[0]).find(INPUTS)

    def picture(model):
        figure, axes = visualization.plot_boundary_slice(model, INPUTS, boundary, resolution=8)
        colors = torch.as_tensor(axes.images[0].get_array().filled())
        plt.close(figure)
        return colors

    assert_same(picture, models)


def test_data_sets(models, tmp_path):
    dataset = TensorDataset(INPUTS)

    def explained(model):
        out = tmp_path / str(model is models[0])
        explanations = explain_dataset(BoundaryIntegratedGradients(model), dataset, out, batch_size=3)
        return [explanations[row].attributions for row in range(5)]

    assert_same(explained, models)


def test_torchvision_outputs():
    models = pytest.importorskip("torchvision.models")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        segmentation = models.segmentation.lraspp_mobilenet_v3_large(num_classes=4, weights_backbone=None).eval()
        detection = models.detection.ssdlite320_mobilenet_v3_large(num_classes=4, weights_backbone=None).eval()
    with pytest.raises(BoundaryTypeError, match=r"with 'out', as segmentation models do.*\[:, :, row, column\]"):
        NearestBoundary(segmentation).find(images)
    with pytest.raises(BoundaryTypeError, match="list of dictionaries, as detection models do"):
        NearestBoundary(detection).find(images)
    pixel = NearestBoundary(lambda x: segmentation(x)["out"][:, :, 20, 30], budget=5).find(images)
    assert pixel.found.all()
