"""Scores of the noisy copies of an example, and what their mean is."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from captum_boundary._core.outputs import score_tensor
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["AVERAGES", "average_over_copies", "by_copies"]

AVERAGES = ("scores", "probabilities")


def by_copies(output: object, n_copies: int, n_examples: int) -> Tensor:
    """A model's output for the copies of some examples, ``(N, n_copies)`` or ``(N, n_copies, C)``."""
    output = score_tensor(output)
    if not output.is_floating_point():
        raise BoundaryTypeError(
            f"The model must return floating-point class scores, but it returned {output.dtype}. Return logits in "
            "place of predicted labels."
        )
    if output.ndim not in (1, 2) or len(output) != n_examples * n_copies:
        raise BoundaryValueError(
            f"The model must return scores of shape (N, C), or (N,) or (N, 1) for a binary model, for the N = "
            f"{n_examples * n_copies} noisy copies that it was given, but it returned shape {tuple(output.shape)}. "
            "Give arguments with one entry for each example as tensors, so that they follow their copies."
        )
    return output.reshape(n_examples, n_copies, *output.shape[1:])


def average_over_copies(scores: Tensor, average: str) -> Tensor:
    """The mean of ``(N, n_copies, ...)`` over copies, in logarithms where it is one of probabilities."""
    if average == "scores":
        return scores.mean(dim=1)
    if scores.ndim == 3 and scores.shape[2] > 1:
        return _log_mean_exp(scores.log_softmax(dim=2))
    return _log_mean_exp(functional.logsigmoid(scores)) - _log_mean_exp(functional.logsigmoid(-scores))


def _log_mean_exp(values: Tensor) -> Tensor:
    mean: Tensor = torch.logsumexp(values, dim=1) - math.log(values.shape[1])
    return mean
