"""Projected gradient ascent around the inputs: the inner maximization of robust training, and where it may go.

Points are flat, ``(N, D)``, and moved in float32 or better. What the model and the user get is rounded to the dtypes of
the inputs. Rounded towards the inputs, no coordinate is further from its input than it was before, so that a point in
a ball around the input, or in a box, stays there.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.bounds import Bounds, box_of
from captum_boundary._core.flat import pack, unpack, widest_dtype
from captum_boundary._core.geometry import Box, next_towards
from captum_boundary._core.norms import Norm, norm_of
from captum_boundary.robust._path_integral import InnerObjective
from captum_boundary.robust._pointwise_loss import PerturbedBatch

__all__ = ["FeasibleSet", "InnerMaximizer", "within"]

# Of the radius of a ball, in units of the resolution: what the length of a displacement may gain by rounding. That
# of its differences in half precision is one such unit; sums over many features in float32 lose more.
_SLACK = 64


class InnerMaximizer(NamedTuple):
    """Seeks the point of a ball around each input, or with a penalty on its distance, where an objective is largest."""

    epsilon: float
    norm: Norm
    n_steps: int
    step_size: float
    penalty: float | None  # on the squared l2 distance, in place of the ball

    def scaled(self, factor: float) -> InnerMaximizer:
        """The same maximization in a ball of another radius."""
        return self._replace(epsilon=factor * self.epsilon, step_size=factor * self.step_size)

    def feasible_set(self, inputs: tuple[Tensor, ...], bounds: Bounds) -> FeasibleSet:
        """The points that may be chosen."""
        epsilon = self.epsilon if self.penalty is None else math.inf
        return FeasibleSet.of(inputs, box_of(bounds, inputs), epsilon, self.norm)

    def maximize(
        self,
        objective: InnerObjective,
        batch: PerturbedBatch,
        feasible_set: FeasibleSet,
        slope: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Perturbed points ``(N, D)`` where the ascent ends, from random starts where there is a ``generator``.

        ``slope`` is that of the loss at the inputs, ``(N, D)``, for objectives that vanish there.
        """
        noise, x = None, feasible_set.x
        if generator is not None:  # uniform in the ball
            noise = feasible_set.norm.random_in_ball((len(x), x.shape[1]), generator, x.dtype).to(x.device)
            noise = noise * self.epsilon
        start = self._start(feasible_set, slope, noise)
        ends = [
            self._ascend(objective, batch.of_rows(rows), feasible_set.of_rows(rows), start[rows])
            for rows in objective.groups(batch)
        ]
        return torch.cat(ends)

    def _start(self, feasible_set: FeasibleSet, slope: Tensor | None, noise: Tensor | None) -> Tensor:
        """``noise`` away from the inputs, or one step along the slope; with a slope on the side where the loss rises.

        A norm of attributions has a maximum on each side of the input, and the lower one lies where the loss falls. At
        the input itself, where attributions are zero, it has no slope at all: that of the loss leads out.
        """
        x, box = feasible_set.x, feasible_set.box
        if slope is None:
            return x if noise is None else box.clamp(x + noise)
        if noise is None:
            step_size = min(self.step_size, self.epsilon)
            displacement = self._moved(feasible_set.norm, torch.zeros_like(x), slope, step_size)
        else:
            displacement = torch.where(slope == 0, noise, noise.abs() * slope.sign())
        moved = box.clamp(x + displacement)
        has_room = (moved - x).abs() >= displacement.abs() / 2
        return torch.where(has_room, moved, box.clamp(x - displacement))

    def _ascend(
        self, objective: InnerObjective, batch: PerturbedBatch, feasible_set: FeasibleSet, start: Tensor
    ) -> Tensor:
        points = start
        for _ in range(self.n_steps):
            leaves = points.detach().requires_grad_()
            with torch.enable_grad():
                value = objective.values(replace(batch, perturbed=leaves)).sum()
                if self.penalty is not None:
                    value = value - self.penalty * (leaves - feasible_set.x).square().sum()
                (gradient,) = torch.autograd.grad(value, leaves, materialize_grads=True)
            points = feasible_set.project(self._moved(feasible_set.norm, points, gradient, self.step_size))
        return feasible_set.rounded(points)

    def _moved(self, norm: Norm, points: Tensor, gradient: Tensor, size: float) -> Tensor:
        if self.penalty is not None:  # the step of gradient ascent that is exact where the objective is linear
            # For s with gradient g, x' + [g - 2 penalty (x' - x)] / (2 penalty) = x + g / (2 penalty).
            return torch.add(points, gradient, alpha=1 / (2 * self.penalty))
        return torch.add(points, norm.steepest(gradient), alpha=size)


