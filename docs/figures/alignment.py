"""Gradients at inputs beside normals at their boundary points, of a jagged network and a smoother one."""

from __future__ import annotations

import torch
from _style import BLUE, FILLS, INK, ORANGE, arrow, figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from captum_boundary import BoundarySaliency, NearestBoundary
from captum_boundary.metrics import normal_alignment


def draw() -> Figure:
    """Left: trained on the points as they are. Right: with noise on the points."""
    canvas, panels = figure(9, 4.6, 2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        inputs, labels = moons(60)
        for panel, noise, title in zip(panels, (0.0, 0.3), ("trained as usual", "trained with noise"), strict=True):
            draw_panel(panel, train(inputs, labels, noise), inputs, labels, title)
    return canvas


def moons(n_points: int) -> tuple[Tensor, Tensor]:
    """Two interleaved half circles with some scatter, and their labels."""
    angle = torch.pi * torch.rand(n_points)
    labels = torch.arange(n_points) % 2
    sign = 1 - 2 * labels
    points = torch.stack([sign * angle.cos() + labels - 0.5, sign * angle.sin() + 0.5 * labels - 0.25], dim=1)
    return 1.4 * points + 0.18 * torch.randn(n_points, 2), labels


def train(inputs: Tensor, labels: Tensor, noise: float) -> nn.Module:
    """A network of ReLUs, fitted to ``inputs`` with ``noise`` on them."""
    layers = [nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(400):
        loss = nn.functional.cross_entropy(model(inputs + noise * torch.randn_like(inputs)), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return model.eval()


def draw_panel(axes: Axes, model: nn.Module, inputs: Tensor, labels: Tensor, title: str) -> None:
    """The regions of the model, and for a dozen inputs the gradient and the normal."""
    side = torch.linspace(-2.6, 2.6, 301)
    with torch.no_grad():
        predicted = model(torch.cartesian_prod(side, side)).argmax(dim=1).view(len(side), len(side)).T
    axes.contourf(side, side, predicted, levels=[-0.5, 0.5, 1.5], colors=FILLS[:2])
    axes.contour(side, side, predicted, levels=[0.5], colors=INK, linewidths=1)
    axes.scatter(*inputs.T, c=[(BLUE, ORANGE)[label] for label in labels], s=8, alpha=0.5)

    boundary = NearestBoundary(model).find(inputs)
    cosine = normal_alignment(model, inputs, boundary, score="margin").mean()
    axes.set_title(f"{title}: mean cosine {cosine:.2f}")

    # The score at the inputs: that of each one's two classes at the boundary.
    leaves = inputs.clone().requires_grad_()
    outputs = model(leaves)
    margin = outputs.gather(1, boundary.target[:, None]) - outputs.gather(1, boundary.adversarial[:, None])
    (gradients,) = torch.autograd.grad(margin.sum(), leaves)
    normals = BoundarySaliency(model, score="margin").attribute(inputs, boundary=boundary)
    shown = slice(0, 14)
    points = boundary.points[shown]
    for starts, directions, color in ((inputs[shown], gradients[shown], INK), (points, normals[shown], BLUE)):
        for start, step in zip(starts, 0.45 * nn.functional.normalize(directions), strict=True):
            arrow(axes, start.tolist(), (start + step).tolist(), color, width=1.6)
    axes.plot(*inputs[shown].T, "o", color=INK, ms=4, zorder=5)
    axes.plot(*points.T, "o", color="white", mec=BLUE, ms=4, zorder=5)
