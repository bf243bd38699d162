"""What would have to be different in a refused application for it to be granted."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from captum_boundary import NearestBoundary
from captum_boundary.search import CategoricalBoundary
from captum_boundary.visualization import plot_feature_changes

NAMES = ["age", "income", "debt", "work_private", "work_state", "work_self-employed", "owns a home"]
CATEGORIES = {"work": [3, 4, 5], "owns a home": [6]}
MEAN, STD = torch.tensor([44, 40_000, 9_000, 0, 0, 0, 0]), torch.tensor([12, 15_000, 4_000, 1, 1, 1, 1])


def draw() -> Figure:
    """What ``plot_feature_changes`` draws of the row in which most features change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, table = model_and_table()
    refused = table[model(table).argmax(dim=1) == 0][:40]
    search = CategoricalBoundary(NearestBoundary(model, norm=1), CATEGORIES, fixed=[0])
    boundary = search.find(refused)
    n_changes = ((boundary.points - refused).abs() > 1e-3).sum(dim=1)
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    plot_feature_changes(
        refused,
        boundary,
        example=int(n_changes.argmax()),
        feature_names=NAMES,
        categories=CATEGORIES,
        class_names=["refused", "granted"],
        unscale=lambda rows: rows * STD + MEAN,
        plt_fig_axis=(figure, figure.subplots()),
    )
    return figure


def model_and_table() -> tuple[nn.Module, Tensor]:
    """A network, and the applications that it has learned from."""
    work = torch.eye(3)[torch.randint(3, (400,))]
    home = torch.randint(2, (400, 1)).float()
    table = torch.cat([torch.randn(400, 3), work, home], dim=1)
    granted = table @ torch.tensor([0.2, 1.0, -1.0, 0.0, 0.8, -1.0, 1.2]) > 0.4
    model = nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(table), granted.long()).backward()
        optimizer.step()
    return model.eval(), table
