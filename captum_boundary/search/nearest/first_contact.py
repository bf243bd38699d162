"""First contact: from every input to some point beyond its boundary."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.norms import L2
from captum_boundary._core.oracle import Linearization
from captum_boundary.search._line_search import line_search
from captum_boundary.search._problem import ActiveSet, Incumbent, Phase, Problem
from captum_boundary.search.nearest.settings import NearestBoundarySettings

__all__ = ["PROJECTION_STEPS", "newton_phase", "newton_step", "newton_steps", "random_line_search", "temperature"]

# Of a projection onto a half-space in a box: Newton's method need not be exact inside of another one.
PROJECTION_STEPS = 3


def temperature(problem: Problem, settings: NearestBoundarySettings) -> Tensor:
    """That of the log-sum-exp over rivals ``(n,)``.

    Several rivals then share the slope, which finds nearer boundaries than the strongest one alone.
    """
    return settings.smoothing * problem.scale


def newton_phase(problem: Problem, settings: NearestBoundarySettings, n_gradients: int) -> tuple[Incumbent, Tensor]:
    """Newton steps on the smoothed margin (DeepFool), until the boundary is crossed or progress ends.

    Without bounds, an example that one step does not lead across stays inside its data range for as long as that leads
    on.

    Returns:

        - **incumbent** (*Incumbent*): Points some per cent beyond the boundary.
        - **first_margin** (*Tensor*): The signed margin after the first step, for which the linearization predicts
          zero, ``(n,)``.
    """
    n_further = min(settings.newton_steps, n_gradients) - 1
    plane = problem.linearize(problem.x, temperature=temperature(problem, settings))
    points = newton_step(problem, settings, problem.x, plane)
    margin = problem.signed_margin(points)
    first_margin = margin
    rows = (margin >= 0).nonzero().flatten()
    if problem.has_data_range and len(rows) > 0:
        n_inside = math.ceil(settings.data_range_share * n_further)
        n_further -= n_inside
        inside = problem.in_data_range().select(rows)
        starts = newton_step(inside, settings, inside.x, Linearization(*(values[rows] for values in plane)))
        reached, reached_margin = newton_steps(inside, settings, starts, inside.signed_margin(starts), n_inside)
        points, margin = points.index_copy(0, rows, reached), margin.index_copy(0, rows, reached_margin)
    points, margin = newton_steps(problem, settings, points, margin, n_further)
    incumbent = line_search(problem, points, Phase.NEWTON, margin)
    if problem.norm.is_sparse:
        # Newton steps were those of l2. Where the model is linear, one of the norm's own ends on the nearest point.
        required = (plane.value + problem.overshoot).clamp_min(0.0)
        own = problem.norm.project_onto_half_space(problem.x, plane.slope, required, problem.box)
        incumbent = incumbent.improved_by(own, problem.distance(own), problem.signed_margin(own), Phase.NEWTON)
    return incumbent, first_margin


def newton_steps(
    problem: Problem,
    settings: NearestBoundarySettings,
    points: Tensor,
    margin: Tensor,
    n_steps: int,
    gives_up: bool = True,
) -> tuple[Tensor, Tensor]:
    """Where at most ``n_steps`` lead from ``points`` ``(n, D)``, until they cross, and the signed margin there.

    If it ``gives_up``, an example leaves after two slow steps.
    """
    ends, end_margin = points, margin
    rows = problem.oracle.all_rows
    active = ActiveSet(rows, problem=problem, points=points, margin=margin, n_slow=torch.zeros_like(rows))
    for _ in range(n_steps):
        active.keep((active.margin >= 0) & ((active.n_slow < 2) | (not gives_up)))
        if len(active) == 0:
            break
        plane = active.problem.linearize(active.points, temperature=temperature(active.problem, settings))
        active.points = newton_step(active.problem, settings, active.points, plane)
        before, active.margin = active.margin, active.problem.signed_margin(active.points)
        active.n_slow = active.n_slow + (active.margin > settings.slow_decrease * before)
        ends, end_margin = active.write(ends, active.points), active.write(end_margin, active.margin)
    return ends, end_margin


def newton_step(problem: Problem, settings: NearestBoundarySettings, points: Tensor, plane: Linearization) -> Tensor:
    """The nearest points to ``points`` ``(n, D)`` that lie a little beyond the linearized boundary."""
    # The shortest steps in l1 move few coordinates very far, where no slope is true any more.
    norm = L2 if problem.norm.is_sparse else problem.norm
    required_decrease = (settings.newton_overshoot * plane.value + problem.overshoot).clamp_min(0.0)
    return norm.project_onto_half_space(points, plane.slope, required_decrease, problem.box, PROJECTION_STEPS)


def random_line_search(problem: Problem, settings: NearestBoundarySettings, seed: int) -> Incumbent:
    """Look along random lines where slopes lead nowhere (saturated probabilities, dead units), with forwards alone.

    The lines end at random points of the box; in coordinates without limits, at all scales.
    """
    found = Incumbent.none(problem)
    if len(problem) == 0:
        return found
    x, box = problem.x, problem.box
    for trial in range(settings.random_lines // (4 if problem.few_dimensions else 1)):
        generator = torch.Generator("cpu").manual_seed(seed + trial)
        options: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
        uniform, normal = (draw(x.shape[1], **options).to(x) for draw in (torch.rand, torch.randn))
        size = x.abs().mean(dim=1, keepdim=True)
        radius = 4.0 ** (trial % 8) * torch.where(size > 0, size, 0.5)
        inside = box.lower + uniform * (box.upper - box.lower)
        ends = box.clamp(torch.where(torch.isfinite(inside), inside, x + radius * normal))
        found = found.improved_by(ends, problem.distance(ends), problem.signed_margin(ends), Phase.LINE_SEARCH)
    return line_search(problem, found.points, Phase.LINE_SEARCH)
