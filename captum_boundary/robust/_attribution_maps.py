r"""Attribution maps of a model at flat points ``(N, D)``, and the slopes along which they change.

The Integrated Gradients of a score :math:`f` are :math:`d \odot g`, with :math:`d = x - b` for a baseline :math:`b` and
the mean gradient :math:`g = \sum_k w_k \nabla f(b + a_k d)` of the path. A sum of their magnitudes with weights
:math:`c` has the slope

.. math:: \nabla \sum_i c_i |d_i g_i| = c\,|g| \operatorname{sign}(d) + \sum_k w_k a_k H(b + a_k d)\, v,
          \qquad v = c\,|d| \operatorname{sign}(g).

Only the Hessians :math:`H` need a model with curvature: they alone are those of the model with smooth activations,
taken by differentiating its gradient along :math:`v`. All else is the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from captum_boundary._core.agreement import flat_maps
from captum_boundary._core.captum_helpers import TargetType
from captum_boundary._core.flat import pack
from captum_boundary._core.geometry import Box
from captum_boundary._core.margin import resolve_target
from captum_boundary.robust._batch_sizes import batches, points_at_once
from captum_boundary.robust._flat_model import FlatModel
from captum_boundary.robust._map_baselines import format_baselines
from captum_boundary.robust._model_modes import twice_differentiable, unwrapped
from captum_boundary.robust._smooth_activations import smooth_activations

__all__ = ["AttributionMaps", "MapState", "as_shares"]

# Path points for the Hessians, which only point the way; those of the map itself have to be more.
_CURVATURE_STEPS = 10


class MapState(NamedTuple):
    """What is known of every example at one point."""

    points: Tensor  # (N, D)
    gradient: Tensor  # (N, D) mean gradient of the explained score along the path
    magnitudes: Tensor  # (N, P) the map: |attribution|, summed over channels
    margin: Tensor  # (N,) of the label predicted at the inputs
    margin_slope: Tensor  # (N, D)

    @property
    def shares(self) -> Tensor:
        return as_shares(self.magnitudes)


def as_shares(magnitudes: Tensor) -> Tensor:
    """Maps ``(N, P)`` scaled so that they sum to one; zero where there is no attribution at all."""
    total = magnitudes.sum(dim=1, keepdim=True)
    return magnitudes / total.clamp_min(torch.finfo(total.dtype).tiny)


class _Rule(NamedTuple):
    """Nodes and weights of a mean over the path, [0, 1]."""

    nodes: Tensor
    weights: Tensor

    @classmethod
    def gauss_legendre(cls, n_steps: int, like: Tensor) -> _Rule:
        """Captum's default."""
        nodes, weights = np.polynomial.legendre.leggauss(n_steps)
        return cls(like.new_tensor((1 + nodes) / 2), like.new_tensor(weights / 2))


