"""The mean over a batch, whose gradient is taken a few examples at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from captum_boundary.robust._path_gradients import added
from captum_boundary.robust._problem import Problem

__all__ = ["mean_of"]

# Values (n,) of some rows of the batch, by the parameters' names and values.
ValuesOf = Callable[[slice, Mapping[str, Tensor]], Tensor]


def mean_of(
    values_of: Callable[[Problem, Tensor], Tensor],
    problem: Problem,
    ends: Tensor,
    groups: Callable[[Problem], list[slice]] | None,
) -> tuple[Tensor, Tensor]:
    """The mean over the batch of values ``(N,)``, through which gradients reach the parameters, and the values without.

    In a mean, all examples weigh the same. So with ``groups`` the gradient of one of them is taken, and its graph
    forgotten, before the next one is looked at: no more than one group's graph is ever held, and nothing is computed
    twice. Gradients in half precision are not, since they have to be scaled up before the backward pass.
    """
    parameters = problem.loss.parameters
    if groups is None or problem.loss.in_half_precision or not parameters or not torch.is_grad_enabled():
        values = values_of(problem, ends)
        return values.mean(), values.detach()

    def of_rows(rows: slice, state: Mapping[str, Tensor]) -> Tensor:
        return values_of(problem.of_rows(rows).with_state(state), ends[rows])

    mean, values = _MeanValue.apply(of_rows, groups(problem), tuple(parameters), *parameters.values())
    return mean, values


class _MeanValue(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values_of: ValuesOf, groups: list[slice], names: tuple[str, ...], *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        gradients: list[Tensor | None] = [None] * len(leaves)
        values = []
        for rows in groups:
            with torch.enable_grad():
                of_group = values_of(rows, dict(zip(names, leaves, strict=True)))
                if of_group.requires_grad:
                    gradients = added(gradients, torch.autograd.grad(of_group.sum(), leaves, allow_unused=True))
            values.append(of_group.detach())
        joined = torch.cat(values)
        ctx.save_for_backward(*gradients)
        ctx.n_examples = len(joined)
        ctx.mark_non_differentiable(joined)
        return joined.mean(), joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        share = cotangent / ctx.n_examples
        return None, None, None, *(None if g is None else share * g for g in ctx.saved_tensors)
