"""Groups of columns that only some values are meant for: one of several categories, or yes and no."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.checks import shown
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["Categories", "Groups", "columns_of", "group_columns"]

Groups = Sequence[Sequence[int]] | Mapping[str, Sequence[int]]


def columns_of(name: str, columns: object) -> tuple[int, ...]:
    """Columns as a tuple of indices from 0, or what is wrong with them."""
    if isinstance(columns, str) or not isinstance(columns, Sequence):
        raise BoundaryTypeError(f"{name} must be a list of columns, but it is {type(columns).__name__}.")
    if not all(isinstance(column, numbers.Integral) and not isinstance(column, bool) for column in columns):
        raise BoundaryTypeError(f"{name} must hold the indices of columns, but it is {columns!r}.")
    indices = tuple(int(column) for column in columns)
    if any(column < 0 for column in indices) or len(set(indices)) != len(indices):
        raise BoundaryValueError(f"{name} must hold each column once, counted from 0, but it is {columns!r}.")
    return indices


def group_columns(categories: object) -> dict[str | int, tuple[int, ...]]:
    """The columns of each group, by its name or its place, or what is wrong with them."""
    if isinstance(categories, Mapping):
        named: list[tuple[Any, object]] = list(categories.items())
    elif isinstance(categories, Sequence) and not isinstance(categories, str):
        named = list(enumerate(categories))
    else:
        raise BoundaryTypeError(
            "categories must be a list of groups of columns, such as [[3, 4, 5], [6]], or a mapping from names to "
            f"them, but it is {type(categories).__name__}."
        )
    groups = {name: columns_of(f"categories[{name!r}]", columns) for name, columns in named}
    for name, columns in groups.items():
        if not columns:
            raise BoundaryValueError(f"categories[{name!r}] must hold at least one column, but it is empty.")
    everything = [column for columns in groups.values() for column in columns]
    twice = sorted({column for column in everything if everything.count(column) > 1})
    if twice:
        raise BoundaryValueError(f"Each column can belong to one group of categories, but {twice} belong to several.")
    return groups


class Categories(NamedTuple):
    """The options of all groups. A *combination* ``(n, G)`` holds the option that each group has.

    Attributes:

        values (Tensor): Values of each option, ``(O, D)``, zero outside of the columns of its group.
        group (Tensor): The group of each option, ``(O,)``.
        columns (Tensor): Whether a column belongs to a group, ``(G, D)``.
    """

    values: Tensor
    group: Tensor
    columns: Tensor

    @classmethod
    def of(cls, groups: Sequence[tuple[int, ...]], x: Tensor) -> Categories:
        """The options of ``groups`` in a table ``x`` ``(N, D)``: a group of one column is yes or no."""
        n_columns = x.shape[1]
        values, owners = [], []
        for index, columns in enumerate(groups):
            hot = list(range(len(columns))) if len(columns) > 1 else [None, 0]
            for place in hot:
                row = [0.0] * n_columns
                if place is not None:
                    row[columns[place]] = 1.0
                values.append(row)
                owners.append(index)
        belongs = [[column in columns for column in range(n_columns)] for columns in groups]
        return cls(
            x.new_tensor(values).view(-1, n_columns),
            torch.tensor(owners, dtype=torch.long, device=x.device),
            torch.tensor(belongs, dtype=torch.bool, device=x.device).view(-1, n_columns),
        )

    @property
    def n_groups(self) -> int:
        return len(self.columns)

    def combination_of(self, x: Tensor) -> Tensor:
        """The combination ``(n, G)`` of rows of a table ``(n, D)``; -1 where a group has no valid values."""
        parts = []
        for index in range(self.n_groups):
            options = (self.group == index).nonzero().flatten()
            here = self.columns[index]
            matches = (x[:, None, here] == self.values[options][:, here]).all(dim=2)
            parts.append(torch.where(matches.any(dim=1), options[matches.long().argmax(dim=1)], -1))
        return torch.stack(parts, dim=1) if parts else torch.zeros((len(x), 0), dtype=torch.long, device=x.device)

    def put(self, x: Tensor, combination: Tensor) -> Tensor:
        """Rows ``(n, D)`` with the values of a combination ``(n, G)``."""
        return torch.where(self.columns.any(dim=0), self.values[combination].sum(dim=1), x)

    def allowed(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Whether limits, ``(1 or n, D)`` each, leave room for each option, ``(1 or n, O)``."""
        inside = (self.values >= lower[:, None]) & (self.values <= upper[:, None])
        return (inside | ~self.columns[self.group]).all(dim=2)

    def check(self, x: Tensor, names: Sequence[object]) -> None:
        """Refuse rows with values that no option has."""
        invalid = self.combination_of(x) < 0
        if not invalid.any():
            return
        group = int(invalid.any(dim=0).nonzero()[0])
        columns = self.columns[group].nonzero().flatten().tolist()
        row = int(invalid[:, group].nonzero()[0])
        needed = "0 or 1" if len(columns) == 1 else "1 in one column and 0 in all others"
        raise BoundaryValueError(
            f"categories[{names[group]!r}], columns {columns}, must be {needed}, but row(s) "
            f"[{shown(invalid[:, group])}] are not: row {row} has {x[row, columns].tolist()}. Put a scaling of these "
            "columns into the model, and give them unscaled."
        )
