"""An input between two other classes: the boundary of each, their normals, and the weighted mean of these."""

from __future__ import annotations

import torch
from _style import BLUE, INK, ORANGE, arrow, figure
from matplotlib.figure import Figure
from toy import draw_regions, scores

from captum_boundary import AggregatedBoundaryNormals, NearestBoundary


def draw() -> Figure:
    """Points and normals in blue, the mean in orange."""
    inputs = torch.tensor([[-0.35, 0.12]])
    method = AggregatedBoundaryNormals(scores, NearestBoundary(scores, budget=100))
    mean, boundaries = method.attribute(inputs, n_boundaries=2, return_boundary=True)
    canvas, (panel,) = figure(4.8, 4.6)
    draw_regions(panel)
    (x,), points, normals = inputs, boundaries.points[0], boundaries.normals[0]
    for point, normal, weight in zip(points, normals, boundaries.weights[0], strict=True):
        panel.plot(*torch.stack([x, point]).T, ":", color=INK, lw=1.4)
        arrow(panel, point.tolist(), (point + 0.5 * normal / normal.norm()).tolist(), BLUE)
        panel.plot(*point, "o", color="white", mec=INK, ms=7, zorder=5)
        panel.annotate(f"weight {weight:.2f}", point.tolist(), (8, -12), textcoords="offset points", color=BLUE)
    arrow(panel, x.tolist(), (x + 0.5 * mean[0] / mean[0].norm()).tolist(), ORANGE, width=2.4)
    panel.plot(*x, "o", color=INK, ms=7, zorder=5)
    panel.set_title("two boundaries, and the mean of their normals")
    return canvas
