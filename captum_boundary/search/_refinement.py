"""Exact local search, and restarts, for boundaries made of few smooth pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary._base.geometry import length
from captum_boundary._base.margin import rival_scores
from captum_boundary.search._bundle import Bundle
from captum_boundary.search._incumbents import Incumbents

__all__ = ["explore", "refine", "settle"]

# A point this near to the boundary, relative to the depth of the input, is taken to lie on it.
_ON_BOUNDARY = 0.05
_TRIAL_GRADIENTS = 16
# Random lines looked along, by forwards alone, before a restart spends a gradient: many in a few dimensions, where they
# often cross the boundary, one in many dimensions, where they hardly ever do.
_MOST_LINES = 0.8  # times the budget
_LINES_TIMES_DIMENSION = 25  # times the budget


def refine(search: Incumbents, rows: Tensor, starts: Tensor, n_gradients: int, rival: Tensor | None = None) -> Tensor:
    """Move to the nearest point of the linearised boundary, linearise there, and so on.

    Where the linearisations stay true this ends on the nearest point of the boundary in a few steps. An example leaves
    when its linearisations promise nothing nearer than what is known. A region that is entered is the intersection of
    what lies beyond every rival, and its nearest point often a corner: there, in few dimensions, each step linearises
    the margins over the two strongest rivals.

    Args:

        search (Incumbents): The search.
        rows (Tensor): Examples to work on, ``(n,)``.
        starts (Tensor): Points to start from, ``(n, D)``, on the boundary or anywhere else.
        n_gradients (int): Gradient evaluations an example at most.
        rival (Tensor, optional): Class ``(n,)`` whose boundary the first linearisation heeds; -1 for the strongest.

    Returns:

        - **settled** (*Tensor*): Whether the best point known of an example passed the first-order test here, ``(n,)``.
    """
    oracle = search.oracle
    meets_corners = search.few_dimensions and search.norm == 2 and oracle.n_classes > 2
    takes_two = meets_corners & (oracle.sign[rows] < 0)
    settled = torch.zeros_like(rows, dtype=torch.bool)
    bundle = Bundle(search, len(rows), n_gradients)
    points = starts.clone()
    n_left = search.left(rows).clamp_max(n_gradients)
    index = torch.arange(len(rows), device=rows.device)
    for step in range(n_gradients):
        index = index[n_left[index] > 0]
        if len(index) == 0:
            break
        here = rows[index]
        heeded = rival[index] if rival is not None and step == 0 else None
        plane = oracle.linearize(points[index], here, rival=heeded)
        search.offer(points[index], here, plane.depth)
        bundle.add(index, here, points[index], plane)
        n_left[index] -= 1
        second = index[takes_two[index] & (n_left[index] > 0)]
        if len(second) > 0:
            bundle.add(second, rows[second], points[second], oracle.linearize(points[second], rows[second], rank=1))
            n_left[second] -= 1
        nearest = bundle.nearest(index, here)
        promised = search.length(nearest, here)
        promising = (promised > 0) & (promised < (1 - search.tolerance) * search.distance[here])
        on_boundary = (plane.depth < 0) & (plane.depth > -_ON_BOUNDARY * search.scale[here])
        is_best = search.length(points[index], here) <= search.distance[here]
        settled[index] = ~promising & on_boundary & is_best
        points[index] = nearest
        index = index[promising]
    return settled


def settle(search: Incumbents, rows: Tensor) -> None:
    """Refine from the best points known, without what was learnt elsewhere, for as long as that gains."""
    while len(rows) > 0:
        search.land(search.points[rows], rows)
        before = search.distance[rows]
        refine(search, rows, search.points[rows], _TRIAL_GRADIENTS)
        rows = rows[search.distance[rows] < (1 - search.tolerance) * before]


def explore(search: Incumbents, rows: Tensor) -> None:
    """Restart from the boundaries of the other classes and from random directions, while budget and patience last."""
    oracle = search.oracle
    n_rivals = oracle.n_classes - 1
    order = rival_scores(oracle.start_scores, oracle.target).argsort(dim=1, descending=True, stable=True)[:, :n_rivals]
    n_failed = torch.zeros_like(oracle.all_rows)
    patience = max(search.budget // 2, min(n_rivals, search.budget))
    trial = 0
    while True:
        rows = rows[(search.left(rows) > 0) & (n_failed[rows] < patience)]
        if len(rows) == 0:
            return
        before = search.distance[rows]
        # From outside of a region its boundary is where the strongest of all rivals is met: no class stands alone.
        leaving = oracle.sign[rows] > 0
        anywhere = ~leaving if trial < n_rivals else torch.ones_like(leaving)
        known, others = rows[~anywhere], rows[anywhere]
        if len(known) > 0:
            refine(search, known, search.points[known], _TRIAL_GRADIENTS, rival=order[known, trial])
        if len(others) > 0:
            refine(search, others, _random_starts(search, others, trial), _TRIAL_GRADIENTS)
        gained = search.distance[rows] < (1 - search.tolerance) * before
        settle(search, rows[gained & ~leaving])
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
