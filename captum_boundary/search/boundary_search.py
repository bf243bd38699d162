"""What every boundary search shares: its result, its protocol, its checks and its landing on the boundary."""

from __future__ import annotations

import copy
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from captum.robust import Perturbation
from torch import Tensor
from tqdm.auto import tqdm

from captum_boundary._core.bounds import Bounds, bounds_of_limits, box_of, check_bounds
from captum_boundary._core.captum_helpers import (
    TargetType,
    TensorOrTupleOfTensorsGeneric,
    format_additional_forward_args,
    format_output,
    is_tuple,
)
from captum_boundary._core.checks import check_count, check_inputs, plain_number
from captum_boundary._core.context import geometry
from captum_boundary._core.generators import check_generator, seed_of
from captum_boundary._core.mask import Mask, MaskedModel, box_within, movable_values
from captum_boundary._core.norms import Norm, norm_of
from captum_boundary._core.oracle import MarginOracle
from captum_boundary._core.repeatability import watch_repeatability
from captum_boundary._core.user_warnings import warn_user
from captum_boundary.errors import (
    BoundaryNotFoundError,
    BoundaryNotFoundWarning,
    BoundaryTypeError,
    BoundaryValueError,
)
from captum_boundary.search._line_search import project_to_boundary
from captum_boundary.search._problem import Problem
from captum_boundary.search._reports import final_status, not_found_message, warn_of_coarse_scores
from captum_boundary.search.boundary_points import BoundaryPoints
from captum_boundary.search.boundary_status import BoundaryStatus
from captum_boundary.search.search_problem import Proposal, SearchProblem, Solution

__all__ = ["BoundaryPoints", "BoundarySearch"]

_BAR = "{l_bar}{bar}| [{elapsed}<{remaining}]"


