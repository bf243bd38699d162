"""The model as attacks and paths need it: without noise, and differentiable twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import disable_saved_tensors_hooks

from captum_boundary._core.eager_kernels import math_attention, native_recurrence, without_compiled_code
from captum_boundary.errors import BoundaryError, BoundaryValueError

__all__ = [
    "checkpoints_named",
    "clone_if_inference",
    "evaluation_mode",
    "outside_inference_mode",
    "twice_differentiable",
]

_CHECKPOINTS = (
    "The model checkpoints activations (torch.utils.checkpoint), which are computed again later, when its mode, "
    "parameters and activations are others. Switch checkpointing off, for instance with memory_efficient=False or "
    "model.gradient_checkpointing_disable()."
)


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Where inference mode is on, ``torch.no_grad()`` in its place: attacks need gradients, and turn these on again."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def checkpoints_named() -> Iterator[None]:
    """What PyTorch says of checkpointed activations, in words that help."""
    try:
        yield
    except RuntimeError as error:
        if "checkpoint" not in str(error).lower() or isinstance(error, BoundaryError):
            raise
        raise BoundaryValueError(_CHECKPOINTS) from error


def clone_if_inference(value: Any) -> Any:
    """The value or, of tensors that were made in inference mode, a copy that graphs may hold."""
    return value.clone() if isinstance(value, torch.Tensor) and value.is_inference() else value


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module as in evaluation mode, so that nothing is random and no statistics are gathered."""
    with ExitStack() as stack:
        for module in model.modules():
            if not module.training:
                continue
            if isinstance(module, nn.RNNBase):
                # Accelerators keep what the backward pass of a recurrent layer needs in training mode alone. All that
                # this mode changes is the dropout between layers.
                stack.callback(setattr, module, "dropout", module.dropout)
                module.dropout = 0.0
            else:
                stack.callback(setattr, module, "training", True)
                module.training = False
        yield


@contextmanager
def twice_differentiable(model: Callable[..., Any]) -> Iterator[None]:
    """Kernels that have second derivatives, in place of fused and compiled ones."""
    with ExitStack() as stack:
        stack.enter_context(math_attention(model))
        stack.enter_context(native_recurrence(model))
        stack.enter_context(without_compiled_code(model))
        with suppress(RuntimeError):  # where hooks of the user's are active already, others cannot be forbidden
            stack.enter_context(disable_saved_tensors_hooks(_CHECKPOINTS))
        yield
