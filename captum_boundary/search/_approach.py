"""First contact: from every input to some point beyond its boundary."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary._base.geometry import project_onto_hyperplane
from captum_boundary._base.oracle import Linearization
from captum_boundary.search._incumbents import Incumbents

__all__ = ["SMOOTHING", "approach", "newton_step", "scan"]

# The maximum over rival classes is smoothed over scores within this fraction of the input's depth. Several rivals then
# share the slope, which finds nearer boundaries than always heeding the strongest one alone.
SMOOTHING = 1 / 12

_MAX_STEPS = 10
_OVERSHOOT = 1.02
# A step that leaves more of the depth than this is slow, and two of them are a dead end.
_SLOW = 0.8
_SCANNED_POINTS = 64


def approach(search: Incumbents, rows: Tensor) -> None:
    """Newton steps on the smoothed depth (DeepFool's idea), until the boundary is crossed or progress ends."""
    oracle = search.oracle
    points, depth = oracle.x.clone(), oracle.start_depth.clone()
    n_slow = torch.zeros_like(rows)
    for _ in range(min(_MAX_STEPS, search.budget)):
        if len(rows) == 0:
            return
        plane = oracle.linearize(points[rows], rows, temperature=SMOOTHING * search.scale[rows])
        points[rows] = newton_step(search, points[rows], rows, plane)
        before = depth[rows]
        depth[rows], _ = oracle.depth(points[rows], rows)
        crossed = depth[rows] < 0
        search.land(points[rows[crossed]], rows[crossed])
        n_slow[rows] += depth[rows] > _SLOW * before
        rows = rows[~crossed & (n_slow[rows] < 2)]


def newton_step(search: Incumbents, points: Tensor, rows: Tensor, plane: Linearization) -> Tensor:
    """The nearest points to ``points`` ``(n, D)`` that lie a little beyond the linearised boundary."""
    # The shortest l1 steps move few coordinates very far, where no slope is true any more.
    norm = 2 if search.norm == 1 else search.norm
    drop = (_OVERSHOOT * plane.value + search.aim[rows]).clamp_min(0.0)
    return project_onto_hyperplane(points, plane.slope, drop, search.box.of(rows), norm)


def scan(search: Incumbents, rows: Tensor) -> None:
    """Look along random lines where slopes lead nowhere (saturated probabilities, dead units), with forwards alone.

    The lines end at random points of the box; in coordinates without limits, at all scales.
    """
    for trial in range(_SCANNED_POINTS if len(rows) else 0):
        x, box = search.x[rows], search.box.of(rows)
        generator = search.random(trial)
        uniform = torch.rand(x.shape[1], generator=generator, dtype=torch.float64).to(x)
        normal = torch.randn(x.shape[1], generator=generator, dtype=torch.float64).to(x)
        inside = box.lower + uniform * (box.upper - box.lower)
        reach = 0.5 * 4.0 ** (trial % 8) * (1 + x.abs().mean(dim=1, keepdim=True))
        ends = box.clamp(torch.where(torch.isfinite(inside), inside, x + reach * normal))
        crossed = search.oracle.depth(ends, rows)[0] < 0
        search.land(ends[crossed], rows[crossed])
