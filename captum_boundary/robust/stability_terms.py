"""Terms of a training loss that hold maps of attribution still, beside the size of Integrated Gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from captum_boundary._core.agreement import top_count
from captum_boundary._core.checks import check_count
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust._batch_mean import mean_of
from captum_boundary.robust._batch_sizes import batches
from captum_boundary.robust._checks import check_weight
from captum_boundary.robust._path_gradients import Quadrature, examples_at_once
from captum_boundary.robust._problem import Problem
from captum_boundary.robust._score_maps import ScoreMaps

__all__ = ["AttributionCosine", "InputAlignment", "StabilityTerm", "TopKMargin", "check_terms", "term_mean"]


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
        check_weight("weight", self.weight)

    @property
    @abstractmethod
    def _n_points(self) -> int:
        """Points that pass through the model together, for each example."""

    @abstractmethod
    def _values(self, maps: ScoreMaps) -> Tensor:
        """Values of the term ``(N,)``, through which gradients reach the parameters."""


@dataclass(frozen=True)
class AttributionCosine(StabilityTerm):
    r"""One less the cosine of the Integrated Gradients of the inputs and those of the perturbed inputs.

    .. math:: 1 - \cos(\mathrm{IG}(x), \mathrm{IG}(x'))

    after "Exploiting the Relationship Between Kendall's Rank Correlation and Cosine Similarity for Attribution
    Protection" (https://arxiv.org/abs/2205.07279). It heeds the direction of a map alone, as ranks do, and not the size
    of the gradients, which adversarial training lowers anyway.

    Attributes:

        weight (float, optional): Weight of the term. Default: 1.0
        n_steps (int, optional): Nodes on each of the two paths. Default: 3
        baselines (scalar, Tensor or tuple, optional): Where the paths begin: a number, or a Tensor of one example,
            ``(1, ...)``, or a tuple of them, one for each input. Default: None, zeros.
        method (str, optional): Quadrature, by the names of :class:`RARLoss`. Default: "gausslegendre"

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
    method: str = "gausslegendre"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("n_steps", self.n_steps)
        for baseline in self.baselines if isinstance(self.baselines, tuple) else (self.baselines,):
            if isinstance(baseline, Tensor) and baseline.ndim > 0 and len(baseline) != 1:
                raise BoundaryValueError(
                    "baselines must be numbers or Tensors of one example, (1, ...), since batches change, but one has "
                    f"shape {tuple(baseline.shape)}."
                )
        Quadrature.of(self.method, self.n_steps)

    @property
    def _n_points(self) -> int:
        return 2 * self.n_steps

    def _values(self, maps: ScoreMaps) -> Tensor:
        rule = Quadrature.of(self.method, self.n_steps)
        before, after = (maps.integrated_gradients(points, self.baselines, rule) for points in (maps.x, maps.perturbed))
        return 1 - cosine_similarity(before, after)


@dataclass(frozen=True)
class TopKMargin(StabilityTerm):
    r"""How little the strongest features of the gradient stand out, beside how much the gradient changes.

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
        if self.k is not None:
            check_count("k", self.k)
        if self.n_pairs is not None:
            check_count("n_pairs", self.n_pairs)
        check_weight("curvature", self.curvature)

    @property
    def _n_points(self) -> int:
        return 2

    def _values(self, maps: ScoreMaps) -> Tensor:
        gradient = maps.gradient(maps.x)
        ranked = gradient.abs().sort(dim=1, descending=True).values
        k = top_count(self.k, ranked.shape[1])
        n = min(self.n_pairs or k, k, ranked.shape[1] - k)
        if n == 0:
            raise BoundaryValueError(f"k must be less than the {k} features of an input, since all others follow it.")
        gap = ranked[:, k - n : k].mean(dim=1) - ranked[:, k : k + n].mean(dim=1)
        change = (maps.gradient(maps.perturbed) - gradient).abs().mean(dim=1)
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

    def _values(self, maps: ScoreMaps) -> Tensor:
        points = maps.perturbed
        distance = 1 - cosine_similarity(maps.gradient(points), points)
        if not self.contrast:
            return distance
        return softplus(distance - (1 - cosine_similarity(maps.rival_gradient(points), points)))


def check_terms(terms: Any) -> tuple[StabilityTerm, ...]:
    """The terms that a user gives, one or several, as a tuple."""
    terms = (terms,) if isinstance(terms, StabilityTerm) else terms
    if not isinstance(terms, Sequence) or not all(isinstance(term, StabilityTerm) for term in terms):
        came = [type(term).__name__ for term in terms] if isinstance(terms, Sequence) else type(terms).__name__
        raise BoundaryTypeError(
            f"terms must be a sequence of AttributionCosine, TopKMargin or InputAlignment, but it is {came}."
        )
    return tuple(terms)


def term_mean(
    term: StabilityTerm, problem: Problem, perturbed: Tensor, internal_batch_size: int | None, in_groups: bool
) -> tuple[Tensor, Tensor]:
    """The mean of a term over the batch, and its values ``(N,)`` without a graph."""

    def values_of(part: Problem, ends: Tensor) -> Tensor:
        loss = replace(part.path_loss, layer=None)
        return term._values(ScoreMaps(loss, part.x, ends, internal_batch_size))

    def groups(problem: Problem) -> list[slice]:
        loss = replace(problem.path_loss, layer=None)
        return batches(len(loss), examples_at_once(loss, term._n_points, internal_batch_size))

    return mean_of(values_of, problem, perturbed, groups if in_groups else None)
