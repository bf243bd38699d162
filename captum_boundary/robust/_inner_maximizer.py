"""Projected gradient ascent around the inputs: the inner maximisation of robust training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.bounds import Bounds, box_of
from captum_boundary._core.geometry import length
from captum_boundary.robust._neighbourhood import Neighbourhood

__all__ = ["InnerMaximizer"]


class InnerMaximizer(NamedTuple):
    """Seeks the point of a ball around each input, or at a price for its distance, where an objective is largest."""

    epsilon: float
    norm: float
    n_steps: int
    step_size: float
    penalty: float | None  # on the squared l2 distance, in place of the ball

    def neighbourhood(self, inputs: tuple[Tensor, ...], bounds: Bounds) -> Neighbourhood:
        """The points that may be chosen."""
        epsilon = self.epsilon if self.penalty is None else math.inf
        return Neighbourhood.of(inputs, box_of(bounds, inputs), epsilon, self.norm)

    def start(self, near: Neighbourhood, slope: Tensor, noise: Tensor | None) -> Tensor:
        """Points ``(N, D)`` in ``near``, on the side where ``slope``, the loss's at the inputs, rises.

        They are ``noise`` away from the inputs, whose signs follow the slope, or one step along the slope.
        """
        # A norm of attributions has a maximum on each side of the input, and the lower one lies where the loss falls.
        # At the input itself, where attributions are zero, it has no slope at all: that of the loss leads out.
        if noise is None:
            move = self._step(slope, min(self.step_size, self.epsilon))
        else:
            move = torch.where(slope == 0, noise, noise.abs() * slope.sign())
        moved = near.box.clamp(near.x + move)
        has_room = (moved - near.x).abs() >= move.abs() / 2
        return torch.where(has_room, moved, near.box.clamp(near.x - move))

    def ascend(self, objective: Callable[[Tensor], Tensor], start: Tensor, near: Neighbourhood) -> Tensor:
        """Where the ascent from ``start`` ends, in ``near``."""
        points = start
        for _ in range(self.n_steps):
            leaves = points.detach().requires_grad_()
            with torch.enable_grad():
                value = objective(leaves).sum()
                if self.penalty is not None:
                    value = value - self.penalty * (leaves - near.x).square().sum()
                (gradient,) = torch.autograd.grad(value, leaves, materialize_grads=True)
            points = near.project(points + self._step(gradient, self.step_size))
        return near.rounded(points)

    def noise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Moves that are uniform in the ball."""
        if self.norm == math.inf:
            uniform = torch.rand(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
            return (2 * uniform - 1).to(x.device) * self.epsilon
        normal = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
        radius = torch.rand(len(x), generator=generator, device=generator.device, dtype=x.dtype) ** (1 / x.shape[1])
        return (normal * (self.epsilon * radius / length(normal, 2))[:, None]).to(x.device)

    def _step(self, gradient: Tensor, size: float) -> Tensor:
        if self.penalty is not None:  # the step of gradient ascent that is exact where the objective is linear
            return gradient / (2 * self.penalty)
        if self.norm == math.inf:
            return size * gradient.sign()
        tiny = torch.finfo(gradient.dtype).tiny
        return size * gradient / length(gradient, 2).clamp_min(tiny)[:, None]
