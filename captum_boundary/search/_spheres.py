"""In l2 and linf: along the spheres around the inputs, which shrink and grow with the boundary."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.geometry import length, project_onto_ball, ratio
from captum_boundary.search._approach import newton_step
from captum_boundary.search._problem import Candidates, Problem
from captum_boundary.search._walk import Place

__all__ = ["FROM_AFAR", "FROM_THE_BOUNDARY", "Schedule", "Spheres", "SpheresFromAfar"]


class Schedule(NamedTuple):
    """From the first step to the last: rates at which the radius changes, and steps as fractions of the distance."""

    first_rate: float
    last_rate: float
    first_step: float = 1.0
    last_step: float = 0.01

    def at(self, progress: Tensor) -> Tensor:
        """Rates and steps ``(2, ...)`` at a progress between 0 and 1."""
        rate = self.first_rate * (self.last_rate / self.first_rate) ** progress
        wave = torch.cos(math.pi * progress)
        middle, swing = (self.first_step + self.last_step) / 2, (self.first_step - self.last_step) / 2
        return torch.stack([rate, middle + swing * wave])


FROM_THE_BOUNDARY = Schedule(0.05, 0.005)
FROM_AFAR = Schedule(0.3, 0.02, last_step=0.05)
# After three steps on one and the same side of the boundary, the rate doubles with every further one. It is as large at
# once where the linearised boundary is as far away.
_PATIENT = 0.25
_FASTEST_RATE = 0.3
_DUAL = {2: 2, math.inf: 1, 1: math.inf}


class Spheres:
    r"""The decoupling of direction and norm (Rony et al., https://arxiv.org/abs/1811.09600), from a known radius.

    Every step adds the current normal to the direction, so that the direction becomes an average of many normals, and
    the radius follows the boundary.

    Args:

        radius (Tensor): Distances of the first points, ``(n,)``.
        paces (Tensor): Rates and steps ``(2, n_steps, n)``.
    """

    def __init__(self, radius: Tensor, paces: Tensor) -> None:
        self._radius, self._paces = radius, paces
        self._hurry = torch.full_like(radius, _PATIENT / 2)  # a rate may grow by this, if it is more than 1
        self._was_beyond = torch.zeros_like(radius, dtype=torch.bool)

    def select(self, going: slice) -> None:
        self._radius, self._hurry, self._was_beyond = (
            values[going] for values in (self._radius, self._hurry, self._was_beyond)
        )

    def next_points(self, here: Problem, at: Place, best: Candidates, step: int) -> Tensor:
        return self._turned(here, at, best, self._paces[:, step, : len(here)])

    def _turned(self, here: Problem, at: Place, best: Candidates, pace: Tensor) -> Tensor:
        rate, stride = pace.unbind()
        depth, slope = at.plane.depth, at.plane.slope
        beyond = depth < 0
        self._hurry = torch.where(beyond == self._was_beyond, 2 * self._hurry, _PATIENT)
        self._was_beyond = beyond
        steepness = length(slope, _DUAL[here.norm])
        gap = ratio(depth.abs(), self._radius * steepness)
        rate = torch.maximum(rate, torch.maximum(rate * self._hurry, gap).clamp_max(_FASTEST_RATE))
        radius = torch.where(beyond, torch.minimum(self._radius, best.distance), self._radius)
        self._radius = torch.addcmul(radius, radius, rate.copysign(depth))
        return at.box.clamp(here.x + _sphere_step(at, steepness, self._radius, stride, here.norm))


class SpheresFromAfar(Spheres):
    """The same from points that need not be near: Newton steps lead to the boundary first.

    Args:

        radius (Tensor): Distances of the first points, ``(n,)``.
        paces (Tensor): Rates and steps ``(2, n_steps, n_steps + 1)``, by the number of steps before an example crosses
            its boundary for the first time.
    """

    def __init__(self, radius: Tensor, paces: Tensor) -> None:
        super().__init__(radius, paces)
        self._n_approaching = torch.zeros_like(radius, dtype=torch.long)

    def select(self, going: slice) -> None:
        super().select(going)
        self._n_approaching = self._n_approaching[going]

    def next_points(self, here: Problem, at: Place, best: Candidates, step: int) -> Tensor:
        has_crossed = torch.isfinite(best.distance)
        self._n_approaching = self._n_approaching + ~has_crossed
        turned = self._turned(here, at, best, self._paces[:, step, self._n_approaching])
        approached = newton_step(here, at.points, at.plane)
        self._radius = torch.where(has_crossed, self._radius, here.distance(approached))
        return torch.where(has_crossed[:, None], turned, approached)


def _sphere_step(at: Place, steepness: Tensor, radius: Tensor, stride: Tensor, norm: float) -> Tensor:
    """Turn the ways ``(n, D)`` to points against the slopes there and make their length that of the radius."""
    # Steps suit the norm: in linf every coordinate counts alike, in l1 the steepest one says how far a step may go.
    slope = at.plane.slope
    direction = slope.sign() if norm == math.inf else slope
    size = at.distance if norm == 2 else length(at.move, math.inf if norm == 1 else 2)
    step = ratio(stride * size, length(direction, 2) if norm == math.inf else steepness)
    move = torch.addcmul(at.move, step[:, None], direction, value=-1)
    growth = ratio(radius, length(move, norm))[:, None]
    if norm == 2:
        return move * growth
    return project_onto_ball(move * growth.clamp_min(1.0), radius, norm)
