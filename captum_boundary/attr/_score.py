"""The score that is attributed: a model's output, or its margin over the class on the other side of the boundary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from captum_boundary._core.arguments import follows
from captum_boundary._core.context import callers_autocast
from captum_boundary._core.margin import class_scores
from captum_boundary._core.outputs import has_one_output, score_tensor
from captum_boundary._core.score_function import ScoreFunction
from captum_boundary.errors import BoundaryValueError

__all__ = ["ClassScore", "ScoreTensor", "shared_tensors"]


class ScoreTensor(nn.Module):
    r"""The scores of a model, for Captum's methods, which know nothing but Tensors.

    They are taken out of what the model returns, and evaluated in one context, with a gradient or without. Those of a
    model with one output have the shape ``(N,)``, for which there is no target. The first ``n_inputs`` arguments are
    inputs. Further tensors that all examples share are ``fixed``, by their positions: Captum's methods repeat every
    other one as often as the inputs, as if it had an entry for each example. The model is a submodule, so that methods
    that hook its layers find them.
    """

    def __init__(self, forward_func: Callable[..., Any], n_inputs: int, fixed: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.forward_func = forward_func
        self._n_inputs = n_inputs
        self._fixed = fixed

    def forward(self, *arguments: Any) -> Tensor:
        """Evaluate the model and return its scores alone."""
        inputs, others = arguments[: self._n_inputs], arguments[self._n_inputs :]
        for position, value in self._fixed.items():
            others = (*others[:position], value, *others[position:])
        if torch.is_grad_enabled():
            with callers_autocast():
                given = (tensor.clone() for tensor in inputs)  # which the model may change in place
                scores = score_tensor(self.forward_func(*given, *others))
        else:
            scores = ScoreFunction(self.forward_func)(inputs, others)
        if scores.shape[:1] != inputs[0].shape[:1]:  # which Captum would add up
            raise BoundaryValueError(
                f"The model must return scores of each of the {len(inputs[0])} rows that it was given, but it returned "
                f"shape {tuple(scores.shape)}. It must not hold tensors that belong to the examples, such as an "
                "attention_mask: give them as additional_forward_args, whose entries follow their examples."
            )
        return scores.flatten() if has_one_output(scores) else scores


def shared_tensors(arguments: tuple[Any, ...], n_examples: int) -> tuple[dict[int, Tensor], tuple[Any, ...]]:
    """The tensors that do not follow the examples, by their positions in ascending order, and all other arguments."""
    numbered = dict(enumerate(arguments))
    shared = {at: each for at, each in numbered.items() if isinstance(each, Tensor) and not follows(each, n_examples)}
    return shared, tuple(each for at, each in numbered.items() if at not in shared)


class ClassScore(nn.Module):
    r"""A model's score of a class, or of one class over another, ``f_target - f_adversarial``: shape ``(N,)``.

    The ``n_classes`` classes, ``(N,)`` each, are the last arguments of the forward pass. There, Captum's methods expand
    them together with the inputs, each in its own order, so that every row keeps its own. The model is a submodule, so
    that methods that hook its layers find them.
    """

    def __init__(self, forward_func: Callable[..., Any], n_classes: int) -> None:
        super().__init__()
        self.forward_func = forward_func
        self._n_classes = n_classes

    def forward(self, *arguments: Any) -> Tensor:
        """Evaluate the model at all arguments but the classes."""
        model_arguments, classes = arguments[: -self._n_classes], arguments[-self._n_classes :]
        scores = class_scores(self.forward_func(*model_arguments), len(classes[0]))
        chosen = scores.gather(1, torch.stack(classes, dim=1))
        return chosen[:, 0] if self._n_classes == 1 else chosen[:, 0] - chosen[:, 1]
