"""DeepLift's rule for max pooling, for any number of examples at once.

Captum's own rule is right for one example alone, since where input and baseline are equal, it takes the gradient of the
first example for all; and for windows that do not overlap, since of several contributions to an input it keeps one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captum_boundary.attr._rewrite.hook_safe import WindowMaxPool, has_own_hooks
from captum_boundary.attr._rewrite.table import POOLING, SETTINGS

__all__ = ["pool_in_batches"]


def pool_in_batches(module: nn.Module, eps: float) -> nn.Module:
    """Let every max pooling in a copy that was prepared for hooks apply DeepLift's rule itself, and return the copy.

    One with hooks of the user's is left to Captum, and so is one that returns indices, which Captum refuses.
    """
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = pool_in_batches(child, eps)
    if isinstance(module, WindowMaxPool):
        return _MaxPool(module.pool_type, module.settings, eps)
    if SETTINGS.get(type(module)) is POOLING and not module.return_indices and not has_own_hooks(module):
        return _MaxPool(type(module), {setting: getattr(module, setting) for setting in POOLING}, eps)
    return module


class _MaxPool(nn.Module):
    """Max pooling whose gradients are DeepLift's multipliers. Captum does not know it, and so sets no hooks."""

    def __init__(self, pool_type: type[nn.Module], settings: dict[str, Any], eps: float) -> None:
        super().__init__()
        self.n_dimensions = int(pool_type.__name__[-2])
        self.function = getattr(nn.functional, pool_type.__name__.replace("MaxPool", "max_pool"))
        self.settings = settings
        self.eps = eps

    def forward(self, values: Tensor) -> Tensor:
        output: Tensor = _MaxPoolRule.apply(values, self)
        return output


class _MaxPoolRule(torch.autograd.Function):
    """Max pooling of inputs and their baselines, the two halves of a batch; its gradients are multipliers."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, pool: _MaxPool) -> Tensor:
        output, indices = pool.function(values, **pool.settings, return_indices=True)
        ctx.save_for_backward(values, output, indices)
        ctx.pool = pool
        maxima: Tensor = output
        return maxima

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        values, output, indices = ctx.saved_tensors
        first = values.ndim - ctx.pool.n_dimensions

        def unpool(pooled: Tensor) -> Tensor:
            flat = torch.zeros_like(values).flatten(first)
            return flat.scatter_add_(-1, indices.flatten(first), pooled.flatten(first)).view(values.shape)

        maximum, maximum_ref = output.chunk(2)
        # m - m' = [max(m, m') - m'] + [m - max(m, m')], one of which is zero: the first is the contribution of the
        # largest input, the second that of the largest baseline. Over the difference there it is a multiplier.
        larger = torch.maximum(maximum, maximum_ref)
        contributions = unpool(grad_output * torch.cat([larger - maximum_ref, maximum - larger]))
        contribution = sum(contributions.chunk(2))
        gradient, _ = unpool(grad_output).chunk(2)
        inputs, baselines = values.chunk(2)
        difference = inputs - baselines
        multipliers = torch.where(difference.abs() < ctx.pool.eps, gradient, contribution / difference)
        return torch.cat([multipliers, multipliers]), None
