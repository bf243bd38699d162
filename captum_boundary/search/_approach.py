"""First contact: from every input to some point beyond its boundary."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.geometry import project_onto_hyperplane
from captum_boundary._core.oracle import Linearization
from captum_boundary.search._landing import pull_back
from captum_boundary.search._problem import Candidates, Problem

__all__ = ["SMOOTHING", "approach", "newton_step", "scan"]

# The maximum over rival classes is smoothed over scores within this fraction of the input's depth. Several rivals then
# share the slope, which finds nearer boundaries than always heeding the strongest one alone.
SMOOTHING = 1 / 12

_MAX_STEPS = 10
_OVERSHOOT = 1.02
# A step that leaves more of the depth than this is slow, and two of them are a dead end.
_SLOW = 0.8
# Of the steps after the first.
_HELD_SHARE = 0.75
# Newton's method need not be exact inside of another one.
_PROJECTION_STEPS = 3
# Where restarts are to follow, fewer will do.
_SCANNED_POINTS, _SCANNED_IN_FEW_DIMENSIONS = 64, 32


def approach(problem: Problem, n_gradients: int) -> Candidates:
    """Newton steps on the smoothed depth (DeepFool's idea), until the boundary is crossed or progress ends.

    An example that may be held in the range of its input's own values and that one step does not lead across is held
    there for as long as that leads on.
    """
    n_further = min(_MAX_STEPS, n_gradients) - 1
    plane = problem.linearize(problem.x, temperature=SMOOTHING * problem.scale)
    points = newton_step(problem, problem.x, plane)
    depth = problem.depth(points)
    rows = (depth >= 0).nonzero().flatten()
    if problem.may_be_held and len(rows) > 0:
        n_held = math.ceil(_HELD_SHARE * n_further)
        n_further -= n_held
        held = problem.in_own_range().select(rows)
        starts = newton_step(held, held.x, Linearization(*(values[rows] for values in plane)))
        reached, reached_depth = _newton(held, starts, held.depth(starts), n_held)
        points, depth = points.index_copy(0, rows, reached), depth.index_copy(0, rows, reached_depth)
    return pull_back(problem, *_newton(problem, points, depth, n_further))


def _newton(problem: Problem, points: Tensor, depth: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
    """Where at most ``n_steps`` lead from ``points`` ``(n, D)``, until they cross, and the depth there."""
    ends, end_depth, rows, here = points, depth, problem.oracle.all_rows, problem
    n_slow = torch.zeros_like(rows)
    for _ in range(n_steps):
        going = ((depth >= 0) & (n_slow < 2)).nonzero().flatten()
        if len(going) == 0:
            break
        if len(going) < len(here):
            rows, here, points, depth, n_slow = (
                rows[going], here.select(going), points[going], depth[going], n_slow[going]
            )  # fmt: skip
        plane = here.linearize(points, temperature=SMOOTHING * here.scale)
        points = newton_step(here, points, plane)
        before, depth = depth, here.depth(points)
        n_slow = n_slow + (depth > _SLOW * before)
        ends, end_depth = ends.index_copy(0, rows, points), end_depth.index_copy(0, rows, depth)
    return ends, end_depth


def newton_step(problem: Problem, points: Tensor, plane: Linearization) -> Tensor:
    """The nearest points to ``points`` ``(n, D)`` that lie a little beyond the linearised boundary."""
    # The shortest l1 steps move few coordinates very far, where no slope is true any more.
    norm = 2 if problem.norm == 1 else problem.norm
    drop = (_OVERSHOOT * plane.value + problem.overshoot).clamp_min(0.0)
    return project_onto_hyperplane(points, plane.slope, drop, problem.box, norm, _PROJECTION_STEPS)


def scan(problem: Problem, seed: int) -> Candidates:
    """Look along random lines where slopes lead nowhere (saturated probabilities, dead units), with forwards alone.

    The lines end at random points of the box; in coordinates without limits, at all scales.
    """
    found = Candidates.none(problem)
    if len(problem) == 0:
        return found
    x, box = problem.x, problem.box
    for trial in range(_SCANNED_IN_FEW_DIMENSIONS if problem.few_dimensions else _SCANNED_POINTS):
        generator = torch.Generator("cpu").manual_seed(seed + trial)
        options: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
        uniform, normal = (draw(x.shape[1], **options).to(x) for draw in (torch.rand, torch.randn))
        reach = 0.5 * 4.0 ** (trial % 8) * (1 + x.abs().mean(dim=1, keepdim=True))
        inside = box.lower + uniform * (box.upper - box.lower)
        ends = box.clamp(torch.where(torch.isfinite(inside), inside, x + reach * normal))
        found = found.or_nearer(ends, problem.distance(ends), problem.depth(ends))
    return pull_back(problem, found.points)
