"""Exact local search, and restarts, for boundaries made of few smooth pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary._margin import rival_scores
from captum_boundary.search._bundle import Bundle
from captum_boundary.search._geometry import length
from captum_boundary.search._incumbents import Incumbents

__all__ = ["explore", "refine"]

# A point this near to the boundary, relative to the depth of the input, is taken to lie on it.
_ON_BOUNDARY = 0.05
_TRIAL_STEPS = 16
# Random lines looked along, by forwards alone, before a restart spends a gradient: many in a few dimensions, where they
# often cross the boundary, one in many dimensions, where they hardly ever do.
_MOST_LINES = 0.8  # times the budget
_LINES_TIMES_DIMENSION = 25  # times the budget


def refine(search: Incumbents, rows: Tensor, starts: Tensor, max_steps: int, rival: Tensor | None = None) -> Tensor:
    """Move to the nearest point of the linearised boundary, linearise there, and so on.

    Where the linearisations stay true this ends on the nearest point of the boundary in a few steps. An example leaves
    when its linearisations promise nothing nearer than what is known.

    Args:

        search (Incumbents): The search.
        rows (Tensor): Examples to work on, ``(n,)``.
        starts (Tensor): Points to start from, ``(n, D)``, on the boundary or anywhere else.
        max_steps (int): Gradient evaluations an example at most.
        rival (Tensor, optional): Class ``(n,)`` whose boundary the first linearisation heeds; -1 for the strongest.

    Returns:

        - **settled** (*Tensor*): Whether the best point known of an example passed the first-order test here, ``(n,)``.
    """
    settled = torch.zeros_like(rows, dtype=torch.bool)
    bundle = Bundle(search, len(rows))
    points = starts.clone()
    index = torch.arange(len(rows), device=rows.device)
    for step in range(max_steps):
        index = index[search.left(rows[index]) > 0]
        if len(index) == 0:
            break
        here = rows[index]
        heeded = rival[index] if rival is not None and step == 0 else None
        plane = search.oracle.linearize(points[index], here, rival=heeded)
        search.offer(points[index], here, plane.depth)
        nearest = bundle.nearest(index, here, points[index], plane)
        promised = search.length(nearest, here)
        promising = (promised > 0) & (promised < (1 - search.tolerance) * search.distance[here])
        on_boundary = (plane.depth < 0) & (plane.depth > -_ON_BOUNDARY * search.scale[here])
        is_best = search.length(points[index], here) <= search.distance[here]
        settled[index] = ~promising & on_boundary & is_best
        points[index] = nearest
        index = index[promising]
    return settled


def explore(search: Incumbents, rows: Tensor) -> None:
    """Restart from the boundaries of the other classes and from random directions, while budget and patience last."""
    oracle = search.oracle
    n_rivals = oracle.n_classes - 1
    order = rival_scores(oracle.start_scores, oracle.target).argsort(dim=1, descending=True, stable=True)[:, :n_rivals]
    # From outside of a region its boundary is where the strongest of all rivals is met: no class stands alone.
    order = torch.where(oracle.sign[:, None] > 0, order, -1)
    n_failed = torch.zeros_like(oracle.all_rows)
    patience = max(search.budget // 2, min(n_rivals, search.budget))
    trial = 0
    while True:
        rows = rows[(search.left(rows) > 0) & (n_failed[rows] < patience)]
        if len(rows) == 0:
            return
        before = search.distance[rows]
        if trial < n_rivals:
            refine(search, rows, search.points[rows], _TRIAL_STEPS, rival=order[rows, trial])
        else:
            refine(search, rows, _random_starts(search, rows, trial), _TRIAL_STEPS)
        gained = search.distance[rows] < (1 - search.tolerance) * before
        n_failed[rows] = torch.where(gained, 0, n_failed[rows] + 1)
        trial += 1


def _random_starts(search: Incumbents, rows: Tensor, trial: int) -> Tensor:
    """Points around the inputs at about the best distance, on the boundary where a random line happens to cross it."""
    n_inputs = search.x.shape[1]
    n_lines = max(1, int(search.budget * min(_MOST_LINES, _LINES_TIMES_DIMENSION / n_inputs)))
    lines = torch.randn(n_lines, n_inputs, generator=search.random(trial), dtype=torch.float64).to(search.x)
    lines = lines / length(lines, search.norm)[:, None]

    known = search.distance[rows]
    guess = (1 + length(search.x[rows], search.norm)) * 2.0 ** (trial % 5)  # for those without a boundary point yet
    reach = torch.where(torch.isinf(known), guess, known)
    repeated = rows.repeat_interleave(n_lines)  # example-major: the lines of one example stand together
    moves = (reach[:, None, None] * lines).flatten(0, 1)
    points = search.box.of(repeated).clamp(search.x[repeated] + moves)
    depth = search.oracle.depth(points, repeated)[0].view(len(rows), n_lines)
    # Any line that crosses is a sure gain. The deepest one would lead to the same part of the boundary every time.
    chosen = torch.where(depth < 0, -1.0, depth).argmin(dim=1)
    points = points.view(len(rows), n_lines, -1)[torch.arange(len(rows), device=rows.device), chosen]
    crossed = depth.amin(dim=1) < 0
    points[crossed] = search.land(points[crossed], rows[crossed])
    return points
