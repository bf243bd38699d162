"""The attribution methods that are compared: Captum's own, those of this package, and rivals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from baseline_methods import adversarial_gradient_integration, boundary_path_attribution
from baseline_occlusion import averaged, guided_backprop, occlusion, rise
from baseline_paths import guided_integrated_gradients, integrated_decision_gradients
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
from smoothed_methods import smoothed_methods
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
)
from captum_boundary.attr import separate_activations

REFERENCE = "IG, black"
LEADER = "BoundaryEnergy, total x Grad-CAM"

AFTER_RELU = (0.0, math.inf)  # what the last features of both networks can be
N_GRADIENTS = 50  # of methods that take any number
NOISES = (0.08, 0.15)  # standard deviations of the noise of SmoothGrad and its variants
AT_ONCE = 20  # images that pass through a network at once
WITH_GRAD_CAM = (  # energies whose product with Grad-CAM is a row too
    "BoundaryEnergy, total",
    "BoundaryEnergy, common",
    "SmoothGrad squared, 0.1, window",
    "square of SmoothGrad, 0.1, window",
    "BoundaryEnergy, total, own noise",
    "BoundaryEnergy, common, own noise",
)


@dataclass(frozen=True)
class Explainer:
    """``explain(model, images, target, boundary)`` returns attributions; some look at the boundary's points.

    Where ``uses_boundary``, a ``boundary`` of None means that the method must search for it.
    """

    explain: Callable[[nn.Module, Tensor, Tensor, BoundaryPoints | None], Tensor]
    uses_boundary: bool = False


def search(model: nn.Module) -> NearestBoundary:
    return NearestBoundary(model, bounds=(0, 1), internal_batch_size=AT_ONCE)


def explainers(mean_color: Tensor, backgrounds: Tensor, n_gradients: int) -> dict[str, Explainer]:
    """Every method by its name in the tables.

    ``backgrounds`` are the references of Expected Gradients, and ``n_gradients`` what is spent by methods that take any
    number.
    """
    integration = {"n_steps": n_gradients, "internal_batch_size": AT_ONCE}

    def black(images: Tensor) -> Tensor:
        return torch.zeros_like(images)

    def blurred(images: Tensor) -> Tensor:
        side = images.shape[-1]
        return gaussian_blur(images, side // 4 * 2 + 1, side / 10)

    def mean(images: Tensor) -> Tensor:
        return mean_color.expand_as(images)

    def integrated(baseline: Callable[[Tensor], Tensor]) -> Explainer:
        return _plain(
            lambda model, images, target: IntegratedGradients(model).attribute(
                images, baseline(images), target, **integration
            )
        )

    mean_normals = {
        f"mean of 5 normals{note}": _plain(partial(_mean_normals, multiply))
        for note, multiply in (("", False), (" x way", True))
    }
    boundary = {
        "BSM": _boundary(BoundarySaliency),
        "BIG": _boundary(BoundaryIntegratedGradients, **integration),
        "boundary DeepLift": _boundary(partial(BoundaryAttribution, method=DeepLift)),
        "boundary SmoothGrad": _boundary(
            partial(BoundaryAttribution, method=lambda forward_func: NoiseTunnel(Saliency(forward_func))),
            **_noise(n_gradients, NOISES[-1]),
        ),
        **mean_normals,
    }
    squares = _squared_gradients()
    energies = {name: _plain(explain) for name, explain in smoothed_methods(n_gradients).items()}
    return {
        REFERENCE: integrated(black),
        "IG, blurred": integrated(blurred),
        "IG, mean color": integrated(mean),
        "Expected Gradients": _plain(partial(_expected_gradients, backgrounds, n_gradients)),
        "Guided IG": _plain(partial(guided_integrated_gradients, n_steps=n_gradients)),
        "IDG": _plain(partial(integrated_decision_gradients, n_steps=n_gradients)),
        "Saliency": _plain(_saliency),
        "Saliency, squared": _squared(_plain(_saliency)),
        "InputXGradient": _plain(lambda model, images, target: InputXGradient(model).attribute(images, target)),
        **{
            f"{name}, {noise}": explainer
            for noise in NOISES
            for name, explainer in _noisy_gradients(n_gradients, noise).items()
        },
        # In the last layer with a place for everything, enlarged to the size of the image.
        "Grad-CAM": _plain(_grad_cam),
        "BIG, last layer": _plain(partial(_layer_big, integration)),
        "mean of 5 normals x way, last layer": _plain(_layer_normals),
        "DeepLift": _plain(_deep_lift),
        "AGI": _plain(adversarial_gradient_integration),
        "MFABA": _plain(boundary_path_attribution),
        "Occlusion": _plain(partial(occlusion, mean_color)),
        "RISE": _plain(rise),
        "Guided Backprop": _plain(guided_backprop),
        "Guided Backprop x Grad-CAM": _times_grad_cam(_plain(guided_backprop)),
        **squares,
        **{f"{name} x Grad-CAM": _times_grad_cam(square) for name, square in squares.items()},
        **boundary,
        **{f"{name}, squared": _squared(boundary[name]) for name in ("BSM", "BIG", "mean of 5 normals")},
        **energies,
        **{f"{name} x Grad-CAM": _times_grad_cam(energies[name]) for name in WITH_GRAD_CAM},
        # Two maps that know nothing of the network: what a measure says of these it may say of any.
        "random signs and sizes": _plain(lambda model, images, target: torch.randn_like(images)),
        "the same everywhere": _plain(lambda model, images, target: torch.ones_like(images)),
    }


def _plain(explain: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Explainer:
    """A method that needs no boundary points."""
    return Explainer(lambda model, images, target, _: explain(model, images, target))


def _squared(explainer: Explainer) -> Explainer:
    """The squares of a map, feature by feature: its energy, in place of its signs."""
    return replace(explainer, explain=lambda *arguments: explainer.explain(*arguments).square())


def _times_grad_cam(energy: Explainer) -> Explainer:
    """What both a pixel's energy and the evidence in the last layer say: for one gradient more."""
    return _plain(
        lambda model, images, target: energy.explain(model, images, target, None) * _grad_cam(model, images, target)
    )


