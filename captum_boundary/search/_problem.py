"""What is searched: for each of n examples the nearest point of a box that lies beyond the boundary."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from captum_boundary._core.geometry import Box, length
from captum_boundary._core.oracle import Linearization, MarginOracle

__all__ = ["Candidates", "Problem"]

# How far beyond the boundary a final point lies, relative to the depth of its input: near enough to *be* the boundary
# (distances are right to the larger number), far enough to keep its label when it is evaluated in another batch.
_BAND = {torch.float64: (1e-10, 4e-9), torch.float32: (1.5e-5, 6e-5)}
# Relative gains in distance below this are not worth a gradient.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# Up to here restarts find other parts of the boundary. In more dimensions descents pay better.
_FEW_DIMENSIONS = 512
_SLACK = 0.05  # of the depth of an input


class Problem:
    """The model at n examples, the box and norm of the search, and the numbers that make depths large or small.

    Attributes:

        x (Tensor): The inputs, ``(n, D)``.
        scale (Tensor): Depth of the inputs, ``(n,)``, the unit in which other depths are large or small.
        shallow (Tensor): Least amount by which final points lie beyond the boundary, ``(n,)``.
        deep (Tensor): Largest such amount, ``(n,)``.
        overshoot (Tensor): Amount to aim at, between the two, ``(n,)``.
        slack (Tensor): A linearisation that, where it is put to the test, promises less of a crossing than there is, by
            this amount, belongs to another piece of the boundary, ``(n,)``.
        noise (Tensor): By how much rounding changes scores, relative to the largest of an example, a scalar.
        tolerance (float): Relative gain in distance below which an example is done.
        few_dimensions (bool): Whether inputs are so small that restarts pay.
    """

    def __init__(self, oracle: MarginOracle, box: Box, norm: float, noise: Tensor) -> None:
        self.oracle = oracle
        self.box = box
        self.norm = norm
        self.noise = noise
        self.tolerance = _TOLERANCE[oracle.dtype]
        self.few_dimensions = oracle.x.shape[1] <= _FEW_DIMENSIONS
        relative_shallow, relative_deep = _BAND[oracle.dtype]
        depth = oracle.start_depth
        floor = noise * oracle.start_scores.abs().amax(dim=1).to(depth)
        shallow = torch.maximum(relative_shallow * depth, floor).clamp_min(torch.finfo(depth.dtype).tiny)
        deep = torch.maximum(relative_deep * depth, 2 * shallow)
        overshoot, scale = (shallow * deep).sqrt(), torch.maximum(depth, shallow)
        self._set(torch.stack([shallow, deep, overshoot, scale, overshoot + _SLACK * scale], dim=1))

    def _set(self, numbers: Tensor) -> None:
        self._numbers = numbers  # together, so that choosing rows is one operation
        self.shallow, self.deep, self.overshoot, self.scale, self.slack = numbers.unbind(dim=1)
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

    @property
    def may_be_held(self) -> bool:
        """Whether to search in the range of an input's own values first: without limits, in many dimensions.

        Where a model was never trained, its boundary has many more corners to be caught in.
        """
        return not (self.box.is_limited or self.few_dimensions)

    def in_own_range(self, is_held: Tensor | None = None) -> Problem:
        """The same, where no coordinate leaves the range between the least and the largest value of its input.

        If given, ``is_held`` ``(n,)`` says for which examples: the others stay without limits.
        """
        lowest, highest = self.x.aminmax(dim=1, keepdim=True)
        if is_held is not None:
            lowest = torch.where(is_held[:, None], lowest, -torch.inf)
            highest = torch.where(is_held[:, None], highest, torch.inf)
        part = copy.copy(self)
        part.box = Box(lowest, highest)
        return part

    def is_in_own_range(self, points: Tensor) -> Tensor:
        """Whether no coordinate of ``points`` lies outside the range of its input's own values, ``(n,)``."""
        box = self.in_own_range().box
        return ((points >= box.lower) & (points <= box.upper)).all(dim=1)

    def distance(self, points: Tensor) -> Tensor:
        """Distances ``(n,)`` of ``points`` from their inputs."""
        return length(points - self.x, self.norm)

    def depth(self, points: Tensor) -> Tensor:
        """Depths ``(n,)`` of ``points``."""
        return self.oracle.depth(points)[0]

    def against(self, rival: Tensor) -> Problem:
        """The same, where a boundary is that of one rival class ``(n,)``; of all where that is -1."""
        return Problem(self.oracle.against(rival), self.box, self.norm, self.noise)

    def linearize(self, points: Tensor, temperature: Tensor | None = None) -> Linearization:
        """The decision at ``points``, to first order; its slope is smoothed if there is a temperature ``(n,)``."""
        if temperature is None:
            return self.oracle.linearize(points)
        return self.oracle.linearize_smoothed(points, temperature)


class Candidates:
    """The nearest points known to lie beyond the boundary, at distance infinity where there is none yet.

    Attributes:

        points (Tensor): Points, ``(n, D)``; the inputs where there is none.
        distance (Tensor): Their distances, ``(n,)``.
    """

    def __init__(self, points: Tensor, distance: Tensor) -> None:
        self.points = points
        self.distance = distance

    @classmethod
    def none(cls, problem: Problem) -> Candidates:
        return cls(problem.x, torch.full_like(problem.scale, torch.inf))

    def or_nearer(self, points: Tensor, distance: Tensor, depth: Tensor) -> Candidates:
        """The nearer of these and of ``points``, where those lie beyond the boundary."""
        return self.or_nearer_of(Candidates(points, torch.where(depth < 0, distance, torch.inf)))

    def or_nearer_of(self, others: Candidates) -> Candidates:
        """The nearer ones of these and of others."""
        nearer = others.distance < self.distance
        return Candidates(
            torch.where(nearer[:, None], others.points, self.points),
            torch.where(nearer, others.distance, self.distance),
        )

    def select(self, rows: Tensor | slice) -> Candidates:
        return Candidates(self.points[rows], self.distance[rows])

    def replaced(self, rows: Tensor, part: Candidates) -> Candidates:
        """These, with those of some rows replaced."""
        return Candidates(
            self.points.index_copy(0, rows, part.points), self.distance.index_copy(0, rows, part.distance)
        )
