"""Descent along a jagged boundary, where no single linearisation can be trusted."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._base.geometry import Box, length, project_onto_ball, ratio, row_dot
from captum_boundary.search._approach import SMOOTHING, newton_step
from captum_boundary.search._landing import move_onto_boundary
from captum_boundary.search._problem import Candidates, Problem

__all__ = ["TURN", "descend", "descend_in_turns", "dive"]


class _Schedule(NamedTuple):
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


# In l1 the descent begins far out, at a point that is near in l2.
_FROM_THE_BOUNDARY = {2: _Schedule(0.05, 0.005), math.inf: _Schedule(0.05, 0.005), 1: _Schedule(0.1, 0.005)}
_FROM_AFAR = _Schedule(0.3, 0.02, last_step=0.05)
# Gradients of a descent, at most, and the swing of those that go on from the best points known.
TURN = 40
_LESS_SWING = 0.5
# How far away normals are looked at, as a multiple of the distance in l2 and of the square root of the number of steps,
# since more of them average out more, and during how much of a descent. Signs, in linf, gain nothing by it, and in few
# dimensions restarts look elsewhere.
_SPREAD = {2: 1 / 3, math.inf: 0.0, 1: 1 / 6}
_SPREAD_SHARE = 0.5
# How much of its descent an example is held in the range of its input's own values.
_HELD_SHARE = 0.5
# After three steps on one and the same side of the boundary, the rate doubles with every further one. It is as large at
# once where the linearised boundary is as far away.
_PATIENT = 0.25
_DUAL = {2: 2, math.inf: 1, 1: math.inf}
_FASTEST_RATE = 0.3


def descend_in_turns(problem: Problem, first: Candidates, best: Candidates, budget: int, seed: int) -> Candidates:
    """Descend again and again, in turn from the first points known, as before, and from the best ones, with less swing.

    A turn ends where an example has spent a multiple of as many gradients: what a larger budget does begins with what a
    smaller one did.

    Args:

        problem (Problem): The search.
        first (Candidates): Points to start over from.
        best (Candidates): What is known, as near or nearer.
        budget (int): Gradient evaluations of each example.
        seed (int): Where random directions start, the same for every example.

    Returns:

        - **candidates** (*Candidates*): As near or nearer, on the boundary.
    """
    swing = 1.0
    while True:
        spent = problem.oracle.gradients_spent
        n_steps = torch.minimum(budget - spent, TURN - spent % TURN)
        rows = (n_steps > 0).nonzero().flatten()
        if len(rows) == 0:
            return best
        part, part_best = problem.select(rows), best.select(rows)
        starts = first.select(rows) if swing == 1.0 else part_best
        found = descend(part, starts, n_steps[rows], seed, swing)
        best = best.replaced(rows, part_best.or_nearer_of(found))
        swing, seed = (_LESS_SWING if swing == 1.0 else 1.0), seed + TURN


def descend(problem: Problem, known: Candidates, n_steps: Tensor, seed: int, swing: float = 1.0) -> Candidates:
    r"""Follow the sphere around each input that touches the boundary, shrinking it whenever it crosses.

    This is the decoupling of direction and norm (Rony et al., https://arxiv.org/abs/1811.09600), started at a known
    radius, on the smoothed depth: every step adds the current normal to the direction, so that the direction becomes an
    average of many normals, and the radius follows the boundary. At first the normals are those at random points
    nearby, which do not let a kink or a dead unit lead astray; depths are then those of the linearisations.

    Args:

        problem (Problem): The search.
        known (Candidates): Candidates of all its examples, to start from.
        n_steps (Tensor): Gradient evaluations for each of them, ``(n,)``.
        seed (int): Where random directions start, the same for every example.
        swing (float): Length of the first steps, and of the way to random points, relative to the ordinary.

    Returns:

        - **candidates** (*Candidates*): As near or nearer, on the boundary.
    """
    # In the order of their steps, examples that are done stand at the end and leave without being looked for.
    n_steps, order = n_steps.sort(descending=True, stable=True)
    here, start = problem.select(order), known.select(order)
    steps_of = n_steps.tolist()
    progress = _steps(here, max(steps_of, default=0)) / n_steps.clamp_min(1)
    limits = None
    if problem.may_be_held:
        own, is_held = here.in_own_range().box, here.is_in_own_range(start.points)
        held = progress < _HELD_SHARE * is_held.to(progress)
        limits = torch.stack([torch.where(held, own.lower.T, -torch.inf), torch.where(held, own.upper.T, torch.inf)])
    schedule = _FROM_THE_BOUNDARY[problem.norm]
    paces = schedule._replace(first_step=swing * schedule.first_step).at(progress)
    spread = None
    if _SPREAD[problem.norm] > 0 and not problem.few_dimensions:
        n_spread = math.ceil(_SPREAD_SHARE * max(steps_of, default=0))
        spread = swing * _SPREAD[problem.norm] * n_steps.sqrt() * (progress[:n_spread] < _SPREAD_SHARE)
    found = _follow_spheres(here, start.points, start, steps_of, paces, limits, spread=spread, seed=seed)
    landed, depth = move_onto_boundary(problem, found.points[order.argsort()])
    return Candidates.none(problem).or_nearer(landed, problem.distance(landed), depth)


def dive(problem: Problem, starts: Tensor, n_steps: int) -> Candidates:
    """Descend from points on either side of the boundary, near to it or not: every gradient makes a step.

    Args:

        problem (Problem): The search.
        starts (Tensor): Points to start from, ``(n, D)``. Examples without a boundary point take Newton steps.
        n_steps (int): Gradient evaluations for each example.

    Returns:

        - **candidates** (*Candidates*): Points beyond the boundary.
    """
    steps = _steps(problem, n_steps)
    n_approaching = steps.new_tensor(range(n_steps + 1))
    progress = (steps - n_approaching) / (n_steps - n_approaching).clamp_min(1)
    paces = _FROM_AFAR.at(progress.clamp_min(0))
    steps_of = [n_steps] * len(problem)
    return _follow_spheres(problem, starts, Candidates.none(problem), steps_of, paces, from_afar=True)


def _steps(problem: Problem, n_steps: int) -> Tensor:
    """All steps, below one another."""
    return torch.arange(n_steps, dtype=problem.x.dtype, device=problem.x.device)[:, None]


def _follow_spheres(
    problem: Problem,
    points: Tensor,
    best: Candidates,
    steps_of: list[int],
    paces: Tensor,
    limits: Tensor | None = None,
    from_afar: bool = False,
    spread: Tensor | None = None,
    seed: int = 0,
) -> Candidates:
    """Descend from ``points``.

    Args:

        problem (Problem): The search.
        points (Tensor): Where to start, ``(n, D)``.
        best (Candidates): What is known.
        steps_of (list): Gradient evaluations of each example, falling from the first to the last.
        paces (Tensor): Rates and steps ``(2, n_steps, n)`` or, from afar, ``(2, n_steps, n_steps + 1)``, by the number
            of steps before an example crosses its boundary for the first time.
        limits (Tensor, optional): Lower and upper limits of all coordinates, ``(2, n_steps, n)``.
        from_afar (bool): Whether examples take Newton steps before they cross their boundary.
        spread (Tensor, optional): How far from points normals are looked at, relative to their distance in l2, in the
            first steps, ``(n_spread, n)``.
        seed (int): Where random directions start.
    """
    here = problem
    radius = here.distance(points)
    temperature = SMOOTHING * here.scale
    hurry = torch.full_like(radius, _PATIENT / 2)  # a rate may grow by this, if it is more than 1
    was_beyond = torch.zeros_like(radius, dtype=torch.bool)
    n_approaching = torch.zeros_like(was_beyond, dtype=torch.long)
    last_points, found = [], []
    for step in range(paces.shape[1]):
        n_going = sum(n > step for n in steps_of[: len(here)])
        if n_going < len(here):
            going, done = slice(0, n_going), slice(n_going, None)
            last_points.append(points[done])
            found.append(best.select(done))
            here, best, points = here.select(going), best.select(going), points[going]
            radius, temperature, hurry, was_beyond = (
                values[going] for values in (radius, temperature, hurry, was_beyond)
            )
        move = points - here.x
        distance = length(move, here.norm)
        box = here.box if limits is None else Box(*limits[:, step, :n_going, None])
        if spread is not None and step < len(spread):
            size = distance if here.norm == 2 else length(move, 2)
            there = box.clamp(
                torch.addcmul(points, (spread[step, :n_going] * size)[:, None], _direction(here, seed + step))
            )
            plane = here.linearize(there, temperature=temperature)
            best = best.or_nearer(there, here.distance(there), plane.depth)
            depth = plane.depth + row_dot(plane.slope, points - there)
        else:
            plane = here.linearize(points, temperature=temperature)
            best = best.or_nearer(points, distance, plane.depth)
            depth = plane.depth

        if from_afar:
            has_crossed = torch.isfinite(best.distance)
            n_approaching = n_approaching + ~has_crossed
            rate, stride = paces[:, step, n_approaching].unbind()
        else:
            rate, stride = paces[:, step, :n_going].unbind()
        beyond = depth < 0
        hurry = torch.where(beyond == was_beyond, 2 * hurry, _PATIENT)
        was_beyond = beyond
        steepness = length(plane.slope, _DUAL[here.norm])
        gap = ratio(depth.abs(), radius * steepness)
        rate = torch.maximum(rate, torch.maximum(rate * hurry, gap).clamp_max(_FASTEST_RATE))
        radius = torch.where(beyond, torch.minimum(radius, best.distance), radius)
        radius = torch.addcmul(radius, radius, rate.copysign(depth))
        moved = box.clamp(here.x + _sphere_step(move, distance, plane.slope, steepness, radius, stride, here.norm))
        if from_afar:
            approached = newton_step(here, points, plane)
            moved = torch.where(has_crossed[:, None], moved, approached)
            radius = torch.where(has_crossed, radius, here.distance(approached))
        points = moved
    points = torch.cat([points, *reversed(last_points)])
    parts = [best, *reversed(found)]
    best = Candidates(torch.cat([part.points for part in parts]), torch.cat([part.distance for part in parts]))
    return best.or_nearer(points, problem.distance(points), problem.depth(points))


def _direction(problem: Problem, seed: int) -> Tensor:
    """A random vector ``(D,)`` of about unit length."""
    generator = torch.Generator("cpu").manual_seed(seed)
    vector = torch.randn(problem.x.shape[1], generator=generator, dtype=torch.float64, device="cpu")
    return vector.div_(len(vector) ** 0.5).to(problem.x)


def _sphere_step(
    move: Tensor, distance: Tensor, slope: Tensor, steepness: Tensor, radius: Tensor, stride: Tensor, norm: float
) -> Tensor:
    """Turn ``move`` ``(n, D)``, of length ``distance``, against the slopes and make its length that of the radius."""
    # Steps suit the norm: in linf every coordinate counts alike, in l1 the steepest one says how far a step may go.
    direction = slope.sign() if norm == math.inf else slope
    size = distance if norm == 2 else length(move, math.inf if norm == 1 else 2)
    step = ratio(stride * size, length(direction, 2) if norm == math.inf else steepness)
    move = torch.addcmul(move, step[:, None], direction, value=-1)
    growth = ratio(radius, length(move, norm))[:, None]
    if norm == 2:
        return move * growth
    return project_onto_ball(move * growth.clamp_min(1.0), radius, norm)
