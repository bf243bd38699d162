"""Class scores of a model, for any number of variants of a batch's examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.captum_helpers import format_additional_forward_args
from captum_boundary._core.margin import class_scores
from captum_boundary._core.outputs import evaluate
from captum_boundary.errors import BoundaryValueError

__all__ = ["ModelScores", "arguments_of", "differentiable"]


class ModelScores:
    """A model and its further arguments, which follow the examples they belong to.

    To look whether scores are finite, an accelerator has to be waited for. So only those of the first call are looked
    at once; whether all have been is what :meth:`check_finite` tells in the end.
    """

    def __init__(self, forward_func: Callable[..., Any], n_examples: int, additional_forward_args: object) -> None:
        self._forward_func = forward_func
        self._n_examples = n_examples
        self._arguments = differentiable(format_additional_forward_args(additional_forward_args))
        self._shape: torch.Size | None = None  # of one example's output
        self._all_finite: Tensor | None = None
        self.dtype = torch.float32  # of the last output

    def __call__(self, inputs: tuple[Tensor, ...], owners: Tensor | None) -> Tensor:
        """Scores ``(n, C)``, ``C >= 2``, of ``n`` inputs, variants of the examples ``owners`` ``(n,)``, or of all."""
        arguments = self._arguments if owners is None else arguments_of(self._arguments, owners, self._n_examples)
        output = evaluate(self._forward_func, inputs, arguments)
        if self._shape is None or not self._is_as_before(output, len(inputs[0])):
            scores = class_scores(output, len(inputs[0]))
            self._shape, self.dtype = output.shape[1:], output.dtype
            return scores
        finite = torch.isfinite(output.detach()).all()
        self._all_finite = finite if self._all_finite is None else self._all_finite & finite
        return _as_columns(output)

    @property
    def has_one_output(self) -> bool:
        """Whether the model is binary, with its one output as the second of two columns."""
        return self._shape is not None and self._shape.numel() == 1

    def check_finite(self) -> None:
        """Refuse NaN and infinite scores of all calls so far."""
        if self._all_finite is not None and not self._all_finite:
            raise BoundaryValueError(
                "The model returned NaN or infinite scores on the way from the inputs to other points: look for "
                "overflow, log(0) or masked classes."
            )

    def _is_as_before(self, output: Tensor, n_points: int) -> bool:
        return (
            output.is_floating_point()
            and output.ndim > 0
            and len(output) == n_points
            and output.shape[1:] == self._shape
        )


def arguments_of(arguments: tuple[Any, ...] | None, owners: Tensor, n_examples: int) -> tuple[Any, ...] | None:
    """Captum's rule for variants of the examples ``owners``: tensors with an entry for each of ``n_examples`` follow.

    All else is passed as it is.
    """
    if arguments is None:
        return None
    return tuple(
        argument[owners.to(argument.device)]
        if isinstance(argument, Tensor) and argument.ndim > 0 and len(argument) == n_examples
        else argument
        for argument in arguments
    )


def differentiable(arguments: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """The arguments, with copies of tensors made in inference mode, through which gradients cannot pass."""
    if arguments is None:
        return None
    return tuple(
        argument.clone() if isinstance(argument, Tensor) and argument.is_inference() else argument
        for argument in arguments
    )


def _as_columns(output: Tensor) -> Tensor:
    """What :func:`class_scores` makes of an output that it need not check."""
    if output.ndim == 1:
        output = output[:, None]
    if output.shape[1] == 1:
        output = torch.cat([torch.zeros_like(output), output], dim=1)
    return output if output.dtype in (torch.float32, torch.float64) else output.float()
