"""The demonstration as a picture: a row for each example, a column for each way to look at it."""

from __future__ import annotations

import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor

from captum_boundary._demo.explanation import Explanation
from captum_boundary.visualization._panels import COLORS, grid

__all__ = ["draw"]

_ATTRIBUTION = COLORS["all"]  # Captum's: red is negative, green positive
_CHANGE = "PuOr_r"  # of pixels, which is no attribution: purple is darker, orange brighter
_GRAY = "0.35"
_GROUPS = ("Where the decision changes", "Captum, as usual", "Captum, from the boundary")
_GRADIENTS = ("Saliency", "BSM")  # logits for a unit of brightness; all other maps add up to logits
_CELL = 1.3
_BELOW = 0.4  # a row, in inches
_CHARACTERS = 66  # of a line below three panels


def draw(explanation: Explanation) -> Figure:
    """Draw all examples. The figure belongs to no window and needs no display."""
    n_examples = len(explanation.boundary)
    width, height = 9 * _CELL + 1.6, n_examples * (_CELL + _BELOW) + 1.75
    figure = Figure(figsize=(width, height), dpi=110)
    outer = figure.add_gridspec(
        1, 3, left=0.95 / width, right=1 - 0.1 / width, top=1 - 0.72 / height, bottom=1.05 / height, wspace=0.08
    )
    for index, heading in enumerate(_GROUPS):
        axes = outer[index].subgridspec(n_examples, 3, wspace=0.06, hspace=_BELOW / _CELL).subplots(squeeze=False)
        grid(n_examples, 3, 1.0, (figure, axes))
        box = outer[index].get_position(figure)
        middle = (box.x0 + box.x1) / 2
        figure.text(middle, 1 - 0.3 / height, heading, ha="center", size=13, weight="bold")
        for row in range(n_examples):
            _fill(axes[row], explanation, row, index)
    _add_legend(figure, 0.2, _CHANGE, "change: darker", "brighter")
    _add_legend(figure, 0.68, _ATTRIBUTION, "attribution: against the predicted class", "for it")
    figure.text(
        0.5,
        0.2 / height,
        "The number below a map is its largest magnitude, which has the full color. A unit is the step from black (0) "
        "to white (1).",
        ha="center",
        va="center",
        size=10,
        color=_GRAY,
    )
    return figure


def _fill(axes: list[Axes], explanation: Explanation, row: int, group: int) -> None:
    """Draw one group of three panels for one example."""
    if group == 0:
        _draw_digits(axes, explanation, row)
        return
    for axis, name in zip(axes, list(explanation.maps)[3 * group - 3 : 3 * group], strict=True):
        unit = "logits / unit" if name in _GRADIENTS else "logits"
        scale = _draw_map(axis, explanation.maps[name][row, 0], name if row == 0 else "", _ATTRIBUTION)
        axis.set_xlabel(f"{scale:.2g} {unit}" if scale > 0 else "", size=8, color=_GRAY)


def _draw_digits(axes: list[Axes], explanation: Explanation, row: int) -> None:
    boundary, image, point = explanation.boundary, explanation.digits.images[row, 0], explanation.points[row, 0]
    for axis, title, pixels in zip(axes[:2], ("input", "boundary point"), (image, point), strict=True):
        axis.set_title(title if row == 0 else "", size=11)
        axis.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1)
    _draw_map(axes[2], point - image, "change" if row == 0 else "", _CHANGE)
    axes[0].set_ylabel(
        f"a {int(explanation.digits.labels[row])},\nseen as {int(boundary.target[row])}",
        rotation=0,
        ha="right",
        va="center",
        size=11,
    )
    sentence = f"{explanation.sentences()[row]} l2 distance {boundary.distance[row]:.2f}."
    axes[1].set_xlabel("\n".join(textwrap.wrap(sentence, _CHARACTERS)), size=8, color=_GRAY)


def _draw_map(axis: Axes, values: Tensor, title: str, colors: str | Colormap) -> float:
    """Draw a map in colors that run from minus to plus its largest magnitude, which is returned."""
    axis.set_title(title, size=11)
    scale = float(values.abs().max())
    if scale > 0:
        axis.imshow(values.numpy(), cmap=colors, vmin=-scale, vmax=scale)
    else:  # NaN as well
        axis.text(0.5, 0.5, "none", ha="center", va="center", color=_GRAY, transform=axis.transAxes)
    return scale


def _add_legend(figure: Figure, center: float, colors: str | Colormap, low: str, high: str) -> None:
    from matplotlib.cm import ScalarMappable

    width, height = figure.get_size_inches()
    axis = figure.add_axes((center - 0.75 / width, 0.5 / height, 1.5 / width, 0.12 / height), label="legend")
    bar = figure.colorbar(ScalarMappable(cmap=colors), cax=axis, orientation="horizontal", ticks=[])
    bar.outline.set_visible(False)
    note: dict[str, Any] = {"va": "center", "size": 10, "transform": axis.transAxes}
    axis.text(-0.06, 0.5, low, ha="right", **note)
    axis.text(1.06, 0.5, high, ha="left", **note)
