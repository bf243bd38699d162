"""Cutting planes: the last few linearizations of every example, and the point nearest to its input beyond them all.

In l1 it is one linearization, within a trust region.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.geometry import Box, row_dot
from captum_boundary._core.norms import LINF
from captum_boundary._core.oracle import Linearization
from captum_boundary.search._problem import Problem
from captum_boundary.search.nearest.first_contact import PROJECTION_STEPS

__all__ = ["CuttingPlanes", "TrustRegion", "project_onto_half_spaces", "solve_linear_program"]

# Added to the diagonal of the linear systems, relative to it: the same piece may have been linearized twice.
_RIDGE = {torch.float32: 1e-6, torch.float64: 1e-13}


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

    def add(self, problem: Problem, points: Tensor, plane: Linearization) -> None:
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

    def select(self, rows: Tensor) -> TrustRegion:
        """Go on with some rows alone."""
        self._at = None if self._at is None else _Accepted(*(part[rows] for part in self._at))
        return self

    def add(self, problem: Problem, points: Tensor, plane: Linearization) -> None:
        """Take the step to ``points`` ``(n, D)``, whose linearizations are ``plane``, or shorten it."""
        missing = plane.value.clamp_min(0.0)
        penalty = torch.add(problem.distance(points), missing / problem.norm.dual.length(plane.slope), alpha=2)
        if self._at is None:
            required = plane.value + problem.overshoot
            self._at = _Accepted(points, plane.slope, required, penalty, torch.full_like(penalty, torch.inf))
            return
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
        return solve_linear_program(problem, points, slope, required, radius, problem.box)


class _Accepted(NamedTuple):
    """The last points that were worth a step."""

    points: Tensor  # (n, D) from which the next step begins
    slope: Tensor  # (n, D) there
    required: Tensor  # (n,) how much less the linearized margin is to be
    penalty: Tensor  # (n,)
    radius: Tensor  # (n,) infinite at first


def solve_linear_program(
    problem: Problem, points: Tensor, slope: Tensor, required: Tensor, radius: Tensor, box: Box
) -> Tensor:
    """The points nearest in a sparse norm whose linearized decrease from ``points`` ``(n, D)`` is as required ``(n,)``.

    Every coordinate stays in the box and no farther than the radius ``(n,)`` from where it is. With one constraint,
    sorting solves the program.
    """
    reach = radius[:, None]
    region = Box(torch.maximum(box.lower, points - reach), torch.minimum(box.upper, points + reach))
    nearest = region.clamp(problem.x)
    required = required + row_dot(slope, nearest - points)
    return problem.norm.project_onto_half_space(nearest, slope, required.clamp_min(0.0), region)


def project_onto_half_spaces(
    x: Tensor,
    slopes: Tensor,
    required: Tensor,
    box: Box,
    multipliers: Tensor,
    n_steps: int,
    takes_final_step: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Nearest points ``y`` of ``{y in box : slopes_k . (x - y) >= required_k for all k}``, in the l2 norm.

    The dual is concave, and quadratic where no coordinate meets a limit or leaves one. A step takes the best of these
    multipliers: those that solve for the half-spaces in use and the one with the largest residual, together or without
    one of them; and those that differ from the present ones in a single place. The first are mostly exact, the others
    make the method converge. Half-spaces that the box does not reach are approached as far as it goes.

    Args:

        x (Tensor): Points, ``(n, D)``.
        slopes (Tensor): Slopes, ``(n, K, D)``; zeros where there is no half-space.
        required (Tensor): Decrease required along them, ``(n, K)``.
        box (Box): Limits of the coordinates.
        multipliers (Tensor): Where to start, ``(n, K)``, not negative: zeros, or the solution of a similar problem.
        n_steps (int): Newton steps.
        takes_final_step (bool): Whether a last step, for less, solves for the half-spaces in use and the one with the
            largest residual alone, where all of them stay in use.

    Returns:

        - **nearest** (*Tensor*): The points, ``(n, D)``.
        - **multipliers** (*Tensor*): Those of the last step, ``(n, K)``.
    """
    free_gram = None if box.is_limited else _gram(slopes)
    for _ in range(n_steps):
        multipliers = dual_active_set_step(multipliers, *_dual(x, slopes, required, box, multipliers, free_gram))
    if takes_final_step:
        multipliers = _final_step(multipliers, *_dual(x, slopes, required, box, multipliers, free_gram))
    return box.clamp(_moved(x, multipliers, slopes)), multipliers


