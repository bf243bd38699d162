"""Descent along a jagged boundary, where no single linearisation can be trusted."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._base.geometry import Box, length, project_onto_ball
from captum_boundary._base.oracle import Linearization
from captum_boundary.search._approach import SMOOTHING, newton_step
from captum_boundary.search._landing import pull_back
from captum_boundary.search._problem import Candidates, Problem

__all__ = ["descend", "dive"]


class _Schedule(NamedTuple):
    """From the first step to the last: rates at which the radius changes, and steps as fractions of the distance."""

    first_rate: float
    last_rate: float
    first_step: float = 1.0
    last_step: float = 0.01

    def at(self, progress: Tensor) -> tuple[Tensor, Tensor]:
        """Rates and steps at a progress between 0 and 1."""
        rate = self.first_rate * (self.last_rate / self.first_rate) ** progress
        wave = torch.cos(math.pi * progress)
        middle, swing = (self.first_step + self.last_step) / 2, (self.first_step - self.last_step) / 2
        return rate, middle + swing * wave


# In l1 the descent begins far out, at a point that is near in l2.
_FROM_THE_BOUNDARY = {2: _Schedule(0.05, 0.005), math.inf: _Schedule(0.05, 0.005), 1: _Schedule(0.1, 0.005)}
_FROM_AFAR = _Schedule(0.3, 0.02, last_step=0.05)
# How much of its descent an example is held in the range of its input's own values.
_HELD_SHARE = 0.5
# After this many steps on one and the same side of the boundary, the rate doubles with every further one.
_PATIENCE = 3
_FASTEST_RATE = 0.3


def descend(problem: Problem, known: Candidates, n_steps: Tensor, is_held: Tensor | None = None) -> Candidates:
    r"""Follow the sphere around each input that touches the boundary, shrinking it whenever it crosses.

    This is the decoupling of direction and norm (Rony et al., https://arxiv.org/abs/1811.09600), started at a known
    radius, on the smoothed depth: every step adds the current normal to the direction, so that the direction becomes an
    average of many normals, and the radius follows the boundary.

    Args:

        problem (Problem): The search.
        known (Candidates): Candidates of all its examples.
        n_steps (Tensor): Gradient evaluations for each of them, ``(n,)``.
        is_held (Tensor, optional): Examples ``(n,)`` that begin in the range of their input's own values.

    Returns:

        - **candidates** (*Candidates*): As near or nearer, pulled back to the boundary.
    """
    # In the order of their steps, examples that are done stand at the end and leave without being looked for.
    n_steps, order = n_steps.sort(descending=True, stable=True)
    start = known.select(order)
    is_held = None if is_held is None else is_held[order]
    schedule = _FROM_THE_BOUNDARY[problem.norm]
    found = _follow_spheres(problem.select(order), start.points, start, n_steps, schedule, is_held=is_held)
    back = order.argsort()
    return pull_back(problem, found.points[back])


def dive(problem: Problem, starts: Tensor, n_steps: int) -> Candidates:
    """Descend from points on either side of the boundary, near to it or not: every gradient makes a step.

    Args:

        problem (Problem): The search.
        starts (Tensor): Points to start from, ``(n, D)``. Examples without a boundary point take Newton steps.
        n_steps (int): Gradient evaluations for each example.

    Returns:

        - **candidates** (*Candidates*): Points beyond the boundary.
    """
    all_alike = torch.full_like(problem.oracle.all_rows, n_steps)
    return _follow_spheres(problem, starts, Candidates.none(problem), all_alike, _FROM_AFAR, from_afar=True)


def _follow_spheres(
    problem: Problem,
    points: Tensor,
    best: Candidates,
    n_steps: Tensor,
    schedule: _Schedule,
    from_afar: bool = False,
    is_held: Tensor | None = None,
) -> Candidates:
    """Descend from ``points``; ``n_steps`` falls from the first example to the last."""
    here = problem
    radius = here.distance(points)
    temperature = SMOOTHING * here.scale
    held = torch.zeros_like(radius) if is_held is None else _HELD_SHARE * is_held.to(radius)
    n_approaching = torch.zeros_like(radius)  # steps before an example crosses its boundary for the first time
    run = torch.zeros_like(radius)  # steps in a row beyond the boundary, or, if negative, on the near side of it
    total = n_steps.to(radius)
    last_points, found = [], []
    steps_of = n_steps.tolist()
    for step in range(steps_of[0] if steps_of else 0):
        n_going = sum(n > step for n in steps_of[: len(here)])
        if n_going < len(here):
            going, done = slice(0, n_going), slice(n_going, None)
            last_points.append(points[done])
            found.append(best.select(done))
            here, best, points = here.select(going), best.select(going), points[going]
            radius, temperature, n_approaching, run, total, held = (
                values[going] for values in (radius, temperature, n_approaching, run, total, held)
            )
        plane = here.linearize(points, temperature=temperature)
        best = best.or_nearer(points, here.distance(points), plane.depth)

        if from_afar:
            has_crossed = torch.isfinite(best.distance)
            n_approaching = n_approaching + ~has_crossed
        progress = (step - n_approaching) / (total - n_approaching).clamp_min(1)
        rate, stride = schedule.at(progress)
        beyond = plane.depth < 0
        side = torch.where(beyond, 1.0, -1.0).to(run)
        run = torch.where(run * side > 0, run, 0.0) + side
        hurried = rate * torch.exp2((run.abs() - _PATIENCE).clamp(0, 16))
        rate = torch.maximum(rate, hurried.clamp_max(_FASTEST_RATE))
        radius = torch.where(beyond, torch.minimum(radius, best.distance), radius) * (1 - side * rate)
        box = here.box if is_held is None else here.in_own_range(progress < held).box
        moved = _sphere_step(here, points, plane, radius, stride, box)
        if from_afar:
            approached = newton_step(here, points, plane)
            moved = torch.where(has_crossed[:, None], moved, approached)
            radius = torch.where(has_crossed, radius, here.distance(approached))
        points = moved
    points = torch.cat([points, *reversed(last_points)])
    parts = [best, *reversed(found)]
    best = Candidates(torch.cat([part.points for part in parts]), torch.cat([part.distance for part in parts]))
    return best.or_nearer(points, problem.distance(points), problem.depth(points))


def _sphere_step(
    problem: Problem, points: Tensor, plane: Linearization, radius: Tensor, stride: Tensor, box: Box
) -> Tensor:
    """Turn the way from the inputs to ``points`` against the normals and make its length that of the ``radius``."""
    move = points - problem.x
    # Steps suit the norm: in linf every coordinate counts alike, in l1 the steepest one says how far a step may go.
    direction = plane.slope.sign() if problem.norm == math.inf else plane.slope
    measure = math.inf if problem.norm == 1 else 2
    width = length(direction, measure)
    step = stride * length(move, measure) / torch.where(width > 0, width, torch.inf)
    move = torch.addcmul(move, step[:, None], direction, value=-1)
    reach = length(move, problem.norm)
    growth = radius / torch.where(reach > 0, reach, torch.inf)
    if problem.norm == 2:
        move = move * growth[:, None]
    else:
        move = project_onto_ball(move * growth.clamp_min(1.0)[:, None], radius, problem.norm)
    return box.clamp(problem.x + move)