def _squared_gradients() -> dict[str, Explainer]:
    """Of one gradient, in the window of the energies."""

    def squared(explain: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Explainer:
        return _plain(lambda model, images, target: averaged(explain(model, images, target).square()))

    return {
        "Saliency, squared, window": squared(_saliency),
        "Guided Backprop, squared, window": squared(guided_backprop),
    }


def _noise(n_samples: int, noise: float) -> dict[str, Any]:
    return {"nt_samples": n_samples, "stdevs": noise, "abs": False, "nt_samples_batch_size": 1}


def _noisy_gradients(n_samples: int, noise: float) -> dict[str, Explainer]:
    """SmoothGrad (https://arxiv.org/abs/1706.03825) and its variants (https://arxiv.org/abs/1806.10758)."""

    def over_noise(kind: str) -> Explainer:
        return _plain(
            lambda model, images, target: NoiseTunnel(Saliency(model)).attribute(
                images, kind, target=target, **_noise(n_samples, noise)
            )
        )

    return {
        "SmoothGrad": over_noise("smoothgrad"),
        "square of SmoothGrad": _squared(over_noise("smoothgrad")),
        "SmoothGrad squared": over_noise("smoothgrad_sq"),
        "VarGrad": over_noise("vargrad"),
    }


def _saliency(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    return Saliency(model).attribute(images, target, abs=False)


def _mean_normals(multiply_by_inputs: bool, model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    return AggregatedBoundaryNormals(model, search(model), multiply_by_inputs=multiply_by_inputs).attribute(
        images, target
    )


def _last_features(model: nn.Module) -> nn.Module:
    """What the networks average over the image in the end."""
    return next(module for name, module in model.named_modules() if name.split(".")[-1] in ("features", "layer3"))


def _enlarged(maps: Tensor, images: Tensor) -> Tensor:
    enlarged: Tensor = LayerAttribution.interpolate(maps.sum(dim=1, keepdim=True), images.shape[2:], "bilinear")
    return enlarged


def _layer_big(integration: dict[str, Any], model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    search = NearestBoundary(model, bounds=AFTER_RELU)
    explainer = LayerBoundaryAttribution(model, _last_features(model), search=search)
    return _enlarged(explainer.attribute(images, target, **integration), images)


def _layer_normals(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    from_layer = ModelFromLayer(model, _last_features(model))
    activations, arguments = from_layer.at(images)
    search = NearestBoundary(from_layer, bounds=AFTER_RELU)
    normals = AggregatedBoundaryNormals(from_layer, search, multiply_by_inputs=True)
    return _enlarged(normals.attribute(activations, target, arguments), images)


def _boundary(method: Callable[..., BoundaryAttribution], **options: Any) -> Explainer:
    def explain(model: nn.Module, images: Tensor, target: Tensor, boundary: BoundaryPoints | None) -> Tensor:
        return method(model, search=search(model)).attribute(images, target, boundary=boundary, **options)

    return Explainer(explain, uses_boundary=True)


def _grad_cam(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM (https://arxiv.org/abs/1610.02391) of the last layer with positions, as large as the image."""
    maps = LayerGradCam(model, _last_features(model)).attribute(images, target, relu_attributions=True)
    return _enlarged(maps, images).detach()


def _deep_lift(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """One image after the other: in a batch, Captum's rule for max pooling reads the gradients of other images."""
    method = DeepLift(separate_activations(model, images[:1]))
    return torch.cat(
        [method.attribute(image, target=label) for image, label in zip(images.split(1), target, strict=True)]
    ).detach()


def _expected_gradients(
    backgrounds: Tensor, n_samples: int, model: nn.Module, images: Tensor, target: Tensor
) -> Tensor:
    """Expected Gradients (https://arxiv.org/abs/1906.10670): GradientShap without noise.

    Sample by sample, since Captum would take all of them through the network at once.
    """
    method = GradientShap(model)
    samples = (method.attribute(images, backgrounds, n_samples=1, target=target) for _ in range(n_samples))
    return sum(samples) / n_samples