def _dual(
    x: Tensor, slopes: Tensor, required: Tensor, box: Box, multipliers: Tensor, free_gram: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The dual around ``multipliers``: its matrix ``(n, K, K)``, its slope, and the right side of its system."""
    if free_gram is not None:
        residual = torch.baddbmm(required[:, :, None], free_gram, multipliers[:, :, None], alpha=-1)
        return free_gram, residual.squeeze(2), required
    unlimited = _moved(x, multipliers, slopes)
    nearest = box.clamp(unlimited)
    gram = _gram(slopes * (nearest == unlimited)[:, None])
    residual = torch.baddbmm(required[:, :, None], slopes, (x - nearest)[:, :, None], alpha=-1)
    residual = residual * (gram.diagonal(dim1=1, dim2=2) > torch.finfo(x.dtype).tiny)[:, :, None]
    wanted = torch.baddbmm(residual, gram, multipliers[:, :, None])
    return gram, residual.squeeze(2), wanted.squeeze(2)


def dual_active_set_step(multipliers: Tensor, gram: Tensor, residual: Tensor, wanted: Tensor) -> Tensor:
    """The best of the candidates named above: multipliers ``(n, K)`` of the largest dual objective."""
    alone = torch.addcdiv(multipliers, residual, gram.diagonal(dim1=1, dim2=2))
    if gram.shape[1] == 1:
        return alone.clamp_min(0.0)
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    is_other = identity == 0
    is_active = _active_set(multipliers, residual)
    # The rows of the inverse say how the solution changes when one half-space is left out.
    sides = torch.cat([(wanted * is_active)[:, :, None], identity.expand_as(gram)], dim=2)
    solutions = _solved(gram, is_active, sides).mT
    solved, inverse = solutions[:, :1], solutions[:, 1:]
    share = (solved.squeeze(1) / inverse.diagonal(dim1=1, dim2=2))[:, :, None]
    without = torch.addcmul(solved, share, inverse, value=-1) * is_other  # exactly zero, which rounding is not
    moved = torch.where(is_other, multipliers[:, None], alone[:, None])
    candidates = torch.cat([solved, without, moved], dim=1).clamp_min(0.0)
    change = candidates - multipliers[:, None]
    rise = torch.baddbmm(residual[:, None].expand_as(change), change, gram, alpha=-0.5)
    best = torch.linalg.vecdot(rise, change).nan_to_num(-torch.inf, -torch.inf).argmax(dim=1)[:, None, None]
    return candidates.take_along_dim(best, dim=1).squeeze(1)


def _final_step(multipliers: Tensor, gram: Tensor, residual: Tensor, wanted: Tensor) -> Tensor:
    if gram.shape[1] == 1:
        return dual_active_set_step(multipliers, gram, residual, wanted)
    is_active = _active_set(multipliers, residual)
    solved = _solved(gram, is_active, wanted * is_active)
    return torch.where(solved.amin(dim=1, keepdim=True) >= 0, solved, multipliers)


def _active_set(multipliers: Tensor, residual: Tensor) -> Tensor:
    """Half-spaces that hold a point back, and the one with the largest residual."""
    largest_residual = residual.amax(dim=1, keepdim=True).clamp_min(torch.finfo(residual.dtype).tiny)
    return (multipliers > 0) | (residual >= largest_residual)


def _solved(gram: Tensor, is_active: Tensor, sides: Tensor) -> Tensor:
    """Solutions of the systems of active half-spaces, whose ``sides`` are ``(n, K)`` or ``(n, K, any)``."""
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    system = torch.where(is_active[:, :, None] & is_active[:, None], gram, identity)
    solution: Tensor = torch.linalg.solve_ex(system, sides)[0]
    return solution


def _gram(slopes: Tensor) -> Tensor:
    gram = slopes @ slopes.mT
    gram.diagonal(dim1=1, dim2=2).mul_(1 + _RIDGE[slopes.dtype]).clamp_min_(torch.finfo(slopes.dtype).tiny)
    return gram


def _moved(x: Tensor, multipliers: Tensor, slopes: Tensor) -> Tensor:
    return torch.baddbmm(x[:, None], multipliers[:, None], slopes, alpha=-1).squeeze(1)
