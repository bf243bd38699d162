"""Two contexts: the caller's, in which the model is evaluated, and that of the geometry around it.

The caller may have autocast on, be in inference mode or differentiate. The geometry has none of this: it moves points
in float32 or better. The model is evaluated as for a gradient, whether one is wanted or not: fused kernels that are
taken only where none is needed (the fast path of ``nn.TransformerEncoder``, which zeroes padding) would make two
functions of one model, one with the labels and another with the slopes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from captum_boundary._core.failures import scripts_explained
from captum_boundary._core.model_modes import checkpoints_named

__all__ = ["callers_autocast", "discarded_graph", "geometry"]

# Device types whose autocast was on where the outermost `geometry` was entered, with their dtypes. Each thread has its
# own value.
_autocast: ContextVar[tuple[tuple[str, torch.dtype], ...]] = ContextVar("captum_boundary_autocast", default=())


@contextmanager
def geometry() -> Iterator[None]:
    """Neither gradients nor inference mode nor autocast; what the caller's autocast was is kept for the model."""
    enabled = tuple(
        (device, torch.get_autocast_dtype(device)) for device in _device_types() if torch.is_autocast_enabled(device)
    )
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if enabled:
            for device, dtype in enabled:
                stack.enter_context(torch.autocast(device, dtype, enabled=False))
            token = _autocast.set(enabled)
            stack.callback(_autocast.reset, token)
        stack.enter_context(scripts_explained())
        stack.enter_context(checkpoints_named())
        yield


@contextmanager
def callers_autocast() -> Iterator[None]:
    """Autocast as it was outside of the geometry, for an evaluation of the model."""
    enabled = _autocast.get()
    if not enabled:
        yield
        return
    with ExitStack() as stack:
        token = _autocast.set(())  # a model may call this package itself
        stack.callback(_autocast.reset, token)
        for device, dtype in enabled:
            # Without its cache: casts of weights that are made here have no graph, and training in the same context
            # would find them.
            stack.enter_context(torch.autocast(device, dtype, cache_enabled=False))
        yield


def discarded_graph() -> AbstractContextManager[Any]:
    """For evaluations whose gradient is not wanted: record the graph, but keep no activation for it."""
    return saved_tensors_hooks(_nothing, _nothing)


def _nothing(_: object) -> Any:
    return None


def _device_types() -> tuple[str, ...]:
    accelerator = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None
    if accelerator is not None:
        return "cpu", accelerator.type
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
