"""The model as an optimizer sees it: flat points in, depths and slopes out, every evaluation counted.

The *depth* of a point is the margin of the target class, with the sign that makes it positive on the input's side of
the boundary: ``depth(x) >= 0``, and a boundary is crossed where the depth becomes negative. A search needs no other
knowledge of the model, so that leaving a region and entering one are the same problem.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.captum_helpers import TargetType
from captum_boundary._core.flat import geometry_dtype, pack, unpack
from captum_boundary._core.geometry import Box
from captum_boundary._core.margin import class_scores, class_weights, margin_and_rival, resolve_target, rival_scores
from captum_boundary._core.model import Model
from captum_boundary._core.repeatability import Repeatability

__all__ = ["Linearization", "MarginOracle"]


class Linearization(NamedTuple):
    """First-order model of the decision at ``n`` points: ``value + slope . (y - point)`` is near 0 on the boundary."""

    depth: Tensor  # (n,) true depth of the points; infinite where the model returned NaN or infinity
    value: Tensor  # (n,) value of the linearized function: the depth, or the margin over one chosen class
    slope: Tensor  # (n, D) its gradient


class _Rivals(NamedTuple):
    """Scores ``(n, C)`` of the rivals, the largest of each row and its column, ``(n, 1)``."""

    scores: Tensor
    best: Tensor
    strongest: Tensor


class MarginOracle:
    """Depths and slopes of a model at flat points ``(n, D)``, for a batch of ``N`` examples or chosen rows of it.

    Points are rounded to the inputs' own dtype before the model sees them, so that what is measured is what is
    returned to the user; all geometry is done in float32 or better. Nothing here waits for the values that a model
    returns, but for a first look at its scores of the inputs. Scores that are NaN or infinite elsewhere make a point
    that lies beyond no boundary, with a slope of zero.

    Attributes:

        x (Tensor): The inputs, ``(n, D)``.
        target (Tensor): Class whose region is left or entered, ``(n,)``.
        sign (Tensor): 1 where it is left and -1 where it is entered, ``(n,)``.
        start_depth (Tensor): Depth of the inputs, ``(n,)``.
        counter_index (Tensor): Which example of the whole batch each row is, ``(n,)``.
        n_forward (Tensor): Forward passes of each example of the whole batch, ``(N,)``.
        n_gradient (Tensor): Backward passes of each example of the whole batch, ``(N,)``.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        internal_batch_size: int | None = None,
    ) -> None:
        self._model = Model(forward_func, len(inputs[0]), additional_forward_args)
        self.inputs = tuple(tensor.detach() for tensor in inputs)
        self.chunk_size = internal_batch_size
        self.dtype = geometry_dtype(inputs)
        self._input_resolution = max(torch.finfo(tensor.dtype).eps for tensor in inputs)
        self.device = inputs[0].device
        self.on_gradient: Callable[[], None] | None = None  # called after every gradient, to show progress
        # What is added to the columns of forward and backward passes.
        self._forward, self._backward = torch.eye(2, dtype=torch.long, device=self.device).unbind()
        self._both = self._forward + self._backward
        self._begin(self.pack(self.inputs), torch.arange(len(inputs[0]), device=self.device))

        scores = class_scores(self.scores_at(self.x), len(self.x))
        self.n_classes = scores.shape[1]
        self._decide(scores, resolve_target(target, scores, self.is_binary))

    @property
    def is_binary(self) -> bool:
        """Whether the model has one output."""
        return self._model.is_binary

    @property
    def resolution(self) -> float:
        """Relative precision of the coarser of the inputs' numbers and the model's."""
        return max(self._input_resolution, self._model.resolution)

    def of_pairs(self, rows: Tensor, target: Tensor) -> MarginOracle:
        """An oracle for pairs of an example, ``rows`` ``(P,)``, and a class ``(P,)``, with counters of its own."""
        pairs = copy.copy(self)
        pairs.inputs = tuple(tensor[rows.to(tensor.device)] for tensor in self.inputs)
        pairs._begin(self.x[rows], self._example_index[rows])
        pairs._decide(self.start_scores[rows], target, enters_at_ties=target != self.target[rows])
        return pairs

    def select(self, rows: Tensor | slice) -> MarginOracle:
        """An oracle for some rows of this one, in any order, also several times; it counts for this one."""
        part = copy.copy(self)
        part.x = self.x[rows]
        part._set(self._integers[rows], self._numbers[rows])
        if self._unit is not None and self._limits is not None:
            part._unit, part._limits = self._unit_of(rows), self._limits.of(rows)
        return part

    def against(self, rival: Tensor) -> MarginOracle:
        """The same rows, whose margins are those over one rival ``(n,)`` each; over all where that is -1."""
        part = copy.copy(self)
        integers = self._integers.clone()
        integers[:, 3] = rival
        numbers = self._numbers.clone()
        part._has_one_rival = True
        part._set(integers, numbers)
        part.start_depth.copy_(part.depth_of(self.start_scores)[0])
        return part

    def _begin(self, x: Tensor, example_index: Tensor) -> None:
        self.x = x
        self._n_passes = torch.zeros(len(x), 2, dtype=torch.long, device=self.device)
        self.n_forward, self.n_gradient = self._n_passes.unbind(dim=1)
        self._example_index = example_index  # which of the user's examples each row is
        self.counter_index = torch.arange(len(x), device=self.device)  # which entry of the counters each row has

    _has_one_rival = False  # whether any row's margin is that over a single rival
    _unit: Tensor | None = None  # of the coordinates of points, (1 or n, 1 or D), where it is not that of the inputs
    _limits: Box | None = None  # of the inputs, which rounding must not leave

    def in_units(self, unit: Tensor, limits: Box) -> MarginOracle:
        """The same rows, whose points are given in another ``unit`` ``(1 or n, 1 or D)`` of each coordinate.

        What the model sees stays within ``limits``.
        """
        part = copy.copy(self)
        part.x, part._unit, part._limits = self.x / unit, unit, limits
        return part

    def to_units(self, points: Tensor) -> Tensor:
        """Points ``(n, D)`` in the units of the inputs, in those of this oracle."""
        return points if self._unit is None else points / self._unit

    def from_units(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """Points ``(n, D)`` in the units of this oracle, in those of the inputs."""
        if self._unit is None or self._limits is None:
            return points
        limits = self._limits if rows is None else self._limits.of(rows)
        return limits.clamp(points * self._unit_of(rows))

    def _unit_of(self, rows: Tensor | slice | None) -> Tensor:
        unit = self._unit
        assert unit is not None
        return unit if rows is None or len(unit) == 1 else unit[rows]

    def _decide(self, scores: Tensor, target: Tensor, enters_at_ties: Tensor | None = None) -> None:
        margin, _ = margin_and_rival(scores, target)
        is_outside = margin < 0 if enters_at_ties is None else (margin < 0) | (enters_at_ties & (margin == 0))
        sign = torch.where(is_outside, -1.0, 1.0).to(margin.dtype)
        self._all_scores = scores
        self._set(
            torch.stack([target, self._example_index, self.counter_index, torch.full_like(target, -1)], dim=1),
            torch.stack([sign, -sign, sign * margin], dim=1).to(self.dtype),
        )

    def _set(self, integers: Tensor, numbers: Tensor) -> None:
        # What belongs to a row stands together, so that choosing rows is one operation.
        self._integers, self._numbers = integers, numbers
        self.target, self._example_index, self.counter_index, self.rival = integers.unbind(dim=1)
        self.sign, self._opposite, self.start_depth = numbers.unbind(dim=1)

    def score_noise(self, repeatability: Repeatability) -> Tensor:
        """By how much scores change when they are evaluated again, relative to the largest of an example; a scalar."""
        return repeatability.score_noise(
            lambda rows: self.scores_at(self.x[rows], rows), self.start_scores, self.resolution, self.dtype
        )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def all_rows(self) -> Tensor:
        """The rows of this oracle, ``(n,)``."""
        return torch.arange(len(self.x), device=self.device)

    @property
    def start_scores(self) -> Tensor:
        """Scores of the inputs, ``(n, C)``."""
        return self._all_scores[self.counter_index]

    @property
    def gradients_spent(self) -> Tensor:
        """Backward passes of each row, ``(n,)``."""
        return self.n_gradient[self.counter_index]

    @property
    def forwards_spent(self) -> Tensor:
        """Forward passes of each row, ``(n,)``."""
        return self.n_forward[self.counter_index]

    def pack(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Flatten a tuple of ``(N, ...)`` tensors to one ``(N, D)`` tensor in the dtype of the geometry."""
        return pack(tensors)

    def unpack(self, points: Tensor) -> tuple[Tensor, ...]:
        """Undo :meth:`pack`: shapes, dtypes and devices of the inputs, for any number of points."""
        return unpack(points, self.inputs)

    def round(self, points: Tensor) -> Tensor:
        """The points as the model sees them, after rounding to the dtype of the inputs."""
        return self.pack(self.unpack(points))

    def depth(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Depth ``(n,)`` and highest other class ``(n,)`` at ``points`` ``(n, D)``."""
        depths, rivals = [], []
        with torch.no_grad():
            for part, part_rows in self._parts(points):
                depth, rival = self.depth_of(self._scores(part, part_rows), part_rows)
                depths.append(depth)
                rivals.append(rival)
        return _joined(depths), _joined(rivals)

    def depth_of(self, scores: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Depth ``(n,)`` and highest other class ``(n,)`` where the model returned ``scores`` ``(n, C)``."""
        best, rival = self._rival_scores(scores, rows).max(dim=1)
        margin = scores.gather(1, self._of(self.target, rows)[:, None]).squeeze(1) - best
        return _usable((self._of(self.sign, rows) * margin).to(self.dtype)), rival

    def linearize(self, points: Tensor) -> Linearization:
        """Linearize the margin over the highest other class at ``points`` ``(n, D)``."""
        return self._linearize(points, lambda rivals, weight, _: _weigh(rivals.strongest, weight, rivals.scores))

    def linearize_over(self, points: Tensor, rival: Tensor) -> Linearization:
        """Linearize the margin over one rival ``(n,)`` each."""

        def weights_of(rivals: _Rivals, weight: Tensor, here: slice) -> Tensor:
            return _weigh(rival[here, None], weight, rivals.scores)

        return self._linearize(points, weights_of, is_margin=False)

    def linearize_runner_up(self, points: Tensor) -> Linearization:
        """Linearize the margin over the second highest other class."""

        def weights_of(rivals: _Rivals, weight: Tensor, _: slice) -> Tensor:
            return _weigh(rivals.scores.topk(2, dim=1).indices[:, 1:], weight, rivals.scores)

        return self._linearize(points, weights_of, is_margin=False)

    def linearize_smoothed(self, points: Tensor, temperature: Tensor) -> Linearization:
        """Linearize the margin with the slope of a log-sum-exp over rivals, at a temperature ``(n,)``.

        The slope is then an average over all rivals that come close to the strongest one.
        """

        def weights_of(rivals: _Rivals, weight: Tensor, here: slice) -> Tensor:
            # The gradient of T logsumexp(f / T) by f is softmax(f / T). Less their largest, scores do not overflow.
            scale = temperature[here, None].to(weight).clamp_min(torch.finfo(weight.dtype).tiny)
            return torch.softmax((rivals.scores - rivals.best) / scale, dim=1).mul_(weight)

        return self._linearize(points, weights_of)

    def _linearize(
        self, points: Tensor, weights_of: Callable[[_Rivals, Tensor, slice], Tensor], is_margin: bool = True
    ) -> Linearization:
        """Linearize the target's score minus an average of its rivals', whose weights follow from their scores."""
        parts = []
        n_done = 0
        for part, part_rows in self._parts(points):
            here = slice(n_done, n_done + len(part))
            n_done += len(part)
            target = self._of(self.target, part_rows)
            sign, opposite = (self._of(values, part_rows)[:, None] for values in (self.sign, self._opposite))
            scores, leaves = self.differentiable_scores(part, part_rows, self._both)
            with torch.no_grad():
                known = scores.detach()
                sign, opposite = sign.to(known), opposite.to(known)
                others = self._rival_scores(known, part_rows)
                rivals = _Rivals(others, *others.max(dim=1, keepdim=True))
                depth = (sign * (known.gather(1, target[:, None]) - rivals.best)).squeeze(1)
                weights = weights_of(rivals, opposite, here).scatter_(1, target[:, None], sign)
                value = depth if is_margin else (weights * known).sum(dim=1)
                slope = self._slope(scores, leaves, weights, part_rows)
                parts.append(
                    (_usable(depth.to(self.dtype)), torch.nan_to_num(value.to(self.dtype), 0.0, 0.0, 0.0), slope)
                )
        if self.on_gradient is not None:
            self.on_gradient()
        return Linearization(*map(_joined, zip(*parts, strict=True)))

    def _rival_scores(self, scores: Tensor, rows: Tensor | None) -> Tensor:
        """Scores ``(n, C)`` of the rivals that count, minus infinity for the target and for all others."""
        others = rival_scores(scores, self._of(self.target, rows))
        if not self._has_one_rival:
            return others
        rival = self._of(self.rival, rows)[:, None]
        kept = torch.full_like(others, -torch.inf).scatter_(1, rival.clamp_min(0), others.gather(1, rival.clamp_min(0)))
        return torch.where(rival < 0, others, kept)

    def scores_at(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """Class scores ``(n, C)`` at ``points``."""
        return _joined(self._scores(part, part_rows) for part, part_rows in self._parts(points, rows))

    def scores(self, points: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Class scores ``(n, C)`` at ``points``, and their vector-Jacobian product: from weights to slopes."""
        scores, leaves = self.differentiable_scores(points, rows)

        def vjp(weights: Tensor) -> Tensor:
            self._count(rows, self._backward)
            return self._slope(scores, leaves, weights, rows)

        return scores.detach(), vjp

    def gradient(
        self, points: Tensor, winner: Tensor, loser: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Gradients ``(n, D)`` at ``points`` of scores of classes ``(n,)``, less those of others if they are given."""
        scores, vjp = self.scores(points, rows)
        return vjp(class_weights(scores, winner, loser))

    def _slope(self, scores: Tensor, leaves: tuple[Tensor, ...], weights: Tensor, rows: Tensor | None) -> Tensor:
        slope = self.pack(self._model.vjp(scores, leaves, weights))
        slope = slope if self._unit is None else slope * self._unit_of(rows)
        return torch.nan_to_num(slope, 0.0, 0.0, 0.0)

    def _scores(self, points: Tensor, rows: Tensor | None) -> Tensor:
        points = self.from_units(points, rows)
        scores = self._model.scores(self.unpack(points), self._of(self._example_index, rows))
        self._count(rows, self._forward)
        return scores

    def differentiable_scores(
        self, points: Tensor, rows: Tensor | None, passes: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Class scores ``(n, C)`` at ``points`` with their graph, and its leaves, shaped like the inputs."""
        points = self.from_units(points, rows)
        answer = self._model.differentiable_scores(self.unpack(points), self._of(self._example_index, rows))
        self._count(rows, self._forward if passes is None else passes)
        return answer

    def _count(self, rows: Tensor | None, passes: Tensor) -> None:
        index = self._of(self.counter_index, rows)
        self._n_passes.index_add_(0, index, passes.expand(len(index), 2))

    @staticmethod
    def _of(values: Tensor, rows: Tensor | None) -> Tensor:
        return values if rows is None else values[rows]

    def _parts(self, points: Tensor, rows: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Points and their rows, as many at once as may pass through the model."""
        if self.chunk_size is None or len(points) <= self.chunk_size:
            yield points, rows
        else:
            rows = self.all_rows if rows is None else rows
            yield from zip(torch.split(points, self.chunk_size), torch.split(rows, self.chunk_size), strict=True)


def _weigh(column: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    """Weights of all scores that are zero but for one column."""
    return torch.zeros_like(scores).scatter_(1, column, weight)


def _usable(depth: Tensor) -> Tensor:
    """Depths, where NaN and infinity count as being far from any boundary."""
    return torch.nan_to_num(depth, torch.inf, torch.inf, torch.inf)


def _joined(parts: Any) -> Tensor:
    parts = tuple(parts)
    return parts[0] if len(parts) == 1 else torch.cat(parts)
