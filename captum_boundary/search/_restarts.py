"""Restarts, in few dimensions, where a boundary is made of few pieces and the nearest of them may be missed."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary._core.geometry import length
from captum_boundary._core.margin import rival_scores
from captum_boundary.search._landing import pull_back
from captum_boundary.search._problem import Candidates, Problem
from captum_boundary.search._refinement import refine

__all__ = ["restart", "settle"]

# Gradients of a single restart, at most.
_TRIAL_GRADIENTS = 16
# Random rays looked along by forwards alone, before a restart spends a gradient: some where they often cross the
# boundary of a region that is left, fewer where they seldom hit a region, few where they hardly ever do.
_RAYS_TO_LEAVE, _RAYS_TO_ENTER, _RAYS_IN_MANY_DIMENSIONS = 12, 7, 4
_MANY_DIMENSIONS = 16
_ALL_RAYS = 1  # times the budget; restarts after that look along a single one
# A model is taken to be linear around an input if its scores are along all rays, up to this fraction of the largest.
_LINEAR = {torch.float32: 1e-5, torch.float64: 1e-10}


def settle(problem: Problem, known: Candidates, budget: int, enters: bool) -> Candidates:
    """Refine from the best points known, without what was learnt elsewhere, for as long as that gains."""
    here, best, rows = problem, known, problem.oracle.all_rows
    while len(here) > 0:
        best = best.or_nearer_of(pull_back(here, best.points))
        before = best.distance
        best, _ = refine(here, best.points, best, budget - here.oracle.gradients_spent, _TRIAL_GRADIENTS, enters=enters)
        known = known.replaced(rows, best)
        gaining = (best.distance < (1 - here.tolerance) * before).nonzero().flatten()
        here, best, rows = here.select(gaining), best.select(gaining), rows[gaining]
    return known


def restart(
    problem: Problem, known: Candidates, budget: int, n_forwards: int, seed: int, enters: bool
) -> tuple[Candidates, Tensor]:
    """Restart from the boundaries of the other classes and from random directions, while budget and patience last.

    Args:

        problem (Problem): The search.
        known (Candidates): What is known, to be improved upon.
        budget (int): Gradient evaluations of an example.
        n_forwards (int): Forward evaluations of an example after which no restart begins.
        seed (int): Where the random directions start: the same for every example, so that none depends on its batch.
        enters (bool): Whether regions are entered. From outside of a region its boundary is where the strongest of all
            rivals is met: no class stands alone.

    Returns:

        - **candidates** (*Candidates*): As near or nearer.
        - **is_linear** (*Tensor*): Whether the model was found to be linear up to the best distance, ``(n,)``.
    """
    n_rivals = problem.oracle.n_classes - 1
    scores = rival_scores(problem.oracle.start_scores, problem.oracle.target)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :n_rivals]
    n_classes = 0 if enters else n_rivals
    patience = max(budget // 2, min(n_rivals, budget))
    here, best, rows = problem, known, problem.oracle.all_rows
    n_failed = torch.zeros_like(rows)
    all_linear = torch.zeros_like(rows, dtype=torch.bool)
    trial = 0
    while True:
        oracle = here.oracle
        left = budget - oracle.gradients_spent
        going = ((left > 0) & (oracle.forwards_spent < n_forwards) & (n_failed < patience)).nonzero().flatten()
        if len(going) < len(here):
            known = known.replaced(rows, best)
            here, best, rows, n_failed, order, left = (
                here.select(going), best.select(going), rows[going], n_failed[going], order[going], left[going]
            )  # fmt: skip
        if len(here) == 0:
            return known, all_linear
        before, is_linear = best.distance, None
        if trial < n_classes:
            best, _ = refine(here, best.points, best, left, _TRIAL_GRADIENTS, order[:, trial], enters)
        else:
            n_rays = _n_rays(problem, enters)
            n_rays = n_rays if (trial - n_classes) * n_rays < _ALL_RAYS * budget else 1
            starts, best, is_linear = _random_starts(here, best, seed + trial, n_rays, trial == n_classes)
            if is_linear is not None:
                # There the point known need only be refined to the end.
                starts = torch.where(is_linear[:, None], best.points, starts)
                all_linear = all_linear.index_copy(0, rows, is_linear)
            best, _ = refine(here, starts, best, left, _TRIAL_GRADIENTS, enters=enters)
        has_gained = best.distance < (1 - here.tolerance) * before
        n_failed = torch.where(has_gained, 0, n_failed + 1)
        if is_linear is not None:
            n_failed = n_failed.masked_fill(is_linear, patience)
        trial += 1


def _n_rays(problem: Problem, enters: bool) -> int:
    if problem.x.shape[1] > _MANY_DIMENSIONS:
        return _RAYS_IN_MANY_DIMENSIONS
    return _RAYS_TO_ENTER if enters else _RAYS_TO_LEAVE


def _random_starts(
    problem: Problem, known: Candidates, seed: int, n_rays: int, checks_linearity: bool
) -> tuple[Tensor, Candidates, Tensor | None]:
    """Points at about the best distance, on the boundary where a random ray happens to cross it.

    Says, if asked, where the scores are linear along all rays, up to the best distance: there nothing is nearer.
    """
    x = problem.x
    n, n_inputs = x.shape
    generator = torch.Generator("cpu").manual_seed(seed)
    rays = torch.randn(n_rays, n_inputs, generator=generator, dtype=torch.float64, device="cpu").to(x)
    rays = rays / length(rays, problem.norm)[:, None]
    guess = (1 + length(x, problem.norm)) * 2.0 ** (seed % 5)  # for those without a boundary point yet
    reach = torch.where(torch.isinf(known.distance), guess, known.distance)
    # The rays of one example stand together.
    many = problem.select(problem.oracle.all_rows.repeat_interleave(n_rays, output_size=n * n_rays))
    ends = many.box.clamp(many.x + (reach[:, None, None] * rays).flatten(0, 1))
    scores = many.oracle.scores_at(ends)
    depth = many.oracle.depth_of(scores)[0].view(n, n_rays)
    is_linear = None
    if checks_linearity:
        is_linear = _is_linear(many, ends, scores).view(n, n_rays).all(dim=1) & torch.isfinite(known.distance)

    # Any ray that crosses is a sure gain. The deepest one would lead to the same part of the boundary every time.
    lowest, chosen = torch.where(depth < 0, -1.0, depth).min(dim=1)
    starts = ends.view(n, n_rays, n_inputs)[problem.oracle.all_rows, chosen]
    crossed = (lowest < 0).nonzero().flatten()
    if len(crossed) > 0:
        pulled = pull_back(problem.select(crossed), starts[crossed])
        starts = starts.index_copy(0, crossed, pulled.points)
        known = known.replaced(crossed, known.select(crossed).or_nearer_of(pulled))
    return starts, known, is_linear


def _is_linear(problem: Problem, ends: Tensor, end_scores: Tensor) -> Tensor:
    """Whether scores half-way to ``ends`` ``(n, D)`` are the means of those at both ends of the way."""
    start_scores = problem.oracle.start_scores
    middle_scores = problem.oracle.scores_at(torch.lerp(problem.x, ends, 0.5))
    bend = (middle_scores - (start_scores + end_scores) / 2).abs().amax(dim=1)
    size = torch.maximum(start_scores.abs().amax(dim=1), end_scores.abs().amax(dim=1))
    return bend <= _LINEAR[problem.oracle.dtype] * size
