"""Exact distances of inputs to the regions of classes, by solving every piece of a model on its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor


def least_distance(rows: np.ndarray, limits: np.ndarray) -> np.ndarray | None:
    """Shortest u with ``rows @ u >= limits``, exactly (Lawson and Hanson's reduction to non-negative least squares)."""
    system = np.vstack([rows.T, limits])
    goal = np.zeros(len(system))
    goal[-1] = 1.0
    residual = system @ nnls(system, goal)[0] - goal
    return None if -residual[-1] < 1e-12 else -residual[:-1] / residual[-1]


def linear_region_distances(weight: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Euclidean distance of x to the region of every class of a linear model, where it is the strongest of all."""
    distances = []
    for target in range(len(bias)):
        others = [other for other in range(len(bias)) if other != target]
        slopes = weight[target] - weight[others]
        move = least_distance(slopes, -(slopes @ x + bias[target] - bias[others]))
        distances.append(math.inf if move is None else np.linalg.norm(move))
    return np.array(distances)


def relu_scores(x: Tensor, first: Tensor, first_bias: Tensor, last: Tensor, last_bias: Tensor) -> Tensor:
    """One ReLU network for every example, all in one batch."""
    hidden = torch.relu(torch.einsum("nhd,nd->nh", first, x) + first_bias)
    return torch.einsum("nch,nh->nc", last, hidden) + last_bias


def relu_region_distances(
    first: np.ndarray,
    first_bias: np.ndarray,
    last: np.ndarray,
    last_bias: np.ndarray,
    x: np.ndarray,
    limit: float,
    rivals: Sequence[int] | None = None,
) -> np.ndarray:
    """Euclidean distance of x to the region of every class, in a cube: a quadratic programme for every activation.

    The region of a class is where it beats all others, or those of ``rivals`` alone.
    """
    n_hidden, n_inputs = first.shape
    before = first @ x + first_bias
    box = np.vstack([np.eye(n_inputs), -np.eye(n_inputs)])
    room = np.concatenate([-limit - x, x - limit])
    distances = np.full(len(last_bias), math.inf)
    for pattern in itertools.product([0.0, 1.0], repeat=n_hidden):
        active = np.array(pattern)
        sides = np.where(active > 0, 1.0, -1.0)
        slopes = (last * active) @ first
        scores = slopes @ x + (last * active) @ first_bias + last_bias
        for target in range(len(last_bias)):
            beaten = [other for other in (rivals or range(len(last_bias))) if other != target]
            region = np.vstack([sides[:, None] * first, slopes[target] - slopes[beaten], box])
            limits = np.concatenate([-sides * before, scores[beaten] - scores[target], room])
            move = least_distance(region, limits)
            if move is not None:
                distances[target] = min(distances[target], np.linalg.norm(move))
    return distances
