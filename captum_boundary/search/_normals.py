"""The normal of the boundary at a point, also where rounding decides on which side of a kink the point lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_boundary._core.norms import L2
from captum_boundary.search._problem import Problem

__all__ = ["unit_normals"]

# Points around a boundary point whose slopes are those of the pieces that meet in it, and their distance from it, as a
# fraction of the distance from the input: more than rounding moves a point, less than the distance to other pieces.
_NEIGHBORS = 16
_NEIGHBORHOOD = 2e-4
# Slopes whose directions differ by less than this belong to one piece.
_SAME_PIECE = 1e-6


def unit_normals(problem: Problem, points: Tensor) -> Tensor:
    """Unit normals ``(n, D)`` at ``points``, towards the side of the input; zero where the slope is.

    Where the boundary is smooth, its normal is the direction of the slope. A closest point of a network with kinks
    often lies on one, where several pieces of the boundary meet: all non-negative combinations of their slopes are
    normals there, and which piece's slope is returned for the point is up to rounding. The first-order condition of a
    closest point says that the displacement ``x - x'`` is one of these combinations, in the coordinates that no
    limit holds back. So the normal is defined as the combination that is nearest to it. For one piece that is its
    slope, whatever the displacement. The pieces are those of points nearby: that of the point itself would be up to
    rounding. In many dimensions a network has kinks everywhere and each bends the boundary by little: there the slope
    is taken as it is.
    """
    plain = problem.in_plain_units()
    normals = _plain_normals(plain, plain.oracle.to_units(points))
    # By the chain rule, a slope is divided by the units as a point is.
    return normals if plain is problem else L2.steepest(plain.oracle.to_units(normals))


def _plain_normals(problem: Problem, points: Tensor) -> Tensor:
    slopes = L2.steepest(problem.linearize(points).slope)
    if not problem.few_dimensions:
        return slopes
    generator = torch.Generator("cpu").manual_seed(0)
    offsets = torch.randn(_NEIGHBORS, points.shape[1], generator=generator, dtype=torch.float64, device="cpu")
    offsets = L2.steepest(offsets).to(points)
    reach = _NEIGHBORHOOD * problem.distance(points)
    pieces = []
    for offset in offsets:
        beside = problem.box.clamp(points + reach[:, None] * offset)
        pieces.append(L2.steepest(problem.linearize(beside).slope))
    directions = torch.stack(pieces, dim=1)
    displacement = problem.x - points
    free = (points > problem.box.lower) & (points < problem.box.upper)
    has_kink = ((directions - slopes[:, None]).abs().amax(dim=(1, 2)) > _SAME_PIECE).nonzero().flatten()
    chosen = [
        _nearest_combination(*row)
        for row in zip(
            *(part[has_kink].cpu().double().numpy() for part in (directions, displacement, free)), strict=True
        )
    ]
    if not chosen:
        return slopes
    return slopes.index_copy(0, has_kink, torch.from_numpy(np.stack(chosen)).to(slopes))


def _nearest_combination(directions: Any, displacement: Any, free: Any) -> Any:
    """The unit vector of the non-negative combination of ``(K, D)`` directions nearest to the displacement."""
    from scipy.optimize import nnls  # which takes longer to import than the rest of the package

    system = directions * free
    weights, _ = nnls(system.T, displacement * free / np.linalg.norm(displacement).clip(min=np.finfo(float).tiny))
    combined = weights @ directions
    size = np.linalg.norm(combined)
    return combined / size if size > 0 else directions[0]
