"""Maps of the score of each example's class, through which gradients reach the parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.flat import pack
from captum_boundary._core.margin import rival_scores, shaped_scores
from captum_boundary.errors import BoundaryValueError
from captum_boundary.robust._map_baselines import format_baselines
from captum_boundary.robust._path_gradients import Quadrature, path_attribution
from captum_boundary.robust._pointwise_loss import PointwiseLoss, cross_entropy

__all__ = ["ScoreMaps"]


@dataclass(frozen=True)
class ScoreMaps:
    """What terms of the training loss see of a batch: flat points ``(N, D)``, and maps there.

    The score is that of the target, in a loss of the user's the loss itself.
    """

    loss: PointwiseLoss
    x: Tensor
    perturbed: Tensor
    internal_batch_size: int | None

    def gradient(self, points: Tensor) -> Tensor:
        """Gradients ``(N, D)`` of the score."""
        return self._gradient(points, _target_score)

    def rival_gradient(self, points: Tensor) -> Tensor:
        """Gradients ``(N, D)`` of the highest score of another class."""
        if self.loss.loss_func is not cross_entropy:
            raise BoundaryValueError(
                "InputAlignment(contrast=True) compares the scores of two classes, which a loss_func of your own need "
                "not have: leave out contrast."
            )
        return self._gradient(points, _rival_score)

    def integrated_gradients(self, points: Tensor, baselines: Any, rule: Quadrature) -> Tensor:
        """Integrated Gradients ``(N, D)`` of the score from the ``baselines``, in Captum's forms."""
        start = pack(format_baselines(baselines, self.loss.templates))
        return path_attribution(self._of(_target_score), start, points, rule, self.internal_batch_size)

    def _gradient(self, points: Tensor, score: Any) -> Tensor:
        leaves = points.detach().requires_grad_()
        keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            values = self._of(score)(leaves).sum()
            (gradient,) = torch.autograd.grad(values, leaves, create_graph=keep_graph, materialize_grads=True)
        return gradient

    def _of(self, score: Any) -> PointwiseLoss:
        return replace(self.loss, loss_func=score) if self.loss.loss_func is cross_entropy else self.loss


def _target_score(output: Any, target: Tensor) -> Tensor:
    return shaped_scores(output, len(target)).gather(1, target[:, None]).squeeze(1)


def _rival_score(output: Any, target: Tensor) -> Tensor:
    return rival_scores(shaped_scores(output, len(target)), target).amax(dim=1)
