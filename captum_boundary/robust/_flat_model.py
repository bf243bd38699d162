"""A model at flat points, with the label that it predicts for each example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.flat import pack, unpack
from captum_boundary._core.margin import margin_and_rival
from captum_boundary._core.model import Model

__all__ = ["FlatModel"]

# Rounding errors of scores, in units of the resolution times the largest score, that a label must survive.
_NOISE = 2.0


class FlatModel:
    """Scores and gradients at points ``(n, D)`` that belong to the examples of a batch of ``N``.

    Points are rounded to the inputs' own dtypes before the model sees them; all else is done in float32 or better. The
    *margin* is that of the label predicted at the inputs.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        additional_forward_args: object,
        internal_batch_size: int | None,
    ) -> None:
        self.inputs = tuple(tensor.detach() for tensor in inputs)
        self.x = pack(self.inputs)
        self.all_rows = torch.arange(len(self.x), device=self.x.device)
        self._evaluated = Model(model, len(self.x), additional_forward_args)
        self._groups = torch.split(self.all_rows, internal_batch_size or len(self.x))
        self.start_scores = self._scores_at(self.x)
        self.is_binary = self._evaluated.is_binary
        self._label = self.start_scores.argmax(dim=1)
        self.start_margin = self._margin(self.start_scores, self.all_rows)
        resolution = max(self._evaluated.resolution, *(torch.finfo(tensor.dtype).eps for tensor in self.inputs))
        self._noise = (_NOISE * resolution * self.start_scores.abs().amax(dim=1)).to(self.x)

    def rounded(self, points: Tensor) -> Tensor:
        """The points ``(N, D)`` as the model sees them."""
        return pack(unpack(points, self.inputs))

    def unpacked(self, points: Tensor) -> tuple[Tensor, ...]:
        """The points ``(N, D)`` as inputs of the model."""
        return unpack(points, self.inputs)

    def margin(self, points: Tensor) -> Tensor:
        """Margins ``(N,)`` at ``points`` ``(N, D)``."""
        return self._margin(self._scores_at(points), self.all_rows)

    def margin_and_slope(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Margins ``(N,)`` at ``points`` ``(N, D)`` and their gradients ``(N, D)``."""
        margins, slopes = [], []
        for rows in self._groups:
            with torch.enable_grad():
                scores, leaves = self._scores(points[rows], rows)
                margins.append(self._margin(scores, rows))
                slopes.append(self._gradient(margins[-1].sum(), leaves))
        return torch.cat(margins).detach(), torch.nan_to_num(torch.cat(slopes))

    def keeps_label(self, margin: Tensor) -> Tensor:
        """Whether points of these margins ``(N,)`` have the label of the inputs, beyond rounding."""
        return margin > self._noise

    def check_finite(self) -> None:
        """Refuse scores that were NaN or infinite."""
        self._evaluated.check_finite()

    def _margin(self, scores: Tensor, rows: Tensor) -> Tensor:
        return margin_and_rival(scores, self._label[rows])[0].to(self.x.dtype)

    def _scores_at(self, points: Tensor) -> Tensor:
        """Scores ``(N, C)`` at ``points`` ``(N, D)``, without a graph."""
        parts = (self._evaluated.scores(unpack(points[rows], self.inputs), rows, True) for rows in self._groups)
        return torch.cat(list(parts))

    def _scores(self, points: Tensor, rows: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Scores ``(n, C)`` of points of the examples ``rows``, and the leaves of their graph."""
        return self._evaluated.differentiable_scores(unpack(points, self.inputs), rows)

    def _gradient(self, value: Tensor, leaves: tuple[Tensor, ...], keep_graph: bool = False) -> Tensor:
        if not value.requires_grad:  # a model that is linear, or does not look at its inputs
            return torch.zeros_like(pack(leaves))
        return pack(torch.autograd.grad(value, leaves, create_graph=keep_graph, materialize_grads=True))
