"""Exact distances of inputs to the regions of classes, by solving every piece of a model on its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

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


def tiny_networks(
    n_cases: int,
    seed: int,
    limit: float,
    is_targeted: bool = False,
    shapes: Iterable[tuple[int, int]] = tuple(itertools.product(range(1, 7), (2, 3))),
) -> Iterator[list[Tensor]]:
    """Random networks in batches of equal shape: inputs, classes, the arguments of ``relu_scores``, exact distances.

    The region of the class is left or, if ``is_targeted``, entered. Networks without a boundary are left out. Shapes
    are numbers of inputs and of classes.
    """
    random = np.random.default_rng(seed)
    for n_inputs, n_classes in shapes:
        cases = []
        while len(cases) < n_cases:
            n_hidden = random.integers(1, 9)
            first, last = random.normal(size=(8, n_inputs)), random.normal(size=(n_classes, 8))
            first_bias, last_bias = random.normal(size=8), random.normal(size=n_classes)
            # Unused hidden units are cut off, so that all networks of a batch have one shape.
            last[:, n_hidden:] = 0.0
            x = random.normal(size=n_inputs).clip(-limit, limit)
            used = first[:n_hidden], first_bias[:n_hidden], last[:, :n_hidden], last_bias
            scores = used[2] @ np.maximum(used[0] @ x + used[1], 0) + last_bias
            target = int(scores.argmin() if is_targeted else scores.argmax())
            regions = relu_region_distances(*used, x, limit, None if is_targeted else [target])
            distance = regions[target] if is_targeted else np.delete(regions, target).min()
            if math.isfinite(distance):
                cases.append((x, target, first, first_bias, last, last_bias, distance))
        yield [torch.tensor(np.stack(column)) for column in zip(*cases, strict=True)]
