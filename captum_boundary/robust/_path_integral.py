r"""Norms of the Integrated Gradients of a loss along the straight line between two points, with the graph kept.

For a loss :math:`l`, points :math:`z(a) = x + a\,(x' - x)` and a quadrature rule with nodes :math:`a_k` and weights
:math:`w_k`,

.. math:: \mathrm{IG}(x, x') = (x' - x) \odot \sum_k w_k \nabla l(z(a_k)),

which sums to :math:`l(x') - l(x)` up to the error of the rule. For the output :math:`h` of an intermediate layer the
path is the curve :math:`h(z(a))`, and the sum is
:math:`\sum_k \nabla_h l(z(a_k)) \odot [h(z(a_k)) - h(z(a_{k-1}))]`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from captum_boundary._core.batch_sizes import slices
from captum_boundary.errors import BoundaryValueError
from captum_boundary.robust._gradients_in_parts import sum_in_parts
from captum_boundary.robust._pointwise_loss import PerturbedBatch, PointwiseLoss

__all__ = ["AttributionNorm", "InnerObjective", "Quadrature", "path_attribution"]

# Where in each of the equal parts of the path the node of a Riemann sum lies.
_PLACES = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}


class Quadrature(NamedTuple):
    """Nodes and weights on [0, 1], by Captum's names."""

    name: str
    nodes: tuple[float, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, name: str, n_steps: int) -> Quadrature:
        weights = np.full(n_steps, 1 / n_steps)
        if name in _PLACES:
            nodes = (np.arange(n_steps) + _PLACES[name]) / n_steps
        elif name == "riemann_trapezoid":
            if n_steps < 2:
                raise BoundaryValueError("riemann_trapezoid has a node at each end of the path: n_steps must be >= 2.")
            # Over n - 1 intervals. Captum divides by n, so that its weights sum to 1 - 1 / n.
            nodes, weights = np.linspace(0, 1, n_steps), np.full(n_steps, 1 / (n_steps - 1))
            weights[[0, -1]] /= 2
        elif name == "gausslegendre":
            nodes, weights = np.polynomial.legendre.leggauss(n_steps)
            nodes, weights = (nodes + 1) / 2, weights / 2  # from [-1, 1] to [0, 1]
        else:
            raise BoundaryValueError(
                "quadrature must be 'riemann_right', 'riemann_left', 'riemann_middle', 'riemann_trapezoid' or "
                f"'gausslegendre', but it is {name!r}."
            )
        return cls(name, tuple(nodes), tuple(weights))


@dataclass(frozen=True)
class AttributionNorm:
    """A norm, or another size, of the Integrated Gradients of the loss from the inputs to the perturbed points."""

    function: Callable[[Tensor], Tensor]  # (N, ...) -> (N,)
    rule: Quadrature

    def values(self, batch: PerturbedBatch) -> Tensor:
        """Norms ``(N,)``."""
        loss = batch.loss
        attribution = path_attribution(loss, batch.x, batch.perturbed, self.rule, batch.internal_batch_size)
        if loss.layer is None and not loss.as_tuple:
            attribution = attribution.reshape(loss.inputs[0].shape)
        sizes = self.function(attribution)
        if not isinstance(sizes, Tensor) or sizes.shape != attribution.shape[:1]:
            came = f"shape {tuple(sizes.shape)}" if isinstance(sizes, Tensor) else type(sizes).__name__
            raise BoundaryValueError(
                f"size must map attributions of shape {tuple(attribution.shape)} to one number for each example, a "
                f"Tensor of shape ({len(attribution)},), but it returned {came}."
            )
        return sizes

    def groups(self, batch: PerturbedBatch) -> list[slice]:
        """Examples whose whole paths pass through the model together."""
        return batch.groups(len(self.rule.nodes))


@dataclass(frozen=True)
class InnerObjective:
    """What perturbed points maximize: the loss there, a norm of attributions, or the loss with a weighted norm."""

    norm: AttributionNorm | None
    weight: float | None = None  # of the norm, next to the loss; None without the loss

    def values(self, batch: PerturbedBatch) -> Tensor:
        """Values ``(N,)``."""
        if self.norm is None:
            return batch.loss.with_softplus(None)(batch.perturbed)
        sizes = self.norm.values(batch)
        if self.weight is None:
            return sizes
        return batch.loss.with_softplus(None)(batch.perturbed) + self.weight * sizes

    def groups(self, batch: PerturbedBatch) -> list[slice]:
        """Examples that pass through the model together."""
        if self.norm is None:
            return slices(len(batch), batch.internal_batch_size or len(batch))
        return self.norm.groups(batch)


