"""How normal attributions look against the distance of the boundary, for every network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE = "#0b5fa5", "#c2410c"
PANELS = {
    "alignment": "cosine of gradient and normal",
    "alignment of margins": "cosine of margin's gradient and normal",
    "|IG - BIG|": "|IG - BIG|",
}
# Marker and size of each network: bigger ones for stronger training.
MARKERS = {
    "standard": ("o", 5),
    "adversarial / 4": ("^", 5),
    "adversarial / 2": ("^", 7),
    "adversarial": ("^", 9),
    "ig_norm": ("s", 7),
    "ig_sum_norm": ("D", 7),
}
WIDTH, HEIGHT = 3.4, 2.9  # of a panel, in inches


def draw(means: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Save a picture with a line of panels for each data set: the mean of each network and, in pale, every seed's."""
    figure = Figure(figsize=(WIDTH * len(PANELS), HEIGHT * len(means) + 0.3), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    lines = figure.subplots(len(means), len(PANELS), squeeze=False)
    for axes, (dataset, by_network) in zip(lines, means.items(), strict=True):
        for panel, (column, title) in zip(axes, PANELS.items(), strict=True):
            _draw_panel(panel, by_network, column)
            panel.set_title(title, size=9)
            panel.set_xlabel(f"{dataset.replace('_', ' ')}: l2 distance to the boundary", size=8)
    names = lines[0, 0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=len(MARKERS), frameon=False, fontsize=8)
    figure.savefig(path)


def _draw_panel(axes: Axes, by_network: Mapping[str, Any], column: str) -> None:
    strengths = [cells for name, cells in by_network.items() if not name.startswith("ig_")]
    axes.plot(*([cells[key]["mean"] for cells in strengths] for key in ("distance", column)), color=BLUE, lw=1)
    for name, cells in by_network.items():
        marker, size = MARKERS[name]
        style = {"fmt": marker, "ms": size, "color": ORANGE if name.startswith("ig_") else BLUE}
        x, y = cells["distance"], cells[column]
        x_error, y_error = ([[cell["mean"] - cell["low"]], [cell["high"] - cell["mean"]]] for cell in (x, y))
        axes.errorbar(x["mean"], y["mean"], y_error, x_error, lw=0.8, label=name, **style)
        axes.plot(x["seeds"], y["seeds"], marker, color=style["color"], ms=size, alpha=0.3, mew=0)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
