r"""The decision function: from the outputs of a model to the margin of a class.

For outputs :math:`f(x)` with ``C >= 2`` columns and a class ``t``,

.. math:: \mathrm{margin}_t(x) = f_t(x) - \max_{j \ne t} f_j(x).

The region of ``t`` is where its margin is positive, the decision boundary is where it is zero. A model with one output
is read as the two logits ``(0, score)``: class 1 is its positive side and class 0 its negative side, so that everything
else needs to know only one kind of model.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from captum_boundary._core.captum_helpers import TargetType
from captum_boundary._core.checks import shown
from captum_boundary._core.outputs import score_tensor
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = [
    "class_scores",
    "class_weights",
    "indices_of",
    "margin_and_rival",
    "refuse_not_finite",
    "resolve_target",
    "rival_scores",
    "shaped_scores",
]


# How to make a decision of an output with another number of dimensions.
_KEEP = "Keep the dimension of the examples: squeeze with .squeeze(1) and not .squeeze(), which one example loses."
_WAYS_OUT = {
    0: _KEEP,
    1: _KEEP,
    3: "Wrap it so that it picks a decision, for scores of every token or time step that of one position, say: "
    "lambda x: model(x)[:, position], or [:, :, position] where classes come first.",
    4: "Wrap it so that it picks a decision, for a segmentation that of one pixel, say: "
    "lambda x: model(x)[:, :, row, column].",
}


def class_scores(output: object, n_examples: int) -> Tensor:
    """Return a model's output as finite ``(N, C)`` floating-point scores with ``C >= 2``, or say what is wrong with it.

    A single output (``(N,)`` or ``(N, 1)``) becomes the two columns ``(0, score)``.
    """
    scores = shaped_scores(output, n_examples)
    refuse_not_finite(scores)
    return scores


def refuse_not_finite(scores: Tensor) -> None:
    """Refuse scores ``(N, C)`` of the inputs that are NaN or infinite."""
    finite = torch.isfinite(scores).all(dim=1)
    if not finite.all():
        raise BoundaryValueError(
            f"The model returned NaN or infinite scores for row(s) [{shown(~finite)}] of the inputs. A decision needs "
            "finite scores: look for overflow, log(0) or masked classes."
        )


def shaped_scores(output: object, n_examples: int) -> Tensor:
    """As :func:`class_scores`, but scores may be NaN or infinite: nothing waits for their values.

    A single output (``(N,)`` or ``(N, 1)``) becomes the two columns ``(0, score)``.
    """
    output = score_tensor(output)
    if not output.is_floating_point():
        raise BoundaryTypeError(
            f"The model must return floating-point class scores, but it returned {output.dtype}. "
            "Return logits in place of predicted labels."
        )
    shape = output.shape
    if output.ndim == 1:
        output = output[:, None]
    if output.ndim != 2 or output.shape[0] != n_examples or output.shape[1] == 0:
        raise BoundaryValueError(
            f"The model must return scores of shape (N, C), or (N,) or (N, 1) for a binary model, with "
            f"N = {n_examples} examples, but it returned shape {tuple(shape)}. "
            f"{_WAYS_OUT.get(len(shape), 'Wrap it in a function that returns such scores.')}"
        )
    if output.shape[1] == 1:
        output = torch.cat([torch.zeros_like(output), output], dim=1)
    return output if output.dtype in (torch.float32, torch.float64) else output.float()


def rival_scores(scores: Tensor, target: Tensor) -> Tensor:
    """``scores`` with the column of each example's target class at minus infinity."""
    return scores.scatter(1, target[:, None], -torch.inf)


