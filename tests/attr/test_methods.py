"""The table of what Captum's methods take, and how often they are built."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
from captum.attr import (
    LRP,
    Attribution,
    Deconvolution,
    DeepLift,
    DeepLiftShap,
    FeatureAblation,
    GradientShap,
    GuidedBackprop,
    IntegratedGradients,
    LayerDeepLift,
    LayerIntegratedGradients,
    NoiseTunnel,
    Saliency,
)
from torch import Tensor, nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryDistance,
    BoundaryEnergy,
    BoundaryIntegratedGradients,
    BoundarySaliency,
    LayerBoundaryAttribution,
    NearestBoundary,
)
from captum_boundary.attr._methods import Hooks, capabilities_of


@pytest.fixture
def model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def noisy(method: Callable[..., Any]) -> Callable[..., Attribution]:
    return lambda model: NoiseTunnel(method(model))


# name, baselines, hooks, delta, internal batch size, shares baselines
@pytest.mark.parametrize(
    ("build", "baselines", "hooks", "has_delta", "has_size", "shares"),
    [
        (IntegratedGradients, "baselines", Hooks.NONE, True, True, False),
        (DeepLift, "baselines", Hooks.MULTIPLIERS, True, False, False),
        (DeepLiftShap, "baselines", Hooks.MULTIPLIERS, True, False, True),
        (GradientShap, "baselines", Hooks.NONE, True, False, True),
        (Saliency, None, Hooks.NONE, False, False, False),
        (GuidedBackprop, None, Hooks.GRADIENTS, False, False, False),
        (Deconvolution, None, Hooks.GRADIENTS, False, False, False),
        (LRP, None, Hooks.RULES, True, False, False),
        (FeatureAblation, "baselines", Hooks.NONE, False, False, False),
        (noisy(IntegratedGradients), "baselines", Hooks.NONE, True, True, False),
        (noisy(LRP), None, Hooks.RULES, False, False, False),
        (lambda model: LayerIntegratedGradients(model, model[0]), "baselines", Hooks.NONE, True, True, False),
        (lambda model: LayerDeepLift(model, model[0]), "baselines", Hooks.MULTIPLIERS, True, False, False),
        (BoundarySaliency, None, Hooks.NONE, False, False, False),
    ],
)
def test_the_table(build, baselines, hooks, has_delta, has_size, shares, model):
    can = capabilities_of(build(model))
    assert can.baselines == baselines
    assert can.hooks is hooks
    assert can.has_delta == has_delta
    assert can.has_internal_batch_size == has_size
    assert can.shares_baselines == shares


def test_every_method_of_captum_that_hooks_a_whole_model_is_listed(model):
    """Those that hook all modules of a model say so in their constructors, which call it ``model``."""
    for name in captum.attr.__all__:
        method = getattr(captum.attr, name)
        if isinstance(method, type) and issubclass(method, Attribution) and "Neuron" not in name:
            arguments = method.__init__.__code__.co_varnames[1 : method.__init__.__code__.co_argcount]
            if arguments[:1] == ("model",) and "Layer" not in name and name != "GuidedGradCam":
                assert capabilities_of(method(model)).hooks_modules, name


def test_a_users_own_subclass_is_what_its_base_is(model):
    class MyLift(DeepLift):
        pass

    assert capabilities_of(MyLift(model)).hooks is Hooks.MULTIPLIERS


def test_targets_are_sides_for_our_methods_alone(model):
    class Mine(BoundarySaliency):
        pass

    for ours in (
        Mine(model),
        NoiseTunnel(Mine(model)),
        AggregatedBoundaryNormals(model),
        BoundaryEnergy(model, 0.1),
        BoundaryDistance(model),
    ):
        assert capabilities_of(ours).targets_are_sides
    assert capabilities_of(LayerBoundaryAttribution(model, model[0])).targets_are_sides
    assert not capabilities_of(Saliency(model)).targets_are_sides


def test_the_method_is_not_built_for_every_call(model):
    built = []

    def method(forward_func: Callable[..., Any]) -> Attribution:
        built.append(forward_func)
        return IntegratedGradients(forward_func)

    big = BoundaryAttribution(model, method, NearestBoundary(model, budget=5))
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        big.attribute(inputs, n_steps=4)
    assert len(built) == 2  # at construction, to be checked, and for the scores of the model
    assert built[0] is model


@pytest.mark.parametrize(
    "make",
    [
        lambda model: BoundaryIntegratedGradients(model, score="margin"),
        lambda model: BoundaryAttribution(model, DeepLift),
        lambda model: LayerBoundaryAttribution(model, model[0]),
        lambda model: LayerBoundaryAttribution(model, model[1], LayerDeepLift),
        AggregatedBoundaryNormals,
        lambda model: BoundaryEnergy(model, 0.1),
    ],
    ids=["big", "deep_lift", "layer_big", "layer_deep_lift", "normals", "energy"],
)
def test_attributions_pickle(make: Callable[..., Any], model: nn.Module) -> None:
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    explainer = make(model)
    again = pickle.loads(pickle.dumps(explainer))
    expected: Tensor = explainer.attribute(inputs)
    torch.testing.assert_close(again.attribute(inputs), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(again)).attribute(inputs), expected)
