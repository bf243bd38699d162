"""Exact local search and restarts, for boundaries made of few smooth pieces."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from captum_boundary._core.margin import rival_scores
from captum_boundary.search._line_search import line_search
from captum_boundary.search._problem import ActiveSet, Incumbent, Phase, Problem
from captum_boundary.search.nearest.cutting_planes import CuttingPlanes, TrustRegion
from captum_boundary.search.nearest.settings import NearestBoundarySettings

__all__ = ["active_set_refine", "looks_linear", "polish", "restart"]

# A model is taken to be linear around an input if its scores are along all directions, up to this fraction of the
# largest.
_LINEAR = {torch.float32: 1e-5, torch.float64: 1e-10}


def active_set_refine(
    problem: Problem,
    settings: NearestBoundarySettings,
    starts: Tensor,
    incumbent: Incumbent,
    n_gradients: Tensor,
    n_steps: int,
    targeted: bool,
    rival: Tensor | None = None,
    seeks: bool = False,
) -> tuple[Incumbent, Tensor]:
    """Move to the nearest point of the linearized boundary, linearize there, and so on.

    Where the linearizations stay true this ends on the nearest point of the boundary in a few steps. An example leaves
    when its linearizations promise nothing nearer than its incumbent, or, in many dimensions, when the boundary is not
    where they promised it. A region that is entered is the intersection of what lies beyond every rival, and its
    nearest point often a corner: there, in few dimensions, each step linearizes the margins over the two strongest.

    Args:

        problem (Problem): The search.
        settings (NearestBoundarySettings): Its constants.
        starts (Tensor): Points to start from, ``(n, D)``, on the boundary or anywhere else.
        incumbent (Incumbent): To be improved upon.
        n_gradients (Tensor): Gradients that each example has left, ``(n,)``.
        n_steps (int): Gradients of each example here, at most.
        targeted (bool): Whether regions are entered.
        rival (Tensor, optional): Class ``(n,)`` whose boundary is linearized first.
        seeks (bool): Whether there may be examples without any point yet. For these, what stopped just short of the
            boundary is looked at once more, and a step that the box does not let move ends the refinement.

    Returns:

        - **incumbent** (*Incumbent*): As near or nearer.
        - **is_stationary** (*Tensor*): Whether the incumbent passed the first-order test here, ``(n,)``.
    """
    is_stationary = torch.zeros_like(incumbent.distance, dtype=torch.bool)
    takes_two = targeted and problem.few_dimensions and problem.norm.has_inner_product and problem.oracle.n_classes > 2
    n_new = 2 if takes_two else 1
    planes = TrustRegion() if problem.norm.is_sparse else CuttingPlanes(problem, min(n_steps, settings.planes))
    state = {"problem": problem, "points": starts, "incumbent": incumbent, "n_gradients": n_gradients, "planes": planes}
    if seeks:
        closest, closest_margin = starts, torch.full_like(incumbent.distance, torch.inf)
        state |= {"closest": closest, "closest_margin": closest_margin}
    active = ActiveSet(problem.oracle.all_rows, **state)
    active.keep(n_gradients >= n_new)
    for step in range(0, n_steps, n_new):
        if len(active) == 0:
            break
        here, points = active.problem, active.points
        if rival is not None and step == 0:
            plane = here.oracle.linearize_over(points, rival if len(here) == len(problem) else rival[active.rows])
        else:
            plane = here.linearize(points)
        distance = here.distance(points)
        active.incumbent = active.incumbent.improved_by(points, distance, plane.depth)
        active.planes.add(here, points, distance, plane)
        if takes_two:
            active.planes.add(here, points, distance, here.oracle.linearize_runner_up(points))
        active.points = active.planes.nearest(here)
        promised = here.distance(active.points)
        is_promising = (promised > 0) & (promised < (1 - here.tolerance) * active.incumbent.distance)
        continues = is_promising & (active.n_gradients >= step + 2 * n_new)
        if seeks:
            is_closer = plane.depth < active.closest_margin
            active.closest = torch.where(is_closer[:, None], points, active.closest)
            active.closest_margin = torch.where(is_closer, plane.depth, active.closest_margin)
            has_moved = here.norm.length(active.points - points) > here.tolerance * promised
            continues = continues & (has_moved | active.incumbent.is_found)
        if step > 0 and not here.few_dimensions:
            continues = continues & (plane.depth.abs() <= settings.linearity * here.scale)
        is_last = step + n_new >= n_steps
        places = active.rows[:0] if is_last else active.staying(continues)
        if places is not None:
            stationary = ~is_promising & (plane.depth < 0) & (distance <= active.incumbent.distance)
            incumbent = active.write(incumbent, active.incumbent)
            is_stationary = active.write(is_stationary, stationary)
            if seeks:
                closest = active.write(closest, active.closest)
                closest_margin = active.write(closest_margin, active.closest_margin)
            active.take(places)
    if seeks:
        missed = (~incumbent.is_found & torch.isfinite(closest_margin)).nonzero().flatten()
        part = problem.select(missed)
        found = line_search(part, closest[missed], Phase.REFINEMENT, closest_margin[missed])
        incumbent = incumbent.replaced(missed, found)
    return incumbent, is_stationary


def polish(
    problem: Problem, settings: NearestBoundarySettings, incumbent: Incumbent, budget: int, targeted: bool
) -> Incumbent:
    """Refine from the incumbent, without the linearizations made elsewhere, for as long as that gains."""
    active = ActiveSet(problem.oracle.all_rows, problem=problem, incumbent=incumbent)
    while len(active) > 0:
        here = active.problem
        start = active.incumbent.nearer_of(line_search(here, active.incumbent.points, Phase.REFINEMENT))
        left = budget - here.oracle.gradients_spent
        n_steps = settings.restart_gradients
        refined, _ = active_set_refine(here, settings, start.points, start, left, n_steps, targeted)
        active.incumbent = refined.found_by(Phase.REFINEMENT, start.distance)
        incumbent = active.write(incumbent, active.incumbent)
        active.keep(active.incumbent.distance < (1 - here.tolerance) * start.distance)
    return incumbent


def restart(
    problem: Problem,
    settings: NearestBoundarySettings,
    incumbent: Incumbent,
    budget: int,
    n_forwards: int,
    seed: int,
    targeted: bool,
    is_linear: Tensor,
    seeks: bool = False,
) -> tuple[Incumbent, Tensor]:
    """Restart from the boundaries of the other classes and from random directions, until that stops gaining.

    Args:

        problem (Problem): The search.
        settings (NearestBoundarySettings): Its constants.
        incumbent (Incumbent): To be improved upon.
        budget (int): Gradients of an example.
        n_forwards (int): Forward evaluations of an example after which no restart begins.
        seed (int): Where the random directions start: the same for every example, so that none depends on its batch.
        targeted (bool): Whether regions are entered.
        is_linear (Tensor): Where the model is linear up to the incumbent, ``(n,)``: there nothing is nearer than the
            boundaries of the classes.
        seeks (bool): Whether no example has a point yet, and each ends as soon as it has one.

    Returns:

        - **incumbent** (*Incumbent*): As near or nearer.
        - **has_stalled** (*Tensor*): Whether it ended because restarts stopped gaining, ``(n,)``.
    """
    n_rivals = problem.oracle.n_classes - 1
    scores = rival_scores(problem.oracle.start_scores, problem.oracle.target)
    # From outside of a region its boundary is where the strongest of all rivals is met: no class stands alone.
    n_first = 0 if targeted else n_rivals
    max_stalled = max(budget // 2, min(n_rivals, budget))
    rows, first_distance = problem.oracle.all_rows, incumbent.distance
    has_stalled = torch.zeros_like(is_linear)
    active = ActiveSet(
        rows,
        problem=problem,
        incumbent=incumbent,
        is_linear=is_linear,
        n_stalled=torch.zeros_like(rows),
        order=scores.argsort(dim=1, descending=True, stable=True)[:, :n_rivals],
    )
    for trial in itertools.count():
        oracle = active.problem.oracle
        left = budget - oracle.gradients_spent
        is_gaining = active.n_stalled < max_stalled
        if trial >= max(n_first, 1):
            is_gaining &= ~active.is_linear
        is_active = (left > 0) & (oracle.forwards_spent < n_forwards) & is_gaining
        if seeks:  # some forward evaluations are kept for the search that follows
            is_active &= ~active.incumbent.is_found & (oracle.forwards_spent + left // 4 < n_forwards)
        places = active.staying(is_active)
        if places is not None:
            incumbent = active.write(incumbent, active.incumbent)
            has_stalled = active.write(has_stalled, ~is_gaining)
            active.take(places)
            left = left[places]
        if len(active) == 0:
            break
        here, before = active.problem, active.incumbent
        if trial < n_first:
            points, start, rival = before.points, before, active.order[:, trial]
        else:
            n = settings.random_directions if (trial - n_first) * settings.random_directions < budget else 1
            points, start = _random_starts(here, before, seed + trial, n)
            points, rival = torch.where(active.is_linear[:, None], start.points, points), None
        n_steps = settings.restart_gradients
        active.incumbent, _ = active_set_refine(
            here, settings, points, start, left, n_steps, targeted, rival=rival, seeks=seeks
        )
        has_gained = active.incumbent.distance < (1 - here.tolerance) * before.distance
        active.n_stalled = torch.where(has_gained, 0, active.n_stalled + 1)
    return incumbent.found_by(Phase.RESTART, first_distance), has_stalled


def _random_ends(problem: Problem, incumbent: Incumbent, seed: int, n_directions: int) -> tuple[Problem, Tensor]:
    """Points at about the incumbent's distance in random directions, those of one example together, and its problem."""
    x = problem.x
    generator = torch.Generator("cpu").manual_seed(seed)
    directions = torch.randn(n_directions, x.shape[1], generator=generator, dtype=torch.float64, device="cpu")
    if problem.norm.is_sparse:  # nearest points move few coordinates: powers leave ever fewer, in the end a single one
        power = 4.0 ** (torch.arange(n_directions, device="cpu") % 4)[:, None]
        directions = directions.sign() * (directions / directions.abs().amax(dim=1, keepdim=True)).abs() ** power
    directions = directions.to(x)
    directions = directions / problem.norm.length(directions)[:, None]
    size = problem.norm.length(x)
    guess = torch.where(size > 0, size, 1.0) * 2.0 ** (seed % 5)  # for those without a boundary point yet
    radius = torch.where(incumbent.is_found, incumbent.distance, guess)
    many = problem.select(problem.oracle.all_rows.repeat_interleave(n_directions, output_size=n_directions * len(x)))
    return many, many.box.clamp(many.x + (radius[:, None, None] * directions).flatten(0, 1))


