"""Mean distance against cost of the searches, read from the table of the page on benchmarks."""

from __future__ import annotations

import re
from pathlib import Path

from _style import BLUE, GRAY, INK
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

TABLE = Path(__file__).parents[1] / "benchmarks" / "search.md"
NUMBER = r"\**([\d.]+)\**"
ROW = re.compile(rf"^\| ([^|]+?) \| {NUMBER} \| {NUMBER} \| {NUMBER} \|", re.MULTILINE)
# Where labels stand, so that none covers another.
BELOW = ("budget 200", "DeepFool", "PGDs + CW")
LEFT = ("budget 40",)


def draw() -> Figure:
    """One point a search: the nearer to the lower left corner, the better."""
    canvas = Figure(figsize=(7.5, 4), layout="constrained")
    axes = canvas.subplots()
    section = TABLE.read_text(encoding="utf-8").split("\n## ")[1]
    for name, distance, _, evaluations in ROW.findall(section):
        name = name.replace("`", "")
        ours = name.startswith("NearestBoundary")
        place = int(evaluations), float(distance)
        axes.plot(*place, "o", color=BLUE if ours else GRAY, ms=8)
        left, below = name.endswith(LEFT), name.endswith(BELOW)
        axes.annotate(
            name,
            place,
            (-9, 0) if left else (0, -9 if below else 9),
            textcoords="offset points",
            ha="right" if left else "center",
            va="center" if left else "top" if below else "bottom",
            color=BLUE if ours else INK,
        )
    axes.set(xscale="log", xlabel="evaluations per image", ylabel="mean distance", xlim=(8, 9000), ylim=(0.085, 0.128))
    axes.set_xticks([10, 30, 100, 300, 1000, 3000], ["10", "30", "100", "300", "1000", "3000"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    return canvas
