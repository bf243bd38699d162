"""A grid of panels, each with a title above it and a caption below."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from captum_boundary.errors import BoundaryTypeError
from captum_boundary.visualization._images import Array

__all__ = ["AxesArray", "caption", "grid", "say", "show_image", "show_map", "title"]

AxesArray = NDArray[Any]

_WIDTH = 8.0  # inches: 800 pixels at matplotlib's usual 100 dots per inch
_MAX_CELL = 2.2
_CAPTION = 0.36
_HEADING = 0.45
_CHARACTER = 0.56  # width by height
_EDGE = "0.75"


def grid(
    n_rows: int, n_columns: int, aspect: float, figure: Figure | None, foot: float = 0
) -> tuple[Figure, AxesArray]:
    """Empty panels for images of ``aspect`` (height by width), in ``figure`` or a new one with ``foot`` inches below.

    New figures are made as ``plt.subplots`` makes them: notebooks display them, and ``plt.close`` closes them.
    """
    if figure is None:
        cell = min(_WIDTH / n_columns, _MAX_CELL)
        size = (cell * n_columns, n_rows * (0.92 * cell * aspect + _CAPTION) + _HEADING + foot)
        figure = plt.figure(figsize=size, layout="compressed")
    elif not isinstance(figure, FigureBase):
        raise BoundaryTypeError(f"figure must be a matplotlib Figure, but it is {type(figure).__name__}.")
    axes: AxesArray = figure.subplots(n_rows, n_columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_box_aspect(aspect)
        axis.grid(visible=False)
        axis.xaxis.labelpad = 2
        for side in axis.spines.values():
            side.set_color(_EDGE)
    return figure, axes


def title(axis: Axes, text: str) -> None:
    """Say above the panel what it shows."""
    axis.set_title(_wrapped(axis, text, 9), fontsize=9, pad=4)


def caption(axis: Axes, text: str) -> None:
    """Say below the panel what else there is to know."""
    axis.set_xlabel(_wrapped(axis, text, 8), fontsize=8)


def say(axis: Axes, text: str) -> None:
    """Put words in the place of a picture that there is not."""
    axis.set_facecolor("0.95")
    axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=8, color="0.25", transform=axis.transAxes)


def show_image(axis: Axes, image: Array) -> None:
    """Show an image ``(H, W, C)``, black at 0 and white at 1."""
    image = image.clip(0, 1)
    axis.imshow(image[..., 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=1, aspect="auto")


def show_map(axis: Axes, values: Array, cmap: str | Colormap, low: float, high: float) -> AxesImage:
    """Show a map ``(H, W)`` in colours that run from ``low`` to ``high``."""
    return axis.imshow(values, cmap=cmap, vmin=low, vmax=high, aspect="auto")


def _wrapped(axis: Axes, text: str, size: float) -> str:
    """``text`` in lines that are no wider than the panel; names of classes may be parted at their capitals."""
    n_columns = axis.get_gridspec().ncols  # type: ignore[union-attr]
    points = 0.95 * axis.figure.bbox.width / n_columns * 72 / axis.figure.dpi
    n_characters = max(6, int(points / (_CHARACTER * size)))
    if max(map(len, text.split()), default=0) > n_characters:
        text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return "\n".join(textwrap.fill(line, n_characters, break_long_words=False) for line in text.split("\n"))
