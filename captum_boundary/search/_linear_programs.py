"""In l1: to the nearest point of an averaged linearisation, within reach of the last one."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary._core.geometry import Box, project_onto_hyperplane, row_dot
from captum_boundary.search._problem import Candidates, Problem
from captum_boundary.search._walk import Place

__all__ = ["LinearPrograms"]

# From the first step to the last: by how much a coordinate may change, as a multiple of what is given.
_FIRST_REACH, _LAST_REACH = 1.0, 0.1
# The share of earlier slopes in the average.
_MEMORY = 0.6
# How far beyond the boundary to aim, at least, as a fraction of the input's depth, and the share of the depth by which
# a step fell short that the next ones aim further: linearisations promise a little too much.
_AIM, _FURTHER = 0.01, 0.2


class LinearPrograms:
    r"""Sequential linear programming with a trust region that shrinks.

    Every step minimises the l1 distance from the input where the linearised depth is negative and no coordinate changes
    by more than its reach: a linear program with one constraint, which sorting solves. Few coordinates move, as in l1
    they should, and slopes are believed no further than they hold. Slopes are averages, since the boundary is jagged.

    Args:

        reach (Tensor): By how much coordinates may change, about, ``(n,)``.
        progress (Tensor): Between 0 and 1, at each step, ``(n_steps, n)``.
    """

    def __init__(self, reach: Tensor, progress: Tensor) -> None:
        self._reach = reach * (_FIRST_REACH + (_LAST_REACH - _FIRST_REACH) * progress)
        self._aim = torch.zeros_like(reach)
        self._slope: Tensor | None = None

    def select(self, going: slice) -> None:
        self._reach, self._aim = self._reach[:, going], self._aim[going]
        self._slope = None if self._slope is None else self._slope[going]

    def next_points(self, here: Problem, at: Place, best: Candidates, step: int) -> Tensor:
        depth, slope = at.plane.depth, at.plane.slope
        self._slope = slope if self._slope is None else torch.lerp(slope, self._slope, _MEMORY)
        self._aim = torch.add(self._aim, depth, alpha=_FURTHER).clamp(_AIM * here.scale, here.scale)
        reach = self._reach[step][:, None]
        region = Box(torch.maximum(at.box.lower, at.points - reach), torch.minimum(at.box.upper, at.points + reach))
        nearest = region.clamp(here.x)
        drop = depth + row_dot(self._slope, nearest - at.points) + self._aim
        return project_onto_hyperplane(nearest, self._slope, drop.clamp_min(0.0), region, norm=1)
