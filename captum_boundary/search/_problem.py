"""What is searched: for each of n examples the nearest point of a box that lies beyond the boundary."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.geometry import Box, power_of_two, row_dot
from captum_boundary._core.norms import LINF, Norm, norm_of
from captum_boundary._core.oracle import Linearization, MarginOracle

__all__ = ["ActiveSet", "Incumbent", "Phase", "Problem", "linearized_boundary"]

# How far beyond the boundary a final point lies, relative to the depth of its input: near enough to *be* the boundary
# (distances are right to the larger number), far enough to keep its label when it is evaluated in another batch.
_BAND = {torch.float64: (1e-10, 4e-9), torch.float32: (1.5e-5, 6e-5)}
# Relative gains in distance below this are not worth a gradient.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# Up to here restarts find other parts of the boundary. In more dimensions descents pay better.
_FEW_DIMENSIONS = 512
# Inputs whose largest value is larger than this, or smaller than its inverse, are searched in another unit.
_LARGE = 2.0**30


class Problem:
    """The model at n examples, the box and norm of the search, and the numbers that make depths large or small.

    Attributes:

        x (Tensor): The inputs, ``(n, D)``.
        scale (Tensor): Depth of the inputs, ``(n,)``, the unit in which other depths are large or small.
        min_overshoot (Tensor): Least amount by which final points lie beyond the boundary, ``(n,)``.
        max_overshoot (Tensor): Largest such amount, ``(n,)``.
        overshoot (Tensor): Amount to aim at, between the two, ``(n,)``.
        noise (Tensor): By how much rounding changes scores, relative to the largest of an example, a scalar.
        tolerance (float): Relative gain in distance below which an example is done.
        few_dimensions (bool): Whether inputs are so small that restarts pay.
    """

    def __init__(self, oracle: MarginOracle, box: Box, norm: float | Norm, noise: Tensor) -> None:
        self.oracle = oracle
        self.box = box
        self.norm = norm_of(norm)
        self.noise = noise
        self.tolerance = _TOLERANCE[oracle.dtype]
        self.few_dimensions = oracle.x.shape[1] <= _FEW_DIMENSIONS
        relative_min, relative_max = _BAND[oracle.dtype]
        depth = oracle.start_depth
        floor = noise * oracle.start_scores.abs().amax(dim=1).to(depth)
        min_overshoot = torch.maximum(relative_min * depth, floor).clamp_min(torch.finfo(depth.dtype).tiny)
        max_overshoot = torch.maximum(relative_max * depth, 2 * min_overshoot)
        overshoot, scale = (min_overshoot * max_overshoot).sqrt(), torch.maximum(depth, min_overshoot)
        self._set(torch.stack([min_overshoot, max_overshoot, overshoot, scale], dim=1))

    def _set(self, numbers: Tensor) -> None:
        self._numbers = numbers  # together, so that choosing rows is one operation
        self.min_overshoot, self.max_overshoot, self.overshoot, self.scale = numbers.unbind(dim=1)
        self.x = self.oracle.x

    def __len__(self) -> int:
        return len(self.x)

    def select(self, rows: Tensor | slice) -> Problem:
        """The same for some rows, in any order, also several times."""
        part = copy.copy(self)
        part.oracle = self.oracle.select(rows)
        part.box = self.box.of(rows)
        part._set(self._numbers[rows])
        return part

    def in_plain_units(self) -> Problem:
        """The same in coordinates in which the norm has no weights, nor inputs squares that overflow or underflow.

        They are those of ``oracle.to_units``.
        """
        norm, factors = self.norm.plain()
        x = self.x if factors is None else self.x * factors
        least, largest = torch.stack(LINF.length(x).aminmax()).tolist()  # one question to an accelerator
        if least > 1 / _LARGE and largest < _LARGE and factors is None:
            return self
        size = power_of_two(x)
        is_ordinary = (size > 1 / _LARGE) & (size < _LARGE) | (x == 0).all(dim=1, keepdim=True)
        unit = torch.where(is_ordinary, 1.0, size)
        unit = unit if factors is None else unit / factors
        part = copy.copy(self)
        part.oracle, part.norm = self.oracle.in_units(unit, self.box), norm
        part.x = part.oracle.x
        lower, upper = self.box.lower / unit, self.box.upper / unit
        part.box = self.box._replace(lower=torch.minimum(lower, part.x), upper=torch.maximum(upper, part.x))
        return part

    @property
    def has_data_range(self) -> bool:
        """Whether to search in the range of an input's own values first: without limits, in many dimensions.

        Where a model was never trained, its boundary has many more corners to be caught in.
        """
        return not (self.box.is_limited or self.few_dimensions)

    def in_data_range(self, is_limited: Tensor | None = None) -> Problem:
        """The same, where no coordinate leaves the range between the least and the largest value of its input.

        If given, ``is_limited`` ``(n,)`` says for which examples: the others stay without limits.
        """
        lowest, highest = self.x.aminmax(dim=1, keepdim=True)
        if is_limited is not None:
            lowest = torch.where(is_limited[:, None], lowest, -torch.inf)
            highest = torch.where(is_limited[:, None], highest, torch.inf)
        part = copy.copy(self)
        part.box = Box(lowest, highest)
        return part

    def lies_in_data_range(self, points: Tensor) -> Tensor:
        """Whether no coordinate of ``points`` lies outside the range of its input's own values, ``(n,)``."""
        box = self.in_data_range().box
        return ((points >= box.lower) & (points <= box.upper)).all(dim=1)

    def distance(self, points: Tensor) -> Tensor:
        """Distances ``(n,)`` of ``points`` from their inputs."""
        return self.norm.length(points - self.x)

    def signed_margin(self, points: Tensor) -> Tensor:
        """Signed margins ``(n,)`` of ``points``: negative beyond the boundary."""
        return self.oracle.depth(points)[0]

    def linearized_distance(self, plane: Linearization) -> Tensor:
        """Distances ``(n,)`` to where margins would vanish if they were linear; infinite where the box forbids it."""
        nearest, is_reached = linearized_boundary(self.norm, self.x, plane.value, plane.slope, self.box)
        return torch.where(is_reached, self.distance(nearest), torch.inf)

    def against(self, rival: Tensor) -> Problem:
        """The same, where a boundary is that of one rival class ``(n,)``; of all where that is -1."""
        return Problem(self.oracle.against(rival), self.box, self.norm, self.noise)

    def linearize(self, points: Tensor, temperature: Tensor | None = None) -> Linearization:
        """The decision at ``points``, to first order; its slope is smoothed if there is a temperature ``(n,)``."""
        if temperature is None:
            return self.oracle.linearize(points)
        return self.oracle.linearize_smoothed(points, temperature)


