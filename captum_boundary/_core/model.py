"""The model of a batch of examples: evaluated, counted and differentiable at any number of variants of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.arguments import of_examples
from captum_boundary._core.captum_helpers import format_additional_forward_args
from captum_boundary._core.failures import other_batch_explained, without_batch_dimension
from captum_boundary._core.margin import refuse_not_finite, shaped_scores
from captum_boundary._core.model_modes import clone_if_inference
from captum_boundary._core.outputs import has_one_output
from captum_boundary._core.score_function import NO_GRADIENT, ScoreFunction
from captum_boundary.errors import BoundaryValueError

__all__ = ["Model"]


class Model:
    """Class scores ``(n, C)``, ``C >= 2``, of n variants of the examples of a batch of N.

    Further arguments follow the examples they belong to. To look whether scores are finite, an accelerator has to be
    waited for, so only those of :meth:`first_scores` are looked at.

    Attributes:

        is_binary (bool): Whether the model has one output, which is the second of two columns.
        resolution (float): Relative precision of the numbers in which the model answers.
    """

    def __init__(self, forward_func: Callable[..., Any], n_examples: int, additional_forward_args: object) -> None:
        self._function = ScoreFunction(forward_func)
        self._n_examples = n_examples
        # Gradients cannot pass through tensors that were made in inference mode.
        self._arguments = tuple(map(clone_if_inference, format_additional_forward_args(additional_forward_args)))
        self.is_binary = False
        self.resolution = 0.0

    def first_scores(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Scores ``(N, C)`` of the examples themselves, or an error if a decision cannot be made of them."""
        scores = self.scores(inputs)
        refuse_not_finite(scores)
        return scores

    def scores(self, inputs: tuple[Tensor, ...], examples: Tensor | slice | None = None) -> Tensor:
        """Scores ``(n, C)`` of variants of ``examples`` ``(n,)``, or of all in their order; without a graph."""
        arguments = self._arguments_of(examples)
        try:
            with other_batch_explained(len(inputs[0]), self._n_examples):
                output = self._function(inputs, arguments)
                scores = shaped_scores(output, len(inputs[0]))
        except Exception as error:
            is_first = self.resolution == 0 and not arguments
            if is_first and (better := without_batch_dimension(inputs, lambda one: self._function(one, ()))):
                raise better from error
            raise
        self._note(output)
        return scores

    def differentiable_scores(
        self, inputs: tuple[Tensor, ...], examples: Tensor | slice | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As :meth:`scores`, with the graph, and the leaves of the graph in the place of ``inputs``."""
        with other_batch_explained(len(inputs[0]), self._n_examples), torch.enable_grad():
            output, leaves = self._function.differentiable(inputs, self._arguments_of(examples))
            scores = shaped_scores(output, len(inputs[0]))
        self._note(output)
        return scores, leaves

    @staticmethod
    def vjp(scores: Tensor, leaves: tuple[Tensor, ...], weights: Tensor) -> tuple[Tensor, ...]:
        """Gradients of ``(weights * scores).sum()`` by the leaves.

        Raises:

            BoundaryValueError: If no leaf has a part in the scores' graph.
        """
        # A view made under no_grad "requires grad" and has no graph.
        has_graph = scores.grad_fn is not None
        gradients = torch.autograd.grad(scores, leaves, weights, allow_unused=True) if has_graph else (None,)
        if all(gradient is None for gradient in gradients):
            raise BoundaryValueError(NO_GRADIENT)
        pairs = zip(gradients, leaves, strict=True)
        return tuple(torch.zeros_like(leaf) if gradient is None else gradient for gradient, leaf in pairs)

    def _arguments_of(self, examples: Tensor | slice | None) -> tuple[Any, ...]:
        return self._arguments if examples is None else of_examples(self._arguments, self._n_examples, examples)

    def _note(self, output: Tensor) -> None:
        self.is_binary = has_one_output(output)
        # A model may compute in a lower precision than that of its inputs.
        self.resolution = max(self.resolution, torch.finfo(output.dtype).eps)
