"""What the figures share."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["BLUE", "FILLS", "GRAY", "INK", "ORANGE", "arrow", "figure"]

INK, GRAY, BLUE, ORANGE = "#222222", "#777777", "#0b5fa5", "#c2410c"
FILLS = ("#dbeafe", "#fde8d7", "#e2f0d9")


def figure(width: float, height: float, n_panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of square panels in a row, in inches."""
    canvas = Figure(figsize=(width, height), layout="constrained")
    panels = list(canvas.subplots(1, n_panels, squeeze=False)[0])
    for panel in panels:
        panel.set(xticks=[], yticks=[], aspect="equal")
    return canvas, panels


def arrow(axes: Axes, start: list[float], end: list[float], color: str, width: float = 1.8) -> None:
    """An arrow in the units of the data."""
    properties = {"arrowstyle": "-|>", "color": color, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops={**properties, "mutation_scale": 12}, zorder=4)
