"""Alignment of gradients and normals against the distance of the boundary, for every network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, BLUE, ORANGE = "#222222", "#0b5fa5", "#c2410c"
ROWS = {"alignment": "cosine of gradient and normal", "|IG - BIG|": "|IG - BIG|"}


def draw(means: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Save a picture with a column of panels for each data set; of each network its mean and, in pale, every seed."""
    figure = Figure(figsize=(4.6 * len(means), 3.4 * len(ROWS)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(ROWS), len(means), squeeze=False)
    for axes, (dataset, by_network) in zip(panels.T, means.items(), strict=True):
        axes[0].set_title(dataset.replace("_", " "))
        for panel, (column, label) in zip(axes, ROWS.items(), strict=True):
            _draw_panel(panel, by_network, column)
            panel.set(ylabel=label)
        axes[-1].set_xlabel("l2 distance to the boundary")
    figure.savefig(path)


def _draw_panel(axes: Axes, by_network: Mapping[str, Any], column: str) -> None:
    strengths = [cells for name, cells in by_network.items() if not name.startswith("ig_")]
    axes.plot(
        [cells["distance"]["mean"] for cells in strengths], [cells[column]["mean"] for cells in strengths], color=BLUE
    )
    for name, cells in by_network.items():
        colour = ORANGE if name.startswith("ig_") else BLUE
        x, y = cells["distance"], cells[column]
        axes.errorbar(
            x["mean"],
            y["mean"],
            xerr=[[x["mean"] - x["low"]], [x["high"] - x["mean"]]],
            yerr=[[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
            fmt="o",
            color=colour,
            ms=5,
            lw=1,
        )
        axes.plot(x["seeds"], y["seeds"], "o", color=colour, ms=4, alpha=0.35, mew=0)
        axes.annotate(name, (x["mean"], y["mean"]), xytext=(5, 5), textcoords="offset points", size=8, color=INK)
    axes.margins(x=0.18, y=0.15)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
