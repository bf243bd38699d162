"""The loss as attacks and paths see it: one value for each example, of the model as in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from captum_boundary._core.flat import pack, unpack
from captum_boundary._core.outputs import score_tensor
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust._batch_sizes import saved_bytes
from captum_boundary.robust._model_modes import evaluation_mode, twice_differentiable, unwrapped
from captum_boundary.robust._smooth_activations import smooth_activations

__all__ = ["LossFunction", "PointwiseLoss", "cross_entropy", "losses_of"]

LossFunction = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class PointwiseLoss:
    """The loss of a model at flat points ``(K * N, D)``: K points for each of N examples, ordered step by step.

    The model is evaluated as in evaluation mode: batch normalisation uses its running statistics, and dropout that
    heeds the mode passes everything on, so that the loss of an example is a function of that example alone. Parameters
    and buffers are those of the moment when this object was made, also where an evaluation is repeated later, during
    the backward pass.
    """

    model: nn.Module
    loss_func: LossFunction
    templates: tuple[Tensor, ...]  # of the shapes and dtypes of the inputs
    target: Tensor  # (N, ...)
    arguments: tuple[Any, ...]
    per_example: tuple[bool, ...]  # whether an argument has an entry for each example
    layer: nn.Module | None
    state: dict[str, Tensor]  # of the model: parameters with their graph, buffers as they were
    autocast: tuple[str, bool, torch.dtype]
    softplus_beta: float | None = None  # sharpness of the softplus in the place of kinks; None: kinks stay

    @classmethod
    def of(
        cls,
        model: nn.Module,
        loss_func: LossFunction,
        inputs: tuple[Tensor, ...],
        target: Tensor,
        arguments: tuple[Any, ...],
        layer: nn.Module | None,
    ) -> PointwiseLoss:
        # Only the one forward pass of the training loss goes through the wrappers. Gradients of the parameters are
        # synchronised all the same.
        model = unwrapped(model)
        device = inputs[0].device.type
        return cls(
            model=model,
            loss_func=loss_func,
            templates=inputs,
            target=target,
            arguments=arguments,
            per_example=tuple(isinstance(v, Tensor) and v.ndim > 0 and len(v) == len(target) for v in arguments),
            layer=layer,
            state=_state_of(model),
            autocast=(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
        )

    def __len__(self) -> int:
        return len(self.target)

    @property
    def device(self) -> torch.device:
        return self.templates[0].device

    @property
    def in_half_precision(self) -> bool:
        """Whether gradients are lost that are not scaled up before the backward pass."""
        _, enabled, dtype = self.autocast
        return enabled and dtype == torch.float16

    @cached_property
    def bytes_per_example(self) -> int:
        """What the forward pass of one example saves for the backward pass, next to the model's parameters."""
        one = self.of_rows(slice(0, 1))
        point = pack(one.templates).detach().requires_grad_()
        return saved_bytes(lambda: one(point), self.state.values())

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What of the state gradients can reach."""
        return {name: tensor for name, tensor in self.state.items() if tensor.requires_grad}

    def as_of_now(self) -> PointwiseLoss:
        """The same loss of the model in its present state."""
        return replace(self, state=_state_of(self.model))

    def detached(self) -> PointwiseLoss:
        """The same loss without the parameters' graph: what an attack needs."""
        return replace(self, state={name: tensor.detach() for name, tensor in self.state.items()})

    def of_rows(self, rows: slice) -> PointwiseLoss:
        """The same loss for some of the examples."""
        return replace(
            self,
            templates=tuple(template[rows] for template in self.templates),
            target=self.target[rows],
            arguments=self._of_examples(lambda value: value[rows]),
        )

    def __call__(self, points: Tensor) -> Tensor:
        """Losses ``(K * N,)`` at ``points``."""
        target = _repeated(self.target, len(points) // len(self))
        with self._autocast():
            return losses_of(self.loss_func, self.output(points), target)

    def output(self, points: Tensor) -> Any:
        """What the model returns at ``points``."""
        n_repeats = len(points) // len(self)
        arguments = self._of_examples(lambda value: _repeated(value, n_repeats))
        with evaluation_mode(self.model), twice_differentiable(self.model), self._autocast(), self._activations():
            return functional_call(self.model, self.state, (*unpack(points, self.templates), *arguments))

    def with_layer(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``(K * N,)`` at ``points`` and the outputs of the layer ``(K * N, ...)`` on the way to them."""
        outputs: list[Tensor] = []
        handle = self.layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))  # type: ignore[union-attr]
        try:
            losses = self(points)
        finally:
            handle.remove()
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
            raise BoundaryTypeError(
                "layer must be a module that the model calls once in a forward pass and that returns one Tensor, but "
                f"it was called {len(outputs)} time(s)"
                + (f" and returned {type(outputs[0]).__name__}." if outputs else ".")
            )
        return losses, outputs[0]

    def _activations(self) -> AbstractContextManager[object]:
        return nullcontext() if self.softplus_beta is None else smooth_activations(self.softplus_beta)

    def _autocast(self) -> AbstractContextManager[object]:
        device, enabled, dtype = self.autocast
        if not enabled and not torch.is_autocast_enabled(device):  # which some devices do not even know
            return nullcontext()
        # Cached casts of weights would be leaves of the wrong graph in PyTorch 2.4 and 2.5.
        return torch.autocast(device, dtype, enabled, cache_enabled=False)

    def _of_examples(self, change: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
        """The arguments, with those that follow the examples changed."""
        return tuple(change(v) if follows else v for v, follows in zip(self.arguments, self.per_example, strict=True))


def cross_entropy(output: Any, target: Tensor) -> Tensor:
    """Cross-entropy of each example, from logits ``(N, C)``; a single logit is that of class 1 of two."""
    output = score_tensor(output)
    if output.ndim == 1:
        output = output[:, None]
    if output.shape[1] == 1:
        output = torch.cat([torch.zeros_like(output), output], dim=1)
    return F.cross_entropy(output, target, reduction="none")


def losses_of(loss_func: LossFunction, output: Any, target: Tensor) -> Tensor:
    """One loss for each example, or an error that says how to get it."""
    losses = loss_func(output, target)
    if not isinstance(losses, Tensor) or losses.shape != target.shape[:1]:
        came = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise BoundaryValueError(
            f"loss_func(outputs, target) must return one loss for each of the {len(target)} examples, a Tensor of "
            f"shape ({len(target)},), but it returned {came}. Use reduction='none'."
        )
    return losses


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **{name: buffer.clone() for name, buffer in model.named_buffers()}}


def _repeated(tensor: Tensor, n_repeats: int) -> Tensor:
    """The rows of the batch, step by step."""
    return tensor.repeat(n_repeats, *[1] * (tensor.ndim - 1))
