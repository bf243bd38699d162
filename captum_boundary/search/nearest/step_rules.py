"""Step rules of the descent: DDN in l2 and linf, linear programs with a trust region in l1."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.geometry import Box, ratio
from captum_boundary._core.oracle import Linearization
from captum_boundary.search._problem import Incumbent, Problem
from captum_boundary.search.nearest.cutting_planes import solve_linear_program
from captum_boundary.search.nearest.settings import NearestBoundarySettings

__all__ = ["DDNStep", "Iterate", "TrustRegionLPStep"]

# The last step size, relative to the first, and the last rate, relative to the first of a descent from near.
_LAST_STEP, _LAST_RATE = 0.01, 0.1
_AIM = 0.01  # how far beyond the boundary a linear program aims, at least, as a share of the input's margin


class Iterate(NamedTuple):
    """The current points of a descent."""

    points: Tensor  # (n, D)
    move: Tensor  # (n, D) their displacement from the inputs
    distance: Tensor  # (n,) its length
    plane: Linearization  # the decision there, to first order
    box: Box  # limits of the next points


class DDNStep:
    r"""The decoupling of direction and norm (Rony et al., https://arxiv.org/abs/1811.09600), from a known radius.

    Every step adds the current normal to the direction, so that the direction becomes an average of many normals, and
    the radius follows the boundary.

    Args:

        settings (NearestBoundarySettings): Rates.
        radius (Tensor): Distances of the first points, ``(n,)``.
        progress (Tensor): Between 0 and 1, at each step, ``(n_steps, n)``.
        first_rate (float): Rate of the first step.
    """

    def __init__(self, settings: NearestBoundarySettings, radius: Tensor, progress: Tensor, first_rate: float) -> None:
        self._settings = settings
        self._radius = radius
        # Rates fall geometrically, and step sizes from 1 like a cosine.
        rate = first_rate * (_LAST_RATE * settings.first_rate / first_rate) ** progress
        step_size = (1 + _LAST_STEP) / 2 + (1 - _LAST_STEP) / 2 * torch.cos(math.pi * progress)
        self._schedule = torch.stack([rate, step_size])

    def select(self, rows: slice) -> None:
        """Go on with some examples alone."""
        self._radius = self._radius[rows]

    def step(self, problem: Problem, at: Iterate, incumbent: Incumbent, step: int) -> Tensor:
        """The next points ``(n, D)``."""
        rate, step_size = self._schedule[:, step, : len(problem)].unbind()
        margin, slope = at.plane.depth, at.plane.slope
        beyond = margin < 0
        steepness = problem.norm.dual.length(slope)
        # The rate is larger where the linearized boundary is farther away.
        gap = ratio(margin.abs(), self._radius * steepness)
        rate = torch.maximum(rate, gap.clamp_max(self._settings.max_rate))
        radius = torch.where(beyond, torch.minimum(self._radius, incumbent.distance), self._radius)
        radius = torch.addcmul(radius, radius, rate.copysign(margin))
        # Where linearizations are wrong by far, radii would grow and grow.
        self._radius = torch.minimum(radius, (1 + self._settings.first_rate) * incumbent.distance)
        move = problem.norm.turned(at.move, at.distance, slope, steepness, step_size)
        return at.box.clamp(problem.x + problem.norm.with_length(move, self._radius))


class TrustRegionLPStep:
    r"""Sequential linear programming with a trust region that shrinks, in l1.

    Every step minimizes the l1 distance from the input where the linearized margin is negative and no coordinate
    changes by more than the trust radius: a linear program with one constraint, which sorting solves. Few coordinates
    move, as in l1 they should, and slopes are believed no further than they hold. Slopes are averages, since the
    boundary is jagged.

    Args:

        settings (NearestBoundarySettings): Radii and gains.
        trust_radius (Tensor): By how much coordinates may change at first, ``(n,)``.
        progress (Tensor): Between 0 and 1, at each step, ``(n_steps, n)``.
    """

    def __init__(self, settings: NearestBoundarySettings, trust_radius: Tensor, progress: Tensor) -> None:
        self._settings = settings
        self._trust_radius = trust_radius * (1 - 0.9 * progress)
        self._aim = torch.zeros_like(trust_radius)
        self._slope: Tensor | None = None

    def select(self, rows: slice) -> None:
        """Go on with some examples alone."""
        self._trust_radius, self._aim = self._trust_radius[:, rows], self._aim[rows]
        self._slope = None if self._slope is None else self._slope[rows]

    def step(self, problem: Problem, at: Iterate, incumbent: Incumbent, step: int) -> Tensor:
        """The next points ``(n, D)``."""
        margin, slope = at.plane.depth, at.plane.slope
        self._slope = slope if self._slope is None else torch.lerp(slope, self._slope, self._settings.slope_memory)
        # Linearizations promise a little too much.
        aim = torch.add(self._aim, margin, alpha=self._settings.aim_gain)
        self._aim = aim.clamp(_AIM * problem.scale, problem.scale)
        required = margin + self._aim
        return solve_linear_program(problem, at.points, self._slope, required, self._trust_radius[step], at.box)
