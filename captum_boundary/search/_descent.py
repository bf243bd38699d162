"""Descent along a jagged boundary, where no single linearisation can be trusted."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._base.geometry import length, project_onto_ball
from captum_boundary._base.oracle import Linearization
from captum_boundary.search._approach import SMOOTHING, newton_step
from captum_boundary.search._incumbents import Incumbents

__all__ = ["descend", "dive"]


class _Schedule(NamedTuple):
    """From the first step to the last: rates at which the radius changes, and steps as fractions of the distance."""

    first_rate: float
    last_rate: float
    first_step: float = 1.0
    last_step: float = 0.01


# In l1 the descent begins far out, at a point that is near in l2.
_FROM_THE_BOUNDARY = {2: _Schedule(0.05, 0.005), math.inf: _Schedule(0.05, 0.005), 1: _Schedule(0.2, 0.005)}
_FROM_AFAR = _Schedule(0.3, 0.02, last_step=0.05)
# After this many steps on one and the same side of the boundary, the rate doubles with every further one.
_PATIENCE = 3
_FASTEST_RATE = 0.3


def descend(search: Incumbents, rows: Tensor, n_steps: Tensor) -> None:
    r"""Follow the sphere around each input that touches the boundary, shrinking it whenever it crosses.

    This is the decoupling of direction and norm (Rony et al., https://arxiv.org/abs/1811.09600), started at a known
    radius, on the smoothed depth: every step adds the current normal to the direction, so that the direction becomes an
    average of many normals, and the radius follows the boundary.

    Args:

        search (Incumbents): The search; the examples ``rows`` must have boundary points.
        rows (Tensor): Examples to work on, ``(n,)``.
        n_steps (Tensor): Gradient evaluations for each of them, ``(n,)``.
    """
    if len(rows) == 0:
        return
    _follow_spheres(search, rows, search.points[rows], n_steps, _FROM_THE_BOUNDARY[search.norm])
    search.land(search.points[rows], rows)


def dive(search: Incumbents, rows: Tensor, starts: Tensor, n_steps: Tensor) -> None:
    """Descend from points on either side of the boundary, near to it or not: every gradient makes a step.

    Args:

        search (Incumbents): The search.
        rows (Tensor): Examples to work on, ``(n,)``.
        starts (Tensor): Points to start from, ``(n, D)``. Examples without a boundary point take Newton steps.
        n_steps (Tensor): Gradient evaluations for each of them, ``(n,)``.
    """
    if len(rows) == 0:
        return
    _follow_spheres(search, rows, starts, n_steps, _FROM_AFAR)


def _follow_spheres(search: Incumbents, rows: Tensor, starts: Tensor, n_steps: Tensor, schedule: _Schedule) -> None:
    oracle = search.oracle
    points, radius = starts.clone(), search.length(starts, rows)
    temperature = SMOOTHING * search.scale[rows]
    n_approaching = torch.zeros_like(n_steps)  # steps before an example crosses its boundary for the first time
    run = torch.zeros_like(n_steps)  # steps in a row beyond the boundary, or, if negative, on the near side of it
    for step in range(int(n_steps.max())):
        index = (step < n_steps).nonzero().flatten()
        here = rows[index]
        plane = oracle.linearize(points[index], here, temperature=temperature[index])
        search.offer(points[index], here, plane.depth)

        has_crossed = torch.isfinite(search.distance[here])
        n_approaching[index] += ~has_crossed
        begin = n_approaching[index]
        progress = (step - begin) / (n_steps[index] - begin).clamp_min(1).to(radius)
        rate = schedule.first_rate * (schedule.last_rate / schedule.first_rate) ** progress
        beyond = plane.depth < 0
        run[index] = torch.where(beyond, run[index].clamp_min(0) + 1, run[index].clamp_max(0) - 1)
        hurried = rate * 2.0 ** (run[index].abs() - _PATIENCE).clamp_min(0)
        rate = torch.maximum(rate, hurried.clamp_max(_FASTEST_RATE))
        shrunk = torch.minimum(radius[index], search.distance[here]) * (1 - rate)
        radius[index] = torch.where(beyond, shrunk, radius[index] * (1 + rate))
        wave = 0.5 * (1 + torch.cos(math.pi * progress))
        stride = schedule.last_step + (schedule.first_step - schedule.last_step) * wave
        moved = _sphere_step(search, points[index], here, plane, radius[index], stride)

        if not has_crossed.all():
            approached = newton_step(search, points[index], here, plane)
            moved = torch.where(has_crossed[:, None], moved, approached)
            radius[index] = torch.where(has_crossed, radius[index], search.length(approached, here))
        points[index] = moved
    search.offer(points, rows, oracle.depth(points, rows)[0])


def _sphere_step(
    search: Incumbents, points: Tensor, rows: Tensor, plane: Linearization, radius: Tensor, stride: Tensor
) -> Tensor:
    """Turn the way from the inputs to ``points`` against the normals and make its length that of the ``radius``."""
    x = search.x[rows]
    move = points - x
    normal = torch.nn.functional.normalize(plane.slope, eps=torch.finfo(move.dtype).tiny)
    move = move - (stride * length(move, 2))[:, None] * normal
    reach = length(move, search.norm)
    move = move * torch.where(reach > 0, radius / reach, 1.0).clamp_min(1.0)[:, None]
    return search.box.of(rows).clamp(x + project_onto_ball(move, radius, search.norm))
