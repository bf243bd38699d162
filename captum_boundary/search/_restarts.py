"""Restarts, in few dimensions, where a boundary is made of few pieces and the nearest of them may be missed."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary._base.geometry import length
from captum_boundary._base.margin import rival_scores
from captum_boundary.search._landing import pull_back
from captum_boundary.search._problem import Candidates, Problem
from captum_boundary.search._refinement import refine

__all__ = ["restart", "settle"]

# Gradients of a single restart, at most.
_TRIAL_GRADIENTS = 16
# Random rays looked along by forwards alone, before a restart spends a gradient: some where they often cross the
# boundary, few where they hardly ever do.
_MANY_RAYS, _FEW_RAYS = 12, 4
_DIMENSIONS_OF_MANY_RAYS = 16
# A model is taken to be linear around an input if its scores are along all rays, up to this fraction of the largest.
_LINEAR = {torch.float32: 1e-5, torch.float64: 1e-10}


def settle(problem: Problem, known: Candidates, budget: int) -> Candidates:
    """Refine from the best points known, without what was learnt elsewhere, for as long as that gains."""
    here, best, rows = problem, known, problem.oracle.all_rows
    while len(here) > 0:
        best = best.or_nearer_of(pull_back(here, best.points))
        before = best.distance
        best, _ = refine(here, best.points, best, budget - here.oracle.gradients_spent, _TRIAL_GRADIENTS)
        known = known.replaced(rows, best)
        gaining = (best.distance < (1 - here.tolerance) * before).nonzero().flatten()
        here, best, rows = here.select(gaining), best.select(gaining), rows[gaining]
    return known


def restart(problem: Problem, known: Candidates, budget: int, n_forwards: int, seed: int, enters: bool) -> Candidates:
    """Restart from the boundaries of the other classes and from random directions, while budget and patience last.

    Args:

        problem (Problem): The search.
        known (Candidates): What is known, to be improved upon.
        budget (int): Gradient evaluations of an example.
        n_forwards (int): Forward evaluations of an example after which no restart begins.
        seed (int): Where the random directions start: the same for every example, so that none depends on its batch.
        enters (bool): Whether regions are entered. From outside of a region its boundary is where the strongest of all
            rivals is met: no class stands alone.
    """
    n_rivals = problem.oracle.n_classes - 1
    scores = rival_scores(problem.oracle.start_scores, problem.oracle.target)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :n_rivals]
    n_classes = 0 if enters else n_rivals
    patience = max(budget // 2, min(n_rivals, budget))
    here, best, rows = problem, known, problem.oracle.all_rows
    n_failed = torch.zeros_like(rows)
    trial = 0
    while True:
        oracle = here.oracle
        has_more = (oracle.gradients_spent < budget) & (oracle.forwards_spent < n_forwards) & (n_failed < patience)
        if trial == n_classes:
            has_more &= ~_is_linear(here, best, seed)
        going = has_more.nonzero().flatten()
        if len(going) < len(here):
            known = known.replaced(rows, best)
            here, best, rows, n_failed, order = (
                here.select(going), best.select(going), rows[going], n_failed[going], order[going]
            )  # fmt: skip
        if len(here) == 0:
            return known
        before = best.distance
        if trial < n_classes:
            starts, rival = best.points, order[:, trial]
        else:
            starts, best = _random_starts(here, best, seed + trial)
            rival = None
        best, _ = refine(here, starts, best, budget - here.oracle.gradients_spent, _TRIAL_GRADIENTS, rival)
        has_gained = best.distance < (1 - here.tolerance) * before
        n_failed = torch.where(has_gained, 0, n_failed + 1)
        gained = has_gained.nonzero().flatten()
        if len(gained) > 0 and not enters:
            best = best.replaced(gained, settle(here.select(gained), best.select(gained), budget))
        trial += 1


def _random_starts(problem: Problem, known: Candidates, seed: int) -> tuple[Tensor, Candidates]:
    """Points at about the best distance, on the boundary where a random ray happens to cross it."""
    many, ends = _along_rays(problem, known, seed)
    n, n_inputs = problem.x.shape
    depth = many.depth(ends).view(n, -1)
    # Any ray that crosses is a sure gain. The deepest one would lead to the same part of the boundary every time.
    lowest, chosen = torch.where(depth < 0, -1.0, depth).min(dim=1)
    starts = ends.view(n, -1, n_inputs)[problem.oracle.all_rows, chosen]
    crossed = (lowest < 0).nonzero().flatten()
    if len(crossed) == 0:
        return starts, known
    pulled = pull_back(problem.select(crossed), starts[crossed])
    nearer = known.select(crossed).or_nearer_of(pulled)
    return starts.index_copy(0, crossed, pulled.points), known.replaced(crossed, nearer)


def _is_linear(problem: Problem, known: Candidates, seed: int) -> Tensor:
    """Whether the scores are linear along all of some random rays, up to the best distance: then nothing is nearer."""
    many, ends = _along_rays(problem, known, seed)
    at_start = many.oracle.start_scores
    bend = many.oracle.scores_at(torch.lerp(many.x, ends, 0.5)) - (at_start + many.oracle.scores_at(ends)) / 2
    limit = _LINEAR[many.oracle.dtype] * at_start.abs().amax(dim=1)
    is_straight = (bend.abs().amax(dim=1) <= limit).view(len(problem), -1).all(dim=1)
    return is_straight & torch.isfinite(known.distance)


def _along_rays(problem: Problem, known: Candidates, seed: int) -> tuple[Problem, Tensor]:
    """The ends ``(n * R, D)`` of random rays as long as the best distance; those of one example stand together."""
    x = problem.x
    n_rays = _MANY_RAYS if x.shape[1] <= _DIMENSIONS_OF_MANY_RAYS else _FEW_RAYS
    generator = torch.Generator("cpu").manual_seed(seed)
    rays = torch.randn(n_rays, x.shape[1], generator=generator, dtype=torch.float64, device="cpu").to(x)
    rays = rays / length(rays, problem.norm)[:, None]
    guess = (1 + length(x, problem.norm)) * 2.0 ** (seed % 5)  # for those without a boundary point yet
    reach = torch.where(torch.isinf(known.distance), guess, known.distance)
    rows = problem.oracle.all_rows.repeat_interleave(n_rays, output_size=len(x) * n_rays)
    many = problem.select(rows)
    return many, many.box.clamp(many.x + (reach[:, None, None] * rays).flatten(0, 1))
