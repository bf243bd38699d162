"""Several boundary points of every example: those of its neighbouring classes, or those that random directions lead to.

Every pair of an example and one of its boundaries is a row of one flat batch, which a search treats like any other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._base.geometry import Box, length, project_onto_hyperplane
from captum_boundary._base.margin import rival_scores
from captum_boundary._base.oracle import MarginOracle
from captum_boundary.search.boundary_search import BoundaryPoints, BoundarySearch

__all__ = ["Neighbours", "nearest_boundary", "neighbouring_classes", "neighbours_in_random_directions"]

# Classes whose linearised distances are compared, the highest scores first, for every class that is searched.
_SCREENED = 3
# Random starts, in linearised distances of the boundary. From nearer ones most ways lead to the same part of the
# boundary, from farther ones to parts that are not near.
_START_DISTANCE = 4.0


class Neighbours(NamedTuple):
    """Boundary points of P pairs of an example and one of its boundaries.

    Attributes:

        rows (Tensor): The examples they belong to, ``(P,)``.
        boundary (BoundaryPoints): The points, as a tuple, of the classes whose regions are left or entered.
        adversarial (Tensor): The class that the example's target is separated from, ``(P,)``; -1 where not found.
        slopes (Tensor): Slopes ``(P, D)`` of the target's margin over that class, at the points.
    """

    rows: Tensor
    boundary: BoundaryPoints
    adversarial: Tensor
    slopes: Tensor


def nearest_boundary(search: BoundarySearch, oracle: MarginOracle) -> Neighbours:
    """The nearest boundary of every example, whichever class is on its other side."""
    return _neighbours(
        oracle, oracle.all_rows, search._find_pairs(oracle, oracle.all_rows, oracle.target, one_each=True)
    )


def neighbouring_classes(search: BoundarySearch, oracle: MarginOracle, box: Box, n_classes: int) -> Neighbours:
    """The nearest points of the regions of other classes, from inputs inside the region of their target.

    Inputs outside of it have one neighbour, the region of the target itself.
    """
    is_inside = oracle.sign > 0
    classes = _nearest_classes(search, oracle, box, n_classes)
    classes[~is_inside] = -1
    classes[~is_inside, 0] = oracle.target[~is_inside]
    is_pair = classes >= 0
    rows = is_pair.nonzero()[:, 0]
    return _neighbours(oracle, rows, search._find_pairs(oracle, rows, classes[is_pair]))


def neighbours_in_random_directions(search: BoundarySearch, oracle: MarginOracle, box: Box, n: int) -> Neighbours:
    """Points of the boundary of the target's region, near to the input, found from ``n`` points around it."""
    generator = torch.Generator().manual_seed(search._seed())
    lines = torch.randn(n, oracle.x.shape[1], generator=generator, dtype=torch.float64).to(oracle.x)
    lines = lines / length(lines, search.norm)[:, None]
    distance = _linearised_distance(search, oracle, box)
    distance = torch.where(torch.isfinite(distance), distance, 1 + length(oracle.x, search.norm))
    reach = _START_DISTANCE * distance
    rows = oracle.all_rows.repeat_interleave(n)
    starts = box.of(rows).clamp(oracle.x[rows] + (reach[:, None, None] * lines).flatten(0, 1))
    return _neighbours(oracle, rows, search._find_pairs(oracle, rows, oracle.target[rows], starts))


def _neighbours(oracle: MarginOracle, rows: Tensor, boundary: BoundaryPoints) -> Neighbours:
    pairs = oracle.of_pairs(rows, oracle.target[rows])
    adversarial = torch.where(boundary.target == pairs.target, boundary.adversarial, boundary.target)
    adversarial = torch.where(boundary.found, adversarial, -1)
    points = boundary.points if isinstance(boundary.points, tuple) else (boundary.points,)
    slopes = pairs.linearize(pairs.pack(points), pairs.all_rows, rival=adversarial).slope
    oracle.n_forward.index_add_(0, rows, boundary.n_forward + pairs.n_forward)
    oracle.n_gradient.index_add_(0, rows, boundary.n_gradient + pairs.n_gradient)
    return Neighbours(rows, boundary, adversarial, slopes * pairs.sign[:, None])


def _nearest_classes(search: BoundarySearch, oracle: MarginOracle, box: Box, n: int) -> Tensor:
    """Classes ``(N, n)`` whose linearised boundaries are nearest, of those with the highest scores."""
    n_rivals = oracle.n_classes - 1
    n_screened = n if n == n_rivals else min(_SCREENED * n, n_rivals)
    classes = rival_scores(oracle.start_scores, oracle.target).topk(n_screened, dim=1).indices
    if n_screened == n:
        return classes
    distances = [_linearised_distance(search, oracle, box, rival) for rival in classes.unbind(dim=1)]
    nearest = torch.stack(distances, dim=1).argsort(dim=1, stable=True)[:, :n]
    return classes.gather(1, nearest)


def _linearised_distance(search: BoundarySearch, oracle: MarginOracle, box: Box, rival: Tensor | None = None) -> Tensor:
    """Distances ``(N,)`` at which the margin over the strongest rival, or a given one, would vanish if it were linear.

    Infinite where the limits do not let it vanish.
    """
    x = oracle.x
    plane = oracle.linearize(x, oracle.all_rows, rival=rival)
    drop = plane.value.clamp_min(0.0)
    move = x - project_onto_hyperplane(x, plane.slope, drop, box, search.norm)
    reaches = (plane.slope * move).sum(dim=1) >= 0.99 * drop
    return torch.where(reaches, length(move, search.norm), torch.inf)
