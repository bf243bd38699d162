"""The size of the Integrated Gradients of a loss on the way from the inputs to other points."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from captum_boundary.robust._batch_mean import mean_of
from captum_boundary.robust._batch_sizes import batches
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
        return mean_of(self.of_examples, problem, ends, self.groups if self.in_groups else None)

    def groups(self, problem: Problem) -> list[slice]:
        """Batches of examples whose paths pass through the model at once."""
        loss = problem.path_loss
        if self.size.of is None:  # which needs no path
            return batches(len(loss), self.internal_batch_size or len(loss))
        return batches(len(loss), examples_at_once(loss, len(self.rule.nodes), self.internal_batch_size))
