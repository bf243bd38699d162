"""Terms of a training loss that make maps of attribution stable, in addition to the size of Integrated Gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from captum_boundary._core.agreement import top_count
from captum_boundary._core.baselines import format_baselines
from captum_boundary._core.checks import check_count, check_not_negative
from captum_boundary._core.flat import pack
from captum_boundary._core.margin import rival_scores, shaped_scores
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust._path_integral import Quadrature, path_attribution
from captum_boundary.robust._pointwise_loss import PerturbedBatch, PointwiseLoss, cross_entropy

__all__ = ["AttributionCosine", "InputAlignment", "StabilityTerm", "TopKMargin", "check_terms"]

Score = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class StabilityTerm(ABC):
    r"""A term that a :class:`RARLoss` adds to its own, ``weight`` times its mean over the batch.

    Terms are about maps of the score of each example's class (of the loss itself, where ``loss_func`` is given), at the
    inputs and at the perturbed inputs that the loss finds.

    Attributes:

        weight (float, optional): Weight of the term. Default: 1.0
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative("weight", self.weight)

    @property
    @abstractmethod
    def _n_points(self) -> int:
        """Points that pass through the model together, for each example."""

    @abstractmethod
    def values(self, batch: PerturbedBatch) -> Tensor:
        """Values of the term ``(N,)``, through which gradients reach the parameters."""

    def groups(self, batch: PerturbedBatch) -> list[slice]:
        """Examples that pass through the model together."""
        return batch.groups(self._n_points)


@dataclass(frozen=True)
class AttributionCosine(StabilityTerm):
    r"""One less the cosine of the Integrated Gradients of the inputs and those of the perturbed inputs.

    .. math:: 1 - \cos(\mathrm{IG}(x), \mathrm{IG}(x'))

    after "Exploiting the Relationship Between Kendall's Rank Correlation and Cosine Similarity for Attribution
    Protection" (https://arxiv.org/abs/2205.07279). It depends on the direction of a map alone, as ranks do, and not on
    the size of the gradients, which adversarial training lowers anyway.

    Attributes:

        weight (float, optional): Weight of the term. Default: 1.0
        n_steps (int, optional): Nodes on each of the two paths. Default: 3
        baselines (scalar, Tensor or tuple, optional): Where the paths begin: a number, or a Tensor of one example,
            ``(1, ...)``, or a tuple of them, one for each input. Default: None, zeros.
        quadrature (str, optional): Rule of integration, by the names of :class:`RARLoss`. Default: "gausslegendre"

    Examples::

        >>> from captum_boundary import RARLoss
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> rar = RARLoss(model, "sum", epsilon=0.1, smooth="softplus", terms=[AttributionCosine(weight=3.0)])
        >>> rar(torch.rand(16, 4), torch.randint(3, (16,))).backward()
        >>> [values.shape for values in rar.parts.terms]
        [torch.Size([16])]
    """

    _: KW_ONLY
    n_steps: int = 3
    baselines: Any = None
    quadrature: str = "gausslegendre"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("n_steps", self.n_steps)
        for baseline in self.baselines if isinstance(self.baselines, tuple) else (self.baselines,):
            if isinstance(baseline, Tensor) and baseline.ndim > 0 and len(baseline) != 1:
                raise BoundaryValueError(
                    "baselines must be numbers or Tensors of one example, (1, ...), since batches change, but one has "
                    f"shape {tuple(baseline.shape)}."
                )
        Quadrature.of(self.quadrature, self.n_steps)

    @property
    def _n_points(self) -> int:
        return 2 * self.n_steps

    def values(self, batch: PerturbedBatch) -> Tensor:
        """Values of the term ``(N,)``, through which gradients reach the parameters."""
        rule = Quadrature.of(self.quadrature, self.n_steps)
        before, after = (
            _integrated_gradients(batch, points, self.baselines, rule) for points in (batch.x, batch.perturbed)
        )
        return 1 - cosine_similarity(before, after)


