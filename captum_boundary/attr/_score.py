"""The score that is attributed: a model's output, or its margin over the class on the other side of the boundary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_boundary._core.margin import class_scores
from captum_boundary._core.outputs import score_tensor

__all__ = ["MarginScore", "ScoreTensor"]


class ScoreTensor(nn.Module):
    r"""A model whose scores are taken out of what it returns, for Captum's methods, which know nothing but Tensors.

    The model is a submodule, so that methods that hook its layers find them.

    Args:

        forward_func (Callable): Model or function that returns class scores, possibly inside of something else.
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        super().__init__()
        self.forward_func = forward_func

    def forward(self, *arguments: Any) -> Tensor:
        """Evaluate the model and return its scores alone."""
        return score_tensor(self.forward_func(*arguments))


class MarginScore(nn.Module):
    r"""A model's score of one class over another, ``f_target - f_adversarial``: shape ``(N,)``.

    The two classes ``(N,)`` are the last two arguments of the forward pass. There, Captum's methods expand them
    together with the inputs, each in its own order, so that every row keeps its pair. The model is a submodule, so that
    methods that hook its layers find them.

    Args:

        forward_func (Callable): Model or function that returns class scores.
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        super().__init__()
        self.forward_func = forward_func

    def forward(self, *arguments: Any) -> Tensor:
        """Evaluate the model at all arguments but the last two, which are the pair of classes."""
        *model_arguments, target, adversarial = arguments
        scores = class_scores(self.forward_func(*model_arguments), len(target))
        pair = scores.gather(1, torch.stack([target, adversarial], dim=1))
        return pair[:, 0] - pair[:, 1]
