"""The model as an optimiser sees it: flat points in, depths and slopes out, every evaluation counted.

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

from captum_boundary._base.captum_helpers import TargetType, format_additional_forward_args, run_forward
from captum_boundary._base.flat import geometry_dtype, pack, unpack
from captum_boundary._base.margin import class_scores, margin_and_rival, resolve_target, rival_scores

__all__ = ["Linearization", "MarginOracle"]


class Linearization(NamedTuple):
    """First-order model of the decision at ``n`` points: ``value + slope . (y - point)`` is near 0 on the boundary."""

    depth: Tensor  # (n,) true depth of the points
    value: Tensor  # (n,) value of the linearised function: the depth, or the margin over one chosen class
    slope: Tensor  # (n, D) its gradient


def _differentiable(arguments: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """The arguments, with copies of tensors made in inference mode, through which gradients cannot pass."""
    if arguments is None:
        return None
    return tuple(
        argument.clone() if isinstance(argument, Tensor) and argument.is_inference() else argument
        for argument in arguments
    )


class MarginOracle:
    """Depths and slopes of a model at flat points ``(n, D)``, for chosen rows of a batch of ``N`` examples.

    Points are rounded to the inputs' own dtype before the model sees them, so that what is measured is what is
    returned to the user; all geometry is done in float32 or better.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        internal_batch_size: int | None = None,
    ) -> None:
        self._forward_func = forward_func
        self.inputs = tuple(tensor.detach() for tensor in inputs)
        self._arguments = _differentiable(format_additional_forward_args(additional_forward_args))
        self._chunk = internal_batch_size
        self._n_inputs = len(inputs[0])
        self.dtype = geometry_dtype(inputs)
        self.resolution = max(torch.finfo(tensor.dtype).eps for tensor in inputs)
        self.device = inputs[0].device
        self._in_order = torch.arange(self._n_inputs, device=self.device)
        self._use(self._in_order, self.pack(self.inputs))
        self.on_gradient: Callable[[], None] | None = None  # called after every gradient, to show progress

        with torch.no_grad():
            scores = torch.cat([self._scores(self.x[rows], rows)[0] for rows in self._chunks(self.all_rows)])
        self.n_classes = scores.shape[1]
        self._aim(scores, resolve_target(target, scores, self.is_binary))

    def of_pairs(self, rows: Tensor, target: Tensor) -> MarginOracle:
        """An oracle for pairs of an example, ``rows`` ``(P,)`` of this one, and a class ``(P,)``; it counts anew."""
        pairs = copy.copy(self)
        pairs.inputs = tuple(template[rows.to(template.device)] for template in self.inputs)
        pairs._use(self._owners[rows], self.x[rows])
        pairs._aim(self.start_scores[rows], target)
        return pairs

    def _use(self, owners: Tensor, x: Tensor) -> None:
        self._owners = owners  # which of the user's examples each row is
        self.x = x
        self.n_examples = len(x)
        self.n_forward = torch.zeros_like(owners)
        self.n_gradient = torch.zeros_like(owners)
        self.all_rows = torch.arange(len(x), device=self.device)

    def _aim(self, scores: Tensor, target: Tensor) -> None:
        margin, _ = margin_and_rival(scores, target)
        self.target = target
        self.sign = torch.where(margin < 0, -1.0, 1.0).to(margin.dtype)
        self.start_scores = scores
        self.start_depth = (self.sign * margin).to(self.dtype)

    def pack(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Flatten a tuple of ``(N, ...)`` tensors to one ``(N, D)`` tensor in the dtype of the geometry."""
        return pack(tensors)

    def unpack(self, points: Tensor) -> tuple[Tensor, ...]:
        """Undo :meth:`pack`: shapes, dtypes and devices of the inputs, for any number of points."""
        return unpack(points, self.inputs)

    def round(self, points: Tensor) -> Tensor:
        """The points as the model sees them, after rounding to the dtype of the inputs."""
        return self.pack(self.unpack(points))

    def depth(self, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Depth ``(n,)`` and strongest rival class ``(n,)`` at ``points`` ``(n, D)`` of the examples ``rows``."""
        depths, rivals = [], []
        with torch.no_grad():
            for part, part_rows in self._pairs(points, rows):
                margin, rival = margin_and_rival(self._scores(part, part_rows)[0], self.target[part_rows])
                depths.append((self.sign[part_rows] * margin).to(self.dtype))
                rivals.append(rival)
        return torch.cat(depths), torch.cat(rivals)

    def linearize(
        self,
        points: Tensor,
        rows: Tensor,
        temperature: Tensor | None = None,
        rival: Tensor | None = None,
        rank: int = 0,
    ) -> Linearization:
        """Linearise the decision at ``points``.

        By default the margin itself, against the strongest rival. With ``temperature`` ``(n,)`` the maximum over
        rivals is smoothed to a log-sum-exp, so that the slope heeds several rivals at once; with ``rival`` ``(n,)``
        it is the margin over that class alone, where that is not -1; with ``rank`` it is the margin over the rival of
        that rank, 0 being the strongest.
        """
        parts = []
        for part, part_rows, index in self._pairs(points, rows, with_index=True):
            with torch.inference_mode(False), torch.enable_grad():
                scores, leaves = self._scores(part, part_rows, with_grad=True)
                target, sign = self.target[part_rows], self.sign[part_rows]
                margin, strongest = margin_and_rival(scores.detach(), target)
                weights = torch.zeros_like(scores)
                if temperature is not None:
                    others = rival_scores(scores.detach(), target)
                    scale = temperature[index, None].to(scores).clamp_min(torch.finfo(scores.dtype).tiny)
                    weights = torch.softmax((others - others.amax(dim=1, keepdim=True)) / scale, dim=1)
                else:
                    if rank > 0:
                        strongest = rival_scores(scores.detach(), target).topk(rank + 1, dim=1).indices[:, rank]
                    if rival is not None:
                        strongest = torch.where(rival[index] < 0, strongest, rival[index])
                    weights.scatter_(1, strongest[:, None], 1.0)
                weights = -weights
                weights.scatter_(1, target[:, None], 1.0)
                weights *= sign[:, None]
                value = sign * margin if rival is None and rank == 0 else (weights * scores.detach()).sum(dim=1)
                slope = self._slope(scores, leaves, weights)
            self._count(self.n_gradient, part_rows)
            parts.append(((sign * margin).to(self.dtype), value.to(self.dtype), slope))
        if self.on_gradient is not None:
            self.on_gradient()
        return Linearization(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def scores(self, points: Tensor, rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Class scores ``(n, C)`` at ``points``, and what pulls weights of them ``(n, C)`` back to slopes."""
        with torch.inference_mode(False), torch.enable_grad():
            scores, leaves = self._scores(points, rows, with_grad=True)

        def pull_back(weights: Tensor) -> Tensor:
            self._count(self.n_gradient, rows)
            return self._slope(scores, leaves, weights)

        return scores.detach(), pull_back

    def _slope(self, scores: Tensor, leaves: tuple[Tensor, ...], weights: Tensor) -> Tensor:
        if not scores.requires_grad:  # a model that does not look at its inputs
            return torch.zeros_like(self.pack(leaves))
        gradients = torch.autograd.grad(scores, leaves, weights, allow_unused=True)
        filled = tuple(
            torch.zeros_like(leaf) if gradient is None else gradient
            for gradient, leaf in zip(gradients, leaves, strict=True)
        )
        return torch.nan_to_num(self.pack(filled))

    def _scores(self, points: Tensor, rows: Tensor, with_grad: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        leaves = tuple(tensor.requires_grad_(with_grad) for tensor in self.unpack(points.clone()))
        output = run_forward(self._forward_func, leaves, None, self._arguments_of(rows))
        self._count(self.n_forward, rows)
        scores = class_scores(output, len(points))
        # A model may compute in a lower precision than that of its inputs.
        self.resolution = max(self.resolution, torch.finfo(output.dtype).eps)
        self.is_binary = isinstance(output, Tensor) and (output.ndim == 1 or output.shape[1] == 1)
        return scores, leaves

    @staticmethod
    def _count(counter: Tensor, rows: Tensor) -> None:
        counter.index_add_(0, rows, torch.ones_like(rows))

    def _arguments_of(self, rows: Tensor) -> tuple[Any, ...] | None:
        """Captum's rule: tensors with one entry an example follow their examples, all else is passed as it is."""
        if self._arguments is None:
            return None
        owners = self._owners[rows]
        if len(owners) == self._n_inputs and torch.equal(owners, self._in_order):
            return self._arguments
        return tuple(
            argument[owners.to(argument.device)]
            if isinstance(argument, Tensor) and argument.ndim > 0 and len(argument) == self._n_inputs
            else argument
            for argument in self._arguments
        )

    def _chunks(self, rows: Tensor) -> tuple[Tensor, ...]:
        return torch.split(rows, self._chunk or max(len(rows), 1))

    def _pairs(self, points: Tensor, rows: Tensor, with_index: bool = False) -> Iterator[Any]:
        index = torch.arange(len(rows), device=rows.device)
        for chunk in self._chunks(index):
            pair = (points[chunk], rows[chunk])
            yield (*pair, chunk) if with_index else pair
