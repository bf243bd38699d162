"""Descent along a jagged boundary, where no single linearisation can be trusted."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from captum_boundary._core.geometry import Box, length, row_dot
from captum_boundary.search._approach import SMOOTHING
from captum_boundary.search._landing import move_onto_boundary
from captum_boundary.search._linear_programs import LinearPrograms
from captum_boundary.search._problem import Candidates, Problem
from captum_boundary.search._spheres import FROM_AFAR, FROM_THE_BOUNDARY, Spheres, SpheresFromAfar
from captum_boundary.search._walk import Place, Walk

__all__ = ["TURN", "descend", "descend_in_turns", "dive"]

# Gradients of a descent, at most, and the swing of those that go on from the best points known.
TURN = 40
_LESS_SWING = 0.5
# How far away normals are looked at, as a multiple of the distance in l2 and of the square root of the number of steps,
# since more of them average out more: in l2 and linf during a part of a descent, in l1 nearer and nearer. In few
# dimensions restarts look elsewhere.
_SPREAD = {2: 1 / 3, math.inf: 1 / 6, 1: 1 / 4}
_SPREAD_SHARE = 0.5
# By how much further with every descent that starts over. In l1 other coordinates are found so.
_WIDENING = {2: 1.0, math.inf: 1.0, 1: 2.0}
# How much of its descent an example is held in the range of its input's own values.
_HELD_SHARE = 0.5


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
    reach = length(first.points - problem.x, math.inf)
    for turn in itertools.count():
        spent = problem.oracle.gradients_spent
        n_steps = torch.minimum(budget - spent, TURN - spent % TURN)
        rows = (n_steps > 0).nonzero().flatten()
        if len(rows) == 0:
            break
        part, part_best = problem.select(rows), best.select(rows)
        n_started_over, goes_on = divmod(turn, 2)
        starts, swing = (part_best, _LESS_SWING) if goes_on else (first.select(rows), 1.0)
        widening = 1.0 if goes_on else _WIDENING[problem.norm] ** n_started_over
        found = descend(part, starts, n_steps[rows], seed + TURN * turn, swing, widening, reach[rows])
        best = best.replaced(rows, part_best.or_nearer_of(found))
    return best


def descend(
    problem: Problem,
    known: Candidates,
    n_steps: Tensor,
    seed: int,
    swing: float = 1.0,
    widening: float = 1.0,
    reach: Tensor | None = None,
) -> Candidates:
    r"""Walk along the boundary from a known point, towards the nearest one.

    At first the normals are those at random points nearby, in l1 to the end, ever nearer, which do not let a kink or a
    dead unit lead astray; depths are then those of the linearisations. All are of the smoothed depth.

    Args:

        problem (Problem): The search.
        known (Candidates): Candidates of all its examples, to start from.
        n_steps (Tensor): Gradient evaluations for each of them, ``(n,)``.
        seed (int): Where random directions start, the same for every example.
        swing (float): Length of the first steps, and of the way to random points, relative to the ordinary.
        widening (float): Length of the way to random points, relative to that.
        reach (Tensor, optional): By how much coordinates may change at once in l1, about, ``(n,)``. Default: by as much
            as in the known points.

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
    spread = None
    if not problem.few_dimensions:
        n_spread = math.ceil(_SPREAD_SHARE * max(steps_of, default=0))
        fading = 1 - progress if problem.norm == 1 else progress[:n_spread] < _SPREAD_SHARE
        spread = swing * widening * _SPREAD[problem.norm] * n_steps.to(progress).sqrt() * fading
    walk: Walk
    if problem.norm == 1:
        reach = length(start.points - here.x, math.inf) if reach is None else reach[order]
        walk = LinearPrograms(swing * reach, progress)
    else:
        schedule = FROM_THE_BOUNDARY._replace(first_step=swing * FROM_THE_BOUNDARY.first_step)
        walk = Spheres(start.distance, schedule.at(progress))
    found = _follow(here, start.points, start, walk, steps_of, limits, spread, seed)
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
    walk = SpheresFromAfar(problem.distance(starts), FROM_AFAR.at(progress.clamp_min(0)))
    return _follow(problem, starts, Candidates.none(problem), walk, [n_steps] * len(problem))


def _steps(problem: Problem, n_steps: int) -> Tensor:
    """All steps, below one another."""
    return torch.arange(n_steps, dtype=problem.x.dtype, device=problem.x.device)[:, None]


def _follow(
    problem: Problem,
    points: Tensor,
    best: Candidates,
    walk: Walk,
    steps_of: list[int],
    limits: Tensor | None = None,
    spread: Tensor | None = None,
    seed: int = 0,
) -> Candidates:
    """Walk from ``points``, linearising the decision at each step.

    Args:

        problem (Problem): The search.
        points (Tensor): Where to start, ``(n, D)``.
        best (Candidates): What is known.
        walk (Walk): How to go on.
        steps_of (list): Gradient evaluations of each example, falling from the first to the last.
        limits (Tensor, optional): Lower and upper limits of all coordinates, ``(2, n_steps, n)``.
        spread (Tensor, optional): How far from points normals are looked at, relative to their distance in l2, in the
            first steps, ``(n_spread, n)``.
        seed (int): Where random directions start.
    """
    here = problem
    temperature = SMOOTHING * here.scale
    last_points, found = [], []
    for step in range(max(steps_of, default=0)):
        n_going = sum(n > step for n in steps_of[: len(here)])
        if n_going < len(here):
            going, done = slice(0, n_going), slice(n_going, None)
            last_points.append(points[done])
            found.append(best.select(done))
            here, best, points, temperature = here.select(going), best.select(going), points[going], temperature[going]
            walk.select(going)
        move = points - here.x
        distance = length(move, here.norm)
        box = here.box if limits is None else Box(*limits[:, step, :n_going, None])
        if spread is not None and step < len(spread):
            size = distance if here.norm == 2 else length(move, 2)
            away = (spread[step, :n_going] * size)[:, None]
            there = box.clamp(torch.addcmul(points, away, _direction(here, seed + step)))
            plane = here.linearize(there, temperature=temperature)
            best = best.or_nearer(there, here.distance(there), plane.depth)
            plane = plane._replace(depth=plane.depth + row_dot(plane.slope, points - there))
        else:
            plane = here.linearize(points, temperature=temperature)
            best = best.or_nearer(points, distance, plane.depth)
        points = walk.next_points(here, Place(points, move, distance, plane, box), best, step)
    points = torch.cat([points, *reversed(last_points)])
    parts = [best, *reversed(found)]
    best = Candidates(torch.cat([part.points for part in parts]), torch.cat([part.distance for part in parts]))
    return best.or_nearer(points, problem.distance(points), problem.depth(points))


def _direction(problem: Problem, seed: int) -> Tensor:
    """A random vector ``(D,)`` of about unit length."""
    generator = torch.Generator("cpu").manual_seed(seed)
    vector = torch.randn(problem.x.shape[1], generator=generator, dtype=torch.float64, device="cpu")
    return vector.div_(len(vector) ** 0.5).to(problem.x)
