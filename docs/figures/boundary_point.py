"""Three digits, their nearest boundary points, and the change between the two."""

from __future__ import annotations

from _digits import network_and_digits
from matplotlib.figure import Figure

from captum_boundary import NearestBoundary
from captum_boundary.visualization import show_boundary_point


def draw() -> Figure:
    """What ``show_boundary_point`` draws."""
    model, digits = network_and_digits()
    boundary = NearestBoundary(model, bounds=(0, 1)).find(digits)
    figure, _ = show_boundary_point(digits, boundary, plt_fig_axis=(Figure(figsize=(6, 6), layout="constrained"), None))
    return figure
