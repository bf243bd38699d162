"""What is checked before a training step, and after it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from captum_boundary._core.checks import check_count
from captum_boundary._core.generators import check_generator
from captum_boundary._core.margin import class_scores
from captum_boundary._core.outputs import has_one_output, score_tensor
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust._model_modes import ordinary, unwrapped
from captum_boundary.robust._pointwise_loss import PointwiseLoss
from captum_boundary.robust._smooth_activations import KinksOutOfReach

__all__ = [
    "as_target",
    "check_classification",
    "check_finite",
    "check_layer",
    "check_loss_options",
    "check_positive",
    "check_smooth",
    "check_weight",
]


def check_loss_options(
    model: object,
    norm: float,
    generator: object,
    *,
    positive: dict[str, float | None],
    counts: dict[str, int | None],
    weight: float | None,
) -> None:
    """Options of a training loss; None is legal where it stands for a default."""
    if not isinstance(model, nn.Module):
        raise BoundaryTypeError(
            f"model must be a torch.nn.Module, whose parameters are trained, but it is {type(model).__name__}."
        )
    if isinstance(unwrapped(model), torch.jit.ScriptModule):
        raise BoundaryTypeError(
            "model must be the torch.nn.Module from before it was scripted or traced, since PyTorch evaluates no other "
            f"with the parameters of an earlier moment, but it is {type(model).__name__}."
        )
    for name, value in positive.items():
        check_positive(name, value, optional=name not in ("epsilon", "softplus_beta"))
    if weight is not None:
        check_weight("weight", weight)
    if norm not in (math.inf, 2):
        raise BoundaryValueError(f"norm must be math.inf or 2, but it is {norm!r}.")
    for name, count in counts.items():
        check_count(name, count, optional=name == "internal_batch_size")
    check_generator(generator)


def as_target(target: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    if not isinstance(target, Tensor):
        raise BoundaryTypeError(f"target must be a Tensor of classes, but it is {type(target).__name__}.")
    if target.ndim == 0 or len(target) != len(inputs[0]):
        raise BoundaryValueError(
            f"target must have one entry for each of the {len(inputs[0])} examples, but its shape is "
            f"{tuple(target.shape)}."
        )
    # Classes follow the inputs, as everywhere; what a loss of the user's own takes is the user's.
    labels: Tensor = ordinary(target).detach()
    return labels if labels.is_floating_point() else labels.to(inputs[0].device)


def check_classification(loss: PointwiseLoss, point: Tensor) -> None:
    """What cross-entropy would only complain about in its own words, or not at all."""
    target = loss.target
    if target.ndim != 1 or target.is_floating_point() or target.dtype == torch.bool:
        raise BoundaryTypeError(
            f"target must hold integer classes, of shape (N,), for the default loss, but it has shape "
            f"{tuple(target.shape)} and dtype {target.dtype}. For other targets give loss_func."
        )
    with torch.no_grad():
        output = score_tensor(loss.of_rows(slice(0, 1)).output(point))
    scores = class_scores(output, 1)
    n_outputs = 1 if has_one_output(output) else output.shape[1]
    # All that is asked of an accelerator, in one question.
    values = (*target.aminmax(), scores.min(), scores.sum())
    lowest, highest, least, total = torch.stack([value.to(scores) for value in values]).tolist()
    if not 0 <= lowest <= highest < scores.shape[1]:
        raise BoundaryValueError(
            f"target must hold classes between 0 and {scores.shape[1] - 1}, but it holds {int(lowest)} to "
            f"{int(highest)} for a model with {n_outputs} output(s)."
        )
    if n_outputs > 1 and least >= 0 and abs(total - 1) < 1e-4:
        raise BoundaryValueError(
            "The model seems to return probabilities: its outputs are at least 0 and sum to 1. The default loss, "
            "cross-entropy, needs logits: leave out the model's softmax, or give a loss_func for probabilities, for "
            "instance lambda p, y: torch.nn.functional.nll_loss(p.log(), y, reduction='none')."
        )


def check_layer(model: nn.Module, layer: Any, method: str) -> None:
    if not isinstance(layer, nn.Module) or all(module is not layer for module in model.modules()):
        raise BoundaryValueError("layer must be a module of the model, but it is none of model.modules().")
    if method not in ("riemann_right", "riemann_left"):
        raise BoundaryValueError(
            f"With layer, method must be 'riemann_right' or 'riemann_left', whose nodes divide the path evenly, but it "
            f"is {method!r}."
        )


def check_smooth(loss: PointwiseLoss, point: Tensor) -> None:
    """That all kinks which have a smooth form are in reach of the context that replaces them."""
    with torch.enable_grad(), KinksOutOfReach() as kinks:
        loss.of_rows(slice(0, 1)).output(point.clone().requires_grad_())
    if kinks.names:
        raise BoundaryValueError(
            f"smooth='softplus' does not reach every activation: {', '.join(sorted(kinks.names))} is computed inside "
            "of code that PyTorch has compiled or fused, such as a scripted module or nn.RNN with nonlinearity='relu'. "
            "Give the model from before it was scripted, with its activations written out, or leave smooth out."
        )


def check_finite(losses: Tensor) -> None:
    if torch.isfinite(losses).all():
        return
    rows = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    raise BoundaryValueError(
        f"The loss is NaN or infinite for {len(rows)} of {len(losses)} examples, row(s) {str(rows[:20])[1:-1]}. No "
        "parameter has been changed: look for parameters that are not finite, and lower the learning rate, weight or "
        "epsilon."
    )


def check_positive(name: str, value: float | None, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise BoundaryValueError(f"{name} must be a positive number, but it is {value!r}.")


def check_weight(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise BoundaryValueError(f"{name} must be a number of at least 0, but it is {value!r}.")
