"""Gradients of parameters, taken a few points at a time, so that memory does not grow with the number of points.

Both functions here are right to second order: under ``create_graph=True`` the backward pass builds the ordinary graph
of the whole, with the memory that this takes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["BatchTerm", "SumInParts", "batches", "mean_over_batch", "sum_in_parts"]

BatchT = TypeVar("BatchT", bound="BatchOfLoss")


class BatchOfLoss(Protocol):
    """A batch of examples with the state of the model there."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Tensors by name that gradients can reach."""

    @property
    def in_half_precision(self) -> bool:
        """Whether gradients are lost that are not scaled up before the backward pass."""

    def of_rows(self: BatchT, rows: slice) -> BatchT:
        """Some of the examples."""

    def with_state(self: BatchT, state: Mapping[str, Tensor]) -> BatchT:
        """The same examples with other values of some of the parameters."""


class BatchTerm(Protocol):
    """A quantity of each example, whose mean over the batch is part of a training loss."""

    def values(self, batch: Any) -> Tensor:
        """Values ``(N,)`` with their graph."""

    def groups(self, batch: Any) -> list[slice]:
        """Rows of the batch that pass through the model together."""


def mean_over_batch(term: BatchTerm, batch: BatchOfLoss, in_groups: bool) -> tuple[Tensor, Tensor]:
    """The mean of a term's values ``(N,)``, through which gradients reach the parameters, and the values without graph.

    In a mean, all examples weigh the same. So with ``in_groups`` the gradient of one group is taken, and its graph
    forgotten, before the next one is evaluated: no more than one group's graph is ever held, and nothing is computed
    twice. Gradients in float16 are not, since they have to be scaled up before the backward pass.
    """
    parameters = batch.parameters
    if not in_groups or batch.in_half_precision or not parameters or not torch.is_grad_enabled():
        values = term.values(batch)
        return values.mean(), values.detach()
    mean, values = _MeanOverBatch.apply(term, batch, tuple(parameters), *parameters.values())
    return mean, values


class _MeanOverBatch(torch.autograd.Function):
    """The mean, whose gradient is taken in the forward pass already."""

    @staticmethod
    def forward(
        ctx: Any, term: BatchTerm, batch: Any, names: tuple[str, ...], *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        detached = batch.with_state(dict(zip(names, leaves, strict=True)))
        gradients: list[Tensor | None] = [None] * len(leaves)
        parts = []
        for rows in term.groups(batch):
            with torch.enable_grad():
                values = term.values(detached.of_rows(rows))
                if values.requires_grad:
                    of_group = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
                    gradients = _added(gradients, of_group)
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
            return None, None, None, *_differentiable_gradients(mean, parameters, cotangent)
        share = cotangent / len(ctx.batch)
        return None, None, None, *(None if gradient is None else share * gradient for gradient in gradients)


class SumInParts(Protocol):
    """A sum whose parts pass through the model one after the other."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Tensors by name that gradients can reach."""

    def parts(self, end: Tensor, parameters: Mapping[str, Tensor], keep_graph: bool) -> Iterator[Tensor]:
        """The parts, each ``(N, ...)``."""


def sum_in_parts(of: SumInParts, end: Tensor) -> Tensor:
    """The sum without its graph; the backward pass evaluates the parts once more, one at a time."""
    total: Tensor = _SumInParts.apply(of, end, *of.parameters.values())
    return total


class _SumInParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, of: SumInParts, end: Tensor, *parameters: Tensor) -> Tensor:
        ctx.of = of
        ctx.save_for_backward(end, *parameters)
        detached = {name: tensor.detach() for name, tensor in zip(of.parameters, parameters, strict=True)}
        return functools.reduce(torch.add, of.parts(end.detach(), detached, keep_graph=False))

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        of: SumInParts = ctx.of
        end, *parameters = ctx.saved_tensors
        state = dict(zip(of.parameters, parameters, strict=True))
        if torch.is_grad_enabled():  # under create_graph=True
            total = functools.reduce(torch.add, of.parts(end, state, keep_graph=True))
            return None, *_differentiable_gradients(total, (end, *parameters), cotangent)
        end = end.detach().requires_grad_(ctx.needs_input_grad[1])
        tensors = (end, *parameters)
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        sums: list[Tensor | None] = [None] * len(wanted)
        for part in of.parts(end, state, keep_graph=True):
            sums = _added(
                sums, torch.autograd.grad(part, [tensors[index] for index in wanted], cotangent, allow_unused=True)
            )
        total_of = dict(zip(wanted, sums, strict=True))
        return None, *(total_of.get(index) for index in range(len(tensors)))


def batches(n_examples: int, size: int) -> list[slice]:
    """Rows of consecutive batches of at most ``size`` examples."""
    return [slice(first, min(first + size, n_examples)) for first in range(0, n_examples, size)]


def _differentiable_gradients(value: Tensor, tensors: Sequence[Tensor], cotangent: Tensor) -> list[Tensor | None]:
    """Gradients with their graph, of the tensors that have any."""
    wanted = [index for index, tensor in enumerate(tensors) if tensor.requires_grad]
    gradients: dict[int, Tensor | None] = {}
    if value.requires_grad:
        of_wanted = torch.autograd.grad(
            value, [tensors[index] for index in wanted], cotangent, create_graph=True, allow_unused=True
        )
        gradients = dict(zip(wanted, of_wanted, strict=True))
    return [gradients.get(index) for index in range(len(tensors))]


def _added(sums: Sequence[Tensor | None], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Sums of gradients, one by one; None stands for tensors that do not matter."""
    return [b if a is None else a if b is None else a + b for a, b in zip(sums, gradients, strict=True)]
