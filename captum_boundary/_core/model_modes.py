"""The model as attacks and paths need it: without noise, and differentiable twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from captum_boundary.errors import BoundaryError, BoundaryValueError

__all__ = [
    "checkpoints_named",
    "clone_if_inference",
    "evaluation_mode",
    "native_recurrence",
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
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(native_recurrence(model))
        _refuse_checkpoints(stack)
        if hasattr(torch.compiler, "set_stance"):  # torch >= 2.6; for parts of the model that are compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        elif isinstance(model, nn.Module) and any(map(_is_compiled, model.modules())):
            raise BoundaryValueError(
                "Parts of the model are compiled, and compiled code has no second derivatives. Before torch 2.6 they "
                "cannot be run otherwise: compile the whole, torch.compile(model), or take a newer torch."
            )
        yield


def _refuse_checkpoints(stack: ExitStack) -> None:
    # Where hooks of the user's are active already, PyTorch does not let us forbid others.
    with suppress(RuntimeError):
        stack.enter_context(disable_saved_tensors_hooks(_CHECKPOINTS))


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


@contextmanager
def native_recurrence(model: Callable[..., Any]) -> Iterator[None]:
    """Recurrent layers without cuDNN, which has no second derivatives of them, and in evaluation mode not even one."""
    if not isinstance(model, nn.Module) or not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        yield
        return
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled
