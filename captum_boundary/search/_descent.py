"""Descent along a jagged boundary, where no single linearisation can be trusted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_boundary.search._approach import SMOOTHING
from captum_boundary.search._geometry import length, project_onto_ball
from captum_boundary.search._incumbents import Incumbents

__all__ = ["descend"]

# The radius shrinks by this rate when the boundary is crossed and grows when not, from the first step to the last.
# In l1 it begins far out, at a point that is near in l2.
_FIRST_RATE = {2: 0.05, math.inf: 0.05, 1: 0.2}
_LAST_RATE = 0.005
# Length of the steps as a fraction of the distance, from first to last.
_FIRST_STEP, _LAST_STEP = 1.0, 0.01


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
    oracle = search.oracle
    points, radius = search.points[rows], search.distance[rows]
    temperature = SMOOTHING * search.scale[rows]
    first_rate = _FIRST_RATE[search.norm]
    for step in range(int(n_steps.max())):
        index = (step < n_steps).nonzero().flatten()
        here, x = rows[index], search.x[rows[index]]
        plane = oracle.linearize(points[index], here, temperature=temperature[index])
        search.offer(points[index], here, plane.depth)

        progress = step / n_steps[index].to(radius)
        rate = first_rate * (_LAST_RATE / first_rate) ** progress
        shrunk = torch.minimum(radius[index], search.distance[here]) * (1 - rate)
        radius[index] = torch.where(plane.depth < 0, shrunk, radius[index] * (1 + rate))

        stride = _LAST_STEP + (_FIRST_STEP - _LAST_STEP) * 0.5 * (1 + torch.cos(math.pi * progress))
        move = points[index] - x
        normal = torch.nn.functional.normalize(plane.slope, eps=torch.finfo(move.dtype).tiny)
        move = move - (stride * length(move, 2))[:, None] * normal
        reach = length(move, search.norm)
        move = move * torch.where(reach > 0, radius[index] / reach, 1.0).clamp_min(1.0)[:, None]
        points[index] = search.box.of(here).clamp(x + project_onto_ball(move, radius[index], search.norm))
    search.offer(points, rows, oracle.depth(points, rows)[0])
    search.land(search.points[rows], rows)
