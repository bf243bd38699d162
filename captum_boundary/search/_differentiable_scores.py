"""The scores that an oracle gives, as a function that others can differentiate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from captum_boundary._core.oracle import MarginOracle

__all__ = ["DifferentiableScores"]


class DifferentiableScores(torch.autograd.Function):
    """Scores ``(n, C)`` at ``points`` ``(n, D)`` of an oracle's ``rows``, or of all; counted by the oracle.

    They can be differentiated by the points alone: a ``backward`` of whoever asks for them would otherwise add to the
    gradients of the model's own parameters.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, oracle: MarginOracle, rows: Tensor | None) -> Tensor:
        ctx.dtype = points.dtype
        points = points.detach().to(oracle.dtype)
        if not ctx.needs_input_grad[0]:
            return oracle.scores_at(points, rows)
        scores, ctx.vjp = oracle.scores(points, rows)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None, None]:
        return ctx.vjp(weights).to(ctx.dtype), None, None
