"""What a search returns."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from captum_boundary._core.bounds import Bounds, bounds_of_rows, joined_bounds
from captum_boundary._core.norms import Norm, norm_of
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search.boundary_status import BoundaryStatus

__all__ = ["BoundaryPoints"]

Rows = SupportsIndex | slice | Sequence[int] | Sequence[bool] | Tensor


@dataclass(frozen=True, eq=False, repr=False)
class BoundaryPoints:
    r"""Points on the decision boundary, one for each of N examples.

    A point lies just beyond the boundary: the decision there is strictly on the other side, at a margin of at most
    some 1e-4 of the input's in float32, and 1e-8 in float64, or of a few roundings of the scores. Points of a
    :class:`CategoricalBoundary` at which categories alone changed the decision lie farther beyond it.

    Indices, slices, lists and tensors of rows, also boolean ones, choose rows; :meth:`cat` joins what was searched in
    parts; ``torch.save`` and ``torch.load`` store and load it, also with ``weights_only=True``.

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
        norm (float or Norm): Norm of the search. Default: 2
        bounds (tuple or None): Limits of the search, as it was given them. Default: None, no limits.
        status (Tensor): Which phase of the search found the point, and why the search of the example ended, ``(N,)``
            integers: values of :class:`~captum_boundary.search.BoundaryStatus`. Default: None, which means ``FOUND`` or
            ``NOT_FOUND``

    Examples::

        >>> from captum_boundary import NearestBoundary
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.eye(2)
        >>> boundary = NearestBoundary(model).find(torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 0.2]]))
        >>> boundary
        BoundaryPoints(3 x (2,), found 3/3, l2 distance 0.141 to 0.707)
        >>> boundary[boundary.distance < 0.5]
        BoundaryPoints(2 x (2,), found 2/2, l2 distance 0.141 to 0.354)
        >>> BoundaryPoints.cat([boundary[:1], boundary[1:]])
        BoundaryPoints(3 x (2,), found 3/3, l2 distance 0.141 to 0.707)
    """

    points: Tensor | tuple[Tensor, ...]
    target: Tensor
    adversarial: Tensor
    distance: Tensor
    margin: Tensor
    found: Tensor
    n_forward: Tensor
    n_gradient: Tensor
    norm: float | Norm = 2
    bounds: Bounds = None
    status: Tensor = None  # type: ignore[assignment]  # filled in below, where it is not told

    def __post_init__(self) -> None:
        if self.status is None:
            unreported = torch.where(self.found, BoundaryStatus.FOUND, BoundaryStatus.NOT_FOUND)
            object.__setattr__(self, "status", unreported)

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, rows: Rows) -> BoundaryPoints:
        """The boundary points of some rows (an index, a slice, indices or a mask), to work in batches or on one."""
        chosen = rows if isinstance(rows, slice) else _row_indices(rows, len(self))

        def select(values: Tensor) -> Tensor:
            return values[chosen if isinstance(chosen, slice) else chosen.to(values.device)]

        return replace(self._mapped(select), bounds=bounds_of_rows(self.bounds, self._parts, select))

    @classmethod
    def cat(cls, parts: Sequence[BoundaryPoints]) -> BoundaryPoints:
        r"""The boundary points of several batches as those of one.

        Args:

            parts (Sequence[BoundaryPoints]): At least one, of inputs of the same structure and shapes, found in the
                same norm, on the same devices. Where their bounds differ, those of the result have a row for each
                example.

        Returns:

            - **boundary** (*BoundaryPoints*): All of them, in this order.

        Raises:

            BoundaryTypeError: If ``parts`` is not a list of BoundaryPoints.
            BoundaryValueError: If it is empty, or its norms or the structure, shapes or dtypes of its points differ.
        """
        if isinstance(parts, BoundaryPoints) or not isinstance(parts, Sequence):
            raise BoundaryTypeError(f"parts must be a list of BoundaryPoints, but it is {type(parts).__name__}.")
        if not parts:
            raise BoundaryValueError("parts must hold at least one BoundaryPoints, but it is empty.")
        for index, part in enumerate(parts):
            if not isinstance(part, BoundaryPoints):
                raise BoundaryTypeError(f"parts[{index}] must be BoundaryPoints, but it is {type(part).__name__}.")
            if part._form != parts[0]._form:
                raise BoundaryValueError(
                    "parts must share their norm and the structure, shapes and dtypes of their points, but parts[0] "
                    f"has {parts[0]._form} and parts[{index}] has {part._form}."
                )

        def joined(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            if isinstance(values[0], tuple):
                return tuple(map(torch.cat, zip(*values, strict=True)))
            return torch.cat(values)

        bounds = joined_bounds([(part.bounds, part._parts) for part in parts], isinstance(parts[0].points, tuple))
        return cls(**{name: joined(name) for name in _TENSORS}, norm=parts[0].norm, bounds=bounds)

    def to(self, device: torch.device | str | int) -> BoundaryPoints:
        r"""The same on another device, its bounds included.

        Args:

            device (torch.device or str or int): Where all tensors are to be.

        Returns:

            - **boundary** (*BoundaryPoints*): The same numbers there.
        """

        def moved(values: Any) -> Any:
            if isinstance(values, (tuple, list)):
                return type(values)(map(moved, values))
            return values.to(device) if isinstance(values, Tensor) else values

        norm = self.norm.to(device) if isinstance(self.norm, Norm) else self.norm
        return replace(self._mapped(lambda values: values.to(device)), norm=norm, bounds=moved(self.bounds))

    def __repr__(self) -> str:
        shapes = [tuple(part.shape[1:]) for part in self._parts]
        shape = tuple(shapes) if isinstance(self.points, tuple) else shapes[0]
        found = self.distance[self.found].tolist()
        nearest, farthest = (f"{least(found, default=0):.3g}" for least in (min, max))
        distance = "" if not found else nearest if nearest == farthest else f"{nearest} to {farthest}"
        return (
            f"BoundaryPoints({len(self)} x {shape}, found {len(found)}/{len(self)}"
            f"{f', {norm_of(self.norm).name} distance {distance}' if found else ''})"
        )

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.points if isinstance(self.points, tuple) else (self.points,)

    @property
    def _form(self) -> tuple[Any, ...]:
        shapes = [(tuple(part.shape[1:]), part.dtype) for part in self._parts]
        return self.norm, shapes if isinstance(self.points, tuple) else shapes[0]

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> BoundaryPoints:
        def of(values: Any) -> Any:
            return tuple(map(function, values)) if isinstance(values, tuple) else function(values)

        return replace(self, **{name: of(getattr(self, name)) for name in _TENSORS})


_TENSORS = tuple(field.name for field in fields(BoundaryPoints) if field.name not in ("norm", "bounds"))

# What `torch.load` may make of a file by default: tensors, numbers, and this class, whose making runs nothing else.
torch.serialization.add_safe_globals([BoundaryPoints])


def _row_indices(rows: Any, n_rows: int) -> Tensor:
    """Rows as indices ``(k,)``, whatever names them, or what is wrong with them."""
    if isinstance(rows, numbers.Integral) and not isinstance(rows, bool):
        row = int(rows)
        if not -n_rows <= row < n_rows:
            raise IndexError(f"There are {n_rows} boundary points, but row {row} was asked for.")  # ends a for loop
        return torch.tensor([row], device="cpu")
    try:
        if isinstance(rows, (tuple, str)):
            raise TypeError
        indices = rows if isinstance(rows, Tensor) else torch.as_tensor(rows, device="cpu")
        indices = indices.long() if indices.numel() == 0 and not isinstance(rows, Tensor) else indices
    except (TypeError, ValueError, RuntimeError):
        raise BoundaryTypeError(
            f"Rows are chosen by an index, a slice, indices or a mask, but not by {rows!r}."
        ) from None
    if indices.dtype == torch.bool:
        if indices.shape != (n_rows,):
            raise BoundaryValueError(
                f"A mask of rows must have shape ({n_rows},), one value for each example, but its shape is "
                f"{tuple(indices.shape)}."
            )
        return indices.nonzero().flatten()
    if indices.is_floating_point() or indices.is_complex() or indices.ndim > 1:
        raise BoundaryTypeError(
            f"Indices of rows must be a list or a vector of integers, but they are {indices.dtype} of shape "
            f"{tuple(indices.shape)}."
        )
    indices = indices.long().reshape(-1)
    outside = (indices < -n_rows) | (indices >= n_rows)
    if outside.any():
        raise BoundaryValueError(
            f"There are {n_rows} boundary points, but row {int(indices[outside][0])} was asked for."
        )
    return indices
