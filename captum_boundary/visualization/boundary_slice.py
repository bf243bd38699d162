"""The decision regions around a boundary point, in a plane through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from captum_boundary._core.captum_helpers import TensorOrTupleOfTensorsGeneric
from captum_boundary._core.checks import check_count, check_inputs, check_positive
from captum_boundary._core.context import geometry
from captum_boundary._core.margin import margin_and_rival
from captum_boundary._core.oracle import MarginOracle
from captum_boundary._core.repeatability import watch_repeatability
from captum_boundary.errors import BoundaryValueError
from captum_boundary.search import BoundaryPoints
from captum_boundary.search._given import points_for
from captum_boundary.visualization._boundary_words import BoundaryWords, check_example
from captum_boundary.visualization._panels import as_plain_text, wrapped
from captum_boundary.visualization._plane import Plane, Scene, normal_at, plane_through, scores_in

__all__ = ["plot_boundary_slice"]

# The palette of Okabe and Ito, made for all kinds of color vision; lightened, for there are lines to be drawn on it.
_PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_OTHERS = "#999999"
_ARROW = "#A50026"
_LIGHTNESS = 0.5
_TITLE, _LABEL = 60, 24  # characters of a line

Frame = tuple[float, float, float, float]


def plot_boundary_slice(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    boundary: BoundaryPoints,
    additional_forward_args: object = None,
    *,
    example: int = 0,
    direction: TensorOrTupleOfTensorsGeneric | None = None,
    extent: float | None = None,
    resolution: int = 50,
    class_names: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
    internal_batch_size: int = 64,
    plt_fig_axis: tuple[Figure, Axes] | None = None,
) -> tuple[Figure, Axes]:
    r"""Draw the decision regions of a model in a plane through an input and its boundary point.

    Colors are the predicted classes, thin lines the levels of the margin of the target class, and the thick line is
    its boundary, where the margin is zero. The arrow is the unit normal at the boundary point, as far as it lies in the
    plane; at the nearest point of a smooth boundary it points at the input. The dashed line from the boundary point to
    the input is the path along which BoundaryIntegratedGradients integrates.

    Inputs of two features are shown in their own coordinates. For all others, the horizontal axis leads from the input
    (at 0) to the boundary point, and the vertical one is orthogonal to it; distances are Euclidean. The plane leads
    through points that need not be proper inputs: pixels may leave their range in it.

    Args:

        forward_func (Callable): Returns class scores ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for a binary model.
        inputs (Tensor or tuple[Tensor, ...]): Inputs of any kind, floating point; N examples.
        boundary (BoundaryPoints): Boundary points of these inputs.
        additional_forward_args (Any, optional): Further arguments of ``forward_func``, given after ``inputs``. Of
            tensors with N entries, that of the example is used. Default: None
        example (int, optional): Row of the input to draw. Default: 0
        direction (Tensor or tuple[Tensor, ...], optional): Second direction of the plane, shaped like one example; what
            is parallel to the first is taken away. The displacement to the boundary point of another class is a good
            choice. Default: None, the gradient at the boundary point towards the class that comes third there; a random
            direction for binary models.
        extent (float, optional): Half the side of the picture, in the units of the inputs, around the middle of input
            and boundary point. Default: None, one and a half times their distance.
        resolution (int, optional): Points a side at which the model is evaluated. Scores are interpolated between them.
            Default: 50
        class_names (Sequence[str], optional): Names of all classes, in their order. Default: None, their numbers.
        generator (torch.Generator, optional): Source of the random direction. Default: None, a fixed seed: the same one
            every time.
        internal_batch_size (int, optional): Points that pass through the model at once, to bound memory. Default: 64
        plt_fig_axis (tuple, optional): Figure and axes to draw in. Default: None, new ones of matplotlib's pyplot.

    Returns:

        - **figure** (*Figure*): The figure, to be shown, saved or closed by the caller.
        - **axes** (*Axes*): Its axes.

    Raises:

        BoundaryTypeError: For inputs, outputs, a ``boundary`` or a ``direction`` of the wrong type.
        BoundaryValueError: For inputs, outputs and a ``boundary`` of the wrong shape or value, an ``example`` that does
            not exist or has no boundary point, a ``direction`` along the path, numbers that are not positive, and
            inputs of one feature.

    Examples::

        >>> import torch
        >>> from captum_boundary import NearestBoundary
        >>> from captum_boundary.visualization import plot_boundary_slice
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        >>> inputs = torch.randn(4, 2)
        >>> boundary = NearestBoundary(model).find(inputs)
        >>> figure, axes = plot_boundary_slice(model, inputs, boundary, example=1, resolution=20)
        >>> axes.get_xlabel()
        'feature 0'
    """
    tensors = check_inputs(inputs)
    points = points_for(tensors, boundary, same_kind=False)
    _check_numbers(boundary, example, extent, resolution, internal_batch_size)
    words = BoundaryWords(boundary, class_names)
    with geometry(), watch_repeatability(forward_func):
        oracle = MarginOracle(forward_func, tensors, None, additional_forward_args, internal_batch_size)
        row = oracle.all_rows[[example]]
        target, adversarial = int(boundary.target[example]), int(boundary.adversarial[example])
        scene = Scene(oracle, row, oracle.x[row], oracle.pack(points)[row], target, adversarial)
        plane = plane_through(scene, direction, generator)
        marked = plane.coordinates(torch.cat([scene.x, scene.point]))
        distance = float((marked[0] - marked[1]).norm())
        half = 1.5 * distance if extent is None else extent
        corner = marked.mean(dim=0) - half
        scores, classes = scores_in(plane, scene, corner, 2 * half, resolution, internal_batch_size)
        arrow = plane.project(normal_at(scene))[0].cpu()

    figure, axis = plt_fig_axis or plt.subplots(figsize=(7.2, 4.8), layout="compressed")
    left, bottom = corner.tolist()
    frame = (left, left + 2 * half, bottom, bottom + 2 * half)
    handles = _draw_regions(axis, scores.cpu(), classes.cpu(), scene, words, frame)
    handles += _draw_path(axis, marked.cpu(), arrow, half)
    here, there = words.sides(example)
    axis.set_title(wrapped(f"{here} | {there}, {words.distance(example)}", _TITLE), fontsize=10)
    _name_axes(axis, plane)
    axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8, frameon=False)
    as_plain_text(axis)
    return figure, axis


def _check_numbers(boundary: BoundaryPoints, example: int, extent: float | None, resolution: int, chunk: int) -> None:
    check_count("resolution", resolution)
    check_count("internal_batch_size", chunk)
    if resolution < 2:
        raise BoundaryValueError(f"resolution must be at least 2, but it is {resolution}.")
    check_positive("extent", extent, optional=True)
    check_example(boundary, example)


def _draw_regions(
    axis: Axes, scores: Tensor, classes: Tensor, scene: Scene, words: BoundaryWords, frame: Frame
) -> list[Any]:
    """Color the regions, draw the levels of the margin, and return what the legend says of them."""
    winners = classes[scores.argmax(dim=0)]
    labels, sizes = torch.unique(winners, return_counts=True)
    by_size = labels[sizes.argsort(descending=True)].tolist()
    labels_shown = list(dict.fromkeys([scene.target, scene.adversarial, *by_size]))
    named, n_others = labels_shown[: len(_PALETTE)], len(labels_shown) - len(_PALETTE)
    places = torch.full_like(winners, len(_PALETTE))
    for place, label in enumerate(named):
        places[winners == label] = place
    colors = ListedColormap([_light(color) for color in (*_PALETTE, _OTHERS)])
    axis.imshow(
        places.numpy(),
        colors,
        vmin=-0.5,
        vmax=len(_PALETTE) + 0.5,
        extent=frame,
        origin="lower",
        interpolation="nearest",
    )
    _draw_margin(axis, scores, int((classes == scene.target).nonzero()), frame)
    names = [wrapped(words.name(label), _LABEL) for label in named]
    handles: list[Any] = [Patch(facecolor=colors(place), label=name) for place, name in enumerate(names)]
    if n_others > 0:
        handles.append(Patch(facecolor=_light(_OTHERS), label=f"{n_others} other classes"))
    handles.append(Line2D([], [], color="black", linewidth=2, label="boundary"))
    of_target = wrapped(f"margin of {words.name(scene.target)}", _LABEL)
    handles.append(Line2D([], [], color="black", linewidth=0.5, label=of_target))
    return handles


def _draw_margin(axis: Axes, scores: Tensor, target: int, frame: Frame) -> None:
    columns = scores.flatten(1).T
    margin, _ = margin_and_rival(columns, torch.full((len(columns),), target, device=columns.device))
    margins = margin.view(scores.shape[1:]).double().numpy()
    levels = np.asarray(MaxNLocator(9).tick_values(margins.min(), margins.max()))
    lines = axis.contour(margins, levels[levels != 0], extent=frame, colors="black", linewidths=0.5, alpha=0.5)
    axis.clabel(lines, fontsize=6.5)
    axis.contour(margins, [0.0], extent=frame, colors="black", linewidths=2, linestyles="solid")


def _draw_path(axis: Axes, marked: Tensor, arrow: Tensor, half: float) -> list[Any]:
    """Mark the input, its boundary point, the path between them and the normal; return the legend's entries."""
    (x, y), (x_point, y_point) = marked.tolist()
    (path,) = axis.plot([x_point, x], [y_point, y], "--", color="black", linewidth=1, zorder=4, label="path of BIG")
    style: dict[str, Any] = {"linestyle": "none", "color": "white", "markeredgecolor": "black", "zorder": 5}
    (start,) = axis.plot([x], [y], marker="o", markersize=8, label="input", **style)
    (point,) = axis.plot([x_point], [y_point], marker="D", markersize=6, label="boundary point", **style)
    size = float(arrow.norm())
    if size == 0:
        return [start, point, path]
    across, up = (0.5 * half * arrow).tolist()
    style = {"arrowstyle": "-|>", "color": _ARROW, "linewidth": 2, "mutation_scale": 16, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", (x_point + across, y_point + up), (x_point, y_point), arrowprops=style, zorder=3)
    label = "unit normal" if size > 0.995 else f"unit normal,\n{size:.0%} in the plane"
    normal = Line2D([], [], color=_ARROW, linewidth=2, label=label)
    return [start, point, path, normal]


def _name_axes(axis: Axes, plane: Plane) -> None:
    if plane.axes.shape[1] == 2:
        axis.set(xlabel="feature 0", ylabel="feature 1")
    else:
        axis.set(xlabel="from the input towards the boundary point", ylabel="orthogonal to it")
    axis.tick_params(labelsize=8)


def _light(color: str) -> str:
    red, green, blue = (1 - _LIGHTNESS * (1 - part) for part in to_rgb(color))
    return to_hex((red, green, blue))
