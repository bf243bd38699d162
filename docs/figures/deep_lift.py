"""DeepLift from a black image and from the boundary point, of three digits."""

from __future__ import annotations

import warnings

from _digits import network_and_digits
from captum.attr import DeepLift
from matplotlib.figure import Figure

from captum_boundary import BoundaryAttribution, NearestBoundary
from captum_boundary.visualization import compare_attributions


def draw() -> Figure:
    """What ``compare_attributions`` draws."""
    model, digits = network_and_digits()
    boundary = NearestBoundary(model, bounds=(0, 1)).find(digits)
    leaves = digits.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting forward, backward hooks")
        maps = {
            "DeepLift from black": DeepLift(model).attribute(leaves, target=boundary.target).detach(),
            "DeepLift from the boundary": BoundaryAttribution(model, DeepLift).attribute(digits, boundary=boundary),
        }
    canvas = Figure(figsize=(7, 5.6), layout="constrained")
    figure, _ = compare_attributions(digits, maps, boundary=boundary, plt_fig_axis=(canvas, None))
    return figure
