"""Attributions of three digits by Integrated Gradients from black and from the boundary."""

from __future__ import annotations

from _digits import network_and_digits
from captum.attr import IntegratedGradients
from matplotlib.figure import Figure

from captum_boundary import BoundaryIntegratedGradients, NearestBoundary
from captum_boundary.visualization import compare_attributions


def draw() -> Figure:
    """What ``compare_attributions`` draws."""
    model, digits = network_and_digits()
    boundary = NearestBoundary(model, bounds=(0, 1)).find(digits)
    maps = {
        "IG": IntegratedGradients(model).attribute(digits, target=boundary.target),
        "BIG": BoundaryIntegratedGradients(model).attribute(digits, boundary=boundary),
    }
    figure, _ = compare_attributions(
        digits, maps, boundary=boundary, plt_fig_axis=(Figure(figsize=(7, 5.6), layout="constrained"), None)
    )
    return figure
