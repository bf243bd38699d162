"""The closest decision boundary, for a few dozen gradients."""

from __future__ import annotations

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

_FIRST_REFINEMENT = 4
_LAST_REFINEMENT = 3


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
        rows = oracle.all_rows
        approach(search, rows)
        scan(search, rows[torch.isinf(search.distance)])
        rows = rows[torch.isfinite(search.distance)]
        settled = refine(search, rows, search.points[rows], _FIRST_REFINEMENT)

        jagged = rows[~settled]
        descend(search, jagged, (search.left(jagged) - _LAST_REFINEMENT).clamp_min(0))
        settled[~settled] = refine(search, jagged, search.points[jagged], _LAST_REFINEMENT)
        explore(search, torch.cat([rows[settled], oracle.all_rows[torch.isinf(search.distance)]]).sort().values)
        return search.points
