"""Mean distance against cost of the searches, read from the table of the page on benchmarks."""

from __future__ import annotations

import re
from pathlib import Path

from _style import BLUE, GREY, INK
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

TABLE = Path(__file__).parents[1] / "benchmarks.md"
NUMBER = r"\**([\d.]+)\**"
ROW = re.compile(rf"^\| ([^|]+?) \| {NUMBER} \| {NUMBER} \| {NUMBER} \|", re.MULTILINE)
BELOW = ("budget 10", "DeepFool", "DDN, 100 steps")


def draw() -> Figure:
    """One point a search: the nearer to the lower left corner, the better."""
    canvas = Figure(figsize=(7.5, 4), layout="constrained")
    axes = canvas.subplots()
    for name, distance, _, evaluations in ROW.findall(TABLE.read_text(encoding="utf-8")):
        name = name.replace("`", "")
        ours = name.startswith("NearestBoundary")
        place = int(evaluations), float(distance)
        axes.plot(*place, "o", color=BLUE if ours else GREY, ms=8)
        below = name.endswith(BELOW)
        axes.annotate(
            name,
            place,
            (0, -8 if below else 8),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            color=BLUE if ours else INK,
        )
    axes.set(xscale="log", xlabel="evaluations per image", ylabel="mean distance", xlim=(20, 6000), ylim=(0.085, 0.128))
    axes.set_xticks([30, 100, 300, 1000, 3000], ["30", "100", "300", "1000", "3000"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    return canvas
