"""What a search knows so far: the nearest point beyond the boundary of every example, and the budget that is left."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary._base.geometry import Box, length
from captum_boundary._base.oracle import MarginOracle
from captum_boundary.search._landing import land, landing_band

__all__ = ["Incumbents"]

# Gains in distance below this fraction are not worth a gradient.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# Up to here restarts and second gradients find other parts of the boundary. In more dimensions descents pay better.
_FEW_DIMENSIONS = 512


class Incumbents:
    """The best points found for N examples, at distance infinity where there is none yet.

    Attributes:

        x (Tensor): The inputs, ``(N, D)``.
        points (Tensor): Nearest points known to lie beyond the boundary, ``(N, D)``.
        distance (Tensor): Their distances, ``(N,)``.
        scale (Tensor): Depth of the inputs, ``(N,)``, the unit in which other depths are large or small.
        aim (Tensor): How far beyond the boundary to aim, ``(N,)``.
        tolerance (float): Relative gain in distance below which an example is done.
        few_dimensions (bool): Whether inputs are so small that restarts pay.
        seed (int): Where the random directions of this search start.
    """

    def __init__(self, oracle: MarginOracle, box: Box, norm: float, budget: int, seed: int) -> None:
        self.oracle = oracle
        self.box = box
        self.norm = norm
        self.budget = budget
        self.seed = seed
        self.x = oracle.x
        self.points = oracle.x.clone()
        self.distance = torch.full_like(oracle.start_depth, torch.inf)
        shallow, deep = landing_band(oracle, oracle.all_rows)
        self.aim = (shallow * deep).sqrt()
        self.scale = torch.maximum(oracle.start_depth, shallow)
        self.tolerance = _TOLERANCE[oracle.dtype]
        self.few_dimensions = self.x.shape[1] <= _FEW_DIMENSIONS

    def left(self, rows: Tensor) -> Tensor:
        """Gradient evaluations that remain to the examples ``rows``."""
        return self.budget - self.oracle.n_gradient[rows]

    def length(self, points: Tensor, rows: Tensor) -> Tensor:
        """Distances ``(n,)`` of ``points`` from their inputs."""
        return length(points - self.x[rows], self.norm)

    def offer(self, points: Tensor, rows: Tensor, depth: Tensor) -> None:
        """Keep those points that lie beyond the boundary and nearer than what was known."""
        distance = self.length(points, rows)
        better = (depth < 0) & (distance < self.distance[rows])
        self.points[rows[better]] = points[better]
        self.distance[rows[better]] = distance[better]

    def land(self, points: Tensor, rows: Tensor) -> Tensor:
        """Pull points back to within some per cent of the boundary, offer them, and return them."""
        if len(rows) == 0:
            return points
        landed, crossed = land(self.oracle, self.box.of(rows), points, rows, coarse=True)
        self.offer(landed, rows, torch.where(crossed, -1.0, 1.0))
        return landed

    def random(self, draw: int) -> torch.Generator:
        """A generator for the given draw: the same for every example, so that no result depends on its batch."""
        return torch.Generator().manual_seed(self.seed + draw)
