"""The mean of a batch's sizes, whose gradient is taken a few examples at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from captum_boundary.robust._path_gradients import added

__all__ = ["mean_size"]

# Sizes (n,) of some rows of the batch, by the parameters' names and values.
SizesOf = Callable[[slice, Mapping[str, Tensor]], Tensor]


def mean_size(sizes_of: SizesOf, groups: list[slice], parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The mean over all ``groups``, through which gradients reach the parameters, and the sizes ``(N,)`` without.

    In a mean, all examples weigh the same. So the gradient of one group can be taken, and its graph forgotten, before
    the next one is looked at: no more than one group's graph is ever held, and nothing is computed twice.
    """
    mean, sizes = _MeanSize.apply(sizes_of, groups, tuple(parameters), *parameters.values())
    return mean, sizes


class _MeanSize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sizes_of: SizesOf, groups: list[slice], names: tuple[str, ...], *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        gradients: list[Tensor | None] = [None] * len(leaves)
        sizes = []
        for rows in groups:
            with torch.enable_grad():
                of_group = sizes_of(rows, dict(zip(names, leaves, strict=True)))
                if of_group.requires_grad:
                    gradients = added(gradients, torch.autograd.grad(of_group.sum(), leaves, allow_unused=True))
            sizes.append(of_group.detach())
        joined = torch.cat(sizes)
        ctx.save_for_backward(*gradients)
        ctx.n_examples = len(joined)
        ctx.mark_non_differentiable(joined)
        return joined.mean(), joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        share = cotangent / ctx.n_examples
        return None, None, None, *(None if g is None else share * g for g in ctx.saved_tensors)
