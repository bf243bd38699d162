"""The demonstration as a picture: a row for each example, a column for each way to look at it."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from captum_boundary._demo.explanation import Explanation

__all__ = ["draw"]

_COLORS = "RdBu_r"  # told apart by color-blind eyes too
_GRAY = "0.35"
_GROUPS = ("Where the decision changes", "Captum, as usual", "Captum, from the boundary")
_CELL = 1.3


def draw(explanation: Explanation) -> Figure:
    """Draw all examples. The figure belongs to no window and needs no display."""
    n_examples = len(explanation.boundary)
    width, height = 9 * _CELL + 1.6, n_examples * (_CELL + 0.12) + 1.45
    figure = Figure(figsize=(width, height), dpi=110)
    outer = figure.add_gridspec(
        1, 3, left=0.95 / width, right=1 - 0.1 / width, top=1 - 0.72 / height, bottom=0.62 / height, wspace=0.08
    )
    for index, heading in enumerate(_GROUPS):
        axes = outer[index].subgridspec(n_examples, 3, wspace=0.06, hspace=0.17).subplots(squeeze=False)
        box = outer[index].get_position(figure)
        middle = (box.x0 + box.x1) / 2
        figure.text(middle, 1 - 0.3 / height, heading, ha="center", size=13, weight="bold")
        for row in range(n_examples):
            _fill(axes[row], explanation, row, index)
    _add_legend(figure, width, height)
    return figure


def _fill(axes: list[Axes], explanation: Explanation, row: int, group: int) -> None:
    """Draw one group of three panels for one example."""
    if group == 0:
        _draw_digits(axes, explanation, row)
        return
    for axis, name in zip(axes, list(explanation.maps)[3 * group - 3 : 3 * group], strict=True):
        _draw_map(axis, explanation.maps[name][row, 0], name if row == 0 else "")


def _draw_digits(axes: list[Axes], explanation: Explanation, row: int) -> None:
    boundary, image, point = explanation.boundary, explanation.digits.images[row, 0], explanation.points[row, 0]
    for axis, title, pixels in zip(axes[:2], ("input", "boundary point"), (image, point), strict=True):
        _strip(axis, title if row == 0 else "")
        axis.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1)
    other = int(boundary.adversarial[row]) if boundary.found[row] else "?"
    axes[0].set_ylabel(
        f"a {int(explanation.digits.labels[row])},\nseen as {int(boundary.target[row])}",
        rotation=0,
        ha="right",
        va="center",
        size=11,
    )
    axes[1].set_xlabel(f"{int(boundary.target[row])} | {other}  at {boundary.distance[row]:.2f}", size=8, color=_GRAY)
    _draw_map(axes[2], point - image, "change" if row == 0 else "")


def _draw_map(axis: Axes, values: Tensor, title: str) -> None:
    """Draw a map in colors that run from minus to plus its largest magnitude, which is noted under it."""
    _strip(axis, title)
    scale = float(values.abs().max())
    if scale > 0:
        axis.imshow(values.numpy(), cmap=_COLORS, vmin=-scale, vmax=scale)
        axis.set_xlabel(f"± {scale:.2g}", size=8, color=_GRAY)
    else:  # NaN as well
        axis.text(0.5, 0.5, "none", ha="center", va="center", color=_GRAY, transform=axis.transAxes)


def _strip(axis: Axes, title: str) -> None:
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, size=11)
    axis.xaxis.labelpad = 2
    axis.set_box_aspect(1)
    for side in axis.spines.values():
        side.set_color("0.75")


def _add_legend(figure: Figure, width: float, height: float) -> None:
    from matplotlib.cm import ScalarMappable

    axis = figure.add_axes((0.5 - 1.5 / width, 0.24 / height, 3 / width, 0.12 / height), label="legend")
    bar = figure.colorbar(ScalarMappable(cmap=_COLORS), cax=axis, orientation="horizontal", ticks=[])
    bar.outline.set_visible(False)
    note: dict[str, Any] = {"va": "center", "size": 10, "transform": axis.transAxes}
    axis.text(-0.03, 0.5, "against the predicted class", ha="right", **note)
    axis.text(1.03, 0.5, "for the predicted class (change: brighter)", ha="left", **note)
