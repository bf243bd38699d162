"""Descent along a jagged boundary, where no single linearization can be trusted."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from captum_boundary._core.geometry import Box, row_dot
from captum_boundary._core.norms import LINF
from captum_boundary.search._line_search import project_to_boundary
from captum_boundary.search._problem import Incumbent, Phase, Problem
from captum_boundary.search.nearest.first_contact import temperature
from captum_boundary.search.nearest.settings import NearestBoundarySettings
from captum_boundary.search.nearest.step_rules import DDNStep, Iterate, TrustRegionLPStep

__all__ = ["descend", "descend_with_restarts"]

# The share of a descent with sampled normals, and inside the data range.
_FIRST_PART = 0.5
# By how much the sampling radius grows with every descent that starts over, where displacements are sparse: other
# coordinates are found so.
_WIDENING = 2.0


def descend_with_restarts(
    problem: Problem,
    settings: NearestBoundarySettings,
    first: Incumbent,
    incumbent: Incumbent,
    budget: int,
    seed: int,
    has_raced: Tensor,
) -> Incumbent:
    """Descend again and again, in turn from the first points known and from the incumbent.

    A descent ends where an example has spent a multiple of the restart period: what a larger budget does begins with
    what a smaller one did.

    Args:

        problem (Problem): The search.
        settings (NearestBoundarySettings): Its constants.
        first (Incumbent): Points to start over from.
        incumbent (Incumbent): As near or nearer.
        budget (int): Gradients of each example.
        seed (int): Where random directions start, the same for every example.
        has_raced (Tensor): Examples that begin from the incumbent, ``(n,)``.
    """
    trust_radius = LINF.length(first.points - problem.x)
    widening_rate = _WIDENING if problem.norm.is_sparse else 1.0
    period = settings.restart_period
    for turn in itertools.count():
        spent = problem.oracle.gradients_spent
        n_steps = torch.minimum(budget - spent, period - spent % period)
        rows = (n_steps > 0).nonzero().flatten()
        if len(rows) == 0:
            break
        part, part_incumbent = problem.select(rows), incumbent.select(rows)
        turns = has_raced[rows].long() + turn
        continues = turns % 2 == 1
        start_over = (~continues).nonzero().flatten()
        starts = part_incumbent.replaced(start_over, first.select(rows[start_over]))
        widening = torch.where(continues, 1.0, widening_rate ** (turns // 2)).to(problem.x)
        found = descend(part, settings, starts, n_steps[rows], seed + period * turn, widening, trust_radius[rows])
        incumbent = incumbent.replaced(rows, part_incumbent.nearer_of(found))
    return incumbent


def descend(
    problem: Problem,
    settings: NearestBoundarySettings,
    start: Incumbent,
    n_steps: Tensor,
    seed: int,
    widening: Tensor | float = 1.0,
    trust_radius: Tensor | None = None,
    is_far: bool = False,
) -> Incumbent:
    r"""Move along the boundary from a known point, towards the nearest one.

    At first the normals are those at random points nearby, in l1 to the end, ever nearer, which do not let a kink or a
    dead unit mislead; margins are then those of the linearizations. All are of the smoothed margin.

    Args:

        problem (Problem): The search.
        settings (NearestBoundarySettings): Its constants.
        start (Incumbent): Points of all examples.
        n_steps (Tensor): Gradients for each of them, ``(n,)``.
        seed (int): Where random directions start, the same for every example.
        widening (Tensor or float): The sampling radius, relative to the ordinary, ``(n,)`` or for all.
        trust_radius (Tensor, optional): By how much coordinates may change at once in l1, ``(n,)``. Default: by as much
            as in the known points.
        is_far (bool): Whether the points may be far from the nearest ones. Rates then begin at the largest, and normals
            are not sampled, but in l1.
    """
    # In the order of their steps, examples that are done stand at the end and leave without being looked for.
    n_steps, order = n_steps.sort(descending=True, stable=True)
    part, begin = problem.select(order), start.select(order)
    widening = widening[order] if isinstance(widening, Tensor) else widening
    steps_of = n_steps.tolist()
    steps = torch.arange(max(steps_of, default=0), dtype=part.x.dtype, device=part.x.device)
    progress = steps[:, None] / n_steps.clamp_min(1)
    limits = None
    if problem.has_data_range:
        own, is_inside = part.in_data_range().box, part.lies_in_data_range(begin.points)
        inside = progress < _FIRST_PART * is_inside.to(progress)
        limits = torch.stack(
            [torch.where(inside, own.lower.T, -torch.inf), torch.where(inside, own.upper.T, torch.inf)]
        )
    sampling_radius: Tensor | None = None
    if not problem.few_dimensions and (problem.norm.is_sparse or not is_far):
        n_sampled = math.ceil(_FIRST_PART * len(steps))
        fading = 1 - progress if problem.norm.is_sparse else progress[:n_sampled] < _FIRST_PART
        radius = settings.sampling_radius * problem.norm.sampling_radius * n_steps.to(progress).sqrt()
        sampling_radius = widening * radius * fading
    rule: DDNStep | TrustRegionLPStep
    if problem.norm.is_sparse:
        radius = LINF.length(begin.points - part.x) if trust_radius is None else trust_radius[order]
        rule = TrustRegionLPStep(settings, radius, progress)
    else:
        first_rate = settings.max_rate if is_far else settings.first_rate
        rule = DDNStep(settings, begin.distance, progress, first_rate)
    found = _follow(part, settings, begin, rule, steps_of, limits, sampling_radius, seed)
    back = order.argsort()
    landed, margin = project_to_boundary(problem, found.points[back])
    none = Incumbent(problem.x, torch.full_like(margin, torch.inf), found.phase[back])
    return none.improved_by(landed, problem.distance(landed), margin)


def _follow(
    problem: Problem,
    settings: NearestBoundarySettings,
    incumbent: Incumbent,
    rule: DDNStep | TrustRegionLPStep,
    steps_of: list[int],
    limits: Tensor | None = None,
    sampling_radius: Tensor | None = None,
    seed: int = 0,
) -> Incumbent:
    """Take steps from the incumbents, linearizing the decision at each of them.

    The numbers of steps fall from the first example to the last. Coordinates have lower and upper ``limits``
    ``(2, n_steps, n)``. Normals are sampled at a radius relative to the distance in l2, in the first steps,
    ``(n_sampled, n)``.
    """
    whole, points, before = problem, incumbent.points, incumbent.distance
    temperatures = temperature(problem, settings)
    last_points, found = [], []
    for step in range(max(steps_of, default=0)):
        n_active = sum(n > step for n in steps_of[: len(problem)])
        if n_active < len(problem):
            active, done = slice(0, n_active), slice(n_active, None)
            last_points.append(points[done])
            found.append(incumbent.select(done))
            problem, incumbent = problem.select(active), incumbent.select(active)
            points, temperatures = points[active], temperatures[active]
            rule.select(active)
        move = points - problem.x
        distance = problem.norm.length(move)
        box = problem.box if limits is None else Box(*limits[:, step, :n_active, None])
        if sampling_radius is not None and step < len(sampling_radius):
            size = problem.norm.l2_length(move, distance)
            away = (sampling_radius[step, :n_active] * size)[:, None]
            there = box.clamp(torch.addcmul(points, away, _direction(problem, seed + step)))
            plane = problem.linearize(there, temperature=temperatures)
            incumbent = incumbent.improved_by(there, problem.distance(there), plane.depth)
            plane = plane._replace(depth=plane.depth + row_dot(plane.slope, points - there))
        else:
            plane = problem.linearize(points, temperature=temperatures)
            incumbent = incumbent.improved_by(points, distance, plane.depth)
        points = rule.step(problem, Iterate(points, move, distance, plane, box), incumbent, step)
    points = torch.cat([points, *reversed(last_points)])
    joined = Incumbent.joined([incumbent, *reversed(found)]).improved_by(
        points, whole.distance(points), whole.signed_margin(points)
    )
    return joined.found_by(Phase.DESCENT, before)


def _direction(problem: Problem, seed: int) -> Tensor:
    """A random vector ``(D,)`` of about unit length."""
    generator = torch.Generator("cpu").manual_seed(seed)
    vector = torch.randn(problem.x.shape[1], generator=generator, dtype=torch.float64, device="cpu")
    return vector.div_(len(vector) ** 0.5).to(problem.x)