def linearized_boundary(
    norm: Norm, points: Tensor, signed_margin: Tensor, slope: Tensor, box: Box
) -> tuple[Tensor, Tensor]:
    """Where margins would vanish if they were linear: the nearest points, and whether the box lets them, ``(n,)``."""
    required = signed_margin.clamp_min(0.0)
    nearest = norm.project_onto_half_space(points, slope, required, box)
    return nearest, row_dot(slope, points - nearest) >= 0.99 * required


class Phase(IntEnum):
    """The phase of a search that found a point: the tens of its :class:`BoundaryStatus`."""

    NEWTON = 2
    LINE_SEARCH = 3
    REFINEMENT = 4
    DESCENT = 5
    RESTART = 6
    CATEGORIES = 7


class Incumbent:
    """The nearest points known to lie beyond the boundary, at distance infinity where there is none yet.

    Attributes:

        points (Tensor): Points, ``(n, D)``; the inputs where there is none.
        distance (Tensor): Their distances, ``(n,)``.
        phase (Tensor): The phase that found them, ``(n,)``: the tens of a :class:`BoundaryStatus`.
    """

    def __init__(self, points: Tensor, distance: Tensor, phase: Tensor) -> None:
        self.points = points
        self.distance = distance
        self.phase = phase

    @classmethod
    def none(cls, problem: Problem) -> Incumbent:
        return cls(problem.x, torch.full_like(problem.scale, torch.inf), torch.zeros_like(problem.oracle.target))

    @classmethod
    def joined(cls, parts: Sequence[Incumbent]) -> Incumbent:
        """Those of several batches, one after the other."""
        fields = ("points", "distance", "phase")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))

    @property
    def is_found(self) -> Tensor:
        return torch.isfinite(self.distance)

    def improved_by(self, points: Tensor, distance: Tensor, margin: Tensor, phase: int | None = None) -> Incumbent:
        """The nearer of these and of ``points``, where the signed margin of those is negative.

        Without a phase, :meth:`found_by` is to name it in the end.
        """
        distance = torch.where(margin < 0, distance, torch.inf)
        nearer = distance < self.distance
        return Incumbent(
            torch.where(nearer[:, None], points, self.points),
            torch.where(nearer, distance, self.distance),
            self.phase if phase is None else self.phase.masked_fill(nearer, phase),
        )

    def found_by(self, phase: int, before: Tensor) -> Incumbent:
        """These, where those that are nearer than ``before`` ``(n,)`` were found by a phase."""
        return Incumbent(self.points, self.distance, self.phase.masked_fill(self.distance < before, phase))

    def nearer_of(self, others: Incumbent) -> Incumbent:
        """The nearer ones of these and of others."""
        nearer = others.distance < self.distance
        return Incumbent(
            torch.where(nearer[:, None], others.points, self.points),
            torch.where(nearer, others.distance, self.distance),
            torch.where(nearer, others.phase, self.phase),
        )

    def select(self, rows: Tensor | slice) -> Incumbent:
        return Incumbent(self.points[rows], self.distance[rows], self.phase[rows])

    def replaced(self, rows: Tensor, part: Incumbent) -> Incumbent:
        """These, with those of some rows replaced."""
        return Incumbent(
            self.points.index_copy(0, rows, part.points),
            self.distance.index_copy(0, rows, part.distance),
            self.phase.index_copy(0, rows, part.phase),
        )


