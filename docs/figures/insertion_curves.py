"""How the score of digits comes back as their pixels do, in the order of several maps."""

from __future__ import annotations

import torch
from _digits import network_and_digits, unseen_digits
from _style import BLUE, GRAY, INK, ORANGE
from captum.attr import IntegratedGradients, Saliency
from matplotlib.figure import Figure

from captum_boundary import BoundaryIntegratedGradients, NearestBoundary
from captum_boundary.metrics import insertion


def draw() -> Figure:
    """Means over 100 digits; the area under each curve is beside its name."""
    model, _ = network_and_digits()
    images = unseen_digits()[:100]
    boundary = NearestBoundary(model, bounds=(0, 1)).find(images)
    leaves = images.clone().requires_grad_()
    maps = {
        "IG": IntegratedGradients(model).attribute(images, target=boundary.target),
        "BIG": BoundaryIntegratedGradients(model).attribute(images, boundary=boundary),
        "Saliency": Saliency(model).attribute(leaves, boundary.target, abs=False),
        "random": torch.randn(images.shape, generator=torch.Generator().manual_seed(0)),
    }
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for (name, attributions), color in zip(maps.items(), (ORANGE, BLUE, INK, GRAY), strict=True):
        area, curves = insertion(
            model, images, attributions, target=boundary.target, baselines=0.0, n_steps=16, return_curves=True
        )
        axes.plot(torch.linspace(0, 100, 17), curves.mean(dim=0), color=color, label=f"{name}: {area.mean():.2f}")
    axes.set_xlabel("pixels inserted, percent")
    axes.set_ylabel("probability of the predicted class")
    axes.legend(title="area under the curve", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