def margin_and_rival(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Margin ``(N,)`` of ``target`` and the strongest other class ``(N,)``, from ``(N, C)`` scores."""
    rival_score, rival = rival_scores(scores, target).max(dim=1)
    return scores.gather(1, target[:, None]).squeeze(1) - rival_score, rival


def class_weights(scores: Tensor, winner: Tensor, loser: Tensor | None = None) -> Tensor:
    """Weights of ``scores`` ``(n, C)``: 1 for one class ``(n,)`` of each row, -1 for another if it is given."""
    weights = torch.zeros_like(scores)
    if loser is not None:
        weights.scatter_(1, loser[:, None], -1.0)
    return weights.scatter_(1, winner[:, None], 1.0)


def resolve_target(target: TargetType, scores: Tensor, is_binary: bool) -> Tensor:
    """Turn any of Captum's forms of ``target`` for 2-D outputs into class indices ``(N,)``.

    ``None`` means the predicted class of each example. For a model with one output, 0 (Captum's index of the only
    output) means the side on which the example lies, and 1 the positive side, example by example. So the ``target`` of
    boundary points means the sides that it holds. Where both occur, sides must be meant, and a 0 for an example on the
    positive side is refused.
    """
    predicted = scores.argmax(dim=1)
    if target is None:
        return predicted
    n_examples, n_classes = scores.shape
    indices = _target_indices(target, n_examples)
    wrong = (indices < 0) | (indices >= n_classes)
    if wrong.any():
        allowed = "None, 0 or 1, as the model has one output" if is_binary else f"between 0 and {n_classes - 1}"
        raise BoundaryValueError(
            f"target must be {allowed}, but it contains {int(indices[wrong][0])} "
            f"for a model with {1 if is_binary else n_classes} output(s)."
        )
    return _sides(indices == 1, predicted) if is_binary else indices.to(scores.device)


def _sides(positive: Tensor, predicted: Tensor) -> Tensor:
    """The sides of a model with one output: the positive one where it is asked for, else that of the example."""
    if not positive.any():
        return predicted
    positive = positive.to(predicted.device)
    doubtful = ~positive & (predicted == 1)
    if doubtful.any():
        raise BoundaryValueError(
            f"target holds 0 for row(s) [{shown(doubtful)}], whose inputs lie on the positive side, and 1 for others. "
            "For a model with one output, 0 is Captum's index of the only output, whose side is that of the input, and "
            "1 the positive side. To ask for the negative side from the positive one, as class labels do, give the "
            "model two outputs: lambda x: torch.stack([0 * model(x).flatten(), model(x).flatten()], dim=1)."
        )
    return torch.where(positive, 1, predicted)


def _target_indices(target: TargetType, n_examples: int) -> Tensor:
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise BoundaryTypeError(
                f"target must hold integer class indices, but its dtype is {target.dtype}. {indices_of(target)}"
            )
        if target.numel() == 1 and target.ndim <= 1:
            return target.detach().long().repeat(n_examples)
        if target.ndim != 1 or target.numel() != n_examples:
            raise BoundaryValueError(
                f"A target tensor must have shape ({n_examples},), one class for each example, or one element, "
                f"but it has shape {tuple(target.shape)}. {indices_of(target) if target.ndim == 2 else ''}".rstrip()
            )
        return target.detach().long()
    if isinstance(target, list):
        if len(target) != n_examples:
            raise BoundaryValueError(
                f"A list of targets needs one entry for each of the {n_examples} examples, but it has {len(target)}."
            )
        return torch.tensor([_class_index(entry) for entry in target], dtype=torch.long, device="cpu")
    return torch.full((n_examples,), _class_index(target), dtype=torch.long, device="cpu")


def indices_of(target: Tensor) -> str:
    """How to make class indices of labels in another form."""
    if target.ndim == 2 and target.shape[1] > 1:
        return "Of one-hot labels or probabilities, give target.argmax(dim=1)."
    return f"Convert it with {'target.squeeze(1)' if target.ndim == 2 else 'target'}.long()."


def _class_index(entry: object) -> int:
    """One class from an integer, or from the one-element tuple that Captum allows for 2-D outputs."""
    if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 1:
        entry = entry[0]
    if isinstance(entry, numbers.Integral) and not isinstance(entry, bool):
        return int(entry)
    way_out = " Convert it with torch.as_tensor(target)." if hasattr(entry, "__array__") else ""
    raise BoundaryTypeError(
        "target must be None, an int, a list of ints, a tensor of integer class indices, or one-element tuples of ints "
        f"(the model has 2-D outputs), but it contains {entry!r} of type {type(entry).__name__}.{way_out}"
    )
