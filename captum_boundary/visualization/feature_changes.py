"""What would have to be different in a row of a table: in a sentence, and as a bar chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from captum_boundary._core.checks import check_count
from captum_boundary.search import BoundaryPoints
from captum_boundary.search._categories import Groups
from captum_boundary.visualization._boundary_words import BoundaryWords, check_example
from captum_boundary.visualization._panels import as_plain_text, wrapped
from captum_boundary.visualization._table_changes import Change, TableChanges

__all__ = ["describe_feature_changes", "plot_feature_changes"]

_TITLE, _LABEL = 60, 24  # characters of a line
# Of the palette of Okabe and Ito, made for all kinds of color vision.
_COLORS = {"higher": "#D55E00", "lower": "#0072B2", "another category": "#009E73"}


def describe_feature_changes(
    inputs: Tensor,
    boundary: BoundaryPoints,
    *,
    feature_names: Sequence[str] | None = None,
    categories: Groups | None = None,
    class_names: Sequence[str] | None = None,
    unscale: Callable[[Tensor], Tensor] | None = None,
    n_features: int = 5,
) -> list[str]:
    r"""Say for every row of a table what would have to be different for another decision.

    Args:

        inputs (Tensor): Table ``(N, D)``.
        boundary (BoundaryPoints): Boundary points of these rows, such as those of a
            :class:`~captum_boundary.search.CategoricalBoundary`, or of any other search.
        feature_names (Sequence[str], optional): Names of all columns. Default: None, their numbers.
        categories (Sequence or Mapping, optional): Groups of one-hot columns that are told as one, in the form of
            :class:`~captum_boundary.search.CategoricalBoundary`. Of columns ``color_red`` in a group ``"color"``, the
            category is called ``red``. Default: None, no groups.
        class_names (Sequence[str], optional): Names of all classes, in their order. Default: None, their numbers.
        unscale (Callable, optional): Function from a scaled table to the values to tell, such as
            ``lambda x: x * std + mean``. Default: None, the values as they are.
        n_features (int, optional): Changes told at most, the largest first; the others are counted. Default: 5

    Returns:

        - **sentences** (*list[str]*): One for each row.

    Raises:

        BoundaryTypeError: For inputs, boundary points, names or groups of the wrong type.
        BoundaryValueError: For inputs that are no table, a ``boundary`` of other inputs, and names, groups or values of
            another number of columns.

    Examples::

        >>> import torch
        >>> from captum_boundary import NearestBoundary
        >>> from captum_boundary.search import CategoricalBoundary
        >>> from captum_boundary.visualization import describe_feature_changes
        >>> model = torch.nn.Linear(3, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[0.2, -1.0, 1.0]]), torch.tensor([0.1])
        >>> categories = {"color": [1, 2]}
        >>> inputs = torch.tensor([[1.0, 1.0, 0.0]])
        >>> boundary = CategoricalBoundary(NearestBoundary(model), categories).find(inputs)
        >>> names = ["age", "color_red", "color_blue"]
        >>> describe_feature_changes(inputs, boundary, feature_names=names, categories=categories)
        ['class 1 instead of class 0, if color were blue instead of red.']
    """
    check_count("n_features", n_features)
    changes = TableChanges(inputs, boundary, feature_names, categories, unscale)
    words = BoundaryWords(boundary, class_names)
    return [
        _sentence(words, row, changes.of(row), n_features)
        if boundary.found[row]
        else f"No other decision than {words.sides(row)[0]} was found."
        for row in range(len(boundary))
    ]


def plot_feature_changes(
    inputs: Tensor,
    boundary: BoundaryPoints,
    *,
    example: int = 0,
    feature_names: Sequence[str] | None = None,
    categories: Groups | None = None,
    class_names: Sequence[str] | None = None,
    unscale: Callable[[Tensor], Tensor] | None = None,
    n_features: int = 10,
    plt_fig_axis: tuple[Figure, Axes] | None = None,
) -> tuple[Figure, Axes]:
    r"""Draw what would have to be different in a row of a table for another decision, as a bar chart.

    A bar for each feature that changes, the largest change at the top, in the units of the search: to the right where
    the feature grows, to the left where it falls. A category that takes the place of another has a bar of length 1, to
    the right. Beside the bars stand the values before and after.

    Args:

        inputs (Tensor): Table ``(N, D)``.
        boundary (BoundaryPoints): Boundary points of these rows.
        example (int, optional): Row to draw. Default: 0
        feature_names (Sequence[str], optional): Names of all columns. Default: None, their numbers.
        categories (Sequence or Mapping, optional): Groups of one-hot columns that are told as one, in the form of
            :class:`~captum_boundary.search.CategoricalBoundary`. Default: None, no groups.
        class_names (Sequence[str], optional): Names of all classes, in their order. Default: None, their numbers.
        unscale (Callable, optional): Function from a scaled table to the values to write beside the bars, such as
            ``lambda x: x * std + mean``. Default: None, the values as they are.
        n_features (int, optional): Bars at most. How many changes are left out is said below. Default: 10
        plt_fig_axis (tuple, optional): Figure and axes to draw in. Default: None, new ones of matplotlib's pyplot.

    Returns:

        - **figure** (*Figure*): The figure, to be shown, saved or closed by the caller.
        - **axes** (*Axes*): Its axes.

    Raises:

        BoundaryTypeError: For inputs, boundary points, names or groups of the wrong type.
        BoundaryValueError: For inputs that are no table, a ``boundary`` of other inputs, names, groups or values of
            another number of columns, and an ``example`` that does not exist or has no boundary point.

    Examples::

        >>> import torch
        >>> from captum_boundary import NearestBoundary
        >>> from captum_boundary.visualization import plot_feature_changes
        >>> model = torch.nn.Linear(4, 3)
        >>> inputs = torch.randn(5, 4)
        >>> boundary = NearestBoundary(model, norm=1).find(inputs)
        >>> figure, axes = plot_feature_changes(inputs, boundary, feature_names=["age", "income", "rooms", "year"])
        >>> axes.get_xlabel()
        'change, in the units of the search'
    """
    check_count("n_features", n_features)
    changes = TableChanges(inputs, boundary, feature_names, categories, unscale)
    words = BoundaryWords(boundary, class_names)
    check_example(boundary, example)
    every_change = changes.of(example)
    shown = every_change[:n_features]
    height = 1.4 + 0.36 * max(len(shown), 1)
    figure, axis = plt_fig_axis or plt.subplots(figsize=(7.2, height), layout="compressed")
    _draw_bars(axis, shown)
    here, there = words.sides(example)
    axis.set_title(wrapped(f"{there} instead of {here}, {words.distance(example)}", _TITLE), fontsize=10)
    left_out = len(every_change) - len(shown)
    axis.set_xlabel("change, in the units of the search" + (f" ({left_out} smaller not shown)" if left_out else ""))
    as_plain_text(axis)
    return figure, axis


def _sentence(words: BoundaryWords, row: int, changes: list[Change], n_features: int) -> str:
    here, there = words.sides(row)
    parts = [
        f"{change.name} were {change.after} instead of {change.before}"
        if change.name
        else f"it were {change.after} instead of {change.before}"
        for change in changes[:n_features]
    ]
    if len(changes) > n_features:
        parts.append(f"{len(changes) - n_features} more changed by less")
    listed = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + "".join(parts[-1:])
    return f"{there} instead of {here}, if {listed}."


def _draw_bars(axis: Axes, changes: list[Change]) -> None:
    kinds = [
        "another category" if change.is_category else "higher" if change.amount > 0 else "lower" for change in changes
    ]
    amounts = [change.amount for change in changes]
    places = list(range(len(changes)))
    axis.barh(places, amounts, color=[_COLORS[kind] for kind in kinds], height=0.65)
    style: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
    for place, change in enumerate(changes):  # on the right, where no name of a feature stands
        label = wrapped(f"{change.before} → {change.after}", _LABEL)
        axis.annotate(label, (max(change.amount, 0.0), place), **style)
    axis.set_yticks(places, [wrapped(change.name or "category", _LABEL) for change in changes], fontsize=9)
    axis.invert_yaxis()
    axis.axvline(0, color="0.3", linewidth=0.8)
    axis.margins(x=0.3)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    handles = [Patch(color=color, label=kind) for kind, color in _COLORS.items() if kind in kinds]
    if handles:
        axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8, frameon=False)
