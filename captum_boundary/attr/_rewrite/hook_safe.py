"""Modules made safe for DeepLift's hooks: inputs of their own, nothing in-place, no overlapping pooling windows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_boundary.attr._rewrite.table import POOLING, SETTINGS

__all__ = ["WindowMaxPool", "has_own_hooks", "prepare_for_hooks"]


def prepare_for_hooks(module: nn.Module) -> nn.Module:
    """Make ``module`` and all that it contains safe for DeepLift's hooks, and return it or what takes its place."""
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = prepare_for_hooks(child)
    if getattr(module, "inplace", False) is True:
        module.inplace = False  # type: ignore[assignment]
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) and module.activation is F.relu:
        module.activation = prepare_for_hooks(nn.ReLU())  # these layers are not traced
    if type(module) in SETTINGS:
        module._backward_hooks.clear()  # Captum would leave a module with backward hooks out
        if _own_input not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_own_input)
    return WindowMaxPool(module) if _has_overlapping_windows(module) else module


def has_own_hooks(module: nn.Module) -> bool:
    """Whether a module that was prepared carries forward hooks of the user's, which whatever replaces it would lack."""
    return bool(module._forward_hooks) or any(hook is not _own_input for hook in module._forward_pre_hooks.values())


def _own_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.clone() for value in inputs)


def _has_overlapping_windows(module: nn.Module) -> bool:
    if SETTINGS.get(type(module)) is not POOLING or module.return_indices:
        return False
    settings = _per_dimension(module, "kernel_size", "stride", "dilation")
    return any(stride < dilation * (kernel - 1) + 1 for kernel, stride, dilation in zip(*settings, strict=True))


def _per_dimension(pool: nn.Module, *names: str) -> list[tuple[int, ...]]:
    n_dimensions = int(type(pool).__name__[-2])
    values = [getattr(pool, name) for name in names]
    return [tuple(value) if isinstance(value, (tuple, list)) else (value,) * n_dimensions for value in values]


class WindowMaxPool(nn.Module):
    """Max pooling of windows copied side by side, since DeepLift's rule is wrong for windows that overlap."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool_type = type(pool)
        self.settings = {setting: getattr(pool, setting) for setting in POOLING}
        sizes = _per_dimension(pool, "kernel_size", "stride", "padding", "dilation")
        self.windows = list(zip(*sizes, strict=True))
        self.ceil_mode = pool.ceil_mode
        self.maximum = prepare_for_hooks(nn.MaxPool1d(math.prod(sizes[0])))
        self.train(pool.training)

    def forward(self, values: Tensor) -> Tensor:
        first = values.ndim - len(self.windows)
        margins = [self._margins(*sizes) for sizes in zip(values.shape[first:], self.windows, strict=True)]
        # The margins are finite: in DeepLift's rule, the difference of two infinite values would be NaN.
        lowest = torch.finfo(values.dtype).min
        values = F.pad(values, [margin for pair in reversed(margins) for margin in pair], value=lowest)
        for dimension, (kernel, stride, _, dilation) in enumerate(self.windows, first):
            values = values.unfold(dimension, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        shape = values.shape[: first + len(self.windows)]
        maxima: Tensor = self.maximum(values.flatten(first))
        return maxima.reshape(shape)

    def _margins(self, size: int, window: tuple[int, int, int, int]) -> tuple[int, int]:
        kernel, stride, padding, dilation = window
        span = dilation * (kernel - 1) + 1
        last, rest = divmod(size + 2 * padding - span, stride)
        if self.ceil_mode and rest and (last + 1) * stride < size + padding:  # a window must not start in the margin
            last += 1
        return padding, last * stride + span - size - padding
