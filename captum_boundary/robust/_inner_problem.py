"""The inner problem of robust training: for which points near the inputs is the regulariser large?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from captum_boundary.robust._inner_maximizer import InnerMaximizer
from captum_boundary.robust._problem import Problem
from captum_boundary.robust._regularizer import Regularizer

__all__ = ["worst_points"]


def worst_points(
    problem: Problem,
    regularizer: Regularizer,
    maximizer: InnerMaximizer,
    weight: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Points ``(N, D)`` that the maximisation finds, from random starts where there is a ``generator``."""
    problem = problem.detached()
    noise = None if generator is None else maximizer.noise(problem.x, generator)
    start = maximizer.start(problem.near, problem.slope(), noise)
    ends = []
    for rows in regularizer.groups(problem):
        part = problem.of_rows(rows)
        ends.append(maximizer.ascend(_objective(part, regularizer, weight), start[rows], part.near))
    return torch.cat(ends)


def _objective(problem: Problem, regularizer: Regularizer, weight: float) -> Callable[[Tensor], Tensor]:
    """What is maximised: the regulariser, or the loss with it where the training loss is taken there too."""

    def objective(points: Tensor) -> Tensor:
        if regularizer.size.of is None:
            return problem.loss(points)
        sizes = regularizer.of_examples(problem, points)
        return problem.loss(points) + weight * sizes if regularizer.size.at_perturbed else sizes

    return objective
