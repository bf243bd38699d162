"""Exact local search, for boundaries made of few smooth pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary.search._half_spaces import HalfSpaces
from captum_boundary.search._problem import Candidates, Problem

__all__ = ["refine"]

# A point this near to the boundary, relative to the depth of the input, is taken to lie on it.
_ON_BOUNDARY = 0.05
# And up to here it lies where linearisations promised the boundary.
_AS_PROMISED = 0.25


def refine(
    problem: Problem,
    starts: Tensor,
    known: Candidates,
    n_gradients: Tensor,
    n_steps: int,
    rival: Tensor | None = None,
    enters: bool = False,
    gives_up: bool = False,
) -> tuple[Candidates, Tensor]:
    """Move to the nearest point of the linearised boundary, linearise there, and so on.

    Where the linearisations stay true this ends on the nearest point of the boundary in a few steps. An example leaves
    when its linearisations promise nothing nearer than what is known. A region that is entered is the intersection of
    what lies beyond every rival, and its nearest point often a corner: there, in few dimensions, each step linearises
    the margins over the two strongest rivals.

    Args:

        problem (Problem): The search.
        starts (Tensor): Points to start from, ``(n, D)``, on the boundary or anywhere else.
        known (Candidates): What is known, to be improved upon.
        n_gradients (Tensor): Gradient evaluations that each example has left, ``(n,)``.
        n_steps (int): Gradient evaluations of each example here, at most.
        rival (Tensor, optional): Class ``(n,)`` whose boundary the first linearisation heeds; -1 for the strongest.
        enters (bool): Whether regions are entered.
        gives_up (bool): Whether examples leave as soon as the boundary is not where linearisations promised it.

    Returns:

        - **candidates** (*Candidates*): As near or nearer.
        - **settled** (*Tensor*): Whether the best point known of an example passed the first-order test here, ``(n,)``.
    """
    all_settled = torch.zeros_like(known.distance, dtype=torch.bool)
    here, points, best, rows = problem, starts, known, problem.oracle.all_rows
    takes_two = enters and problem.few_dimensions and problem.norm == 2 and problem.oracle.n_classes > 2
    n_planes = 2 if takes_two else 1
    half_spaces = HalfSpaces(problem, n_steps)
    going = (n_gradients >= n_planes).nonzero().flatten()
    for step in range(0, n_steps, n_planes):
        if len(going) < len(here):
            half_spaces.select(going)
            here, points, best, rows, n_gradients = (
                here.select(going), points[going], best.select(going), rows[going], n_gradients[going]
            )  # fmt: skip
            rival = None if rival is None else rival[going]
        if len(here) == 0:
            break
        first = here if rival is None or step > 0 else here.against(rival)
        plane = first.linearize(points)
        distance = here.distance(points)
        best = best.or_nearer(points, distance, plane.depth)
        half_spaces.add(here, points, plane)
        if takes_two:
            half_spaces.add(here, points, here.oracle.linearize_runner_up(points))
        nearest = half_spaces.nearest(here)
        promised = here.distance(nearest)
        is_promising = (promised > 0) & (promised < (1 - here.tolerance) * best.distance)
        points = nearest
        is_going = is_promising & (n_gradients >= step + 2 * n_planes)
        if gives_up and step > 0:
            is_going = is_going & (plane.depth.abs() <= _AS_PROMISED * here.scale)
        going = is_going.nonzero().flatten()
        if step + n_planes >= n_steps:
            going = going[:0]
        if len(going) < len(here):
            is_on_boundary = (plane.depth < 0) & (plane.depth > -_ON_BOUNDARY * here.scale)
            settled = ~is_promising & is_on_boundary & (distance <= best.distance)
            known = known.replaced(rows, best)
            all_settled = all_settled.index_copy(0, rows, settled)
    return known, all_settled
