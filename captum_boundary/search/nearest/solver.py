"""The closest decision boundary, for a few dozen gradients: the story of the search; each phase has a file."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.bounds import Bounds
from captum_boundary._core.checks import check_count
from captum_boundary._core.norms import Norm
from captum_boundary.errors import BoundaryTypeError
from captum_boundary.search._line_search import line_search
from captum_boundary.search._problem import Incumbent, Phase, Problem
from captum_boundary.search.boundary_search import BoundarySearch
from captum_boundary.search.boundary_status import BoundaryStatus
from captum_boundary.search.nearest.class_race import can_race, race_classes
from captum_boundary.search.nearest.descent import descend, descend_with_restarts
from captum_boundary.search.nearest.first_contact import newton_phase, newton_steps, random_line_search
from captum_boundary.search.nearest.refinement import active_set_refine, looks_linear, polish, restart
from captum_boundary.search.nearest.settings import NearestBoundarySettings
from captum_boundary.search.search_problem import Proposal, SearchProblem

__all__ = ["NearestBoundary"]

# Forward passes of an example for each gradient of the budget, or of one descent where that is more, at most.
_FORWARDS = 4
# Units of a BoundaryStatus.
_OPTIMAL, _STALLED, _BUDGET = (int(status) % 10 for status in (
    BoundaryStatus.REFINEMENT_OPTIMAL, BoundaryStatus.REFINEMENT_STALLED, BoundaryStatus.REFINEMENT_BUDGET
))  # fmt: skip


class NearestBoundary(BoundarySearch):
    r"""The nearest decision boundary, for a few dozen gradients: the search to use unless there is a reason not to.

    Newton steps on a smoothed margin reach the boundary (after DeepFool, https://arxiv.org/abs/1511.04599). Where the
    boundary is made of few smooth pieces, its nearest point is then found exactly, by projecting the input onto the
    last few linearisations together, and the rest of the budget goes to restarts from the other classes and from random
    directions. Where it is jagged, as that of a deep network is, the search descends along it with averaged normals
    (after DDN, https://arxiv.org/abs/1811.09600; in l1 by linear programs), at first those of random points nearby, and
    starts over every 40 gradients. In the end every point is moved onto the boundary itself.

    Without bounds, in many dimensions, it begins in the range between the least and the largest value of an input:
    where a model was never trained, its boundary has many more corners to be caught in. No point is held there in the
    end.

    Examples that pass the first-order test leave the batch, and so do those whose restarts gain nothing. Distances are
    upper bounds: no search of this kind can prove that nothing is nearer.

    Args:

        forward_func (Callable): The model or any function that returns class scores ``(N, C)``, or ``(N,)`` or
            ``(N, 1)`` for a binary model. Logits are best. Probabilities work as long as their gradients do not vanish.
        bounds (tuple, optional): Limits that no point leaves: a pair ``(lower, upper)`` of numbers or of tensors that
            broadcast to an input, or a tuple of such pairs (or None), one for each input. Default: None, no limits.
        norm (float or Norm, optional): Norm of the distance, 2, ``math.inf``, 1 or an object such as
            :class:`WeightedL2`, over all inputs of a tuple together. Default: 2
        budget (int, optional): Gradient evaluations an example at most. 10 gives a quick idea, 200 is thorough. There
            are at most four times as many forward passes (160 where the budget is below 40), in deep networks little
            more than gradients. Default: 40
        max_distance (float, optional): Boundary points further away count as not found. Default: None
        strict (bool, optional): Raise a :class:`BoundaryNotFoundError` where some example has no boundary point, in
            place of a :class:`BoundaryNotFoundWarning`. Default: False
        generator (torch.Generator, optional): Source of the restarts' directions. Default: None, the same ones on every
            call.
        show_progress (bool, optional): Show a progress bar. Default: False
        internal_batch_size (int, optional): Examples that are searched at once, to bound memory: the model's, and that
            of the search, some 15 to 35 vectors of the size of an input for each. Default: None, all of them.
        settings (NearestBoundarySettings, optional): The constants of the search. Default: None, those that were
            measured, which suit all networks that were tried.

    Raises:

        BoundaryValueError: For bounds, norms and numbers that make no sense.
        BoundaryTypeError: For arguments of the wrong type.

    Examples::

        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> boundary = NearestBoundary(model).find(torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
        >>> boundary.target, boundary.adversarial
        (tensor([0, 1]), tensor([1, 0]))
        >>> bool(torch.allclose(boundary.distance, torch.tensor([0.5**0.5, 0.5**1.5]), rtol=1e-3))
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        bounds: Bounds = None,
        norm: float | Norm = 2,
        budget: int = 40,
        max_distance: float | None = None,
        strict: bool = False,
        generator: torch.Generator | None = None,
        show_progress: bool = False,
        internal_batch_size: int | None = None,
        settings: NearestBoundarySettings | None = None,
    ) -> None:
        super().__init__(
            forward_func,
            bounds=bounds,
            norm=norm,
            max_distance=max_distance,
            strict=strict,
            generator=generator,
            show_progress=show_progress,
            internal_batch_size=internal_batch_size,
        )
        check_count("budget", budget)
        if settings is not None and not isinstance(settings, NearestBoundarySettings):
            raise BoundaryTypeError(
                f"settings must be NearestBoundarySettings or None, but it is {type(settings).__name__}."
            )
        self.budget = int(budget)
        self.settings = NearestBoundarySettings() if settings is None else settings

    takes_starts = True
    _description = "Nearest boundary"

    def propose(self, problem: SearchProblem) -> Proposal:
        r"""Points on the boundary, as near as the budget allows, and how the search of each example ended."""
        inner = problem._problem.in_plain_units()
        starts = None if problem.starts is None else inner.oracle.to_units(problem.starts)
        if self.show_progress:  # the bar is that of the example with most gradients
            oracle = inner.oracle
            oracle.on_gradient = lambda: problem.progress(min(1.0, int(oracle.gradients_spent.max()) / self.budget))
        with torch.no_grad():
            enters = inner.oracle.sign < 0
            n_entering = int(enters.sum())
            if n_entering in (0, len(inner)):
                incumbent, end = self._search_side(inner, problem, starts, n_entering > 0)
            else:
                incumbent = Incumbent.none(inner)
                end = torch.zeros_like(incumbent.phase)
                for targeted in (False, True):
                    rows = (enters == targeted).nonzero().flatten()
                    part_starts = None if starts is None else starts[rows]
                    found, end_of_part = self._search_side(inner.select(rows), problem, part_starts, targeted)
                    incumbent, end = incumbent.replaced(rows, found), end.index_copy(0, rows, end_of_part)
            points = incumbent.points
            if inner is not problem._problem:  # what did not move is not rounded
                points = torch.where(points == inner.x, problem.x, inner.oracle.from_units(points))
        return Proposal(points, 10 * incumbent.phase + end)

    def _search_side(
        self, part: Problem, problem: SearchProblem, starts: Tensor | None, targeted: bool
    ) -> tuple[Incumbent, Tensor]:
        """Points of examples that all leave the region of their target, or all enter it, and why searches ended."""
        run = _Run(part, self.settings, self.budget, targeted, problem.seed)
        if problem.is_one_of_many:
            run.search_one_of_many(starts)
        else:
            run.search()
        return run.incumbent, run.end


class _Run:
    """One search, of examples that all leave the region of their target, or all enter it."""

    def __init__(
        self, problem: Problem, settings: NearestBoundarySettings, budget: int, targeted: bool, seed: int
    ) -> None:
        self.problem, self.settings, self.budget, self.targeted, self.seed = problem, settings, budget, targeted, seed
        self.incumbent = Incumbent.none(problem)
        self.is_stationary, self.has_stalled = (torch.zeros_like(self.incumbent.phase, dtype=torch.bool) for _ in "12")

    def search(self) -> None:
        """From first contact to the nearest point, whichever class lies beyond the boundary."""
        self.incumbent, self.first_margin = newton_phase(self.problem, self.settings, self.budget)
        self._or_random_lines()
        self._or_restarts()
        rows = self.incumbent.is_found.nonzero().flatten()
        if len(rows) > 0:
            (self._search_few_dimensions if self.problem.few_dimensions else self._search_many_dimensions)(rows)

    def search_one_of_many(self, starts: Tensor | None) -> None:
        """As near, for the boundary of one class or near one start, for less: an example has many of them."""
        problem, few = self.problem, self.problem.few_dimensions
        if starts is None and few:
            self.incumbent, _ = newton_phase(problem, self.settings, self.budget)
        else:
            self._descend_from(problem.x if starts is None else starts)
        self._or_random_lines()
        if few:
            if starts is None:
                self._or_restarts()
            rows = self.incumbent.is_found.nonzero().flatten()
            part, incumbent = self._at(rows)
            self._set(rows, polish(part, self.settings, incumbent, self.budget, self.targeted))
            if starts is None:
                self._restart(self.incumbent.is_found.nonzero().flatten())

    def _descend_from(self, starts: Tensor) -> None:
        """Newton steps from ``starts`` ``(n, D)`` to the boundary, however slow, and the descent of one of many."""
        n_steps = math.ceil(self.settings.pair_share * self.budget)
        margin = self.problem.signed_margin(starts)
        ends = newton_steps(self.problem, self.settings, starts, margin, n_steps, gives_up=False)
        self.incumbent = line_search(self.problem, ends[0], Phase.NEWTON, ends[1])
        rows = self.incumbent.is_found.nonzero().flatten()
        if len(rows) > 0:
            part, incumbent = self._at(rows)
            n_left = (n_steps - part.oracle.gradients_spent).clamp_min(0)
            found = descend(part, self.settings, incumbent, n_left, self.seed, is_far=True)
            self._set(rows, incumbent.nearer_of(found))

    @property
    def end(self) -> Tensor:
        """Why the search of each example ended: the units of a :class:`BoundaryStatus`, ``(n,)``."""
        end = torch.where(self.has_stalled, _STALLED, _OPTIMAL * self.is_stationary)
        return end.masked_fill(self._left(self.problem) <= 0, _BUDGET)

    def _search_few_dimensions(self, rows: Tensor) -> None:
        """A boundary has few pieces: refine, descend where that does not end, and restart, to miss none of them."""
        rows = rows[~self._refine(rows)]
        if len(rows) > 0:
            part, incumbent = self._at(rows)
            n_steps = (self.settings.descent_share * self._left(part)).long().clamp_min(0)
            self._set(rows, incumbent.nearer_of(descend(part, self.settings, incumbent, n_steps, self.seed)))
            self._refine(rows)
        self._restart(self.incumbent.is_found.nonzero().flatten())

    def _search_many_dimensions(self, rows: Tensor) -> None:
        """A boundary is smooth, and refined, or jagged, where a descent is the best use of the budget."""
        first, settings = self.incumbent, self.settings
        is_inside = self.problem.lies_in_data_range(first.points) & self.problem.has_data_range
        is_done = self._refine(rows, is_inside) & ~is_inside[rows]
        refined = rows[is_done]
        if len(refined) > 0:
            # A point than which none nearby is nearer may be one of many such points, but not where all is linear.
            part, incumbent = self._at(refined)
            is_linear = looks_linear(part, settings, incumbent, self.seed)
            is_done = is_done.index_copy(0, is_done.nonzero().flatten(), is_linear)
            if len(linear := refined[is_linear]) > 0:
                self._restart(linear, is_linear[is_linear])
        rows = rows[~is_done]
        rival = torch.full_like(self.incumbent.phase, -1)
        has_raced = torch.zeros_like(self.is_stationary)
        raced = rows[(self.first_margin.abs() <= settings.linearity * self.problem.scale)[rows]]
        if len(raced) > 0 and not self.targeted and can_race(self.problem, settings, self.budget):
            part, incumbent = self.problem.select(raced), self.incumbent.select(raced)
            winner, rival_of_winner, competed = race_classes(part, settings, incumbent, self.budget, self.seed)
            self._set(raced, winner)
            first = first.replaced(raced, first.select(raced).nearer_of(winner))
            rival = rival.index_copy(0, raced, rival_of_winner)
            has_raced = has_raced.index_copy(0, raced, competed)
        if len(rows) > 0:
            part = self.problem.select(rows)
            part = part.against(rival[rows]) if bool((rival[rows] >= 0).any()) else part
            begin, incumbent = first.select(rows), self.incumbent.select(rows)
            found = descend_with_restarts(part, settings, begin, incumbent, self.budget, self.seed, has_raced[rows])
            self._set(rows, found)

    def _refine(self, rows: Tensor, is_inside: Tensor | None = None) -> Tensor:
        """Refine incumbents, in many dimensions inside the data range where they are; whether they are stationary."""
        part, incumbent = self._at(rows)
        if is_inside is not None and part.has_data_range:
            part = part.in_data_range(is_inside[rows])
        n_steps = math.ceil(self.settings.refinement_share * min(self.budget, self.settings.restart_period))
        refined, is_stationary = active_set_refine(
            part, self.settings, incumbent.points, incumbent, self._left(part), n_steps, self.targeted
        )
        self._set(rows, refined.found_by(Phase.REFINEMENT, incumbent.distance))
        self.is_stationary = self.is_stationary.index_copy(0, rows, is_stationary)
        return is_stationary

    def _restart(self, rows: Tensor, is_linear: Tensor | None = None, seeks: bool = False) -> None:
        """Restart some rows: until they have a point if it ``seeks``, from other classes alone where all is linear."""
        if len(rows) == 0:
            return
        part, incumbent = self._at(rows)
        is_linear = looks_linear(part, self.settings, incumbent, self.seed) if is_linear is None else is_linear
        period = self.settings.restart_period
        # A third of a descent's is kept for what a restart has begun and for the final line search.
        n_forwards = _FORWARDS * max(self.budget, period) - _FORWARDS * period // 3
        incumbent, has_stalled = restart(
            part, self.settings, incumbent, self.budget, n_forwards, self.seed, self.targeted, is_linear, seeks
        )
        self._set(rows, incumbent)
        self.is_stationary = self.is_stationary.index_copy(0, rows, self.is_stationary[rows] | is_linear)
        self.has_stalled = self.has_stalled.index_copy(0, rows, has_stalled & ~is_linear)

    def _or_random_lines(self) -> None:
        """What random lines find, for examples where slopes led nowhere."""
        rows = torch.isinf(self.incumbent.distance).nonzero().flatten()
        if len(rows) > 0:
            self._set(rows, random_line_search(self.problem.select(rows), self.settings, self.seed))

    def _or_restarts(self) -> None:
        """What restarts find, for examples where random lines led nowhere either."""
        rows = torch.isinf(self.incumbent.distance).nonzero().flatten()
        self._restart(rows, torch.zeros_like(rows, dtype=torch.bool), seeks=True)

    def _at(self, rows: Tensor) -> tuple[Problem, Incumbent]:
        """The problem and the incumbents of some rows, in their order."""
        if len(rows) == len(self.problem):
            return self.problem, self.incumbent
        return self.problem.select(rows), self.incumbent.select(rows)

    def _set(self, rows: Tensor, incumbent: Incumbent) -> None:
        is_all = len(rows) == len(self.problem)
        self.incumbent = incumbent if is_all else self.incumbent.replaced(rows, incumbent)

    def _left(self, problem: Problem) -> Tensor:
        """Gradients that remain, ``(n,)``."""
        return self.budget - problem.oracle.gradients_spent
