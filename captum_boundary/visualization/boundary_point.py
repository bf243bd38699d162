"""Boundary points beside the inputs that they are closest to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from captum_boundary._core.bounds import Bounds
from captum_boundary._core.checks import check_positive
from captum_boundary.search import BoundaryPoints
from captum_boundary.search._given import points_for
from captum_boundary.visualization._boundary_words import NOT_FOUND, BoundaryWords, show_point
from captum_boundary.visualization._images import Array, check_images, displayed
from captum_boundary.visualization._panels import AxesArray, PanelsToUse, caption, grid, say, show_image, title

__all__ = ["show_boundary_point"]


def show_boundary_point(
    inputs: Tensor,
    boundary: BoundaryPoints,
    *,
    amplification: float | None = None,
    class_names: Sequence[str] | None = None,
    bounds: Bounds = None,
    plt_fig_axis: PanelsToUse | None = None,
) -> tuple[Figure, AxesArray]:
    r"""Show images, their boundary points, and the difference between the two, amplified until it can be seen.

    Boundary points of deep networks look just like their images. The difference is taken between images with black at 0
    and white at 1, and added to a gray of 0.5: brighter where the boundary point is brighter.

    Args:

        inputs (Tensor): Images ``(N, C, H, W)``, gray or in color.
        boundary (BoundaryPoints): Boundary points of these images.
        amplification (float, optional): By how much the differences are multiplied. What leaves the range from black to
            white is clipped. Default: None, for each image the largest of 1, 2, 5, 10, 20, 50, ... that clips nothing,
            or 0.5 where all of them would. It is written above the difference.
        class_names (Sequence[str], optional): Names of all classes, in their order. Default: None, their numbers.
        bounds (tuple, optional): Values shown as black and white, as a search's ``bounds``. Default: None, ``(0, 1)``.
        plt_fig_axis (tuple, optional): Figure (or subfigure) and array of axes to draw in, shaped like that returned;
            None in place of the axes makes them. Default: None, a new figure of matplotlib's pyplot.

    Returns:

        - **figure** (*Figure*): The figure, to be shown, saved or closed by the caller.
        - **axes** (*numpy.ndarray*): Its panels ``(N, 3)``: image, boundary point and difference.

    Raises:

        BoundaryTypeError: If ``inputs`` are no Tensor, or ``boundary`` no BoundaryPoints.
        BoundaryValueError: If shapes do not match, images lie outside ``bounds``, there are too few class names, or
            ``amplification`` is not positive.

    Examples::

        >>> import torch
        >>> from captum_boundary import NearestBoundary
        >>> from captum_boundary.visualization import show_boundary_point
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> images = torch.rand(2, 1, 8, 8)
        >>> boundary = NearestBoundary(model, bounds=(0, 1)).find(images)
        >>> figure, axes = show_boundary_point(images, boundary)
        >>> axes[0, 1].get_title()
        'boundary point'
    """
    images = check_images(inputs)
    check_positive("amplification", amplification, optional=True)
    (points,) = points_for((images,), boundary, same_kind=False)
    words = BoundaryWords(boundary, class_names)
    pictures, beyond = (displayed(each, images, bounds) for each in (images, points))

    figure, axes = grid(len(images), 3, images.shape[2] / images.shape[3], plt_fig_axis)
    for row, panels in enumerate(axes):
        title(panels[0], "input")
        title(panels[1], "boundary point")
        show_image(panels[0], pictures[row])
        show_point(panels[:2], beyond[row], words, row)
        if not boundary.found[row]:
            say(panels[2], NOT_FOUND)
            continue
        difference = beyond[row] - pictures[row]
        factor = _round_factor(difference) if amplification is None else amplification
        title(panels[2], f"difference × {factor:g}")  # noqa: RUF001
        show_image(panels[2], 0.5 + factor * difference)
        caption(panels[2], f"up to {np.abs(difference).max():.2g}")
    return figure, axes


def _round_factor(difference: Array) -> float:
    """The largest round number by which ``difference`` can be multiplied to stay between -0.5 and 0.5."""
    largest = float(np.abs(difference).max())
    if largest == 0:
        return 1.0
    exact = 0.5 / largest
    power = 10.0 ** math.floor(math.log10(exact))
    return next(digit * power for digit in (5, 2, 1) if digit * power <= exact)
