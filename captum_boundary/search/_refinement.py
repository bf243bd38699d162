"""Exact local search, for boundaries made of few smooth pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary.search._half_spaces import HalfSpaces
from captum_boundary.search._problem import Candidates, Problem

__all__ = ["refine"]

# A point this near to the boundary, relative to the depth of the input, is taken to lie on it.
_ON_BOUNDARY = 0.05


def refine(
    problem: Problem,
    starts: Tensor,
    known: Candidates,
    n_gradients: Tensor,
    n_steps: int,
    rival: Tensor | None = None,
) -> tuple[Candidates, Tensor]:
    """Move to the nearest point of the linearised boundary, linearise there, and so on.

    Where the linearisations stay true this ends on the nearest point of the boundary in a few steps. An example leaves
    when its linearisations promise nothing nearer than what is known.

    Args:

        problem (Problem): The search.
        starts (Tensor): Points to start from, ``(n, D)``, on the boundary or anywhere else.
        known (Candidates): What is known, to be improved upon.
        n_gradients (Tensor): Gradient evaluations that each example has left, ``(n,)``.
        n_steps (int): Gradient evaluations of each example here, at most.
        rival (Tensor, optional): Class ``(n,)`` whose boundary the first linearisation heeds; -1 for the strongest.

    Returns:

        - **candidates** (*Candidates*): As near or nearer.
        - **settled** (*Tensor*): Whether the best point known of an example passed the first-order test here, ``(n,)``.
    """
    all_settled = torch.zeros_like(known.distance, dtype=torch.bool)
    here, points, best, rows = problem, starts, known, problem.oracle.all_rows
    half_spaces = HalfSpaces(problem, n_steps)
    going = (n_gradients > 0).nonzero().flatten()
    for step in range(n_steps):
        if len(going) < len(here):
            half_spaces.select(going)
            here, points, best, rows, n_gradients = (
                here.select(going), points[going], best.select(going), rows[going], n_gradients[going]
            )  # fmt: skip
            rival = None if rival is None else rival[going]
        if len(here) == 0:
            break
        plane = here.linearize(points, rival=rival if step == 0 else None)
        distance = here.distance(points)
        best = best.or_nearer(points, distance, plane.depth)
        half_spaces.add(here, points, plane)
        nearest = half_spaces.nearest(here)
        promised = here.distance(nearest)
        is_promising = (promised > 0) & (promised < (1 - here.tolerance) * best.distance)
        points = nearest
        is_going = is_promising & (n_gradients > step + 1) & (step + 1 < n_steps)
        going = is_going.nonzero().flatten()
        if len(going) < len(here):
            is_on_boundary = (plane.depth < 0) & (plane.depth > -_ON_BOUNDARY * here.scale)
            settled = ~is_promising & is_on_boundary & (distance <= best.distance)
            known = known.replaced(rows, best)
            all_settled = all_settled.index_copy(0, rows, settled)
    return known, all_settled