class BoundarySearch(Perturbation, ABC):  # type: ignore[misc]
    r"""Base class of all searches for the closest decision boundary.

    A subclass implements :meth:`propose`, which returns for each example some point beyond its boundary. This class
    does the rest: it checks the arguments, moves the point back along the straight line to the input until it lies just
    beyond the boundary, checks its label again, and reports examples without a boundary point.

    The model is evaluated as it is. Call ``model.eval()`` first: with dropout or batch statistics in training mode
    there is no fixed boundary to find.

    Args:

        forward_func (Callable): The model or any function that returns class scores ``(N, C)``, or ``(N,)`` or
            ``(N, 1)`` for a binary model. Logits are best. Probabilities work as long as their gradients do not vanish.
            Scores may come as ``logits`` of a mapping or object, such as a Hugging Face ``ModelOutput``, or as the
            first entry of a tuple in which no other could be scores.
        bounds (tuple, optional): Limits that no point leaves: a pair ``(lower, upper)`` of numbers or of tensors that
            broadcast to an input (per channel, say, for normalized inputs), or a tuple of such pairs, one for each
            input. Default: None, no limits.
        norm (float or Norm, optional): Norm of the distance, 2, ``math.inf``, 1 or an object such as
            :class:`WeightedL2`, over all inputs of a tuple together. Default: 2
        max_distance (float, optional): Boundary points further away count as not found. Default: None
        strict (bool, optional): Raise a :class:`BoundaryNotFoundError` where some example has no boundary point, in
            place of a :class:`BoundaryNotFoundWarning`. Default: False
        generator (torch.Generator, optional): Source of randomness. Default: None, a fixed seed: the same numbers on
            every call.
        show_progress (bool, optional): Show a progress bar. Default: False
        internal_batch_size (int, optional): Examples that are searched at once, to bound memory. Default: None, all of
            them.

    Raises:

        BoundaryValueError: For bounds, norms and numbers that make no sense.
        BoundaryTypeError: For arguments of the wrong type.
    """

    takes_starts = False  # whether propose searches from SearchProblem.starts, where they are given
    _description = "Boundary"  # of the progress bar

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        bounds: Bounds = None,
        norm: float | Norm = 2,
        max_distance: float | None = None,
        strict: bool = False,
        generator: torch.Generator | None = None,
        show_progress: bool = False,
        internal_batch_size: int | None = None,
    ) -> None:
        if not callable(forward_func):
            raise BoundaryTypeError(f"forward_func must be callable, but it is {type(forward_func).__name__}.")
        norm_of(norm)  # which refuses others
        if max_distance is not None and not isinstance(max_distance, numbers.Real):
            raise BoundaryTypeError(f"max_distance must be a number or None, but it is {max_distance!r}.")
        if max_distance is not None and not max_distance > 0:
            raise BoundaryValueError(f"max_distance must be positive, but it is {max_distance!r}.")
        check_count("internal_batch_size", internal_batch_size, optional=True)
        check_generator(generator)
        self.forward_func = forward_func
        self.bounds = check_bounds(bounds)
        self.norm = plain_number(norm)
        self.max_distance = plain_number(max_distance)
        self.strict = strict
        self.generator = generator
        self.show_progress = show_progress
        self.internal_batch_size = plain_number(internal_batch_size)

    def find(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        mask: Mask = None,
    ) -> BoundaryPoints:
        r"""Find the closest boundary point of every example.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): Inputs, floating point; dimension 0 corresponds to the number of
                examples N, which all inputs of a tuple share.
            target (int, tuple, Tensor or list, optional): Class whose region is left, in any of Captum's forms for 2-D
                outputs. Where an input lies outside the region of its target, the boundary of that region is approached
                from outside. For a model with one output, 0 is its index, and means the side of each example, and 1 is
                the positive side; the ``target`` of boundary points of these inputs holds just that.
                Default: None, the predicted class of each example.
            additional_forward_args (Any, optional): Further arguments of ``forward_func``, given after ``inputs``.
                Tensors with N entries follow their examples; everything else is passed as it is. Default: None
            mask (Tensor or tuple[Tensor, ...], optional): 1 (or True) where a value may move, as in Captum's
                perturbations, and 0 where it is fixed: a tensor that broadcasts to ``inputs``, or a tuple with one (or
                None) for each input. Fixed values stay as they are to the last bit, so that distances are those of the
                values that move. Default: None, all may move.

        Returns:

            - **boundary** (*BoundaryPoints*): The points and all that is known about them. Examples without a boundary
              point have ``found=False`` and are named in a :class:`BoundaryNotFoundWarning`. In half precision, points
              that lie beyond the boundary by more than 5 % of their input's margin are named in a
              :class:`BoundaryPrecisionWarning`.

        Raises:

            BoundaryTypeError: For inputs, targets or outputs of the wrong type.
            BoundaryValueError: For NaN or infinite inputs or outputs of them, empty batches, inputs outside ``bounds``,
                masks of other shapes or values, targets out of range, outputs of the wrong shape, and models without
                gradients.
            BoundaryNotFoundError: If ``strict`` and some example has no boundary point.
        """
        with geometry():
            boundary = self._find(inputs, target, additional_forward_args, mask)
        self._report(boundary.found)
        return boundary

    def perturb(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        mask: Mask = None,
    ) -> TensorOrTupleOfTensorsGeneric:
        r"""The boundary points alone, shaped like ``inputs``: Captum's protocol for perturbations.

        Arguments and errors are those of :meth:`find`. Examples without a boundary point come back unchanged, with the
        warning.
        """
        points: Any = self.find(inputs, target, additional_forward_args, mask=mask).points
        return cast(TensorOrTupleOfTensorsGeneric, points)

    def with_forward_func(self, forward_func: Callable[..., Any]) -> BoundarySearch:
        """A search with the same settings for another function, such as the part of a model above a layer."""
        other = copy.copy(self)
        other.forward_func = forward_func
        return other

    @abstractmethod
    def propose(self, problem: SearchProblem) -> Tensor | tuple[Tensor, ...] | Proposal:
        r"""Points beyond the boundary, wherever they can be found: the one method that a search implements.

        It is called by :meth:`find`, for one group of examples after the other, with gradients enabled. The nearer a
        point lies to its input, the better; it need not lie on the boundary, for :meth:`find` moves it there. Where
        none is found, any point on the input's own side will do, such as the input.

        Args:

            problem (SearchProblem): The model at the n examples of the group: inputs, classes, limits, the norm, a
                counted and differentiable function of the scores, random numbers and the progress bar.

        Returns:

            - **points** (*Tensor*, *tuple[Tensor, ...]* or *Proposal*): Points ``(n, D)``, or with the structure and
              shapes of the inputs. A :class:`Proposal` says how the search of each example ended as well.
        """

    def solve(self, problem: SearchProblem) -> Solution:
        r"""What :meth:`propose` finds, moved onto the boundary: for searches that are made of others.

        Such a search solves a :meth:`SearchProblem.subproblem` of its own.

        Args:

            problem (SearchProblem): The model at n examples.

        Returns:

            - **solution** (*Solution*): Points on the boundary, and where they are none.
        """
        with torch.enable_grad():
            proposal = self.propose(problem)
        if not isinstance(proposal, Proposal):
            proposal = Proposal(proposal)
        inner, status = problem._problem, proposal.status
        points = problem.flatten(proposal.points).detach()
        points = torch.where(torch.isfinite(points), points, inner.x)
        # A final point is evaluated where it is: a line search towards the input could cross what is not allowed.
        points, margin = (
            (points, inner.signed_margin(points)) if proposal.is_final else project_to_boundary(inner, points)
        )
        status = torch.full_like(problem.target, BoundaryStatus.FOUND) if status is None else status.to(problem.target)
        found = margin < 0
        if self.max_distance is not None:
            found &= problem.distance(points) <= self.max_distance
        return Solution(points, found, margin, status, proposal.limits)

    def check(self, inputs: tuple[Tensor, ...], mask: Mask) -> None:
        """Refuse inputs that a search is not meant for, before the model is evaluated; by default none is."""

    def check_starts(self) -> None:
        """Refuse to search near points other than the inputs, where :meth:`propose` does not."""
        if not self.takes_starts:
            raise BoundaryValueError(
                f'{type(self).__name__} cannot start in random directions: use NearestBoundary, or sampling="classes".'
            )

    def _find(
        self, inputs: Any, target: TargetType, additional_forward_args: object, mask: Mask = None
    ) -> BoundaryPoints:
        with self._opened(inputs, target, additional_forward_args, mask) as problem:
            boundary = self._searched(problem, is_tuple(inputs))
            warn_of_coarse_scores(problem.oracle, boundary)
            return boundary if boundary.bounds is not None else replace(boundary, bounds=self.bounds)

    @contextmanager
    def _opened(
        self, inputs: Any, target: TargetType, additional_forward_args: object, mask: Mask = None
    ) -> Iterator[Problem]:
        """The model at the inputs, after a look at the arguments; its running statistics stay as they are."""
        tensors = check_inputs(inputs)
        self.check(tensors, mask)
        movable = movable_values(mask, tensors)
        box = box_within(box_of(self.bounds, tensors), tensors, movable)
        function, arguments = self.forward_func, format_additional_forward_args(additional_forward_args)
        if movable is not None:
            function, arguments = MaskedModel(function, len(tensors)), (*(arguments or ()), *movable, *tensors)
        with watch_repeatability(self.forward_func) as repeatability:
            oracle = MarginOracle(function, tensors, target, arguments, self.internal_batch_size)
            norm = norm_of(self.norm).for_inputs(tensors)
            yield Problem(oracle, box, norm, oracle.score_noise(repeatability))

    def _searched(
        self,
        problem: Problem,
        as_tuple: bool,
        starts: Tensor | None = None,
        is_one_of_many: bool = False,
        batch: tuple[tuple[Tensor, ...], Tensor] | None = None,
    ) -> BoundaryPoints:
        """Search a group of examples after the other, and say what has come of every one."""
        oracle = problem.oracle
        groups = torch.split(oracle.all_rows, self.internal_batch_size or len(problem))
        seed, parts, limits = seed_of(self.generator), [], []
        with tqdm(
            total=1.0, desc=self._description, bar_format=_BAR, leave=None, disable=not self.show_progress
        ) as bar:
            for group in groups:
                part = SearchProblem(
                    problem if len(groups) == 1 else problem.select(group),
                    seed,
                    as_tuple,
                    _progress_of_a_share(bar, len(group) / len(problem)),
                    None if starts is None else starts[group],
                    is_one_of_many,
                    None if batch is None else (batch[0], batch[1][group]),
                )
                points, _, margin, status, part_limits = self.solve(part)
                parts.append((points, margin, status, *part.evaluate(points)))
                limits.append(part_limits)
                part.progress(1.0)
        bounds: Bounds = None
        if limits[0] is not None:  # the search says which they were for each example
            lower, upper = map(torch.cat, zip(*limits, strict=True))
            bounds = bounds_of_limits(lower, upper, oracle.inputs, as_tuple)
        points, landed_depth, status, depth, adversarial, distance = map(torch.cat, zip(*parts, strict=True))
        is_beyond = torch.maximum(depth, landed_depth) < 0
        found = is_beyond if self.max_distance is None else is_beyond & (distance <= self.max_distance)
        return BoundaryPoints(
            points=format_output(as_tuple, oracle.unpack(torch.where(found[:, None], points, oracle.x))),
            target=oracle.target.clone(),
            adversarial=torch.where(found, adversarial, -1),
            distance=torch.where(found, distance, torch.inf),
            margin=oracle.sign * torch.where(found, depth, oracle.start_depth),
            found=found,
            n_forward=oracle.n_forward,
            n_gradient=oracle.n_gradient,
            norm=self.norm,
            bounds=bounds,
            status=final_status(status, found, is_beyond, landed_depth < 0),
        )

    def _report(self, found: Tensor) -> None:
        """Name the rows where nothing was found, in an error if the search is strict and in a warning if not."""
        if not found.all():
            message = not_found_message(~found, self.max_distance)
            if self.strict:
                raise BoundaryNotFoundError(message)
            warn_user(message, BoundaryNotFoundWarning)


def _progress_of_a_share(bar: tqdm[Any], share: float) -> Callable[[float], object]:
    """What moves a bar from where it stands, by shares of a share of its length."""
    begin = bar.n
    return lambda done: bar.update(begin + share * done - bar.n)
