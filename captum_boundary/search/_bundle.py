"""The last few linearisations of every example, and the point nearest to its input that lies beyond them all."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary._base.geometry import project_onto_hyperplane, row_dot
from captum_boundary._base.oracle import Linearization
from captum_boundary.search._incumbents import Incumbents

__all__ = ["Bundle"]

# Linearisations kept: enough for the corners that a few pieces of the boundary make.
_CAPACITY = 8
# A linearisation that, where it is put to the test, promises less of a crossing than there is (by this fraction of the
# input's depth) belongs to another piece of the boundary.
_SLACK = 0.05
_MAX_SWEEPS = 100
_MAX_CLIPPINGS = 20


class Bundle:
    r"""Half-spaces :math:`\{y : s_k \cdot (x - y) \ge d_k\}` in which linearisations see the other side.

    At a corner where several pieces of the boundary meet, the newest linearisation alone points to and fro between
    them; the nearest point of the intersection is the corner itself. In norms other than 2 the newest is used alone.

    Args:

        search (Incumbents): The search this serves.
        n_examples (int): Number of examples.
        n_planes (int): Linearisations that will be added for each of them, at most.
    """

    def __init__(self, search: Incumbents, n_examples: int, n_planes: int) -> None:
        self._search = search
        capacity = min(n_planes, _CAPACITY) if search.norm == 2 else 1
        self._slopes = search.x.new_zeros(n_examples, capacity, search.x.shape[1])
        self._drops = search.x.new_zeros(n_examples, capacity)
        self._valid = torch.zeros(n_examples, capacity, dtype=torch.bool, device=search.x.device)
        self._slot = torch.zeros(n_examples, dtype=torch.long, device=search.x.device)

    def add(self, index: Tensor, rows: Tensor, points: Tensor, plane: Linearization) -> None:
        """Add the linearisations ``plane`` at ``points``, and drop those that do not hold there.

        Args:

            index (Tensor): Places in this bundle, ``(n,)``.
            rows (Tensor): Examples of the search they belong to, ``(n,)``.
            points (Tensor): Where the linearisations were made, ``(n, D)``.
            plane (Linearization): The linearisations.
        """
        search = self._search
        moves = search.x[rows] - points
        predicted = self._drops[index] - search.aim[rows, None] - _products(self._slopes[index], moves)
        self._valid[index] &= predicted <= (plane.depth + _SLACK * search.scale[rows])[:, None]
        slot = self._slot[index]
        self._slopes[index, slot] = plane.slope
        self._drops[index, slot] = plane.value + search.aim[rows] + row_dot(plane.slope, moves)
        self._valid[index, slot] = True
        self._slot[index] = (slot + 1) % self._drops.shape[1]

    def nearest(self, index: Tensor, rows: Tensor) -> Tensor:
        """The nearest points ``(n, D)`` beyond all linearisations that still hold, of the places ``index``."""
        search = self._search
        x, box = search.x[rows], search.box.of(rows)
        if search.norm != 2:
            drop = self._drops[index, 0].clamp_min(0.0)
            return project_onto_hyperplane(x, self._slopes[index, 0], drop, box, search.norm)
        slopes = self._slopes[index] * self._valid[index, :, None]
        drops = torch.where(self._valid[index], self._drops[index], 0.0)
        free = torch.ones_like(x, dtype=torch.bool)
        nearest = x
        for _ in range(_MAX_CLIPPINGS):
            # Coordinates that reached a limit of the box stay there; what they achieved is subtracted.
            achieved = _products(slopes, torch.where(free, 0.0, x - nearest))
            moved = torch.where(free, x - _shortest_move(slopes * free[:, None], drops - achieved), nearest)
            nearest = box.clamp(moved)
            still_free = free & (moved == nearest)
            if torch.equal(still_free, free):
                break
            free = still_free
        return nearest


def _products(slopes: Tensor, moves: Tensor) -> Tensor:
    """Inner products ``(n, K)`` of ``(n, K, D)`` slopes with ``(n, D)`` moves."""
    return (slopes @ moves[:, :, None]).squeeze(2)


def _shortest_move(slopes: Tensor, drops: Tensor) -> Tensor:
    """Shortest ``u`` with ``slopes_k . u >= drops_k`` for all k: coordinate ascent on the dual (Hildreth's method)."""
    gram = slopes @ slopes.transpose(1, 2)
    diagonal = torch.diagonal(gram, dim1=1, dim2=2)
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0.0)
    multipliers = torch.zeros_like(drops)
    for _ in range(_MAX_SWEEPS):
        before = multipliers.clone()
        for k in range(drops.shape[1]):
            missing = drops[:, k] - row_dot(gram[:, k], multipliers)
            multipliers[:, k] = (multipliers[:, k] + inverse[:, k] * missing).clamp_min(0.0)
        if torch.allclose(multipliers, before, rtol=1e-7, atol=0.0):
            break
    return (multipliers[:, None] @ slopes).squeeze(1)
