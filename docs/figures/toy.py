"""Three regions in the plane, the nearest boundary points of three inputs, normals, and the paths of IG and BIG."""

from __future__ import annotations

import torch
from _style import BLUE, FILLS, GRAY, INK, ORANGE, arrow, figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from captum_boundary import BoundarySaliency, NearestBoundary

CENTERS = torch.tensor([[-1.1, 0.5], [1.1, 0.6], [0.1, -1.2]])
WIDTHS = torch.tensor([[1.0, 0.7], [0.7, 1.0], [1.2, 0.6]])
INPUTS = torch.tensor([[-1.15, -0.15], [0.75, 0.95], [0.75, -1.2]])


def scores(points: Tensor) -> Tensor:
    """Log-densities of three normal distributions."""
    offsets = (points[:, None] - CENTERS) / WIDTHS
    return -0.5 * offsets.square().sum(dim=2) - WIDTHS.log().sum(dim=1)


def draw() -> Figure:
    """Left: boundary points and normals. Right: where IG and BIG integrate."""
    boundary = NearestBoundary(scores, budget=100).find(INPUTS)
    normals = BoundarySaliency(scores, score="margin").attribute(INPUTS, boundary=boundary)
    normals = 0.3 * torch.nn.functional.normalize(normals)
    canvas, (left, right) = figure(9, 4.6, 2)
    for panel in (left, right):
        draw_regions(panel)
        panel.plot(*INPUTS.T, "o", color=INK, ms=7, zorder=5)
        panel.plot(*boundary.points.T, "o", color="white", mec=INK, ms=7, zorder=5)

    for x, point, normal in zip(INPUTS, boundary.points, normals, strict=True):
        left.plot(*torch.stack([x, point]).T, ":", color=INK, lw=1.4)
        radius = float((x - point).norm())
        left.add_patch(Circle(x.tolist(), radius, fill=False, color=GRAY, lw=0.8))
        arrow(left, point.tolist(), (point + normal).tolist(), BLUE)
    left.set_title("the nearest boundary point, and the normal there")

    for x, point in zip(INPUTS, boundary.points, strict=True):
        arrow(right, [0.0, 0.0], x.tolist(), GRAY, width=1.3)
        arrow(right, point.tolist(), x.tolist(), ORANGE, width=2.4)
    right.plot(0, 0, "s", color=GRAY, ms=7, zorder=5)
    right.text(-0.1, 0.14, "zero baseline", color=GRAY, ha="right")
    right.set_title("IG from zero, and BIG from the boundary")
    return canvas


def draw_regions(axes: Axes) -> None:
    """The regions of the classes, and the boundaries between them."""
    side = torch.linspace(-2.2, 2.2, 601)
    grid = torch.cartesian_prod(side, side)
    labels = scores(grid).argmax(dim=1).view(len(side), len(side)).T
    axes.contourf(side, side, labels, levels=[-0.5, 0.5, 1.5, 2.5], colors=FILLS)
    axes.contour(side, side, labels, levels=[0.5, 1.5], colors=INK, linewidths=1)
    for name, place in zip("ABC", [(-1.9, 1.8), (1.8, 1.8), (-0.1, -2.0)], strict=True):
        axes.text(*place, name, size=13, weight="bold", color=GRAY, ha="center", va="center")
