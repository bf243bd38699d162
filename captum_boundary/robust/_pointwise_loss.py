"""The loss as attacks and paths see it: one value for each example, of the model as in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from captum_boundary._core.arguments import follows
from captum_boundary._core.batch_sizes import saved_bytes, slices
from captum_boundary._core.captum_helpers import format_additional_forward_args, format_output, is_tuple
from captum_boundary._core.checks import check_inputs
from captum_boundary._core.failures import types_and_exports_explained
from captum_boundary._core.flat import pack, unpack
from captum_boundary._core.margin import class_scores, indices_of
from captum_boundary._core.model_modes import (
    clone_if_inference,
    evaluation_mode,
    twice_differentiable,
)
from captum_boundary._core.modules import outputs_recorded, unwrapped
from captum_boundary._core.outputs import has_one_output, score_tensor
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust._smooth_activations import smooth_activations

__all__ = ["LossFunction", "PerturbedBatch", "PointwiseLoss", "cross_entropy", "losses_of"]

LossFunction = Callable[[Any, Tensor], Tensor]

# What one forward pass may save for the backward pass. On a CPU larger batches fall out of the caches (a single forward
# pass for all path points of a convolutional network may take twice as long as one for each), a GPU needs them.
_CPU_BYTES = 32 * 2**20
_ACCELERATOR_BYTES = 512 * 2**20


@dataclass(frozen=True)
class PointwiseLoss:
    """The loss of a model at flat points ``(K * N, D)``: K points for each of N examples, ordered step by step.

    The model is evaluated as in evaluation mode: batch normalization uses its running statistics, and dropout that
    depends on the mode passes everything on, so that the loss of an example is a function of that example alone.
    Parameters and buffers are those of the moment when this object was made, also where an evaluation is repeated
    later, during the backward pass.
    """

    model: nn.Module
    loss_func: LossFunction
    inputs: tuple[Tensor, ...]
    as_tuple: bool  # whether the user gave a tuple
    target: Tensor  # (N, ...)
    arguments: tuple[Any, ...]
    per_example: tuple[bool, ...]  # whether an argument has an entry for each example
    layer: nn.Module | None
    state: dict[str, Tensor]  # of the model: parameters with their graph, buffers as they were
    autocast: tuple[str, bool, torch.dtype]
    softplus_beta: float | None = None  # sharpness of the softplus in place of kinks; None: kinks stay
    saved_bytes: dict[float | None, int] = field(default_factory=dict)  # of one example, measured once for all parts

    @classmethod
    def of(
        cls,
        model: nn.Module,
        loss_func: LossFunction,
        inputs: object,
        target: object,
        additional_forward_args: object = None,
        layer: nn.Module | None = None,
    ) -> PointwiseLoss:
        """The loss of a batch as a user gives it, or an error that says what is wrong with the batch."""
        tensors = tuple(clone_if_inference(tensor).detach() for tensor in check_inputs(inputs))
        arguments = tuple(map(clone_if_inference, format_additional_forward_args(additional_forward_args)))
        labels = _as_target(target, tensors)
        if loss_func is cross_entropy and not (labels.is_floating_point() or labels.dtype == torch.bool):
            labels = labels.long()  # PyTorch's cross-entropy takes no narrower integers
        # Only the one forward pass of the training loss goes through wrappers. Gradients of the parameters are
        # synchronized all the same.
        model = unwrapped(model)
        device = tensors[0].device.type
        return cls(
            model=model,
            loss_func=loss_func,
            inputs=tensors,
            as_tuple=is_tuple(inputs),
            target=labels,
            arguments=arguments,
            per_example=tuple(follows(value, len(labels)) for value in arguments),
            layer=layer,
            state=_state_of(model),
            autocast=(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
        )

    def __len__(self) -> int:
        return len(self.target)

    @property
    def device(self) -> torch.device:
        return self.inputs[0].device

    @property
    def in_half_precision(self) -> bool:
        """Whether gradients are lost that are not scaled up before the backward pass."""
        _, enabled, dtype = self.autocast
        return enabled and dtype == torch.float16

    @property
    def points_that_suit(self) -> int:
        """Points in one forward pass that make the best use of the device, by what one saves for the backward pass."""
        if self.softplus_beta not in self.saved_bytes:
            one = self.of_rows(slice(0, 1))
            point = pack(one.inputs).detach().requires_grad_()
            self.saved_bytes[self.softplus_beta] = max(1, saved_bytes(self.model, lambda: one(point)))
        available = _CPU_BYTES if self.device.type == "cpu" else _ACCELERATOR_BYTES
        return max(1, available // self.saved_bytes[self.softplus_beta])

    @property
    def n_extra_points(self) -> int:
        """The curve in a layer's output has one point more than nodes: a step takes both its ends."""
        return 0 if self.layer is None else 1

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What of the state gradients can reach."""
        return {name: tensor for name, tensor in self.state.items() if tensor.requires_grad}

    def with_current_state(self) -> PointwiseLoss:
        """The same loss of the model in its present state."""
        return replace(self, state=_state_of(self.model))

    def with_state(self, state: Mapping[str, Tensor]) -> PointwiseLoss:
        """The same loss for other values of some of the model's parameters."""
        return replace(self, state={**self.state, **state})

    def with_softplus(self, beta: float | None) -> PointwiseLoss:
        """The same loss of the model with softplus in place of kinks; None for the model itself."""
        return replace(self, softplus_beta=beta)

    def of_rows(self, rows: slice) -> PointwiseLoss:
        """The same loss for some of the examples."""
        return replace(
            self,
            inputs=tuple(tensor[rows] for tensor in self.inputs),
            target=self.target[rows],
            arguments=self._of_examples(lambda value: value[rows]),
        )

    def unpacked(self, points: Tensor) -> Any:
        """Points ``(N, D)`` in the form of the user's inputs."""
        return format_output(self.as_tuple, unpack(points, self.inputs))

    def __call__(self, points: Tensor) -> Tensor:
        """Losses ``(K * N,)`` at ``points``."""
        return self._losses(self.output(points), len(points))

    def at_inputs(self, x: Tensor) -> Tensor:
        """Losses ``(N,)`` at the inputs ``x``, after a look at what the model returns there."""
        output = self.output(x)
        if self.loss_func is cross_entropy:
            _check_classification(output, self.target)
        return self._losses(output, len(x))

    def output(self, points: Tensor) -> Any:
        """What the model returns at ``points``."""
        n_repeats = len(points) // len(self)
        arguments = self._of_examples(lambda value: _repeated(value, n_repeats))
        with evaluation_mode(self.model), twice_differentiable(self.model), self._autocast(), self._activations():
            given = tuple(part.clone() for part in unpack(points, self.inputs))  # which may be changed in place
            with types_and_exports_explained(self.model, given):
                return functional_call(self.model, self.state, (*given, *arguments))

    def with_layer(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``(K * N,)`` at ``points`` and the outputs of the layer there, ``(K * N, ...)``."""
        assert self.layer is not None
        with outputs_recorded(self.layer) as outputs:
            losses = self(points)
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
            raise BoundaryTypeError(
                "layer must be a module that the model calls once in a forward pass and that returns one Tensor, but "
                f"it was called {len(outputs)} time(s)"
                + (f" and returned {type(outputs[0]).__name__}." if outputs else ".")
            )
        return losses, outputs[0]

    def _losses(self, output: Any, n_points: int) -> Tensor:
        n_repeats = n_points // len(self)
        target = self.target if n_repeats == 1 else _repeated(self.target, n_repeats)
        with self._autocast():
            return losses_of(self.loss_func, output, target)

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


@dataclass(frozen=True)
class PerturbedBatch:
    """A loss of N examples, with the two ends of each path: flat inputs and perturbed points ``(N, D)``."""

    loss: PointwiseLoss
    x: Tensor
    perturbed: Tensor
    internal_batch_size: int | None = None

    def __len__(self) -> int:
        return len(self.x)

    def groups(self, n_nodes: int) -> list[slice]:
        """Examples whose whole paths pass through the model together; if not even one may, as single nodes do."""
        n_points = n_nodes + self.loss.n_extra_points
        if self.internal_batch_size is None:
            # An ordinary forward pass takes the whole batch, so that there is room for as many points.
            return slices(len(self), max(1, max(len(self), self.loss.points_that_suit) // n_points))
        return slices(len(self), self.internal_batch_size // n_points or self.internal_batch_size)

    def of_rows(self, rows: slice) -> PerturbedBatch:
        return replace(self, loss=self.loss.of_rows(rows), x=self.x[rows], perturbed=self.perturbed[rows])

    def with_state(self, state: Mapping[str, Tensor]) -> PerturbedBatch:
        return replace(self, loss=self.loss.with_state(state))


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


def _as_target(target: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    if not isinstance(target, Tensor):
        raise BoundaryTypeError(
            f"target must be a Tensor of classes, but it is {type(target).__name__}. Convert labels with "
            "torch.as_tensor(target)."
        )
    if target.ndim == 0 or len(target) != len(inputs[0]):
        raise BoundaryValueError(
            f"target must have one entry for each of the {len(inputs[0])} examples, but its shape is "
            f"{tuple(target.shape)}."
        )
    # Classes follow the inputs, as everywhere; what a loss of the user's own takes is the user's.
    labels: Tensor = clone_if_inference(target).detach()
    return labels if labels.is_floating_point() else labels.to(inputs[0].device)


def _check_classification(output: Any, target: Tensor) -> None:
    """What cross-entropy would only complain about in its own words, or not at all."""
    if target.ndim != 1 or target.is_floating_point() or target.dtype == torch.bool:
        raise BoundaryTypeError(
            f"target must hold integer classes, of shape (N,), for the default loss, but it has shape "
            f"{tuple(target.shape)} and dtype {target.dtype}. {indices_of(target)} For other targets give loss_func."
        )
    output = score_tensor(output).detach()
    scores = class_scores(output, len(target))
    n_outputs = 1 if has_one_output(output) else output.shape[1]
    # All that is asked of an accelerator, in one question.
    values = (*target.aminmax(), scores.min(), (scores.sum(dim=1) - 1).abs().max())
    lowest, highest, least, apart = torch.stack([value.to(scores) for value in values]).tolist()
    if not 0 <= lowest <= highest < scores.shape[1]:
        raise BoundaryValueError(
            f"target must hold classes between 0 and {scores.shape[1] - 1}, but it holds {int(lowest)} to "
            f"{int(highest)} for a model with {n_outputs} output(s)."
        )
    if n_outputs > 1 and least >= 0 and apart < 1e-4:
        raise BoundaryValueError(
            "The model seems to return probabilities: its outputs are at least 0 and sum to 1. The default loss, "
            "cross-entropy, needs logits: leave out the model's softmax, or give a loss_func for probabilities, for "
            "instance lambda p, y: torch.nn.functional.nll_loss(p.log(), y, reduction='none')."
        )


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **{name: buffer.clone() for name, buffer in model.named_buffers()}}


def _repeated(tensor: Tensor, n_repeats: int) -> Tensor:
    """The rows of the batch, step by step."""
    return tensor.repeat(n_repeats, *[1] * (tensor.ndim - 1))
