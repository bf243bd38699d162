"""Images, their attribution map, and the map on the image, drawn by Captum and in its colors."""

from __future__ import annotations

from typing import Any

import numpy as np
from captum.attr import visualization as captum_visualization
from matplotlib.figure import Figure
from torch import Tensor

from captum_boundary._core.bounds import Bounds
from captum_boundary._core.checks import check_choice
from captum_boundary.errors import BoundaryValueError
from captum_boundary.visualization._images import SIGNS, check_images, displayed, maps_of
from captum_boundary.visualization._panels import AxesArray, PanelsToUse, grid, say, show_image, title

__all__ = ["show_attribution"]


def show_attribution(
    inputs: Tensor,
    attributions: Tensor,
    *,
    bounds: Bounds = None,
    sign: str = "all",
    outlier_perc: float = 2,
    alpha_overlay: float = 0.6,
    plt_fig_axis: PanelsToUse | None = None,
) -> tuple[Figure, AxesArray]:
    r"""Show images, their attributions, and the attributions on the images, in a row for each.

    Maps are drawn by ``captum.attr.visualization.visualize_image_attr``, so that they look as Captum's own do: green is
    positive and red negative. Images and attributions may be Tensors as models and methods take and return them.

    Args:

        inputs (Tensor): Images ``(N, C, H, W)``, gray or in color.
        attributions (Tensor): Attributions of these images, ``(N, C, H, W)`` or ``(N, H, W)``; channels are summed.
        bounds (tuple, optional): Values shown as black and white, in the form of a search's ``bounds``, as
            :func:`bounds_of` returns them for normalized images. Default: None, ``(0, 1)``.
        sign (str, optional): Which attributions to show: ``"all"``, ``"positive"``, ``"negative"`` or
            ``"absolute_value"``. Default: ``"all"``
        outlier_perc (float, optional): Share of the total attribution, in per cent, beyond the full color. Default: 2
        alpha_overlay (float, optional): Opacity of the map on the image. Default: 0.6
        plt_fig_axis (tuple, optional): Figure (or subfigure) and array of axes to draw in, shaped like that returned;
            None in place of the axes makes them. Default: None, a new figure of matplotlib's pyplot.

    Returns:

        - **figure** (*Figure*): The figure, to be shown, saved or closed by the caller.
        - **axes** (*numpy.ndarray*): Its panels ``(N, 3)``: image, map, and map on the image. Words take the place of
          maps that are NaN, as those of examples without a boundary point, and of maps without any attribution to show.

    Raises:

        BoundaryTypeError: If ``inputs`` or ``attributions`` are no Tensor.
        BoundaryValueError: If shapes do not match, images lie outside ``bounds``, or options are none of the above.

    Examples::

        >>> import torch
        >>> from captum_boundary import BoundaryIntegratedGradients
        >>> from captum_boundary.visualization import show_attribution
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
        >>> images = torch.rand(2, 3, 8, 8)
        >>> figure, axes = show_attribution(images, BoundaryIntegratedGradients(model).attribute(images))
        >>> axes.shape
        (2, 3)
    """
    images = check_images(inputs)
    check_choice("sign", sign, SIGNS)
    for name, value, most in (("outlier_perc", outlier_perc, 100), ("alpha_overlay", alpha_overlay, 1)):
        if not 0 <= value <= most or (name == "outlier_perc" and value == most):
            raise BoundaryValueError(f"{name} must be between 0 and {most}, but it is {value!r}.")
    maps = maps_of(attributions, images, "attributions")
    pictures = displayed(images, images, bounds).clip(0, 1)
    figure, axes = grid(len(images), 3, images.shape[2] / images.shape[3], plt_fig_axis)
    for axis, name in zip(axes[0], ("input", "attribution", "on the input"), strict=True):
        title(axis, name)
    for panels, picture, values in zip(axes, pictures, maps, strict=True):
        show_image(panels[0], picture)
        if np.isnan(values).any():
            words = "no boundary\npoint (NaN)"
        else:
            words = "" if SIGNS[sign](values).any() else "nothing to show"
        for axis, method in zip(panels[1:], ("heat_map", "blended_heat_map"), strict=True):
            if words:
                say(axis, words)
            else:
                options: dict[str, Any] = {"alpha_overlay": alpha_overlay, "outlier_perc": outlier_perc}
                captum_visualization.visualize_image_attr(
                    values[:, :, None] / np.abs(values).max(),  # Captum warns of small numbers, whatever their unit
                    picture,
                    method=method,
                    sign=sign,
                    plt_fig_axis=(figure, axis),
                    use_pyplot=False,
                    **options,
                )
    return figure, axes
