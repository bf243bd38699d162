"""A grid of panels, each with a title above it and a caption below."""

from __future__ import annotations

import re
import textwrap
from typing import Any, cast

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import AxesImage
from matplotlib.text import Text
from numpy.typing import NDArray

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.visualization._images import Array

__all__ = [
    "COLORS",
    "AxesArray",
    "PanelsToUse",
    "as_plain_text",
    "caption",
    "grid",
    "row_label",
    "say",
    "show_image",
    "show_map",
    "title",
    "wrapped",
]

AxesArray = NDArray[Any]
PanelsToUse = tuple[Figure, AxesArray | None]

_WIDTH = 8.0  # inches: 800 pixels at matplotlib's usual 100 dots per inch
# Captum's colors of attributions, by their sign: red is negative and green positive.
COLORS: dict[str, str | Colormap] = {
    "all": LinearSegmentedColormap.from_list("RdWhGn", ["red", "white", "green"]),
    "positive": "Greens",
    "negative": "Reds",
    "absolute_value": "Blues",
}

_MIN_CELL, _MAX_CELL = 0.9, 2.2
_MAX_LINES = 3
_PANEL = 0.75  # of the width of its column, less what lies between two
_CAPTION = 0.36
_HEADING = 0.45
_CHARACTER = 0.56  # width by height
_EDGE = "0.75"


def grid(
    n_rows: int, n_columns: int, aspect: float, plt_fig_axis: PanelsToUse | None, foot: float = 0
) -> tuple[Figure, AxesArray]:
    """Empty panels for images of ``aspect`` (height by width): those given, or in a new figure ``foot`` inches higher.

    New figures are made as ``plt.subplots`` makes them: notebooks display them, and ``plt.close`` closes them.
    """
    axes: AxesArray | None = None
    if plt_fig_axis is None:
        cell = max(_MIN_CELL, min(_WIDTH / n_columns, _MAX_CELL))  # many columns make a wider figure
        size = (cell * n_columns, n_rows * (0.92 * cell * aspect + _CAPTION) + _HEADING + foot)
        figure = plt.figure(figsize=size, layout="compressed")
    else:
        figure, axes = _check_pair(plt_fig_axis, n_rows, n_columns)
    if axes is None:
        axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_box_aspect(aspect)
        axis.grid(visible=False)
        axis.xaxis.labelpad = 2
        for side in axis.spines.values():
            side.set_color(_EDGE)
    return figure, axes


def _check_pair(plt_fig_axis: object, n_rows: int, n_columns: int) -> tuple[Figure, AxesArray | None]:
    is_pair = isinstance(plt_fig_axis, tuple) and len(plt_fig_axis) == 2 and isinstance(plt_fig_axis[0], FigureBase)
    if not is_pair:
        raise BoundaryTypeError(
            "plt_fig_axis must be a pair of a matplotlib Figure and its axes, or (figure, None) for a figure without "
            f"axes, but it is {plt_fig_axis!r}."
        )
    figure, axes = cast("tuple[Figure, AxesArray | None]", plt_fig_axis)
    if axes is not None and np.shape(axes) != (n_rows, n_columns):
        raise BoundaryValueError(
            f"The axes of plt_fig_axis must be an array of shape ({n_rows}, {n_columns}), as of "
            f"figure.subplots({n_rows}, {n_columns}, squeeze=False), but their shape is {np.shape(axes)}."
        )
    return figure, axes


def title(axis: Axes, text: str) -> None:
    """Say above the panel what it shows."""
    axis.set_title(_in_panel(axis, text, 9), fontsize=9, pad=4, parse_math=False)


def caption(axis: Axes, text: str) -> None:
    """Say below the panel what else there is to know."""
    axis.set_xlabel(_in_panel(axis, text, 8), fontsize=8, parse_math=False)


def row_label(axis: Axes, text: str) -> None:
    """Name a row of panels, along the side of its first one."""
    grid_of = axis.get_gridspec()
    points = 0.8 * axis.figure.bbox.height / grid_of.nrows * 72 / axis.figure.dpi  # type: ignore[union-attr]
    axis.set_ylabel(wrapped(text, int(points / (_CHARACTER * 9))), fontsize=9, parse_math=False)


def say(axis: Axes, text: str) -> None:
    """Put words in the place of a picture that there is not."""
    axis.set_facecolor("0.95")
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": "0.25", "parse_math": False}
    axis.text(0.5, 0.5, _in_panel(axis, text, 8), transform=axis.transAxes, **style)


def show_image(axis: Axes, image: Array) -> None:
    """Show an image ``(H, W, C)``, black at 0 and white at 1."""
    image = image.clip(0, 1)
    axis.imshow(image[..., 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=1, aspect="auto")


def show_map(axis: Axes, values: Array, cmap: str | Colormap, low: float, high: float) -> AxesImage:
    """Show a map ``(H, W)`` in colors that run from ``low`` to ``high``."""
    return axis.imshow(values, cmap=cmap, vmin=low, vmax=high, aspect="auto")


def as_plain_text(*artists: Artist) -> None:
    """Show all texts of these artists as they are: a dollar sign in a name does not begin a formula."""
    for artist in artists:
        for text in artist.findobj(Text):
            text.set_parse_math(False)


def wrapped(text: str, width: int) -> str:
    """``text`` in lines of at most ``width`` characters, the last ones of too many left out.

    Names of classes may be parted at their capitals, and words that are longer than a line anywhere.
    """
    width = max(6, width)
    if max(map(len, text.split()), default=0) > width:
        text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    lines = (textwrap.wrap(line, width, max_lines=_MAX_LINES, placeholder=" …") for line in text.split("\n"))
    return "\n".join(part for line in lines for part in line)


def _in_panel(axis: Axes, text: str, size: float) -> str:
    """``text`` in lines that are no wider than the panel."""
    n_columns = axis.get_gridspec().ncols  # type: ignore[union-attr]
    points = _PANEL * axis.figure.bbox.width / n_columns * 72 / axis.figure.dpi
    return wrapped(text, int(points / (_CHARACTER * size)))
