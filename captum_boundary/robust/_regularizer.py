"""The size of the Integrated Gradients of a loss on the way from the inputs to other points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_boundary.robust._batch_sizes import batches
from captum_boundary.robust._mean_size import mean_size
from captum_boundary.robust._path_gradients import Quadrature, examples_at_once, path_attribution
from captum_boundary.robust._problem import Problem
from captum_boundary.robust._sizes import Size

__all__ = ["Regularizer"]


@dataclass(frozen=True)
class Regularizer:
    """A size of attributions, and how they are computed."""

    size: Size
    rule: Quadrature
    internal_batch_size: int | None
    in_groups: bool  # whether gradients may be taken a few examples at a time

    def of_examples(self, problem: Problem, ends: Tensor) -> Tensor:
        """Sizes ``(N,)`` of the attributions of ``ends`` ``(N, D)``."""
        if self.size.of is None:
            return problem.loss(ends) - problem.loss(problem.x)
        attribution = path_attribution(problem.path_loss, problem.x, ends, self.rule, self.internal_batch_size)
        if problem.loss.layer is None and not problem.as_tuple:
            attribution = attribution.reshape(problem.inputs[0].shape)
        return self.size.measure(attribution)

    def mean(self, problem: Problem, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over the batch, and the sizes of all examples ``(N,)`` without a graph."""
        parameters = problem.loss.parameters
        in_groups = self.in_groups and not problem.loss.in_half_precision
        if not in_groups or not parameters or not torch.is_grad_enabled():
            sizes = self.of_examples(problem, ends)
            return sizes.mean(), sizes.detach()

        def sizes_of(rows: slice, state: Mapping[str, Tensor]) -> Tensor:
            return self.of_examples(problem.of_rows(rows).with_state(state), ends[rows])

        return mean_size(sizes_of, self.groups(problem), parameters)

    def groups(self, problem: Problem) -> list[slice]:
        """Batches of examples whose paths pass through the model at once."""
        loss = problem.path_loss
        if self.size.of is None:  # which needs no path
            return batches(len(loss), self.internal_batch_size or len(loss))
        return batches(len(loss), examples_at_once(loss, self.rule, self.internal_batch_size))
