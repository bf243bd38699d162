"""What a search returns."""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields, replace
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from captum_boundary._core.bounds import Bounds, bounds_of_rows
from captum_boundary.search.boundary_status import BoundaryStatus

__all__ = ["BoundaryPoints"]


@dataclass(frozen=True, eq=False)
class BoundaryPoints:
    r"""Points on the decision boundary, one for each of N examples.

    A point lies a hair beyond the boundary: the model's decision there is strictly on the other side, at a margin that
    is a tiny fraction of the input's.

    Attributes:

        points (Tensor or tuple[Tensor, ...]): Boundary points, with the structure, shapes, dtype and device of the
            inputs. Equal to the input where nothing was found.
        target (Tensor): Class whose region is left (or entered, if the input lies outside), ``(N,)`` integers. For a
            model with one output: 1 for its positive side, 0 for its negative side.
        adversarial (Tensor): Class on the other side of the boundary, ``(N,)`` integers; -1 where nothing was found.
        distance (Tensor): Distance from the input, ``(N,)``, in the norm of the search and the units of the inputs;
            infinity where nothing was found.
        margin (Tensor): Margin of ``target`` at ``points``, ``(N,)``: strictly of the sign opposite to that at the
            input where a point was found, the margin of the input itself where not.
        found (Tensor): Whether a boundary point was found, ``(N,)`` booleans.
        n_forward (Tensor): Forward passes spent on each example, ``(N,)`` integers.
        n_gradient (Tensor): Backward passes spent on each example, ``(N,)`` integers. Each follows one of the forward
            passes.
        status (Tensor): Which phase of the search found the point, and why the search of the example ended, ``(N,)``
            integers: values of :class:`~captum_boundary.search.BoundaryStatus`.
        norm (float): Norm of the search. Default: 2
        bounds (tuple or None): Limits of the search, as it was given them. Default: None, no limits.
    """

    points: Tensor | tuple[Tensor, ...]
    target: Tensor
    adversarial: Tensor
    distance: Tensor
    margin: Tensor
    found: Tensor
    n_forward: Tensor
    n_gradient: Tensor
    norm: float = 2
    bounds: Bounds = None
    status: Tensor = None  # type: ignore[assignment]  # filled in below, where it is not told

    def __post_init__(self) -> None:
        if self.status is None:
            unreported = torch.where(self.found, BoundaryStatus.FOUND, BoundaryStatus.NOT_FOUND)
            object.__setattr__(self, "status", unreported)

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, rows: SupportsIndex | slice | list[int] | Tensor) -> BoundaryPoints:
        """The boundary points of some rows (an index, a slice, indices or a mask), to work in batches or on one."""
        if isinstance(rows, SupportsIndex) and not isinstance(rows, Tensor):
            rows = [operator.index(rows)]
        elif isinstance(rows, Tensor) and rows.ndim == 0:
            rows = rows[None]

        def of_rows(values: Any) -> Any:
            if isinstance(values, tuple):
                return tuple(map(of_rows, values))
            here = rows.to(values.device) if isinstance(rows, Tensor) else rows
            return values[here]

        points = self.points if isinstance(self.points, tuple) else (self.points,)
        names = [field.name for field in fields(self) if field.name not in ("norm", "bounds")]
        return replace(
            self,
            **{name: of_rows(getattr(self, name)) for name in names},
            bounds=bounds_of_rows(self.bounds, points, of_rows),
        )
