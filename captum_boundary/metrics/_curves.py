"""Curves of a model's score while the features of an input are exchanged for others, the most important ones first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_boundary._core.captum_helpers import TargetType
from captum_boundary._core.checks import check_choice
from captum_boundary._core.margin import resolve_target
from captum_boundary._core.model import Model
from captum_boundary.errors import BoundaryValueError
from captum_boundary.metrics._maps import check_attributions

__all__ = ["TargetScore", "area_of_exchange", "ranks"]


class TargetScore:
    """The score of each example's target class: its probability, or the model's output for it."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        target: TargetType,
        additional_forward_args: object,
        score: str,
    ) -> None:
        check_choice("score", score, ("probability", "output"))
        self._n_examples = len(inputs[0])
        self._model = Model(forward_func, self._n_examples, additional_forward_args)
        self._examples = torch.arange(self._n_examples, device=inputs[0].device)
        self._as_probability = score == "probability"
        scores = self._model.first_scores(inputs)
        self._target = resolve_target(target, scores, self._model.is_binary)
        self._all_finite = torch.isfinite(scores).all()  # looked at in the end, not to wait for an accelerator

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Scores ``(R, N)`` of inputs ``(R * N, ...)``: R variants of all N examples, one variant after the other."""
        n_variants = len(inputs[0]) // self._n_examples
        examples = self._examples.repeat(n_variants) if n_variants > 1 else None
        scores = self._model.scores(inputs, examples)
        self._all_finite &= torch.isfinite(scores).all()
        if self._as_probability:
            scores = scores.softmax(dim=1)
        elif self._model.is_binary:  # the score of one side is the negative score of the other
            scores = torch.cat([-scores[:, 1:], scores[:, 1:]], dim=1)
        return scores.gather(1, self._target.repeat(n_variants)[:, None]).view(-1, self._n_examples)

    def check_finite(self) -> None:
        """Refuse scores that were NaN or infinite."""
        if not self._all_finite:
            raise BoundaryValueError(
                "The model returned NaN or infinite scores at points between the inputs and others: look for overflow, "
                "log(0) or masked classes."
            )


def ranks(attributions: object, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Ranks of features from 0, the most important one, and which examples ``(N,)`` have NaN attributions.

    The features of images ``(N, C, H, W)`` are pixels, with ranks ``(N, 1, H, W)``; other inputs' are single numbers,
    with ranks of the inputs' shape. Those of several inputs are ranked together. Among equals, the one that comes first
    in memory is the more important one.
    """
    given = attributions if isinstance(attributions, tuple) else (attributions,)
    if len(given) != len(inputs):
        raise BoundaryValueError(
            f"attributions must be {len(inputs)} Tensor(s), as inputs are, but they are {len(given)}."
        )
    maps = [_of_features(values, tensor) for values, tensor in zip(given, inputs, strict=True)]
    device = inputs[0].device
    flat = torch.cat([values.reshape(len(values), -1).to(device) for values in maps], dim=1)
    rank = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    parts = torch.split(rank, [values[0].numel() for values in maps], dim=1)
    shaped = (
        part.view(values.shape).to(tensor.device) for part, values, tensor in zip(parts, maps, inputs, strict=True)
    )
    return tuple(shaped), flat.isnan().any(dim=1)


def _of_features(attributions: object, inputs: Tensor) -> Tensor:
    """One value for each feature of one input: ``(N, 1, H, W)`` for images, the shape of the input for others."""
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
    return values.reshape(features)


def area_of_exchange(
    score: TargetScore,
    start: tuple[Tensor, ...],
    end: tuple[Tensor, ...],
    ranking: tuple[tuple[Tensor, ...], Tensor],
    n_steps: int,
    per_eval: int,
    progress: str | None,
) -> tuple[Tensor, Tensor]:
    """Area ``(N,)`` under the scores ``(N, S + 1)`` while features go from ``start`` to ``end``, and these scores."""
    rank, is_missing = ranking
    n_features = sum(ranks[0].numel() for ranks in rank)
    n_steps = min(n_steps, n_features)
    counts = torch.arange(n_steps + 1, device=rank[0].device) * n_features // n_steps  # from none to all, evenly
    scores = []
    with tqdm(total=len(counts), desc=progress, unit="step", disable=progress is None) as bar:
        for part in torch.split(counts, per_eval):
            scores.append(score(tuple(_exchanged(part, *tensors) for tensors in zip(start, end, rank, strict=True))))
            bar.update(len(part))
    score.check_finite()
    curves = torch.cat(scores).T.masked_fill(is_missing[:, None], torch.nan)
    return torch.trapezoid(curves, counts.to(curves) / n_features, dim=1), curves


def _exchanged(counts: Tensor, start: Tensor, end: Tensor, rank: Tensor) -> Tensor:
    """One input ``(R * N, ...)`` with as many features from ``end`` as each of R ``counts`` says."""
    is_exchanged = rank < counts.to(rank.device).view(-1, *[1] * rank.ndim)
    return torch.where(is_exchanged, end, start).flatten(0, 1)
