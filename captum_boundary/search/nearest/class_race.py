"""Several classes of one example as rows of a batch: which has the nearest boundary is found by successive halving.

What a descent along the boundary of all rivals together loses, it loses by its commitment to one class. Where the model
is nearly linear up to the boundary, linearized distances tell which classes come into question; each of them gets a
short descent along the boundary of that class alone, and the half of the rows that falls behind leaves, again and
again (https://arxiv.org/abs/1502.07943).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_boundary._core.margin import rival_scores
from captum_boundary._core.oracle import Linearization
from captum_boundary.search._line_search import line_search
from captum_boundary.search._problem import Incumbent, Phase, Problem
from captum_boundary.search.nearest.descent import descend
from captum_boundary.search.nearest.first_contact import newton_step, newton_steps
from captum_boundary.search.nearest.settings import NearestBoundarySettings

__all__ = ["can_race", "race_classes"]


def can_race(problem: Problem, settings: NearestBoundarySettings, budget: int) -> bool:
    """Whether there are several classes, and gradients enough for a race between them."""
    n_rows, _ = _sizes(problem, settings, budget)
    # Where displacements are sparse, descents are slow to tell classes apart.
    is_large = n_rows > 1 and (n_rows == settings.race_rows or not problem.norm.is_sparse)
    return is_large and problem.oracle.n_classes > 2


def _sizes(problem: Problem, settings: NearestBoundarySettings, budget: int) -> tuple[int, int]:
    """Rows of an example, and classes whose linearized distances are compared."""
    n_screened = round(settings.screened_share * budget)
    return min(settings.race_rows, math.ceil(n_screened / 2)), min(problem.oracle.n_classes - 1, n_screened)


def race_classes(
    problem: Problem, settings: NearestBoundarySettings, incumbent: Incumbent, budget: int, seed: int
) -> tuple[Incumbent, Tensor, Tensor]:
    """Let classes compete with the row of all rivals, which begins at the incumbent.

    All examples are inside the region of their target.

    Returns:

        - **incumbent** (*Incumbent*): As near or nearer.
        - **rival** (*Tensor*): The class whose row won, ``(n,)``; -1 for all of them.
        - **has_raced** (*Tensor*): Whether there was any competitor, ``(n,)``.
    """
    oracle, n = problem.oracle, len(problem)
    none = torch.full_like(oracle.target, -1)
    n_rows, n_screened = _sizes(problem, settings, budget)
    pairs, found, rival = _contacts(problem, settings, incumbent, n_screened, min(n_rows - 1, n_screened))
    # One column for each row of an example, the first for all rivals together.
    table = torch.cat([incumbent.distance[:, None], found.distance.view(n, -1)], dim=1)
    order = torch.arange(table.numel(), device=none.device).view(table.shape)
    index = torch.cat([oracle.all_rows[:, None], n + torch.arange(len(pairs), device=none.device).view(n, -1)], dim=1)
    index = index.flatten()
    rows = oracle.all_rows.repeat_interleave(table.shape[1], output_size=table.numel())
    rivals = torch.cat([none, rival])[index]
    every = Incumbent.joined([incumbent, found]).select(index)
    race = problem.select(rows).against(rivals)

    has_raced = torch.isfinite(every.distance.view_as(table)).sum(dim=1) > 1
    n_rounds = n_rows.bit_length() - 1  # until one is left
    for turn in range(n_rounds):
        n_kept = n_rows >> turn
        rank = every.distance.view_as(table).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        is_active = (rank < n_kept) & torch.isfinite(every.distance.view_as(table))
        n_active = is_active.sum(dim=1)
        until = settings.descent_share * (turn + 1) / n_rounds
        share = (math.floor(until * budget) - oracle.gradients_spent).clamp_min(0) // n_active.clamp_min(1)
        # An example without competitors goes on as if there had been none.
        n_steps = torch.where(is_active & (n_active > 1)[:, None], share[:, None], 0).flatten()
        active = (n_steps > 0).nonzero().flatten()
        if len(active) > 0:
            part = every.select(active)
            seed_of_turn = seed + settings.restart_period * turn
            moved = descend(race.select(active), settings, part, n_steps[active], seed_of_turn)
            every = every.replaced(active, part.nearer_of(moved))
    winner = order.gather(1, every.distance.view_as(table).argmin(dim=1, keepdim=True)).flatten()
    return every.select(winner), rivals[winner], has_raced


def _contacts(
    problem: Problem, settings: NearestBoundarySettings, incumbent: Incumbent, n_screened: int, n_kept: int
) -> tuple[Problem, Incumbent, Tensor]:
    """Points of the boundaries of the ``n_kept`` classes with the least linearized distances, other than the one met.

    A class whose first Newton step does not lead to where its linearization promised has none.
    """
    oracle = problem.oracle
    met = oracle.depth(incumbent.points)[1]
    classes = rival_scores(oracle.start_scores, oracle.target).topk(n_screened, dim=1).indices
    distances, planes = [], []
    for rival in classes.unbind(dim=1):
        planes.append(plane := oracle.linearize_over(problem.x, rival))
        distances.append(problem.linearized_distance(plane))
    distance = torch.stack(distances, dim=1).masked_fill(classes == met[:, None], torch.inf)
    chosen = distance.argsort(dim=1, stable=True)[:, :n_kept].flatten()
    rows = oracle.all_rows.repeat_interleave(n_kept, output_size=len(chosen))
    rival = classes[rows, chosen]
    pairs = problem.select(rows).against(rival)
    plane = Linearization(*(torch.stack(values, dim=1)[rows, chosen] for values in zip(*planes, strict=True)))
    points = newton_step(pairs, settings, pairs.x, plane)
    margin = pairs.signed_margin(points)
    is_linear = margin.abs() <= settings.linearity * pairs.scale
    is_candidate = (is_linear & torch.isfinite(distance[rows, chosen])).nonzero().flatten()
    found = Incumbent.none(pairs)
    if len(is_candidate) > 0:
        part = pairs.select(is_candidate)
        ends = newton_steps(part, settings, points[is_candidate], margin[is_candidate], settings.newton_steps)
        found = found.replaced(is_candidate, line_search(part, ends[0], Phase.NEWTON, ends[1]))
    return pairs, found, rival
