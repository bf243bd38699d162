"""The plane through a digit and its boundary point, with the region of each class."""

from __future__ import annotations

from _digits import network_and_digits
from matplotlib.figure import Figure

from captum_boundary import NearestBoundary
from captum_boundary.visualization import plot_boundary_slice


def draw() -> Figure:
    """What ``plot_boundary_slice`` draws."""
    model, digits = network_and_digits()
    boundary = NearestBoundary(model, bounds=(0, 1)).find(digits)
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    plot_boundary_slice(model, digits, boundary, example=1, plt_fig_axis=(figure, figure.subplots()))
    return figure
