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

import torch
from torch import Tensor

from captum_boundary._core.agreement import flat_maps
from captum_boundary._core.baselines import format_baselines
from captum_boundary._core.batch_sizes import copies_at_once, saved_bytes, slices
from captum_boundary._core.captum_helpers import TargetType
from captum_boundary._core.flat import pack
from captum_boundary._core.geometry import Box
from captum_boundary._core.margin import resolve_target
from captum_boundary._core.model_modes import twice_differentiable
from captum_boundary._core.modules import unwrapped
from captum_boundary._core.oracle import MarginOracle
from captum_boundary.robust._path_integral import Quadrature
from captum_boundary.robust._smooth_activations import smooth_activations

__all__ = ["AttributionMaps", "MapState", "as_shares"]

# Path points for the Hessians, which only give a direction; those of the map itself have to be more.
_CURVATURE_STEPS = 10
# Rounding errors of scores, in units of the resolution times the largest score, that a label must survive.
_NOISE = 2.0
# Input values that keep a CPU busy and suit its caches. A few points of large inputs are faster than one as well, and
# so they are taken where what is saved for the backward pass allows.
_CPU_VALUES = 2**18
_CPU_POINTS = 10
_CPU_BYTES = 2**29
_ACCELERATOR_BYTES = 2**31


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


