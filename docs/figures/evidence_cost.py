"""Top pixels that are right on synthetic ground truth, over the gradients an image, from the table of the benchmark."""

from __future__ import annotations

import re
from pathlib import Path

from _style import BLUE, GRAY, INK
from matplotlib.figure import Figure

TABLE = Path(__file__).parents[1] / "benchmarks" / "explanations.md"
ROW = re.compile(r"^\| \**([^|]+?)\** \| (0\.\d+) ± (0\.\d+) [▲▼]? ?\|.*\| (\d+) \|$", re.MULTILINE)
TIMES = "\u00d7"  # the sign of multiplication, which looks like an x
# Labels, and where they stand beside their points.
SHOWN = {
    "Grad-CAM": (6, -13),
    "(Guided Backprop)^2, window x Grad-CAM": (8, 6),
    "(Saliency)^2, window x Grad-CAM": (8, -8),
    "(Saliency)^2": (8, 0),
    "IG, black": (8, 0),
    "BIG": (8, 0),
    "(SmoothGrad)^2, 0.15": (8, 0),
    "(SmoothGrad)^2, 0.1, window x Grad-CAM": (8, -3),
    "BoundaryEnergy, common": (8, -6),
    "BoundaryGradCam, common": (8, 7),
}


def draw() -> Figure:
    """One point a map, with its 95 % interval."""
    canvas = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = canvas.subplots()
    section = TABLE.read_text(encoding="utf-8").split("## Squared maps on synthetic ground truth")[1].split("\n## ")[0]
    section = section.replace(TIMES, "x")
    rows = {name: (float(top), float(half), int(gradients)) for name, top, half, gradients in ROW.findall(section)}
    for name, (x, y) in SHOWN.items():
        top, half, gradients = rows[name]
        ours = name.startswith(("Boundary", "BIG"))
        axes.errorbar(gradients, top, half, fmt="o", color=BLUE if ours else GRAY, ms=7, elinewidth=1.2)
        axes.annotate(
            name.replace(", window", "").replace(" x ", f" {TIMES} "),
            (gradients, top),
            (x, y),
            textcoords="offset points",
            ha="left" if x > 0 else "right",
            va="center",
            color=BLUE if ours else INK,
        )
    axes.set(
        xscale="log", xlim=(0.5, 900), ylim=(0.2, 0.85), xlabel="gradients an image", ylabel="top pixels on the cause"
    )
    axes.set_xticks([1, 2, 5, 10, 50, 100], ["1", "2", "5", "10", "50", "100"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    return canvas
