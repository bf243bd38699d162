"""Curves of a model's score while the features of an input are exchanged for others, the most important ones first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_boundary._core.captum_helpers import TargetType
from captum_boundary._core.margin import resolve_target
from captum_boundary._core.model import Model
from captum_boundary.errors import BoundaryValueError
from captum_boundary.metrics._maps import check_attributions

__all__ = ["TargetScore", "exchange_curves", "ranks"]


class TargetScore:
    """The score of each example's target class: its probability, or the model's output for it."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: Tensor,
        target: TargetType,
        additional_forward_args: object,
        score: str,
    ) -> None:
        if score not in ("probability", "output"):
            raise BoundaryValueError(f'score must be "probability" or "output", but it is {score!r}.')
        self._model = Model(forward_func, len(inputs), additional_forward_args)
        self._n_examples = len(inputs)
        self._examples = torch.arange(len(inputs), device=inputs.device)
        self._as_probability = score == "probability"
        self._target = resolve_target(target, self._model.first_scores((inputs,)), self._model.is_binary)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Scores ``(R, N)`` of inputs ``(R * N, ...)``: R variants of all N examples, one variant after the other."""
        n_variants = len(inputs) // self._n_examples
        examples = self._examples.repeat(n_variants) if n_variants > 1 else None
        scores = self._model.scores((inputs,), examples, looks_at_values=True)
        if self._as_probability:
            scores = scores.softmax(dim=1)
        elif self._model.is_binary:  # what speaks for one side speaks against the other
            scores = torch.cat([-scores[:, 1:], scores[:, 1:]], dim=1)
        return scores.gather(1, self._target.repeat(n_variants)[:, None]).view(-1, self._n_examples)

    def check_finite(self) -> None:
        """Refuse scores that were NaN or infinite."""
        self._model.check_finite()


def ranks(attributions: object, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks of features from 0, the most important one, and which examples ``(N,)`` have NaN attributions.

    The features of images ``(N, C, H, W)`` are pixels, with ranks ``(N, 1, H, W)``; other inputs' are single numbers,
    with ranks of the inputs' shape. Among equals, the one that comes first in memory is the more important one.
    """
    values = check_attributions(attributions)
    is_image = inputs.ndim == 4
    features = (len(inputs), 1, *inputs.shape[2:]) if is_image else tuple(inputs.shape)
    if is_image and values.shape == inputs.shape:
        values = values.sum(dim=1, keepdim=True)
    elif values.shape != features and not (is_image and values.shape == features[:1] + features[2:]):
        maps = f", or one value for each pixel, {features}" if is_image else ""
        raise BoundaryValueError(
            f"attributions must have the shape of inputs, {tuple(inputs.shape)}{maps}, but their shape is "
            f"{tuple(values.shape)}."
        )
    flat = values.reshape(len(values), -1).to(inputs.device)
    rank = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank.view(features), flat.isnan().any(dim=1)


def exchange_curves(
    score: TargetScore, start: Tensor, end: Tensor, rank: Tensor, n_steps: int, per_eval: int, progress: str | None
) -> tuple[Tensor, Tensor]:
    """Shares of exchanged features ``(S + 1,)`` and scores ``(N, S + 1)`` between ``start`` and ``end``."""
    n_features = rank[0].numel()
    n_steps = min(n_steps, n_features)
    counts = torch.arange(n_steps + 1, device=rank.device) * n_features // n_steps
    scores = []
    with tqdm(total=len(counts), desc=progress, unit="step", disable=progress is None) as bar:
        for part in torch.split(counts, per_eval):
            exchanged = rank < part.view(-1, *[1] * rank.ndim)
            scores.append(score(torch.where(exchanged, end, start).flatten(0, 1)))
            bar.update(len(part))
    score.check_finite()
    curves = torch.cat(scores).T
    return counts.to(curves) / n_features, curves
