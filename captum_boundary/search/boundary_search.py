"""What every boundary search shares: its result, its protocol, its checks and its landing on the boundary."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from captum.robust import Perturbation
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from captum_boundary._base.bounds import Bounds, box_of
from captum_boundary._base.captum_helpers import TargetType, TensorOrTupleOfTensorsGeneric, format_output, is_tuple
from captum_boundary._base.checks import check_count, check_inputs
from captum_boundary._base.errors import (
    BoundaryNotFoundError,
    BoundaryNotFoundWarning,
    BoundaryTypeError,
    BoundaryValueError,
)
from captum_boundary._base.geometry import Box, length
from captum_boundary._base.oracle import MarginOracle
from captum_boundary.search._landing import land

__all__ = ["BoundaryPoints", "BoundarySearch"]


@dataclass(frozen=True)
class BoundaryPoints:
    r"""Points on the decision boundary, one for each of N examples.

    A point lies a hair beyond the boundary: the model's decision there is strictly on the other side, at a margin that
    is a tiny fraction of the input's.

    Attributes:

        points (Tensor or tuple[Tensor, ...]): Boundary points, with the structure, shapes, dtype and device of the
            inputs. Equal to the input where nothing was found.
        target (Tensor): Class whose region is left (or entered, if the input lies outside), ``(N,)`` integers. For a
            model with one output: 1 for its positive side, 0 for its negative side.
        adversarial (Tensor): Class on the other side of the boundary, ``(N,)`` integers; -1 where nothing was found.
        distance (Tensor): Distance from the input, ``(N,)``, in the norm of the search and the units of the inputs;
            infinity where nothing was found.
        margin (Tensor): Margin of ``target`` at ``points``, ``(N,)``: strictly of the sign opposite to that at the
            input where a point was found, the margin of the input itself where not.
        found (Tensor): Whether a boundary point was found, ``(N,)`` booleans.
        n_forward (Tensor): Forward passes spent on each example, ``(N,)`` integers.
        n_gradient (Tensor): Backward passes spent on each example, ``(N,)`` integers. Each follows one of the forward
            passes.
    """

    points: Tensor | tuple[Tensor, ...]
    target: Tensor
    adversarial: Tensor
    distance: Tensor
    margin: Tensor
    found: Tensor
    n_forward: Tensor
    n_gradient: Tensor

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, rows: int | slice | list[int] | Tensor) -> BoundaryPoints:
        """The boundary points of some rows (an index, a slice, indices or a mask), to work in batches or on one."""
        if isinstance(rows, int):
            rows = [rows]

        def of_rows(values: Any) -> Any:
            return tuple(map(of_rows, values)) if isinstance(values, tuple) else values[rows]

        return BoundaryPoints(**{field.name: of_rows(getattr(self, field.name)) for field in fields(self)})


class BoundarySearch(Perturbation, ABC):  # type: ignore[misc]
    r"""Base class of all searches for the closest decision boundary.

    A subclass implements :meth:`_cross`, which returns for each example some point beyond its boundary. This class does
    the rest: it checks the arguments, moves the point back along the straight line to the input until it lies a hair
    beyond the boundary, checks its label again, and reports examples without a boundary point.

    The model is evaluated as it is. Call ``model.eval()`` first: with dropout or batch statistics in training mode
    there is no fixed boundary to find.

    Args:

        forward_func (Callable): The model or any function that returns class scores ``(N, C)``, or ``(N,)`` or
            ``(N, 1)`` for a binary model. Logits are best. Probabilities work as long as their gradients do not vanish.
        bounds (tuple, optional): Limits that no point leaves: a pair ``(lower, upper)`` of numbers or of tensors that
            broadcast to an input (per channel, say, for normalised inputs), or a tuple of such pairs, one for each
            input. Default: None, no limits.
        norm (float, optional): Norm of the distance, 2, ``math.inf`` or 1, over all inputs of a tuple together.
            Default: 2
        max_distance (float, optional): Boundary points further away count as not found. Default: None
        strict (bool, optional): Raise a :class:`BoundaryNotFoundError` where some example has no boundary point, in
            place of a :class:`BoundaryNotFoundWarning`. Default: False
        generator (torch.Generator, optional): Source of randomness. Default: None, the same numbers on every call.
        show_progress (bool, optional): Show a progress bar. Default: False
        internal_batch_size (int, optional): Examples that pass through the model at once, to bound memory.
            Default: None, all of them.

    Raises:

        BoundaryValueError: For bounds, norms and numbers that make no sense.
        BoundaryTypeError: For arguments of the wrong type.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        bounds: Bounds = None,
        norm: float = 2,
        max_distance: float | None = None,
        strict: bool = False,
        generator: torch.Generator | None = None,
        show_progress: bool = False,
        internal_batch_size: int | None = None,
    ) -> None:
        if not callable(forward_func):
            raise BoundaryTypeError(f"forward_func must be callable, but it is {type(forward_func).__name__}.")
        if norm not in (1, 2, math.inf):
            raise BoundaryValueError(f"norm must be 2, math.inf or 1, but it is {norm!r}.")
        if max_distance is not None and not max_distance > 0:
            raise BoundaryValueError(f"max_distance must be positive, but it is {max_distance!r}.")
        check_count("internal_batch_size", internal_batch_size, optional=True)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise BoundaryTypeError(f"generator must be a torch.Generator, but it is {type(generator).__name__}.")
        self.forward_func = forward_func
        self.bounds = bounds
        self.norm = norm
        self.max_distance = max_distance
        self.strict = strict
        self.generator = generator
        self.show_progress = show_progress
        self.internal_batch_size = internal_batch_size

    def find(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
    ) -> BoundaryPoints:
        r"""Find the closest boundary point of every example.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): Inputs, floating point; dimension 0 corresponds to the number of
                examples N, which all inputs of a tuple share.
            target (int, tuple, Tensor or list, optional): Class whose region is left, in any of Captum's forms for 2-D
                outputs. Where an input lies outside the region of its target, the boundary of that region is approached
                from outside. Default: None, the predicted class of each example.
            additional_forward_args (Any, optional): Further arguments of ``forward_func``, given after ``inputs``.
                Tensors with N entries follow their examples; everything else is passed as it is. Default: None

        Returns:

            - **boundary** (*BoundaryPoints*): The points and all that is known about them. Examples without a boundary
              point have ``found=False`` and are named in a :class:`BoundaryNotFoundWarning`.

        Raises:

            BoundaryTypeError: For inputs, targets or outputs of the wrong type.
            BoundaryValueError: For NaN or infinite inputs or outputs, empty batches, inputs outside ``bounds``, targets
                out of range, and outputs of the wrong shape.
            BoundaryNotFoundError: If ``strict`` and some example has no boundary point.
        """
        with torch.inference_mode(False), torch.no_grad():
            boundary = self._find(inputs, target, additional_forward_args)
        self._report(boundary.found)
        return boundary

    def perturb(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
    ) -> TensorOrTupleOfTensorsGeneric:
        r"""The boundary points alone, shaped like ``inputs``: Captum's protocol for perturbations.

        Arguments and errors are those of :meth:`find`. Examples without a boundary point come back unchanged, with the
        warning.
        """
        return self.find(inputs, target, additional_forward_args).points

    @abstractmethod
    def _cross(self, oracle: MarginOracle, box: Box) -> Tensor:
        """Points ``(N, D)`` inside ``box``, beyond the boundary wherever the search succeeded."""

    def _cross_pairs(self, pairs: MarginOracle, box: Box, starts: Tensor | None) -> Tensor:
        """As :meth:`_cross`, for pairs of an example and a class, near to ``starts`` ``(P, D)`` where given."""
        if starts is not None:
            raise BoundaryValueError(
                f'{type(self).__name__} cannot start in random directions: use NearestBoundary, or sampling="classes".'
            )
        return self._cross(pairs, box)

    def _find_pairs(
        self,
        oracle: MarginOracle,
        rows: Tensor,
        target: Tensor,
        starts: Tensor | None = None,
        one_each: bool = False,
    ) -> BoundaryPoints:
        """Boundary points of pairs of an example, ``rows`` ``(P,)``, and a class, ``target`` ``(P,)``.

        Where an example has many pairs, less is spent on each than on ``one_each``.
        """
        box = box_of(self.bounds, oracle.inputs).of(rows)
        pairs = oracle.of_pairs(rows, target)
        points = self._cross(pairs, box) if one_each else self._cross_pairs(pairs, box, starts)
        return self._land(pairs, box, points, as_tuple=True)

    def _seed(self) -> int:
        """A seed for this call: drawn from the user's generator, or always the same."""
        if self.generator is None:
            return 0
        return int(torch.randint(2**31, (1,), generator=self.generator, device=self.generator.device))

    def _find(self, inputs: Any, target: TargetType, additional_forward_args: object) -> BoundaryPoints:
        oracle, box = self._begin(inputs, target, additional_forward_args)
        return self._land(oracle, box, self._cross(oracle, box), is_tuple(inputs))

    def _begin(self, inputs: Any, target: TargetType, additional_forward_args: object) -> tuple[MarginOracle, Box]:
        """The model at the inputs, and their limits, after a look at whether all arguments make sense."""
        tensors = check_inputs(inputs)
        _warn_of_training_mode(self.forward_func)
        box = box_of(self.bounds, tensors)
        return MarginOracle(self.forward_func, tensors, target, additional_forward_args, self.internal_batch_size), box

    def _land(self, oracle: MarginOracle, box: Box, points: Tensor, as_tuple: bool) -> BoundaryPoints:
        """Move ``points`` ``(N, D)`` onto the boundary, check their labels, and say what has come of every example."""
        points, crossed = land(oracle, box, points, oracle.all_rows)
        depth, adversarial = oracle.depth(points, oracle.all_rows)
        distance = length(oracle.round(points) - oracle.x, self.norm)
        found = crossed & (depth < 0)
        if self.max_distance is not None:
            found &= distance <= self.max_distance
        unpacked = tuple(
            torch.where(found.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1)), point, tensor)
            for point, tensor in zip(oracle.unpack(points), oracle.inputs, strict=True)
        )
        return BoundaryPoints(
            points=format_output(as_tuple, unpacked),
            target=oracle.target,
            adversarial=torch.where(found, adversarial, -1),
            distance=torch.where(found, distance, torch.inf),
            margin=oracle.sign * torch.where(found, depth, oracle.start_depth),
            found=found,
            n_forward=oracle.n_forward,
            n_gradient=oracle.n_gradient,
        )

    def _report(self, found: Tensor, stacklevel: int = 3) -> None:
        """Name the rows where nothing was found, in an error if the search is strict and in a warning if not."""
        missing = (~found).nonzero().flatten().tolist()
        if missing:
            message = _not_found_message(missing, len(found), self.max_distance)
            if self.strict:
                raise BoundaryNotFoundError(message)
            warnings.warn(message, BoundaryNotFoundWarning, stacklevel=stacklevel)


def _not_found_message(rows: list[int], n_examples: int, max_distance: float | None) -> str:
    named = ", ".join(map(str, rows[:20])) + (", ..." if len(rows) > 20 else "")
    within = "" if max_distance is None else f" within max_distance={max_distance:g}"
    return (
        f"No decision boundary was found{within} for {len(rows)} of {n_examples} examples, row(s) {named}: their "
        "points equal the inputs and their distance is infinite. The model may be constant there, its outputs may be "
        "saturated probabilities (use logits), or the bounds or the budget may be too tight."
    )


def _warn_of_training_mode(forward_func: Callable[..., Any]) -> None:
    if not isinstance(forward_func, torch.nn.Module):
        return
    unstable = (_BatchNorm, _DropoutNd)
    if any(module.training and isinstance(module, unstable) for module in forward_func.modules()):
        warnings.warn(
            "The model has dropout or batch normalisation in training mode, so its decisions change from one "
            "evaluation to the next. Call model.eval() before searching for its boundary.",
            UserWarning,
            stacklevel=5,
        )
