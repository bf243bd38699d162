"""What a search of one's own is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.bounds import Bounds, box_of
from captum_boundary._core.captum_helpers import format_output
from captum_boundary._core.flat import pack, unpack
from captum_boundary._core.geometry import Box
from captum_boundary._core.margin import margin_and_rival
from captum_boundary._core.norms import Norm
from captum_boundary._core.oracle import MarginOracle
from captum_boundary._core.random_state import preserve_rng_state, seed_rng
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search._differentiable_scores import DifferentiableScores
from captum_boundary.search._line_search import project_to_boundary
from captum_boundary.search._problem import Problem

__all__ = ["Proposal", "SearchProblem", "Solution"]


class Proposal(NamedTuple):
    r"""What :meth:`BoundarySearch.propose` may return in place of points alone.

    Attributes:

        points (Tensor or tuple[Tensor, ...]): Points ``(n, D)``, or with the structure and shapes of the inputs.
        status (Tensor, optional): A :class:`BoundaryStatus` for each example, ``(n,)`` integers: which phase found the
            point and why the search ended, as if all were found; where none is, that is replaced. Default: None, which
            means ``BoundaryStatus.FOUND``
        is_final (bool): Whether points are to stay where they are, as those that may not move along straight lines
            must. Default: False, they are moved onto the boundary.
        limits (tuple[Tensor, Tensor], optional): Lower and upper limits ``(n, D)`` within which each point was
            searched. Default: None, those of the problem.
    """

    points: Tensor | tuple[Tensor, ...]
    status: Tensor | None = None
    is_final: bool = False
    limits: tuple[Tensor, Tensor] | None = None


class Solution(NamedTuple):
    r"""What :meth:`BoundarySearch.solve` returns: a proposal, moved onto the boundary.

    Attributes:

        points (Tensor): Flat points ``(n, D)``.
        found (Tensor): Whether they lie beyond the boundary, within the search's ``max_distance``, ``(n,)`` booleans.
        signed_margin (Tensor): Their signed margins ``(n,)``, negative beyond the boundary.
        status (Tensor): A :class:`BoundaryStatus` for each example, ``(n,)`` integers.
        limits (tuple[Tensor, Tensor], optional): Lower and upper limits ``(n, D)``, where the proposal has its own.
    """

    points: Tensor
    found: Tensor
    signed_margin: Tensor
    status: Tensor
    limits: tuple[Tensor, Tensor] | None


class SearchProblem:
    r"""The model at n examples, as :meth:`BoundarySearch.propose` sees it. It is read-only.

    Points are flat: ``(n, D)``, all inputs of an example side by side, in float32, or float64 where the inputs are.
    :meth:`unflatten` and :meth:`flatten` lead to the shapes of the inputs and back. Every evaluation of the model is
    counted for its example.

    Attributes:

        target (Tensor): The class of each example whose region is left, or entered, ``(n,)``.
        lower (Tensor): Lower limits of the coordinates, that broadcast to ``(n, D)``; ``-inf`` where there are none.
        upper (Tensor): Upper limits, likewise.
        norm (Norm): Norm of the distance, of flat vectors: an object with lengths, steepest directions and projections.
        n_classes (int): Columns of the scores.
        example_index (Tensor): Which example of the whole batch each one is, ``(n,)``.
        seed (int): Where random numbers start: the same for all examples, whatever batch they are in.
        starts (Tensor, optional): Points ``(n, D)`` near which to search, or None. Only searches that set
            ``takes_starts`` are given any.
        is_one_of_many (bool): Whether an example occurs several times, for its boundaries with several classes or near
            several starts, so that less should be spent on each.
    """

    def __init__(
        self,
        problem: Problem,
        seed: int,
        as_tuple: bool,
        progress: Callable[[float], object],
        starts: Tensor | None = None,
        is_one_of_many: bool = False,
        batch: tuple[tuple[Tensor, ...], Tensor] | None = None,
    ) -> None:
        self._problem = problem
        # All inputs of the call, and which example of them each row is.
        self._batch, self.example_index = batch or (problem.oracle.inputs, problem.oracle.counter_index)
        self._as_tuple = as_tuple
        self._progress = progress
        self.seed = seed
        self.starts = starts
        self.is_one_of_many = is_one_of_many
        self.n_classes = problem.oracle.n_classes
        self.norm: Norm = problem.norm
        self.target = problem.oracle.target
        self.lower, self.upper = problem.box.lower, problem.box.upper

    def __len__(self) -> int:
        return len(self._problem)

    @cached_property
    def x(self) -> Tensor:
        """The inputs as flat points, ``(n, D)``; a copy, as the caller's must not change with it."""
        return self._problem.x.clone()

    @property
    def inputs(self) -> Tensor | tuple[Tensor, ...]:
        """The inputs as they were given, of these examples; a copy."""
        return self.unflatten(self._problem.x.clone())

    @property
    def targeted(self) -> Tensor:
        """Whether the region of the target is entered, since the input lies outside of it, ``(n,)`` booleans."""
        return self._problem.oracle.sign < 0

    @property
    def generator(self) -> torch.Generator:
        """A new source of random numbers on the CPU, at the seed."""
        return torch.Generator("cpu").manual_seed(self.seed)

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """The global random states of Python, NumPy and PyTorch at the seed, and afterwards as they were.

        For attacks that draw from them: results can be repeated, and whoever called the search does not notice.
        """
        with preserve_rng_state():
            seed_rng(self.seed, self._problem.x.device)
            yield

    def select(self, rows: Tensor) -> SearchProblem:
        """The same problem for some examples: indices ``(k,)`` or a mask ``(n,)``."""
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        starts = None if self.starts is None else self.starts[rows]
        part, batch = self._problem.select(rows), (self._batch, self.example_index[rows])
        return SearchProblem(part, self.seed, self._as_tuple, self._progress, starts, self.is_one_of_many, batch)

    def subproblem(
        self,
        points: Tensor | None = None,
        rows: Tensor | None = None,
        *,
        bounds: Bounds = None,
        limits: tuple[Tensor, Tensor] | None = None,
        share: tuple[float, float] = (0.0, 0.0),
    ) -> SearchProblem:
        """A problem of its own, for a search to solve within that of another: evaluations count for both.

        It is that of ``points`` ``(k, D)`` in place of the inputs of the examples ``rows`` ``(k,)``, in any order, also
        several times; by default that of the inputs themselves. ``bounds``, in the form that a search takes, and
        ``limits`` ``(k, D)`` are kept beside those of this problem. Its progress is that of this one from the first
        ``share`` to the second.
        """
        outer = self._problem
        rows = outer.oracle.all_rows if rows is None else rows
        points = outer.x[rows] if points is None else points
        box = _intersection(outer.box.of(rows), box_of(bounds, self._batch).of(self.example_index[rows]))
        if limits is not None:
            box = _intersection(box, Box(*limits))

        def scores(*arguments: Tensor) -> Tensor:
            *parts, owners = arguments
            given: Tensor = DifferentiableScores.apply(pack(tuple(parts)), outer.oracle, owners)
            return given

        inputs = outer.oracle.unpack(points)
        oracle = MarginOracle(scores, inputs, outer.oracle.target[rows], rows, outer.oracle.chunk_size)
        begin, end = share
        return SearchProblem(
            Problem(oracle, box, outer.norm, outer.noise),
            self.seed,
            self._as_tuple,
            lambda done: self.progress(begin + (end - begin) * done),
            None if self.starts is None else self.starts[rows],
            self.is_one_of_many,
            (self._batch, self.example_index[rows]),
        )

    def unflatten(self, points: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Flat points with the structure, shapes, dtypes and devices of the inputs."""
        shaped: Tensor | tuple[Tensor, ...] = format_output(self._as_tuple, unpack(points, self._problem.oracle.inputs))
        return shaped

    def flatten(self, points: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Points with the structure and shapes of the inputs as flat ones; flat ones as they are.

        Raises:

            BoundaryTypeError: If they are no tensors.
            BoundaryValueError: If they have another shape.
        """
        templates = self._problem.oracle.inputs
        parts = points if isinstance(points, tuple) else (points,)
        if not all(isinstance(part, Tensor) for part in parts):
            raise BoundaryTypeError(
                f"points must be a Tensor, or a tuple of them, but there is {[type(part).__name__ for part in parts]}."
            )
        shapes = [tuple(part.shape) for part in parts]
        if shapes == [(len(self), *template.shape[1:]) for template in templates]:
            return pack(parts).to(self._problem.x)
        if shapes == [tuple(self._problem.x.shape)]:
            return parts[0].to(self._problem.x)
        needed = [(len(self), *template.shape[1:]) for template in templates]
        raise BoundaryValueError(
            f"points must be flat, {tuple(self._problem.x.shape)}, or have the shapes of the inputs, {needed}, but "
            f"their shapes are {shapes}."
        )

    def scores(self, points: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Class scores ``(n, C)`` at points, flat or not: one forward pass of each example.

        They can be differentiated once, by the points; that counts a backward pass. A model with one output has the two
        columns 0 and its output.
        """
        scores: Tensor = DifferentiableScores.apply(self.flatten(points), self._problem.oracle, None)
        return scores

    def signed_margin(self, points: Tensor | tuple[Tensor, ...]) -> Tensor:
        """The margin of the target at points, ``(n,)``, positive on the input's side of the boundary, negative beyond.

        It is infinite where the model returns NaN or infinity. It can be differentiated as the scores can.
        """
        return self.margin_of(self.scores(points))

    def margin_of(self, scores: Tensor) -> Tensor:
        """The signed margin ``(n,)`` of points with these scores ``(n, C)``."""
        margin, _ = margin_and_rival(scores, self.target)
        return torch.where(self.targeted, -margin, margin).nan_to_num(torch.inf, torch.inf, torch.inf)

    def clamp(self, points: Tensor) -> Tensor:
        """Flat points moved to where the limits allow them."""
        return self._problem.box.clamp(points)

    def distance(self, points: Tensor) -> Tensor:
        """Distances ``(n,)`` of flat points from the inputs."""
        return self.norm.safe_length(points - self._problem.x)

    def project_to_boundary(self, points: Tensor) -> Tensor:
        """Flat points beyond the boundary, moved along the straight lines to the inputs until they lie just beyond it.

        Points that are not beyond the boundary stay where they are.
        """
        return project_to_boundary(self._problem, points)[0]

    def evaluate(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signed margins, strongest other classes and distances, ``(n,)`` each, of flat points as the model sees them.

        The model sees points after rounding to the dtypes of the inputs.
        """
        oracle = self._problem.oracle
        return *oracle.depth(points), self.distance(oracle.round(points))

    def progress(self, done: float) -> None:
        """Move the progress bar to where a share ``done`` of the search of these examples is over, from 0 to 1."""
        self._progress(done)


def _intersection(one: Box, other: Box) -> Box:
    if not one.is_limited or not other.is_limited:
        return one if one.is_limited else other
    return Box(torch.maximum(one.lower, other.lower), torch.minimum(one.upper, other.upper))
