"""Gradients of parameters, taken a few points at a time, so that memory does not grow with the number of points.

Both functions here are right to second order: under ``create_graph=True`` the backward pass builds the ordinary graph
of the whole, with the memory that this takes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from captum_boundary.robust._pointwise_loss import PerturbedBatch

__all__ = ["BatchTerm", "mean_over_batch", "sum_in_parts"]

Parts = Callable[[Tensor, Mapping[str, Tensor], bool], Iterator[Tensor]]


class BatchTerm(Protocol):
    """A quantity of each example, whose mean over the batch is part of a training loss."""

    def values(self, batch: PerturbedBatch) -> Tensor:
        """Values ``(N,)`` with their graph."""

    def groups(self, batch: PerturbedBatch) -> list[slice]:
        """Rows of the batch that pass through the model together."""


def mean_over_batch(term: BatchTerm, batch: PerturbedBatch, in_groups: bool) -> tuple[Tensor, Tensor]:
    """The mean of a term's values ``(N,)``, through which gradients reach the parameters, and the values without graph.

    In a mean, all examples weigh the same. So with ``in_groups`` the gradient of one group is taken, and its graph
    forgotten, before the next one is evaluated: no more than one group's graph is ever held, and nothing is computed
    twice. Gradients in float16 are not, since they have to be scaled up before the backward pass.
    """
    parameters = batch.loss.parameters
    if not in_groups or batch.loss.in_half_precision or not parameters or not torch.is_grad_enabled():
        values = term.values(batch)
        return values.mean(), values.detach()
    mean, values = _MeanOverBatch.apply(term, batch, tuple(parameters), *parameters.values())
    return mean, values


class _MeanOverBatch(torch.autograd.Function):
    """The mean, whose gradient is taken in the forward pass already."""

    @staticmethod
    def forward(
        ctx: Any, term: BatchTerm, batch: PerturbedBatch, names: tuple[str, ...], *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        detached = batch.with_state(dict(zip(names, leaves, strict=True)))
        gradients: list[Tensor | None] = [None] * len(leaves)
        parts = []
        for rows in term.groups(batch):
            with torch.enable_grad():
                values = term.values(detached.of_rows(rows))
                gradients = _added(gradients, _gradients(values.sum(), leaves, None, keep_graph=False))
            parts.append(values.detach())
        joined = torch.cat(parts)
        ctx.term, ctx.batch, ctx.names = term, batch, names
        ctx.save_for_backward(*parameters, *gradients)
        ctx.mark_non_differentiable(joined)
        return joined.mean(), joined

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        n_parameters = len(ctx.names)
        parameters, gradients = ctx.saved_tensors[:n_parameters], ctx.saved_tensors[n_parameters:]
        if torch.is_grad_enabled():  # under create_graph=True
            batch = ctx.batch.with_state(dict(zip(ctx.names, parameters, strict=True)))
            mean = torch.cat([ctx.term.values(batch.of_rows(rows)) for rows in ctx.term.groups(batch)]).mean()
            return None, None, None, *_gradients(mean, parameters, cotangent, keep_graph=True)
        share = cotangent / len(ctx.batch)
        return None, None, None, *(None if gradient is None else share * gradient for gradient in gradients)


def sum_in_parts(parts: Parts, end: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """The sum without its graph; the backward pass evaluates the parts once more, one at a time.

    ``parts(end, parameters, keep_graph)`` are those of the sum, each ``(N, ...)``.
    """
    total: Tensor = _SumInParts.apply(parts, tuple(parameters), end, *parameters.values())
    return total


class _SumInParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Parts, names: tuple[str, ...], end: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parts, ctx.names = parts, names
        ctx.save_for_backward(end, *parameters)
        detached = {name: tensor.detach() for name, tensor in zip(names, parameters, strict=True)}
        return functools.reduce(torch.add, parts(end.detach(), detached, False))

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        keep_graph = torch.is_grad_enabled()  # under create_graph=True
        end, *parameters = ctx.saved_tensors
        if not keep_graph:
            end = end.detach().requires_grad_(end.requires_grad)
        sums: list[Tensor | None] = [None] * (1 + len(parameters))
        for part in ctx.parts(end, dict(zip(ctx.names, parameters, strict=True)), True):
            sums = _added(sums, _gradients(part, (end, *parameters), cotangent, keep_graph))
        return None, None, *sums


def _gradients(
    value: Tensor, tensors: Sequence[Tensor], cotangent: Tensor | None, keep_graph: bool
) -> list[Tensor | None]:
    """Gradients of the tensors that have any; None for all others."""
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    if not wanted or not value.requires_grad:
        return [None] * len(tensors)
    found = iter(torch.autograd.grad(value, wanted, cotangent, create_graph=keep_graph, allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in tensors]


def _added(sums: Sequence[Tensor | None], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Sums of gradients, one by one; None stands for tensors that do not matter."""
    return [b if a is None else a if b is None else a + b for a, b in zip(sums, gradients, strict=True)]