class AttributionMaps:
    """The model as an attack on its explanations sees it: maps, scores and margins at points ``(N, D)`` of N examples.

    Points are rounded to the inputs' own dtypes before the model sees them; all else is done in float32 or better. The
    *margin* is that of the label predicted at the inputs.
    """

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
        self._oracle = oracle = MarginOracle(self._model, inputs, None, additional_forward_args, internal_batch_size)
        self.inputs, self.x, self.all_rows = oracle.inputs, oracle.x, oracle.all_rows
        self.rounded, self.unpacked = oracle.round, oracle.unpack
        self.start_margin = oracle.start_depth
        self._noise = (_NOISE * oracle.resolution * oracle.start_scores.abs().amax(dim=1)).to(self.x)
        explained = resolve_target(target, oracle.start_scores, oracle.is_binary)
        self.explained_target = None if oracle.is_binary else explained  # as Captum takes it
        self._explained = torch.ones_like(explained) if oracle.is_binary else explained
        self._beta = softplus_beta
        self._points_at_once = internal_batch_size or self._points_that_suit()
        self._baseline: Tensor | None = None
        self._rule = self._curvature_rule = self._nodes_of(Quadrature.of("riemann_right", 1))  # the point itself
        if attribution == "ig":
            self._baseline = pack(format_baselines(baselines, inputs))
            self._rule = self._nodes_of(Quadrature.of("gausslegendre", n_steps))  # Captum's default
            self._curvature_rule = self._nodes_of(Quadrature.of("gausslegendre", min(n_steps, _CURVATURE_STEPS)))
        self.is_image = len(inputs) == 1 and inputs[0].ndim == 4
        self._pixel, n_pixels = _pixels(inputs)
        self.map_shape = (n_pixels,) if len(inputs) > 1 else tuple(inputs[0].shape[2 if self.is_image else 1 :])

    def at(self, points: Tensor) -> MapState:
        """The map and the margin at ``points`` ``(N, D)``, one for each example."""
        gradient = self._mean_gradient(points)
        magnitudes = self.fold((gradient * self._distance(points)).abs())
        margin = self._oracle.linearize(points)
        return MapState(points, gradient, magnitudes, margin.depth, margin.slope)

    def descent(self, state: MapState, weights: Tensor, box: Box, tolerance: float) -> Tensor:
        """Slope ``(N, D)`` of the sum of the map times ``weights`` ``(N, P)``, for descending it inside ``box``.

        Where a feature lies at its baseline the sum has a kink, and the slope is that of the side on which it falls,
        or zero where there is none. Features nearer to the baseline than ``tolerance`` count as lying at it.
        """
        feature_weights = weights[:, self._pixel]
        distance = self._distance(state.points)
        curvature = self._mean_curvature(state.points, feature_weights * distance.abs() * state.gradient.sign())
        if self._baseline is None:
            return curvature
        rate = feature_weights * state.gradient.abs()  # at which the sum grows with the distance from the baseline
        side = torch.where(curvature > 0, -1.0, 1.0).to(rate)
        side = torch.where(state.points >= box.upper, -1.0, side)
        side = torch.where(state.points <= box.lower, 1.0, side)
        # Towards a side s the sum changes at the rate s * curvature + rate: it is descended where that is negative.
        at_kink = side * (side * curvature + rate).clamp_max(0)
        return torch.where(distance.abs() <= tolerance, at_kink, curvature + rate * distance.sign())

    def margin(self, points: Tensor) -> Tensor:
        """Margins ``(N,)`` at ``points`` ``(N, D)``; infinite where the model returned NaN or infinity."""
        return self._oracle.depth(points)[0]

    def keeps_label(self, margin: Tensor) -> Tensor:
        """Whether points of these margins ``(N,)`` have the label of the inputs, beyond rounding."""
        return (margin > self._noise) & ~torch.isinf(margin)

    def loses_label(self, margin: Tensor) -> Tensor:
        """Whether points of these margins ``(N,)`` have another label than the inputs, beyond rounding, or none."""
        return (margin < -self._noise) | torch.isinf(margin)

    def _distance(self, points: Tensor) -> Tensor:
        """What the mean gradient is multiplied with: the difference to the baseline, or one."""
        return torch.ones_like(points) if self._baseline is None else points - self._baseline

    def fold(self, values: Tensor) -> Tensor:
        """Sums ``(N, P)`` over the channels of images."""
        parts = torch.split(values, [tensor[0].numel() for tensor in self.inputs], dim=1)
        return flat_maps(tuple(part.view(t.shape) for part, t in zip(parts, self.inputs, strict=True)))

    def _mean_gradient(self, points: Tensor) -> Tensor:
        total = torch.zeros_like(points)
        for rows, example_index, path, nodes, weights in self._paths(points, self._rule):
            gradients = self._oracle.gradient(path, self._explained[example_index], rows=example_index)
            total[rows] += (weights[:, None] * gradients.view(-1, len(nodes), points.shape[1])).sum(dim=1)
        return total

    def _mean_curvature(self, points: Tensor, direction: Tensor) -> Tensor:
        """Mean along the paths of the smooth model's Hessians times ``direction``, weighted as their points move."""
        total = torch.zeros_like(points)
        for rows, example_index, path, nodes, weights in self._paths(points, self._curvature_rule):
            along = ((weights * nodes)[:, None] * direction[rows, None]).flatten(0, 1)
            with torch.enable_grad(), twice_differentiable(self._model), smooth_activations(self._beta):
                scores, leaves = self._oracle.differentiable_scores(path, example_index)
                explained = scores.gather(1, self._explained[example_index, None])
                gradient = _gradient(explained.sum(), leaves, keep_graph=True)
                curvature = _gradient((gradient * along).sum(), leaves)
            total[rows] += curvature.view(-1, len(nodes), points.shape[1]).sum(dim=1)
        return torch.nan_to_num(total)

    def _paths(
        self, points: Tensor, rule: tuple[Tensor, Tensor]
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
        """Paths of some rows, a batch at a time: the rows, the example of each point, the points, nodes and weights.

        Points are ordered example by example, and only the path of a single example is ever divided, so that no sum
        depends on the other examples.
        """
        origin = torch.zeros_like(points) if self._baseline is None else self._baseline
        n_at_once, n_nodes = copies_at_once(self._points_at_once, len(points), len(rule[0]))
        for rows in slices(len(points), n_at_once):
            for nodes, weights in zip(*(torch.split(values, n_nodes) for values in rule), strict=True):
                path = torch.lerp(origin[rows, None], points[rows, None], nodes[:, None]).flatten(0, 1)
                example_index = self.all_rows[rows, None].expand(-1, len(nodes)).flatten()
                yield rows, example_index, path, nodes, weights

    def _nodes_of(self, rule: Quadrature) -> tuple[Tensor, Tensor]:
        return self.x.new_tensor(rule.nodes), self.x.new_tensor(rule.weights)

    def _points_that_suit(self) -> int:
        """Points of paths that pass through the model at once, by what the forward pass of one of them saves."""
        on_cpu = self.x.device.type == "cpu"
        by_values = _CPU_VALUES // self.x.shape[1] if on_cpu else 0
        if by_values >= _CPU_POINTS:
            return by_values
        one = self.x[:1], self.all_rows[:1]
        saved = max(1, saved_bytes(self._model, lambda: self._oracle.differentiable_scores(*one)))
        by_memory = min(_CPU_BYTES // saved, _CPU_POINTS) if on_cpu else _ACCELERATOR_BYTES // saved
        return max(1, by_values, by_memory)


def _gradient(value: Tensor, leaves: tuple[Tensor, ...], keep_graph: bool = False) -> Tensor:
    if not value.requires_grad:  # a linear model
        return torch.zeros_like(pack(leaves))
    return pack(torch.autograd.grad(value, leaves, create_graph=keep_graph, materialize_grads=True))


def _pixels(inputs: tuple[Tensor, ...]) -> tuple[Tensor, int]:
    """Which feature of the map each feature of the inputs goes to, and how many there are.

    The channels of an image share their pixels.
    """
    pixels, n_pixels = [], 0
    for tensor in inputs:
        n_channels = tensor.shape[1] if tensor.ndim == 4 else 1
        size = tensor[0].numel() // n_channels
        pixels.append(torch.arange(n_pixels, n_pixels + size, device=inputs[0].device).repeat(n_channels))
        n_pixels += size
    return torch.cat(pixels), n_pixels