def path_attribution(
    loss: PointwiseLoss, start: Tensor, end: Tensor, rule: Quadrature, internal_batch_size: int | None = None
) -> Tensor:
    """Integrated Gradients of the loss from ``start`` to ``end``, flat ``(N, D)`` points; ``(N, ...)``.

    Gradients reach the parameters of the loss and ``end``. With ``internal_batch_size`` no more examples than that pass
    through the model at once. Where these are not all of them, the graph is built again in the backward pass, part by
    part, so that memory does not grow with the number of nodes.
    """
    nodes_at_once = len(rule.nodes)
    if internal_batch_size is not None:
        nodes_at_once = min(nodes_at_once, internal_batch_size // len(loss) - loss.n_extra_points)
        if nodes_at_once < 1 < len(loss):
            groups = slices(len(loss), max(1, internal_batch_size // (1 + loss.n_extra_points)))
            parts = [(loss.of_rows(rows), start[rows], end[rows]) for rows in groups]
            return torch.cat([path_attribution(*part, rule, internal_batch_size) for part in parts])
    suitable = max(1, loss.points_that_suit // len(loss)) if nodes_at_once > 1 else 1
    integral = _PathIntegral(loss, start, rule, max(1, min(nodes_at_once, suitable)))
    if nodes_at_once < len(rule.nodes):
        return sum_in_parts(integral.parts, end, loss.parameters)
    return functools.reduce(torch.add, integral.parts(end, loss.state, keep_graph=torch.is_grad_enabled()))


class _PathIntegral(NamedTuple):
    """The sum over the nodes of a path, in parts that pass through the model together."""

    loss: PointwiseLoss
    start: Tensor
    rule: Quadrature
    nodes_at_once: int

    def parts(self, end: Tensor, parameters: Mapping[str, Tensor], keep_graph: bool) -> Iterator[Tensor]:
        """Parts ``(N, ...)`` of the sum."""
        loss = self.loss.with_state(parameters)
        part = self._layer_part if loss.layer is not None else self._input_part
        n_nodes = len(self.rule.nodes)
        n_parts = math.ceil(n_nodes / self.nodes_at_once)
        for index in range(n_parts):
            nodes = slice(n_nodes * index // n_parts, n_nodes * (index + 1) // n_parts)
            with torch.enable_grad():
                value = part(loss, end, nodes, keep_graph)
            yield value if keep_graph else value.detach()

    def _input_part(self, loss: PointwiseLoss, end: Tensor, nodes: slice, keep_graph: bool) -> Tensor:
        displacement = end - self.start
        points = self._points(displacement, self.rule.nodes[nodes])
        gradient = _gradient(loss(points), points, keep_graph)
        weights = gradient.new_tensor(self.rule.weights[nodes])
        return displacement * (weights[None] @ gradient.view(len(weights), -1)).view_as(end)

    def _layer_part(self, loss: PointwiseLoss, end: Tensor, nodes: slice, keep_graph: bool) -> Tensor:
        """The layer's output moves from one node to the next, its gradient is that at the right or left of them."""
        edges = [k / len(self.rule.nodes) for k in range(nodes.start, nodes.stop + 1)]
        losses, outputs = loss.with_layer(self._points(end - self.start, edges))
        gradient = _gradient(losses, outputs, keep_graph)
        of_steps = (len(edges), len(loss), *outputs.shape[1:])
        at = slice(1, None) if self.rule.name == "riemann_right" else slice(None, -1)
        return (gradient.view(of_steps)[at] * outputs.view(of_steps).diff(dim=0)).sum(dim=0)

    def _points(self, displacement: Tensor, nodes: Any) -> Tensor:
        """Points ``(K * N, D)`` on the line, ordered step by step."""
        alphas = self.start.new_tensor(nodes)[:, None, None]
        points = torch.addcmul(self.start, alphas, displacement).flatten(0, 1)
        return points if points.requires_grad else points.requires_grad_()


def _gradient(losses: Tensor, points: Tensor, keep_graph: bool) -> Tensor:
    (gradient,) = torch.autograd.grad(losses.sum(), points, create_graph=keep_graph, materialize_grads=True)
    return gradient