def _random_starts(problem: Problem, incumbent: Incumbent, seed: int, n_directions: int) -> tuple[Tensor, Incumbent]:
    """Points at about the incumbent's distance, on the boundary where a random direction happens to cross it."""
    many, ends = _random_ends(problem, incumbent, seed, n_directions)
    margin = many.signed_margin(ends).view(-1, n_directions)
    # Any direction that crosses is a sure gain. The deepest one would lead to the same part of the boundary every time.
    lowest, chosen = torch.where(margin < 0, -1.0, margin).min(dim=1)
    starts = ends.view(len(problem), n_directions, -1)[problem.oracle.all_rows, chosen]
    crossed = (lowest < 0).nonzero().flatten()
    if len(crossed) > 0:
        moved = line_search(problem.select(crossed), starts[crossed], Phase.RESTART)
        starts = starts.index_copy(0, crossed, moved.points)
        incumbent = incumbent.replaced(crossed, incumbent.select(crossed).nearer_of(moved))
    return starts, incumbent


def looks_linear(problem: Problem, settings: NearestBoundarySettings, incumbent: Incumbent, seed: int) -> Tensor:
    """Whether the scores are linear along random directions, up to the incumbent, ``(n,)``.

    There is no nearer part of any class's boundary then than the one that the linearization at the incumbent shows.
    """
    is_linear = incumbent.is_found
    for n_directions in (1, settings.random_directions):  # one direction tells most models that are not linear
        rows = is_linear.nonzero().flatten()
        if len(rows) > 0:
            part = problem.select(rows)
            is_straight = _is_straight(part, *_random_ends(part, incumbent.select(rows), seed, n_directions))
            is_linear = is_linear.index_copy(0, rows, is_straight)
    return is_linear


def _is_straight(problem: Problem, many: Problem, ends: Tensor) -> Tensor:
    """Whether the scores half-way to all the ends of an example are the means of those at both ends, ``(n,)``."""
    start_scores, end_scores = many.oracle.start_scores, many.oracle.scores_at(ends)
    middle_scores = many.oracle.scores_at(torch.lerp(many.x, ends, 0.5))
    bend = (middle_scores - (start_scores + end_scores) / 2).abs().amax(dim=1)
    size = torch.maximum(start_scores.abs().amax(dim=1), end_scores.abs().amax(dim=1))
    return (bend <= _LINEAR[problem.oracle.dtype] * size).view(len(problem), -1).all(dim=1)
