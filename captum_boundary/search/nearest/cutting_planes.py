"""What a refinement knows of the boundary: the last linearizations; in l1 one alone, within a trust region."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.geometry import Box, row_dot
from captum_boundary._core.half_spaces import project_onto_half_spaces
from captum_boundary._core.norms import LINF
from captum_boundary._core.oracle import Linearization
from captum_boundary.search._problem import Problem
from captum_boundary.search.nearest.first_contact import PROJECTION_STEPS

__all__ = ["CuttingPlanes", "TrustRegion", "solve_linear_program"]


class CuttingPlanes:
    r"""Half-spaces :math:`\{y : s_k \cdot (x - y) \ge d_k\}` in which linearizations see the other side.

    At a corner where several pieces of the boundary meet, the newest linearization alone alternates between
    them; the nearest point of the intersection is the corner itself. In norms without an inner product the
    newest is used alone.

    Args:

        problem (Problem): The search this serves.
        n_planes (int): Linearizations that will be added, at most.
    """

    def __init__(self, problem: Problem, n_planes: int) -> None:
        capacity = n_planes if problem.norm.has_inner_product else 1
        n, n_inputs = problem.x.shape
        self._set(problem.x.new_zeros(n, capacity, n_inputs), problem.x.new_zeros(n, 2, capacity))
        self._n_added = self._n_met = 0

    def select(self, rows: Tensor) -> CuttingPlanes:
        """Go on with some rows alone."""
        self._set(self._slopes[rows], self._numbers[rows])
        return self

    def _set(self, slopes: Tensor, numbers: Tensor) -> None:
        self._slopes, self._numbers = slopes, numbers  # together, so that choosing rows is one operation
        self._required, self._multipliers = numbers.unbind(dim=1)

    def add(self, problem: Problem, points: Tensor, _: Tensor, plane: Linearization) -> None:
        """Add the linearizations ``plane`` at ``points`` ``(n, D)``."""
        slot = self._n_added % self._required.shape[1]
        self._slopes[:, slot] = plane.slope
        self._required[:, slot] = plane.value + problem.overshoot + row_dot(plane.slope, problem.x - points)
        self._multipliers[:, slot] = 0.0
        self._n_added += 1

    def nearest(self, problem: Problem) -> Tensor:
        """The nearest points ``(n, D)`` beyond all linearizations."""
        x, box = problem.x, problem.box
        if not problem.norm.has_inner_product:
            required = self._required[:, 0].clamp_min(0.0)
            return problem.norm.project_onto_half_space(x, self._slopes[:, 0], required, box, PROJECTION_STEPS)
        used = slice(0, min(self._n_added, self._required.shape[1]))
        slopes, required, multipliers = self._slopes[:, used], self._required[:, used], self._multipliers[:, used]
        # Steps go on from the multipliers before. One more, in few dimensions, meets the limits that come in with a new
        # half-space: in many a descent follows.
        n_steps, self._n_met = self._n_added - self._n_met, self._n_added
        takes_final_step = box.is_limited and problem.few_dimensions
        nearest, solved = project_onto_half_spaces(x, slopes, required, box, multipliers, n_steps, takes_final_step)
        multipliers.copy_(solved)
        return nearest


class TrustRegion:
    r"""The last linearization that was worth a step, and by how much each coordinate may change until the next, in l1.

    The nearest point of a half-space differs from the input in one coordinate, that with the largest slope; the nearest
    point of a boundary may lie where several slopes are equal, which only shorter steps reach. A step that does not
    lower the exact penalty function, the distance and twice that from there to the linearized boundary, is not taken:
    the next one, from where it began, is a quarter as long (after Nocedal and Wright, Numerical Optimization, 2nd
    edition, algorithm 18.4).
    """

    def __init__(self) -> None:
        self._at: _Accepted | None = None
        self._is_first = True

    def select(self, rows: Tensor) -> TrustRegion:
        """Go on with some rows alone."""
        self._at = None if self._at is None else _Accepted(*(part[rows] for part in self._at))
        return self

    def add(self, problem: Problem, points: Tensor, distance: Tensor, plane: Linearization) -> None:
        """Take the step to ``points`` ``(n, D)``, whose linearizations are ``plane``, or shorten it."""
        missing = plane.value.clamp_min(0.0)
        penalty = torch.add(distance, missing / problem.norm.dual.length(plane.slope), alpha=2)
        if self._at is None:
            required = plane.value + problem.overshoot
            self._at = _Accepted(points, plane.slope, required, penalty, torch.full_like(penalty, torch.inf))
            return
        self._is_first = False
        # Linearizations promise a little too much, and steps would end just short of the boundary.
        required = torch.add(plane.value, missing, alpha=0.5) + problem.overshoot
        at = self._at
        is_lower = penalty < at.penalty
        self._at = _Accepted(
            torch.where(is_lower[:, None], points, at.points),
            torch.where(is_lower[:, None], plane.slope, at.slope),
            torch.where(is_lower, required, at.required),
            torch.where(is_lower, penalty, at.penalty),
            torch.where(is_lower, at.radius, LINF.length(points - at.points) / 4),
        )

    def nearest(self, problem: Problem) -> Tensor:
        """The nearest points ``(n, D)`` beyond the linearizations, or the deepest, within the trust region."""
        assert self._at is not None
        points, slope, required, _, radius = self._at
        trust_radius = None if self._is_first else radius
        return solve_linear_program(problem, points, slope, required, trust_radius, problem.box)


class _Accepted(NamedTuple):
    """The last points that were worth a step."""

    points: Tensor  # (n, D) from which the next step begins
    slope: Tensor  # (n, D) there
    required: Tensor  # (n,) how much less the linearized margin is to be
    penalty: Tensor  # (n,)
    radius: Tensor  # (n,) infinite at first


def solve_linear_program(
    problem: Problem, points: Tensor, slope: Tensor, required: Tensor, radius: Tensor | None, box: Box
) -> Tensor:
    """The points nearest in a sparse norm whose linearized decrease from ``points`` ``(n, D)`` is as required ``(n,)``.

    Every coordinate stays in the box and no farther than the radius ``(n,)`` from where it is. With one constraint,
    sorting solves the program.
    """
    region, nearest = box, problem.x
    if radius is not None:
        reach = radius[:, None]
        region = Box(torch.maximum(box.lower, points - reach), torch.minimum(box.upper, points + reach))
        nearest = region.clamp(problem.x)
    required = required + row_dot(slope, nearest - points)
    return problem.norm.project_onto_half_space(nearest, slope, required.clamp_min(0.0), region)
