"""Integrated Gradients from the boundary of the pixels, and from that of a layer, of three digits."""

from __future__ import annotations

import math

from _digits import network_and_digits
from captum.attr import LayerAttribution
from matplotlib.figure import Figure

from captum_boundary import BoundaryIntegratedGradients, LayerBoundaryAttribution, NearestBoundary
from captum_boundary.visualization import compare_attributions


def draw() -> Figure:
    """What ``compare_attributions`` draws; maps of the layer are summed over channels and enlarged."""
    model, digits = network_and_digits()
    boundary = NearestBoundary(model, bounds=(0, 1)).find(digits)
    after_relu = NearestBoundary(model, bounds=(0, math.inf))
    in_layer = LayerBoundaryAttribution(model, model[3], search=after_relu).attribute(digits, boundary.target)
    coarse = LayerAttribution.interpolate(in_layer.sum(dim=1, keepdim=True), (8, 8), "bilinear")
    maps = {
        "BIG of pixels": BoundaryIntegratedGradients(model).attribute(digits, boundary=boundary),
        "BIG of the last convolutional layer": coarse,
    }
    canvas = Figure(figsize=(5.4, 6.2), layout="constrained")
    figure, _ = compare_attributions(digits, maps, plt_fig_axis=(canvas, None))
    return figure
