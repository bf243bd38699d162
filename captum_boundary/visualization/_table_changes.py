"""What changed between rows of a table and their boundary points, feature by feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.checks import check_inputs
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search import BoundaryPoints
from captum_boundary.search._categories import Groups, group_columns
from captum_boundary.search._given import points_for

__all__ = ["Change", "TableChanges"]

# Changes below this fraction of the largest one of a row are those of rounding.
_ROUNDING = 1e-5


class Change(NamedTuple):
    """One feature, or one group of categories, that is not what it was."""

    name: str
    before: str
    after: str
    amount: float  # in the units of the search; for categories, that of the column that changes most
    is_category: bool


class TableChanges:
    """The features of a table by their names, and how they differ at the boundary points."""

    def __init__(
        self,
        inputs: object,
        boundary: BoundaryPoints,
        feature_names: Sequence[str] | None,
        categories: Groups | None,
        unscale: Callable[[Tensor], Tensor] | None,
    ) -> None:
        (table, *others) = check_inputs(inputs)
        if others or table.ndim != 2:
            shapes = [tuple(tensor.shape) for tensor in (table, *others)]
            raise BoundaryValueError(f"inputs must be one table of shape (N, D), but the shapes are {shapes}.")
        (points,) = points_for((table,), boundary, same_kind=False)
        self._before, self._after = table.detach().double().cpu(), points.double().cpu()
        self._names = _names_of(feature_names, table.shape[1])
        self._groups = group_columns({} if categories is None else categories)
        largest = max((column for columns in self._groups.values() for column in columns), default=-1)
        if largest >= table.shape[1]:
            raise BoundaryValueError(
                f"categories must hold columns of inputs, which have {table.shape[1]}, but they hold {largest}."
            )
        self._shown_before, self._shown_after = (
            (_unscaled(unscale, rows).double().cpu() for rows in (table.detach(), points))
            if unscale is not None
            else (self._before, self._after)
        )

    def of(self, row: int) -> list[Change]:
        """What changed in a row, the largest change first."""
        difference = self._after[row] - self._before[row]
        least = _ROUNDING * float(difference.abs().max())
        in_groups = {column for columns in self._groups.values() for column in columns}
        changes = [
            self._of_column(row, column, float(difference[column]))
            for column in range(len(difference))
            if column not in in_groups and abs(float(difference[column])) > least
        ]
        changes += [
            self._of_group(row, name, columns)
            for name, columns in self._groups.items()
            if float(difference[list(columns)].abs().max()) > least
        ]
        return sorted(changes, key=lambda change: -abs(change.amount))

    def _of_column(self, row: int, column: int, amount: float) -> Change:
        before, after = (_number(float(rows[row, column])) for rows in (self._shown_before, self._shown_after))
        return Change(self._names[column], before, after, amount, is_category=False)

    def _of_group(self, row: int, name: str | int, columns: tuple[int, ...]) -> Change:
        label = name if isinstance(name, str) else self._names[columns[0]] if len(columns) == 1 else ""
        rows = [rows[row, list(columns)] for rows in (self._before, self._after)]
        before, after = (self._category(values, label, columns) for values in rows)
        amount = float((rows[1] - rows[0]).abs().max())  # 1 from one category to another
        return Change(label, before, after, amount, is_category=True)

    def _category(self, values: Tensor, label: str, columns: tuple[int, ...]) -> str:
        """The category that a group has; all its values where it has none, as points of ordinary searches."""
        if len(columns) == 1 and float(values[0]) in (0.0, 1.0):
            return "yes" if values[0] else "no"
        if len(columns) > 1 and sorted(values.tolist()) == [0.0] * (len(columns) - 1) + [1.0]:
            name = self._names[columns[int(values.argmax())]]
            for mark in ("_", "=", ": "):  # as encoders put the column before its category
                name = name.removeprefix(f"{label}{mark}") if label else name
            return name
        return "(" + ", ".join(_number(value) for value in values.tolist()) + ")"


def _names_of(feature_names: Any, n_features: int) -> list[str]:
    if feature_names is None:
        return [f"feature {index}" for index in range(n_features)]
    if isinstance(feature_names, str):
        raise BoundaryTypeError(f"feature_names must be a sequence of names, but it is the string {feature_names!r}.")
    names = [str(name) for name in feature_names]
    if len(names) != n_features:
        raise BoundaryValueError(
            f"feature_names must name all {n_features} columns of inputs, but it has {len(names)} names."
        )
    return names


def _unscaled(unscale: Callable[[Tensor], Any], rows: Tensor) -> Tensor:
    given = unscale(rows)
    values = torch.as_tensor(given)
    if values.shape != rows.shape:
        raise BoundaryValueError(
            f"unscale must return a table of the shape of inputs, {tuple(rows.shape)}, but it returned "
            f"{tuple(values.shape)}."
        )
    return values


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
