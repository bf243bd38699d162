"""The closest decision boundary, for a few dozen gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_boundary.search._bounds import Bounds
from captum_boundary.search._approach import approach, scan
from captum_boundary.search._descent import descend
from captum_boundary.search._incumbents import Incumbents
from captum_boundary.search._refinement import explore, refine

from captum_boundary.search._geometry import Box
from captum_boundary.search._oracle import MarginOracle
from captum_boundary.search.boundary_search import BoundarySearch, check_count

__all__ = ["NearestBoundary"]

# Gradients for the exact local search before the descent, and again after it, as a share of the budget and at most.
_REFINEMENT_SHARE = 0.1
_MAX_REFINEMENT = 4
# Restarts find other parts of the boundary in few dimensions. There the descent leaves them a share of the budget; in
# many dimensions it is the better use of all of it.
_FEW_DIMENSIONS = 512
_DESCENT_SHARE = 0.5


class NearestBoundary(BoundarySearch):
    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        bounds: Bounds = None,
        norm: float = 2,
        budget: int = 40,
        max_distance: float | None = None,
        strict: bool = False,
        generator: torch.Generator | None = None,
        show_progress: bool = False,
        internal_batch_size: int | None = None,
    ) -> None:
        super().__init__(
            forward_func,
            bounds=bounds,
            norm=norm,
            max_distance=max_distance,
            strict=strict,
            generator=generator,
            show_progress=show_progress,
            internal_batch_size=internal_batch_size,
        )
        check_count("budget", budget)
        self.budget = budget

    def _cross(self, oracle: MarginOracle, box: Box) -> Tensor:
        search = Incumbents(oracle, box, self.norm, self.budget, self._seed())
        approach(search, oracle.all_rows)
        lost = torch.isinf(search.distance)
        scan(search, oracle.all_rows[lost])

        rows = oracle.all_rows[torch.isfinite(search.distance)]
        n_refinements = min(_MAX_REFINEMENT, math.ceil(_REFINEMENT_SHARE * self.budget))
        settled = refine(search, rows, search.points[rows], n_refinements)
        jagged = rows[~settled]
        few_dimensions = search.x.shape[1] <= _FEW_DIMENSIONS
        left = search.left(jagged)
        n_steps = (_DESCENT_SHARE * left).long() if few_dimensions else (left - n_refinements).clamp_min(0)
        descend(search, jagged, n_steps)
        settled[~settled] = refine(search, jagged, search.points[jagged], n_refinements)

        hopeless = torch.zeros_like(lost)
        hopeless[rows[~settled]] = not few_dimensions
        explore(search, oracle.all_rows[~hopeless])
        return search.points
