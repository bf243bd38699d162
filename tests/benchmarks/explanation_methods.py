"""The attribution methods that are compared: Captum's own, those of this package, and rivals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from captum.attr import (
    DeepLift,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    LayerAttribution,
    LayerGradCam,
    NoiseTunnel,
    Saliency,
)
from rival_methods import adversarial_gradient_integration, boundary_path_attribution
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryIntegratedGradients,
    BoundaryPoints,
    BoundarySaliency,
    LayerBoundaryAttribution,
    ModelFromLayer,
    NearestBoundary,
    separate_activations,
)

REFERENCE = "IG, black"

N_STEPS = 50  # of integrated gradients
N_SAMPLES = 50  # of SmoothGrad and GradientShap
NOISE = 0.15  # standard deviation of SmoothGrad's noise
AFTER_RELU = (0.0, math.inf)  # what the last features of both networks can be
AT_ONCE = 20  # images that pass through a network at once

SMOOTHING: dict[str, Any] = {"nt_samples": N_SAMPLES, "stdevs": NOISE, "abs": False}
INTEGRATION: dict[str, Any] = {"n_steps": N_STEPS, "internal_batch_size": AT_ONCE}


@dataclass(frozen=True)
class Explainer:
    """``explain(model, images, target, boundary)`` returns attributions; some look at the boundary's points.

    Where ``uses_boundary``, a ``boundary`` of None means that the method must search for it.
    """

    explain: Callable[[nn.Module, Tensor, Tensor, BoundaryPoints | None], Tensor]
    uses_boundary: bool = False


def search(model: nn.Module) -> NearestBoundary:
    return NearestBoundary(model, bounds=(0, 1), internal_batch_size=AT_ONCE)


def explainers(mean_colour: Tensor, backgrounds: Tensor) -> dict[str, Explainer]:
    """Every method by its name in the tables; ``backgrounds`` are the baselines of GradientShap."""

    def black(images: Tensor) -> Tensor:
        return torch.zeros_like(images)

    def blurred(images: Tensor) -> Tensor:
        side = images.shape[-1]
        return gaussian_blur(images, side // 4 * 2 + 1, side / 10)

    def mean(images: Tensor) -> Tensor:
        return mean_colour.expand_as(images)

    return {
        REFERENCE: Explainer(partial(_integrated_gradients, black)),
        "IG, blurred": Explainer(partial(_integrated_gradients, blurred)),
        "IG, mean colour": Explainer(partial(_integrated_gradients, mean)),
        "Saliency": Explainer(lambda model, images, target, _: Saliency(model).attribute(images, target, abs=False)),
        "InputXGradient": Explainer(lambda model, images, target, _: InputXGradient(model).attribute(images, target)),
        "SmoothGrad": Explainer(_smooth_grad),
        "DeepLift": Explainer(_deep_lift),
        "GradientShap": Explainer(partial(_gradient_shap, backgrounds)),
        "AGI": Explainer(lambda model, images, target, _: adversarial_gradient_integration(model, images, target)),
        "MFABA": Explainer(lambda model, images, target, _: boundary_path_attribution(model, images, target)),
        "BSM": _boundary(BoundarySaliency),
        "BIG": _boundary(BoundaryIntegratedGradients, **INTEGRATION),
        "boundary DeepLift": _boundary(partial(BoundaryAttribution, method=DeepLift)),
        "boundary SmoothGrad": _boundary(
            partial(BoundaryAttribution, method=_smoothed_saliency), **SMOOTHING, nt_samples_batch_size=1
        ),
        "mean of 5 normals": Explainer(partial(_mean_normals, False)),
        "mean of 5 normals x way": Explainer(partial(_mean_normals, True)),
        # In the last layer with a place for everything, enlarged to the size of the image.
        "GradCAM": Explainer(_grad_cam),
        "BIG, last layer": Explainer(_layer_big),
        "mean of 5 normals x way, last layer": Explainer(_layer_normals),
        # Two maps that know nothing of the network: what a measure says of these it may say of any.
        "random signs and sizes": Explainer(lambda model, images, target, _: torch.randn_like(images)),
        "the same everywhere": Explainer(lambda model, images, target, _: torch.ones_like(images)),
    }


def _mean_normals(
    multiply_by_inputs: bool, model: nn.Module, images: Tensor, target: Tensor, _: BoundaryPoints | None
) -> Tensor:
    return AggregatedBoundaryNormals(model, search(model), multiply_by_inputs).attribute(images, target)


def _last_features(model: nn.Module) -> nn.Module:
    """What the networks average over the image in the end."""
    return next(module for name, module in model.named_modules() if name.split(".")[-1] in ("features", "layer3"))


def _enlarged(maps: Tensor, images: Tensor) -> Tensor:
    enlarged: Tensor = LayerAttribution.interpolate(maps.sum(dim=1, keepdim=True), images.shape[2:], "bilinear")
    return enlarged


def _grad_cam(model: nn.Module, images: Tensor, target: Tensor, _: BoundaryPoints | None) -> Tensor:
    maps = LayerGradCam(model, _last_features(model)).attribute(images, target, relu_attributions=True)
    return _enlarged(maps, images).detach()


def _layer_big(model: nn.Module, images: Tensor, target: Tensor, _: BoundaryPoints | None) -> Tensor:
    search = NearestBoundary(model, bounds=AFTER_RELU)
    explainer = LayerBoundaryAttribution(model, _last_features(model), search=search)
    return _enlarged(explainer.attribute(images, target, **INTEGRATION), images)


def _layer_normals(model: nn.Module, images: Tensor, target: Tensor, _: BoundaryPoints | None) -> Tensor:
    from_layer = ModelFromLayer(model, _last_features(model))
    activations, arguments = from_layer.at(images)
    search = NearestBoundary(from_layer, bounds=AFTER_RELU)
    normals = AggregatedBoundaryNormals(from_layer, search, multiply_by_inputs=True)
    return _enlarged(normals.attribute(activations, target, arguments), images)


def _boundary(method: Callable[..., BoundaryAttribution], **options: Any) -> Explainer:
    def explain(model: nn.Module, images: Tensor, target: Tensor, boundary: BoundaryPoints | None) -> Tensor:
        return method(model, search=search(model)).attribute(images, target, boundary=boundary, **options)

    return Explainer(explain, uses_boundary=True)


def _smoothed_saliency(model: nn.Module) -> NoiseTunnel:
    return NoiseTunnel(Saliency(model))


def _integrated_gradients(
    baseline: Callable[[Tensor], Tensor], model: nn.Module, images: Tensor, target: Tensor, _: BoundaryPoints | None
) -> Tensor:
    return IntegratedGradients(model).attribute(images, baseline(images), target, **INTEGRATION)


def _smooth_grad(model: nn.Module, images: Tensor, target: Tensor, _: BoundaryPoints | None) -> Tensor:
    return _smoothed_saliency(model).attribute(images, target=target, **SMOOTHING, nt_samples_batch_size=1)


def _deep_lift(model: nn.Module, images: Tensor, target: Tensor, _: BoundaryPoints | None) -> Tensor:
    """One image after the other: in a batch, Captum's rule for max pooling reads the gradients of other images."""
    method = DeepLift(separate_activations(model, images[:1]))
    return torch.cat(
        [method.attribute(image, target=label) for image, label in zip(images.split(1), target, strict=True)]
    ).detach()


def _gradient_shap(
    backgrounds: Tensor, model: nn.Module, images: Tensor, target: Tensor, _: BoundaryPoints | None
) -> Tensor:
    """Sample by sample, since Captum would take all of them through the network at once."""
    method = GradientShap(model)
    samples = (method.attribute(images, backgrounds, n_samples=1, target=target) for _ in range(N_SAMPLES))
    return sum(samples) / N_SAMPLES
