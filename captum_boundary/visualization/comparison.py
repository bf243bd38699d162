"""Attributions of several methods, and of several models, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from captum_boundary._core.bounds import Bounds
from captum_boundary._core.checks import check_choice
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search import BoundaryPoints
from captum_boundary.search._given import points_for
from captum_boundary.visualization._boundary_words import NOT_FOUND, BoundaryWords, show_point
from captum_boundary.visualization._images import SIGNS, Array, check_images, displayed, maps_of, scale_of
from captum_boundary.visualization._panels import (
    COLORS,
    AxesArray,
    PanelsToUse,
    caption,
    grid,
    row_label,
    say,
    show_image,
    show_map,
    title,
)

__all__ = ["compare_attributions"]


def compare_attributions(
    inputs: Tensor,
    attributions: Mapping[str, Tensor] | Mapping[str, Mapping[str, Tensor]],
    *,
    boundary: BoundaryPoints | Mapping[str, BoundaryPoints] | None = None,
    class_names: Sequence[str] | None = None,
    bounds: Bounds = None,
    sign: str = "all",
    outlier_perc: float = 2,
    share_scale: bool = False,
    cmap: str | None = None,
    plt_fig_axis: PanelsToUse | None = None,
) -> tuple[Figure, AxesArray]:
    r"""Show images and their attributions by several methods: a row for each image, a column for each method.

    Maps are summed over channels and scaled as ``captum.attr.visualization.visualize_image_attr`` scales them. How
    much the full color stands for is written below each map. Where an attribution is NaN, as it is for examples
    without a boundary point, words take the place of the map.

    Of several models, each image has one row for each, one below the other.

    Args:

        inputs (Tensor): Images ``(N, C, H, W)``, gray or in color.
        attributions (Mapping): Attributions of these images, ``(N, C, H, W)`` or ``(N, H, W)``, by the names of the
            methods: ``{"IG": maps, "BIG": maps}``. For several models, such mappings by the names of the models, of the
            same methods in the same order: ``{"plain": {"BIG": maps}, "robust": {"BIG": maps}}``.
        boundary (BoundaryPoints or Mapping, optional): Boundary points of these images, shown beside them with their
            classes and distances; for several models, those of each by its name. Default: None
        class_names (Sequence[str], optional): Names of all classes, in their order. Default: None, their numbers.
        bounds (tuple, optional): Values shown as black and white, as a search's ``bounds``. Default: None, ``(0, 1)``.
        sign (str, optional): Which attributions to show: ``"all"``, ``"positive"``, ``"negative"`` or
            ``"absolute_value"``. Default: ``"all"``
        outlier_perc (float, optional): Share of the total attribution, in per cent, that the values beyond the full
            color make up. Default: 2
        share_scale (bool, optional): Scale all maps alike, to compare their sizes too, in place of each by itself.
            Default: False
        cmap (str, optional): Matplotlib color map, such as ``"RdBu"``, whose ends color-blind readers can tell apart.
            Default: None, Captum's colors: red is negative and green positive.
        plt_fig_axis (tuple, optional): Figure (or subfigure) and array of axes to draw in, shaped like that returned;
            None in place of the axes makes them. Default: None, a new figure of matplotlib's pyplot, 8 inches wide.

    Returns:

        - **figure** (*Figure*): The figure, to be shown, saved or closed by the caller.
        - **axes** (*numpy.ndarray*): Its panels, one row for each image (and each model, image after image): the image,
          its boundary point if given, and the maps.

    Raises:

        BoundaryTypeError: If ``inputs`` are no Tensor, ``attributions`` no mapping of Tensors, or of mappings of them,
            or ``boundary`` no BoundaryPoints, or no mapping of them for several models.
        BoundaryValueError: If shapes do not match, models differ in their methods, images lie outside ``bounds``, there
            are too few class names, or ``sign`` or ``outlier_perc`` is none of the above.

    Examples::

        >>> import torch
        >>> from captum.attr import IntegratedGradients
        >>> from captum_boundary import BoundaryIntegratedGradients, NearestBoundary
        >>> from captum_boundary.visualization import compare_attributions
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> images = torch.rand(2, 1, 8, 8)
        >>> boundary = NearestBoundary(model, bounds=(0, 1)).find(images)
        >>> maps = {
        ...     "IG": IntegratedGradients(model).attribute(images, target=boundary.target),
        ...     "BIG": BoundaryIntegratedGradients(model).attribute(images, boundary=boundary),
        ... }
        >>> figure, axes = compare_attributions(images, maps, boundary=boundary)
        >>> axes.shape
        (2, 4)
    """
    images = check_images(inputs)
    check_choice("sign", sign, SIGNS)
    if not 0 <= outlier_perc < 100:
        raise BoundaryValueError(f"outlier_perc must be at least 0 and less than 100, but it is {outlier_perc!r}.")
    views = _views(attributions, boundary, images, class_names, bounds, SIGNS[sign])
    methods, with_points = list(views[0].maps), views[0].words is not None
    pictures = displayed(images, images, bounds)

    shared = None
    if share_scale:
        shared = scale_of(np.stack([values for view in views for values in view.maps.values()]), outlier_perc)
    colors = cmap or COLORS[sign]
    titles = ["input", *(["boundary point"] if with_points else []), *methods]
    n_rows = len(images) * len(views)
    figure, axes = grid(n_rows, len(titles), images.shape[2] / images.shape[3], plt_fig_axis, foot=0.6)
    for axis, name in zip(axes[0], titles, strict=True):
        title(axis, name)
    for place, panels in enumerate(axes):
        row, view = place // len(views), views[place % len(views)]
        show_image(panels[0], pictures[row])
        if view.name is not None:
            row_label(panels[0], view.name)
        is_found = view.words is None or bool(view.words.boundary.found[row])
        if view.words is not None and view.beyond is not None:
            show_point(panels[:2], view.beyond[row], view.words, row)
        for axis, values in zip(panels[-len(methods) :], view.maps.values(), strict=True):
            if np.isnan(values[row]).any():
                say(axis, "NaN" if is_found else NOT_FOUND)
                continue
            scale = scale_of(values[row], outlier_perc) if shared is None else shared
            _show_scaled(axis, values[row], scale, colors, sign == "all", with_caption=shared is None)
    _add_bar(figure, axes, colors, sign == "all", shared)
    return figure, axes


class _View(NamedTuple):
    """What one model has to say of the images."""

    name: str | None
    maps: dict[str, Array]
    words: BoundaryWords | None = None  # about its boundary points
    beyond: Array | None = None  # these points as pictures


def _views(
    attributions: object,
    boundary: Any,
    images: Tensor,
    class_names: Sequence[str] | None,
    bounds: Bounds,
    signed: Callable[[Array], Array],
) -> list[_View]:
    """The maps and boundary points of each model, or of the only one, which has no name."""

    def view(name: str | None, given: object, points: Any) -> _View:
        maps = {method: signed(values) for method, values in _check_maps(given, images, name).items()}
        if points is None:
            return _View(name, maps)
        (beyond,) = points_for((images,), points, same_kind=False)
        return _View(name, maps, BoundaryWords(points, class_names), displayed(beyond, images, bounds))

    if not isinstance(attributions, Mapping) or not any(isinstance(each, Mapping) for each in attributions.values()):
        return [view(None, attributions, boundary)]
    names = list(attributions)
    if boundary is not None and (not isinstance(boundary, Mapping) or set(boundary) != set(names)):
        given = f"for {list(boundary)}" if isinstance(boundary, Mapping) else type(boundary).__name__
        raise BoundaryTypeError(
            f"boundary must be a mapping with BoundaryPoints for each of the models {names}, since every model has "
            f"boundaries of its own, but it is {given}."
        )
    views = [view(str(name), attributions[name], None if boundary is None else boundary[name]) for name in names]
    for other in views[1:]:
        if list(other.maps) != list(views[0].maps):
            raise BoundaryValueError(
                "attributions must hold maps by the same methods, in the same order, for all models, but for "
                f"{views[0].name!r} they are {list(views[0].maps)} and for {other.name!r} {list(other.maps)}."
            )
    return views


def _check_maps(attributions: object, images: Tensor, model: str | None) -> dict[str, Array]:
    name = "attributions" if model is None else f"attributions[{model!r}]"
    if not isinstance(attributions, Mapping):
        raise BoundaryTypeError(
            f'{name} must be a mapping from names to Tensors, such as {{"BIG": maps}}, but it is '
            f"{type(attributions).__name__}."
        )
    if not attributions:
        raise BoundaryValueError(f"{name} must hold the maps of at least one method, but it is empty.")
    return {str(method): maps_of(values, images, f"{name}[{method!r}]") for method, values in attributions.items()}


def _show_scaled(
    axis: Axes, values: Array, scale: float, cmap: str | Colormap, is_signed: bool, with_caption: bool
) -> None:
    full = scale or 1.0
    show_map(axis, values, cmap, -full if is_signed else 0.0, full)
    if with_caption:
        caption(axis, f"{'±' if is_signed else ''}{scale:.2g}" if scale else "all zero")


def _add_bar(figure: Figure, axes: AxesArray, cmap: str | Colormap, is_signed: bool, shared: float | None) -> None:
    """Explain the colors: in numbers if all maps share them, else in terms of the number below each map."""
    full = shared or 1.0
    ticks = [-full, 0.0, full] if is_signed else [0.0, full]
    bar = figure.colorbar(
        ScalarMappable(Normalize(ticks[0], full), cmap),
        ax=list(axes.flat),
        orientation="horizontal",
        ticks=ticks,
        shrink=0.5,
        aspect=40,
        pad=0.02,
    )
    numbers = [f"{tick:.2g}" for tick in ticks]
    signs = ["-", "0", "+"] if is_signed else ["0", "+"]
    bar.ax.set_xticklabels(numbers if shared else signs, fontsize=8)
    bar.set_label("attribution" if shared else "attribution, up to the number below each map", fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2)
