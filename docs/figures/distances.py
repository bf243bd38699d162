"""How far digits of each class are from the nearest boundary."""

from __future__ import annotations

from _digits import network_and_digits, unseen_digits
from _style import BLUE, GRAY, INK
from matplotlib.figure import Figure

from captum_boundary import NearestBoundary


def draw() -> Figure:
    """A dot for each of 200 digits, and the median of each predicted class."""
    model, _ = network_and_digits()
    boundary = NearestBoundary(model, bounds=(0, 1), budget=20).find(unseen_digits()[:200])
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for digit in range(10):
        distance = boundary.distance[boundary.found & (boundary.target == digit)]
        axes.plot([digit] * len(distance), distance, "o", color=BLUE, alpha=0.35, ms=4)
        axes.plot([digit - 0.3, digit + 0.3], [distance.median()] * 2, color=INK, lw=2)
    axes.set_xticks(range(10))
    axes.set_xlabel("predicted digit")
    axes.set_ylabel("l2 distance to the nearest boundary")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRAY, alpha=0.2)
    return figure
