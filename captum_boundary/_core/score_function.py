"""A forward function as one function of its inputs: whoever asks, labels and slopes come from the same evaluation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.context import callers_autocast, discarded_graph
from captum_boundary._core.failures import types_and_exports_explained
from captum_boundary._core.model_modes import clone_if_inference
from captum_boundary._core.outputs import output_of, score_tensor
from captum_boundary.errors import BoundaryValueError

__all__ = ["NO_GRADIENT", "ScoreFunction"]

NO_GRADIENT = (
    "The model's scores carry no gradient of its inputs, without which nothing can be found or explained: the forward "
    "function runs under torch.no_grad() or inference_mode, detaches, computes outside of torch (numpy, .item()) or in "
    "integers (quantized activations), or does not look at its inputs."
)
# What PyTorch says where something cannot be evaluated for a gradient: .numpy() of a tensor that needs one, operations
# without a derivative, torch.func within a graph whose activations are not kept.
_NOT_FOR_GRADIENTS = ("requires grad", "derivative for", "saved tensor hooks")


class ScoreFunction:
    """The scores that a forward function returns, evaluated as for a gradient whether one is wanted or not.

    The model gets tensors of its own, which it may change in place, under the autocast of whoever called the package.
    A function that cannot be evaluated for a gradient, since it leaves torch, is evaluated without.

    Attributes:

        has_graph (bool): Whether the function can be evaluated for a gradient, as far as is known.
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        self.forward_func = forward_func
        self.has_graph = True

    def __call__(self, inputs: tuple[Tensor, ...], arguments: tuple[Any, ...]) -> Tensor:
        """Scores of ``inputs`` without a graph, whatever their shape and values are."""
        if self.has_graph:
            try:
                return self.differentiable(inputs, arguments, keeps_graph=False)[0].detach()
            except RuntimeError as error:
                if not any(reason in str(error) for reason in _NOT_FOR_GRADIENTS):
                    raise
                self.has_graph = False
        with torch.inference_mode(False), torch.no_grad(), callers_autocast():
            given = tuple(tensor.detach().clone() for tensor in inputs)
            with types_and_exports_explained(self.forward_func, inputs):
                return score_tensor(output_of(self.forward_func, given, arguments))

    def differentiable(
        self, inputs: tuple[Tensor, ...], arguments: tuple[Any, ...], keeps_graph: bool = True
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Scores with their graph, and the leaves of that graph: tensors with the values of ``inputs``.

        Without ``keeps_graph`` no activation is kept, as under ``torch.no_grad()``, and nothing can be differentiated.
        """
        if keeps_graph and not self.has_graph:
            raise BoundaryValueError(NO_GRADIENT)
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors that were made in inference mode cannot be leaves of a graph.
            leaves = tuple(
                clone_if_inference(tensor).detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs
            )
            with callers_autocast(), nullcontext() if keeps_graph else discarded_graph():
                given = tuple(leaf.clone() for leaf in leaves)
                with types_and_exports_explained(self.forward_func, inputs):
                    return score_tensor(output_of(self.forward_func, given, arguments)), leaves