class FeasibleSet(NamedTuple):
    """A box around inputs, and where ``radius`` is given the ball of that radius as well."""

    x: Tensor  # (N, D)
    inputs: tuple[Tensor, ...]  # whose dtypes points are rounded to
    box: Box
    radius: float | None
    norm: Norm  # of flat vectors

    @classmethod
    def of(cls, inputs: tuple[Tensor, ...], bounds: Box, epsilon: float, norm: float | Norm) -> FeasibleSet:
        """The points of ``bounds`` whose ``norm`` from the inputs is at most ``epsilon``, as measured in their dtypes.

        For an infinite ``epsilon``, all points of ``bounds``.
        """
        x, flat_norm = pack(inputs), norm_of(norm).for_inputs(inputs)
        if flat_norm.ball_is_box or epsilon == math.inf:
            return cls(x, inputs, within(epsilon, x, inputs, bounds), None, flat_norm)
        slack = max(_SLACK * torch.finfo(x.dtype).eps, *(torch.finfo(tensor.dtype).eps for tensor in inputs))
        return cls(x, inputs, bounds, epsilon * (1 - slack), flat_norm)

    def of_rows(self, rows: slice) -> FeasibleSet:
        inputs = tuple(tensor[rows] for tensor in self.inputs)
        return self._replace(x=self.x[rows], inputs=inputs, box=self.box.of(rows))

    def project(self, points: Tensor) -> Tensor:
        """Points of the set, not rounded yet."""
        if self.radius is None:
            return self.box.clamp(points)
        return self.box.clamp(self.x + self._shortened(points - self.x))

    def rounded(self, points: Tensor) -> Tensor:
        """Points of the set in the inputs' own dtypes."""
        if self.radius is None:  # the limits of the box are such numbers already
            return pack(unpack(self.box.clamp(points), self.inputs))
        return _displaced(self.x, self._shortened(points - self.x), self.inputs, self.box)

    def _shortened(self, displacements: Tensor) -> Tensor:
        if self.radius is None:
            return displacements
        return self.norm.project_onto_ball(displacements, displacements.new_full((len(displacements),), self.radius))


def within(epsilon: float, x: Tensor, inputs: tuple[Tensor, ...], box: Box) -> Box:
    """The part of ``box`` within ``epsilon`` of ``x`` in every coordinate, its limits rounded towards ``x``.

    So points rounded to the nearest ones of the inputs' dtypes do not leave it. Where ``epsilon`` is lost in rounding,
    nothing but the input is left.
    """
    displacement = torch.full_like(x, epsilon, dtype=widest_dtype(x))
    return Box(_displaced(x, -displacement, inputs, box), _displaced(x, displacement, inputs, box))


def _displaced(x: Tensor, displacements: Tensor, inputs: tuple[Tensor, ...], box: Box) -> Tensor:
    """``x + displacements``, limited by ``box`` and rounded towards ``x`` to the dtypes of ``inputs``."""
    wide = widest_dtype(x)
    origin, displacements, lower, upper = (values.to(wide) for values in (x, displacements, box.lower, box.upper))
    ends = torch.minimum(torch.maximum(origin + displacements, lower), upper)
    nearest = unpack(ends, inputs)
    rounded = pack(nearest)
    nearer = pack(tuple(next_towards(part, tensor) for part, tensor in zip(nearest, inputs, strict=True)))
    is_beyond = torch.where(ends > origin, rounded > ends, rounded < ends)
    # The sum has been rounded itself, where the inputs are as wide.
    is_beyond |= (rounded.to(wide) - origin).abs() > displacements.abs()
    return torch.where(is_beyond, nearer, rounded)