class AttributionMaps(FlatModel):
    """The model as an attack on its explanations sees it."""

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        target: TargetType,
        additional_forward_args: object,
        *,
        attribution: str,
        baselines: Any,
        n_steps: int,
        softplus_beta: float,
        internal_batch_size: int | None,
    ) -> None:
        self._model = unwrapped(model)
        super().__init__(self._model, inputs, additional_forward_args, internal_batch_size)
        explained = resolve_target(target, self.start_scores, self.is_binary)
        self._explained = torch.ones_like(explained) if self.is_binary else explained
        self._beta = softplus_beta
        self._points_at_once = internal_batch_size or self._points_that_suit()
        self._baseline: Tensor | None = None
        self._rule = self._curvature_rule = _Rule(self.x.new_ones(1), self.x.new_ones(1))  # the gradient at the point
        if attribution == "ig":
            self._baseline = pack(format_baselines(baselines, inputs))
            self._rule = _Rule.gauss_legendre(n_steps, self.x)
            self._curvature_rule = _Rule.gauss_legendre(min(n_steps, _CURVATURE_STEPS), self.x)
        self.is_image = len(inputs) == 1 and inputs[0].ndim == 4
        self._pixel = _pixels(inputs)
        self.map_shape = tuple(inputs[0].shape[2:] if self.is_image else inputs[0].shape[1:])
        if len(inputs) > 1:
            self.map_shape = (sum(tensor.shape[1:].numel() // _n_channels(tensor) for tensor in inputs),)

    @property
    def explained_target(self) -> Tensor | None:
        """Classes ``(N,)`` whose scores are explained, as Captum takes them; None for a model's only output."""
        return None if self.is_binary else self._explained

    def at(self, points: Tensor) -> MapState:
        """The map and the margin at ``points`` ``(N, D)``, one for each example."""
        gradient = self._mean_gradient(points)
        magnitudes = self.fold((gradient * self._distance(points)).abs())
        return MapState(points, gradient, magnitudes, *self.margin_and_slope(points))

    def descent(self, state: MapState, weights: Tensor, box: Box, tolerance: float) -> Tensor:
        """Slope ``(N, D)`` of the sum of the map times ``weights`` ``(N, P)``, for descending it inside ``box``.

        Where a feature lies at its baseline the sum has a kink, and the slope is that of the side on which it falls,
        or zero where there is none. Features nearer to the baseline than ``tolerance`` count as lying at it.
        """
        spread = weights[:, self._pixel]
        distance = self._distance(state.points)
        bend = self._curvature(state.points, spread * distance.abs() * state.gradient.sign())
        if self._baseline is None:
            return bend
        rate = spread * state.gradient.abs()  # at which the sum grows with the distance from the baseline
        side = torch.where(bend > 0, -1.0, 1.0).to(rate)
        side = torch.where(state.points >= box.upper, -1.0, side)
        side = torch.where(state.points <= box.lower, 1.0, side)
        at_kink = side * (side * bend + rate).clamp_max(0)
        return torch.where(distance.abs() <= tolerance, at_kink, bend + rate * distance.sign())

    def _distance(self, points: Tensor) -> Tensor:
        """What the mean gradient is multiplied with: the way from the baseline, or one."""
        return torch.ones_like(points) if self._baseline is None else points - self._baseline

    def fold(self, values: Tensor) -> Tensor:
        """Sums ``(N, P)`` over the channels of images."""
        parts = torch.split(values, [template[0].numel() for template in self.inputs], dim=1)
        return flat_maps(tuple(part.view(t.shape) for part, t in zip(parts, self.inputs, strict=True)))

    def _mean_gradient(self, points: Tensor) -> Tensor:
        total = torch.zeros_like(points)
        for rows, owners, path, nodes, weights in self._paths(points, self._rule):
            with torch.inference_mode(False), torch.enable_grad():
                scores, leaves = self._scores(path, owners)
                explained = scores.gather(1, self._explained[owners, None])
                gradients = torch.nan_to_num(self._gradient(explained.sum(), leaves))
            total[rows] += (weights[:, None] * gradients.view(-1, len(nodes), points.shape[1])).sum(dim=1)
        return total

    def _curvature(self, points: Tensor, direction: Tensor) -> Tensor:
        """Mean along the paths of the smooth model's Hessians times ``direction``, weighted as their points move."""
        total = torch.zeros_like(points)
        for rows, owners, path, nodes, weights in self._paths(points, self._curvature_rule):
            along = ((weights * nodes)[:, None] * direction[rows, None]).flatten(0, 1)
            with (
                torch.inference_mode(False),
                torch.enable_grad(),
                twice_differentiable(self._model),
                smooth_activations(self._beta),
            ):
                scores, leaves = self._scores(path, owners)
                explained = scores.gather(1, self._explained[owners, None])
                gradient = self._gradient(explained.sum(), leaves, keep_graph=True)
                bend = self._gradient((gradient * along).sum(), leaves)
            total[rows] += bend.view(-1, len(nodes), points.shape[1]).sum(dim=1)
        return torch.nan_to_num(total)

    def _paths(self, points: Tensor, rule: _Rule) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
        """Paths of some rows, a batch at a time: the rows, the owner of each point, the points, nodes and weights.

        Points are ordered example by example, and only the path of a single example is ever divided, so that no sum
        depends on the other examples.
        """
        origin = torch.zeros_like(points) if self._baseline is None else self._baseline
        for rows in batches(len(points), max(1, self._points_at_once // len(rule.nodes))):
            for nodes, weights in zip(*(torch.split(values, self._points_at_once) for values in rule), strict=True):
                path = torch.lerp(origin[rows, None], points[rows, None], nodes[:, None]).flatten(0, 1)
                owners = self.all_rows[rows, None].expand(-1, len(nodes)).flatten()
                yield rows, owners, path, nodes, weights

    def _points_that_suit(self) -> int:
        """Points of paths that pass through the model at once."""

        def explained() -> None:
            self._scores(self.x[:1], self.all_rows[:1])

        return points_at_once(explained, self._model, self.x)


def _n_channels(tensor: Tensor) -> int:
    return tensor.shape[1] if tensor.ndim == 4 else 1


def _pixels(inputs: tuple[Tensor, ...]) -> Tensor:
    """Which feature of the map each feature of the inputs goes to: the channels of an image share their pixels."""
    pixels = []
    start = 0
    for tensor in inputs:
        size = tensor.shape[1:].numel() // _n_channels(tensor)
        pixels.append(torch.arange(start, start + size, device=inputs[0].device).repeat(_n_channels(tensor)))
        start += size
    return torch.cat(pixels)
