"""Several boundary points of every example: those of its neighboring classes, or those that random directions lead to.

Every pair of an example and one of its boundaries is a row of one flat batch, which a search treats like any other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.bounds import box_of
from captum_boundary._core.generators import seed_of
from captum_boundary._core.geometry import Box
from captum_boundary._core.margin import rival_scores
from captum_boundary.search._normals import unit_normals
from captum_boundary.search._problem import Problem
from captum_boundary.search._reports import warn_of_coarse_scores
from captum_boundary.search.boundary_points import BoundaryPoints
from captum_boundary.search.boundary_search import BoundarySearch

__all__ = ["Neighbors", "nearest_boundary", "neighboring_classes", "neighbors_in_random_directions"]

# Classes whose linearized distances are compared, the highest scores first, for every class that is searched.
_SCREENED = 3
# Random starts, in linearized distances of the boundary. From nearer ones most ways lead to the same part of the
# boundary, from farther ones to parts that are not near.
_START_DISTANCE = 4.0


class Neighbors(NamedTuple):
    """Boundary points of P pairs of an example and one of its boundaries.

    Attributes:

        rows (Tensor): The examples they belong to, ``(P,)``.
        boundary (BoundaryPoints): The points, as a tuple, of the classes whose regions are left or entered.
        adversarial (Tensor): The class beyond the boundary, ``(P,)``; -1 where not found.
        neighbor (Tensor): The class on this side of it, ``(P,)``; -1 where not found.
        normals (Tensor): Unit normals ``(P, D)`` at the points, towards that class.
    """

    rows: Tensor
    boundary: BoundaryPoints
    adversarial: Tensor
    neighbor: Tensor
    normals: Tensor


def nearest_boundary(search: BoundarySearch, problem: Problem) -> Neighbors:
    """The nearest boundary of every example, whichever class is on its other side."""
    return _neighbors(search, problem, problem.oracle.all_rows, problem.oracle.target, one_each=True)


def neighboring_classes(search: BoundarySearch, problem: Problem, n_classes: int) -> Neighbors:
    """The nearest points of the regions of other classes, from inputs inside the region of their target.

    Inputs outside of it have one neighbor, the region of the target itself.
    """
    oracle = problem.oracle
    is_inside = oracle.sign > 0
    classes = _nearest_classes(problem, n_classes)
    classes[~is_inside] = -1
    classes[~is_inside, 0] = oracle.target[~is_inside]
    is_pair = classes >= 0
    rows = is_pair.nonzero()[:, 0]
    return _neighbors(search, problem, rows, classes[is_pair])


def neighbors_in_random_directions(search: BoundarySearch, problem: Problem, n: int) -> Neighbors:
    """Points of the boundary of the target's region, near to the input, found from ``n`` points around it."""
    plain = problem.in_plain_units()
    oracle, x = plain.oracle, plain.x
    generator = torch.Generator("cpu").manual_seed(seed_of(search.generator))
    lines = torch.randn(n, x.shape[1], generator=generator, dtype=torch.float64, device="cpu").to(x)
    lines = lines / plain.norm.length(lines)[:, None]
    distance = plain.linearized_distance(plain.linearize(x))
    size = plain.norm.length(x)
    size = torch.where(size > 0, size, 1.0)
    distance = torch.where(torch.isfinite(distance) & (distance > 0), distance, size)
    reach = _START_DISTANCE * distance
    rows = oracle.all_rows.repeat_interleave(n, output_size=n * len(x))
    starts = plain.box.of(rows).clamp(x[rows] + (reach[:, None, None] * lines).flatten(0, 1))
    return _neighbors(search, problem, rows, oracle.target[rows], starts=oracle.from_units(starts, rows))


def _neighbors(
    search: BoundarySearch,
    problem: Problem,
    rows: Tensor,
    classes: Tensor,
    starts: Tensor | None = None,
    one_each: bool = False,
) -> Neighbors:
    """Search the boundaries of pairs of an example, ``rows`` ``(P,)``, and a class ``(P,)``, and take their normals.

    Where an example has many pairs, less is spent on each than on ``one_each``.
    """
    if starts is not None:
        search.check_starts()
    oracle, pairs = problem.oracle, _pairs(search, problem, rows, classes)
    batch = oracle.inputs, rows
    boundary = search._searched(pairs, as_tuple=True, starts=starts, is_one_of_many=not one_each, batch=batch)
    warn_of_coarse_scores(pairs.oracle, boundary, rows)
    pairs = _pairs(search, problem, rows, classes)  # with counters of its own
    points = boundary.points if isinstance(boundary.points, tuple) else (boundary.points,)
    normals = unit_normals(pairs, pairs.oracle.pack(points))
    # Towards the target's side: an input outside of the region of its target has that region beyond the boundary.
    normals = normals * oracle.sign[rows, None]
    is_other = classes != oracle.target[rows]
    sides = torch.stack([boundary.target, boundary.adversarial])
    neighbor, adversarial = torch.where(is_other, sides.flip(0), sides).masked_fill(~boundary.found, -1)
    oracle.n_forward.index_add_(0, rows, boundary.n_forward + pairs.oracle.n_forward)
    oracle.n_gradient.index_add_(0, rows, boundary.n_gradient + pairs.oracle.n_gradient)
    return Neighbors(rows, boundary, adversarial, neighbor, normals)


def _pairs(search: BoundarySearch, problem: Problem, rows: Tensor, target: Tensor) -> Problem:
    box = box_of(search.bounds, problem.oracle.inputs).of(rows)
    if problem.box.is_limited:  # by a mask, maybe, of which this search has not been told
        limits = problem.box.of(rows)
        box = Box(torch.maximum(box.lower, limits.lower), torch.minimum(box.upper, limits.upper))
    return Problem(problem.oracle.of_pairs(rows, target), box, problem.norm, problem.noise)


def _nearest_classes(problem: Problem, n: int) -> Tensor:
    """Classes ``(N, n)`` whose linearized boundaries are nearest, of those with the highest scores."""
    oracle = problem.oracle
    n_rivals = oracle.n_classes - 1
    n_screened = n if n == n_rivals else min(_SCREENED * n, n_rivals)
    classes = rival_scores(oracle.start_scores, oracle.target).topk(n_screened, dim=1).indices
    if n_screened == n:
        return classes
    plain = problem.in_plain_units()
    distances = [
        plain.linearized_distance(plain.oracle.linearize_over(plain.x, rival)) for rival in classes.unbind(dim=1)
    ]
    nearest = torch.stack(distances, dim=1).argsort(dim=1, stable=True)[:, :n]
    return classes.gather(1, nearest)