@dataclass(frozen=True)
class TopKMargin(StabilityTerm):
    r"""The change of the gradient, less the gap around its k-th largest feature, both relative to its mean size.

    .. math:: \frac{c\,\overline{|g(x') - g(x)|} + \overline{|g(x)|}_{k+1, \ldots, k+n}
              - \overline{|g(x)|}_{k-n+1, \ldots, k}}{\overline{|g(x)|}}

    with the gradient :math:`g` of the score, its features ranked by size, and means :math:`\overline{|\cdot|}` over
    features, after R2ET, "Training for Stable Explanation for Free" (https://arxiv.org/abs/2212.14106). The published
    term estimates the norm of the Hessian where this one has the change to the perturbed input, and it is not divided
    by the size of the gradient, so that larger scores, which change no map, lower it as well.

    Attributes:

        weight (float, optional): Weight of the term. Default: 1.0
        k (int, optional): The strongest features that are to stay so, of the flattened input. Default: None, an eighth
            of all.
        n_pairs (int, optional): Features on either side of the k-th place that are to keep apart. Default: None, k, or
            as many as there are.
        curvature (float, optional): Weight c of the change. Default: 1.0

    Examples::

        >>> from captum_boundary import RARLoss
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> rar = RARLoss(model, "sum", epsilon=0.1, smooth="softplus", terms=[TopKMargin(weight=0.1, k=1)])
        >>> rar(torch.rand(16, 4), torch.randint(3, (16,))).backward()
    """

    _: KW_ONLY
    k: int | None = None
    n_pairs: int | None = None
    curvature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("k", self.k, optional=True)
        check_count("n_pairs", self.n_pairs, optional=True)
        check_not_negative("curvature", self.curvature)

    @property
    def _n_points(self) -> int:
        return 2

    def values(self, batch: PerturbedBatch) -> Tensor:
        """Values of the term ``(N,)``, through which gradients reach the parameters."""
        gradient = _gradient(batch, batch.x, _target_score)
        ranked = gradient.abs().sort(dim=1, descending=True).values
        k = top_count(self.k, ranked.shape[1])
        n = min(self.n_pairs or k, k, ranked.shape[1] - k)
        if n == 0:
            raise BoundaryValueError(f"k must be less than the {k} features of an input, since all others follow it.")
        gap = ranked[:, k - n : k].mean(dim=1) - ranked[:, k : k + n].mean(dim=1)
        change = (_gradient(batch, batch.perturbed, _target_score) - gradient).abs().mean(dim=1)
        return (self.curvature * change - gap) / ranked.mean(dim=1).clamp_min(torch.finfo(ranked.dtype).tiny)


@dataclass(frozen=True)
class InputAlignment(StabilityTerm):
    r"""The squared l2 distance between the perturbed input and the gradient there, both at unit length, halved.

    .. math:: d(g) = \tfrac{1}{2} \left| \frac{x'}{|x'|} - \frac{g(x')}{|g(x')|} \right|_2^2 = 1 - \cos(x', g(x'))

    With ``contrast``, the gradient of the highest score of another class is to lie further away, as published in
    "Attributional Robustness Training using Input-Gradient Spatial Alignment" (https://arxiv.org/abs/1911.13073):
    :math:`\log(1 + e^{d(g_y) - d(g_{y'})})`. That is for several classes, and for losses that are cross-entropies.

    Attributes:

        weight (float, optional): Weight of the term. Default: 1.0
        contrast (bool, optional): Compare with the gradient of another class. Default: False

    Examples::

        >>> from captum_boundary import RARLoss
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> rar = RARLoss(model, "sum", epsilon=0.1, smooth="softplus", terms=[InputAlignment(weight=0.5)])
        >>> rar(torch.rand(16, 4), torch.randint(3, (16,))).backward()
    """

    _: KW_ONLY
    contrast: bool = False

    @property
    def _n_points(self) -> int:
        return 1 + self.contrast

    def values(self, batch: PerturbedBatch) -> Tensor:
        """Values of the term ``(N,)``, through which gradients reach the parameters."""
        points = batch.perturbed
        distance = 1 - cosine_similarity(_gradient(batch, points, _target_score), points)
        if not self.contrast:
            return distance
        if batch.loss.loss_func is not cross_entropy:
            raise BoundaryValueError(
                "InputAlignment(contrast=True) compares the scores of two classes, which a loss_func of your own need "
                "not have: leave out contrast."
            )
        return softplus(distance - (1 - cosine_similarity(_gradient(batch, points, _rival_score), points)))


def check_terms(terms: Any) -> tuple[StabilityTerm, ...]:
    """The terms that a user gives, one or several, as a tuple."""
    terms = (terms,) if isinstance(terms, StabilityTerm) else terms
    if not isinstance(terms, Sequence) or not all(isinstance(term, StabilityTerm) for term in terms):
        came = [type(term).__name__ for term in terms] if isinstance(terms, Sequence) else type(terms).__name__
        raise BoundaryTypeError(
            f"terms must be a sequence of AttributionCosine, TopKMargin or InputAlignment, but it is {came}."
        )
    return tuple(terms)


def _gradient(batch: PerturbedBatch, points: Tensor, score: Score) -> Tensor:
    """Gradients ``(N, D)`` of a score at ``points`` ``(N, D)``."""
    leaves = points.detach().requires_grad_()
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        values = _scores(batch.loss, score)(leaves).sum()
        (gradient,) = torch.autograd.grad(values, leaves, create_graph=keep_graph, materialize_grads=True)
    return gradient


def _integrated_gradients(batch: PerturbedBatch, points: Tensor, baselines: Any, rule: Quadrature) -> Tensor:
    """Integrated Gradients ``(N, D)`` of the target's score from the ``baselines``, in Captum's forms."""
    start = pack(format_baselines(baselines, batch.loss.inputs))
    return path_attribution(_scores(batch.loss, _target_score), start, points, rule, batch.internal_batch_size)


def _scores(loss: PointwiseLoss, score: Score) -> PointwiseLoss:
    """A score in place of the cross-entropy; a loss of the user's own stays."""
    return replace(loss, loss_func=score) if loss.loss_func is cross_entropy else loss


def _target_score(output: Any, target: Tensor) -> Tensor:
    return shaped_scores(output, len(target)).gather(1, target[:, None]).squeeze(1)


def _rival_score(output: Any, target: Tensor) -> Tensor:
    return rival_scores(shaped_scores(output, len(target)), target).amax(dim=1)
