"""The closest decision boundary, for a few dozen gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_boundary.search._bounds import Bounds
from captum_boundary.search._descent import Descent
from captum_boundary.search._geometry import Box
from captum_boundary.search._oracle import MarginOracle
from captum_boundary.search.boundary_search import BoundarySearch, check_count

__all__ = ["NearestBoundary"]


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
        with tqdm(total=self.budget, desc="Nearest boundary", unit="gradient", disable=not self.show_progress) as bar:
            descent = Descent(oracle, box, self.norm, self.budget, 0, bar)
            return descent.run()
