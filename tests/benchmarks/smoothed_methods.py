"""Methods that look at the boundaries of noisy copies, or of the smoothed network, for about as many gradients each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from captum.attr import NoiseTunnel, Saliency
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from captum_boundary import BoundaryEnergy, BoundarySaliency, NearestBoundary, SmoothedModel, largest_stdev

NOISE = 0.1  # standard deviation
NOISES = (0.02, 0.03, 0.04, 0.06, 0.08, NOISE)  # that decisions are asked to stand
N_COPIES = 16  # of the smoothed network
AT_ONCE = 20  # images that pass through the network at once


def window(images: Tensor) -> float:
    """Standard deviation, in pixels, of the window in which energies are averaged."""
    return max(1.0, images.shape[-1] / 75)


def boundary_energy(
    energy: str,
    n_gradients: int,
    averaged: bool,
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    noise: float = NOISE,
) -> Tensor:
    return BoundaryEnergy(model, noise).attribute(
        images,
        target,
        n_samples=n_gradients // 4 * 2,
        energy=energy,
        width=window(images) if averaged else 0.0,
        internal_batch_size=AT_ONCE,
    )


def smoothgrad_energy(
    kind: str, n_gradients: int, model: nn.Module, images: Tensor, target: Tensor, noise: float = NOISE
) -> Tensor:
    """The rivals' energies at the same noise and in the same window: what is due to these, and not to boundaries."""
    maps = NoiseTunnel(Saliency(model)).attribute(images, kind, n_gradients, 1, stdevs=noise, abs=False, target=target)
    maps = maps.square() if kind == "smoothgrad" else maps
    return gaussian_blur(maps, 2 * int(3 * window(images)) + 1, window(images))


def with_own_noise(explain: Callable[..., Tensor], model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Every image with the largest noise that keeps its prediction, or with the least where none does."""
    noises = largest_stdev(model, images, target, stdevs=NOISES, internal_batch_size=AT_ONCE).clamp_min(NOISES[0])
    parts = zip(images.split(1), target.split(1), noises.tolist(), strict=True)
    return torch.cat([explain(model, image, label, noise=noise) for image, label, noise in parts])


def way_to_smoothed_boundary(n_gradients: int, model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Squared: how far each pixel has to go."""
    smoothed = SmoothedModel(model, NOISE, n_samples=N_COPIES, internal_batch_size=AT_ONCE)
    search = NearestBoundary(smoothed, bounds=(0, 1), budget=n_gradients // N_COPIES)
    return (images - search.perturb(images, target)).square()


def smoothed_saliency(n_gradients: int, model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Squared gradient of the smoothed network at its boundary."""
    smoothed = SmoothedModel(model, NOISE, n_samples=N_COPIES, internal_batch_size=AT_ONCE)
    search = NearestBoundary(smoothed, bounds=(0, 1), budget=max(1, n_gradients // N_COPIES - 1))
    return BoundarySaliency(smoothed, search=search).attribute(images, target).square()


def smoothed_methods(n_gradients: int) -> dict[str, partial[Tensor]]:
    """By their names in the tables."""
    energies = {
        f"BoundaryEnergy, {energy}{note}": partial(boundary_energy, energy, n_gradients, averaged)
        for averaged, note in ((True, ""), (False, ", no window"))
        for energy in ("total", "common")
    }
    rivals = {
        f"SmoothGrad squared, {NOISE}, window": partial(smoothgrad_energy, "smoothgrad_sq", n_gradients),
        f"square of SmoothGrad, {NOISE}, window": partial(smoothgrad_energy, "smoothgrad", n_gradients),
    }
    own_noise = {
        f"{name.replace(f', {NOISE}', '')}, own noise": partial(with_own_noise, explain)
        for name, explain in (energies | rivals).items()
        if "no window" not in name
    }
    return {
        **energies,
        **rivals,
        **own_noise,
        "way to smoothed boundary, squared": partial(way_to_smoothed_boundary, n_gradients),
        "BSM of smoothed network, squared": partial(smoothed_saliency, n_gradients),
    }