class ActiveSet:
    """The rows of a batch that an iteration still works on, side by side, with all that belongs to them.

    Args:

        state (Any): What belongs to the rows: tensors whose first dimension is that of the rows, and objects with a
            method ``select(rows)``. It is read and replaced as attributes of this object.
    """

    def __init__(self, rows: Tensor, **state: Any) -> None:
        self.rows = rows
        self._names = list(state)
        self.__dict__.update(state)

    def __len__(self) -> int:
        return len(self.rows)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"An active set has no state {name!r}.")

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def staying(self, is_active: Tensor) -> Tensor | None:
        """The places of the rows that are active ``(n,)``, or None if all are."""
        places = is_active.nonzero().flatten()
        return None if len(places) == len(self.rows) else places

    def keep(self, is_active: Tensor) -> None:
        """Drop the rows that are not active ``(n,)``."""
        self.take(self.staying(is_active))

    def take(self, places: Tensor | None) -> None:
        """Drop all rows but those at some places; none if that is None. Where none is left, their state stays."""
        if places is None:
            return
        self.rows = self.rows[places]
        for name in self._names if len(places) > 0 else ():
            value = getattr(self, name)
            setattr(self, name, value[places] if isinstance(value, Tensor) else value.select(places))

    def write(self, whole: Any, part: Any) -> Any:
        """``whole`` with the values of the active rows replaced by ``part``."""
        return whole.index_copy(0, self.rows, part) if isinstance(whole, Tensor) else whole.replaced(self.rows, part)
