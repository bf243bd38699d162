"""The boundary of a network, and that of the same network smoothed, with the nearest points of a few inputs."""

from __future__ import annotations

import torch
from _style import BLUE, FILLS, INK, ORANGE, figure
from alignment import moons, train
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from captum_boundary import NearestBoundary, SmoothedModel


def draw() -> Figure:
    """Left: the network. Right: the mean of its probabilities over 128 noisy copies."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        inputs, labels = moons(60)
        labels[::12] = 1 - labels[::12]  # mistakes, which the network learns by heart
        model = train(inputs, labels, noise=0.0)
    smoothed = SmoothedModel(model, stdev=0.35, n_samples=128, average="probabilities")
    canvas, panels = figure(9, 4.6, 2)
    for panel, shown, title in zip(panels, (model, smoothed), ("the network", "smoothed, stdev 0.35"), strict=True):
        draw_panel(panel, shown, inputs, labels, title)
    return canvas


def draw_panel(axes: Axes, model: nn.Module, inputs: Tensor, labels: Tensor, title: str) -> None:
    """The regions of the model, and lines from a dozen inputs to their nearest boundary points."""
    side = torch.linspace(-2.6, 2.6, 121)
    with torch.no_grad():
        predicted = model(torch.cartesian_prod(side, side)).argmax(dim=1).view(len(side), len(side)).T
    axes.contourf(side, side, predicted, levels=[-0.5, 0.5, 1.5], colors=FILLS[:2])
    axes.contour(side, side, predicted, levels=[0.5], colors=INK, linewidths=1)
    axes.scatter(*inputs.T, c=[(BLUE, ORANGE)[label] for label in labels], s=8, alpha=0.5)
    boundary = NearestBoundary(model).find(inputs[:14])
    for x, point in zip(inputs, boundary.points, strict=False):
        axes.plot(*torch.stack([x, point]).T, ":", color=INK, lw=1.2)
        axes.plot(*x, "o", color=INK, ms=4)
        axes.plot(*point, "o", color="white", mec=INK, ms=4)
    axes.set_title(f"{title}: mean distance {boundary.distance.mean():.2f}")
