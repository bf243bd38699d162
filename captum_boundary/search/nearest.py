"""The closest decision boundary, for a few dozen gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.bounds import Bounds
from captum_boundary._core.checks import check_count
from captum_boundary.search._approach import approach, scan
from captum_boundary.search._descent import TURN, descend, descend_in_turns, dive
from captum_boundary.search._problem import Candidates, Problem
from captum_boundary.search._refinement import refine
from captum_boundary.search._restarts import restart, settle
from captum_boundary.search.boundary_search import BoundarySearch
from captum_boundary.search.boundary_status import BoundaryStatus
from captum_boundary.search.search_problem import Proposal, SearchProblem

__all__ = ["NearestBoundary"]

# Gradients for the exact local search before the descent, and again after it, as a share of the budget and at most.
_REFINEMENT_SHARE = 0.1
_MAX_REFINEMENT = 4
# In few dimensions the descent leaves restarts a share of the budget; in many it is the better use of all of it.
_DESCENT_SHARE = 0.5
# In many dimensions a descent follows restarts, which have this share of the budget.
_RESTART_SHARE = 0.6
# Gradients of the one descent that each of an example's many boundaries gets, as a share of the budget.
_DIVE_SHARE = 0.4
# Forward passes of an example, at most: times the budget, or times this number where that is smaller. Some are kept for
# what a restart has begun and for the landing.
_FORWARDS, _LEAST_FORWARDS, _FORWARDS_KEPT = 4, 40, 40


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
        norm (float, optional): Norm of the distance, 2, ``math.inf`` or 1, over all inputs of a tuple together.
            Default: 2
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
        norm: float = 2,
        budget: int = 40,
        max_distance: float | None = None,
        strict: bool = False,
        generator: torch.Generator | None = None,
        show_progress: bool = False,
        internal_batch_size: int | None = None,
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
        self.budget = int(budget)

    takes_starts = True
    _description = "Nearest boundary"

    def propose(self, problem: SearchProblem) -> Proposal:
        r"""Points on the boundary, as near as the budget allows, and how the search of each example ended."""
        inner, starts, seed = problem._problem, problem.starts, problem.seed

        def nearest(part: Problem, enters: bool, rows: Tensor) -> Candidates:
            if problem.is_one_of_many:
                return self._nearest_of_a_pair(part, enters, None if starts is None else starts[rows], seed)
            return self._nearest_of_all(part, enters, seed)

        with torch.no_grad(), self._watched(problem):
            points = _on_each_side(inner, nearest).points
        is_spent = inner.oracle.gradients_spent >= self.budget
        return Proposal(points, torch.where(is_spent, BoundaryStatus.FOUND_BUDGET, BoundaryStatus.FOUND))

    @contextmanager
    def _watched(self, problem: SearchProblem) -> Iterator[None]:
        """Move the bar with the gradients of the example that has most of them."""
        if not self.show_progress:
            yield
            return
        oracle = problem._problem.oracle
        oracle.on_gradient = lambda: problem.progress(min(1.0, int(oracle.gradients_spent.max()) / self.budget))
        yield

    def _nearest_of_all(self, problem: Problem, enters: bool, seed: int) -> Candidates:
        """From first contact to the nearest point, whichever class lies beyond the boundary."""
        best = _or_scanned(problem, approach(problem, self.budget), seed)
        rows = torch.isfinite(best.distance).nonzero().flatten()
        if len(rows) > 0:
            improve = self._improved_in_few_dimensions if problem.few_dimensions else self._improved_in_many_dimensions
            best = best.replaced(rows, improve(problem.select(rows), best.select(rows), enters, seed))
        rows = torch.isinf(best.distance).nonzero().flatten()
        return best.replaced(
            rows, self._restarted(problem.select(rows), best.select(rows), self.budget, enters, seed)[0]
        )

    def _improved_in_few_dimensions(self, problem: Problem, best: Candidates, enters: bool, seed: int) -> Candidates:
        """A boundary has few pieces: refine, descend where that does not end, and restart, to miss none of them."""
        best, settled = refine(problem, best.points, best, self._left(problem), self._n_refinements, enters=enters)
        rows = (~settled).nonzero().flatten()
        if len(rows) > 0:
            part, part_best = problem.select(rows), best.select(rows)
            n_steps = (_DESCENT_SHARE * self._left(part)).long().clamp_min(0)
            part_best = part_best.or_nearer_of(descend(part, part_best, n_steps, seed))
            part_best, _ = refine(
                part, part_best.points, part_best, self._left(part), self._n_refinements, enters=enters
            )
            best = best.replaced(rows, part_best)
        return self._restarted(problem, best, self.budget, enters, seed)[0]

    def _improved_in_many_dimensions(self, problem: Problem, best: Candidates, enters: bool, seed: int) -> Candidates:
        """A boundary is smooth, and refined, or jagged, where a descent is the best use of the budget."""
        first = best
        is_held = problem.is_in_own_range(best.points) & problem.may_be_held
        region = problem.in_own_range(is_held) if problem.may_be_held else problem
        best, settled = refine(
            region, best.points, best, self._left(problem), self._n_refinements, enters=enters, gives_up=True
        )
        settled = settled & ~is_held
        rows = settled.nonzero().flatten()
        if len(rows) > 0:
            part, budget = problem.select(rows), math.ceil(_RESTART_SHARE * min(self.budget, TURN))
            part_best, is_linear = self._restarted(part, best.select(rows), budget, enters, seed)
            best = best.replaced(rows, part_best)
            # A point than which none nearby is nearer may be one of many such points.
            settled = settled.index_copy(0, rows, is_linear)
        rows = (~settled).nonzero().flatten()
        if len(rows) == 0:
            return best
        found = descend_in_turns(problem.select(rows), first.select(rows), best.select(rows), self.budget, seed)
        return best.replaced(rows, found)

    @property
    def _n_refinements(self) -> int:
        return min(_MAX_REFINEMENT, math.ceil(_REFINEMENT_SHARE * self.budget))

    def _nearest_of_a_pair(self, pairs: Problem, enters: bool, starts: Tensor | None, seed: int) -> Candidates:
        """As near, for the boundary of one class, for less: an example has many of them."""
        if starts is None and pairs.few_dimensions:
            best = approach(pairs, self.budget)
        else:
            best = dive(pairs, pairs.x if starts is None else starts, math.ceil(_DIVE_SHARE * self.budget))
        best = _or_scanned(pairs, best, seed)
        if pairs.few_dimensions:
            rows = torch.isfinite(best.distance).nonzero().flatten()
            best = best.replaced(rows, settle(pairs.select(rows), best.select(rows), self.budget, enters))
            if starts is None:
                best, _ = self._restarted(pairs, best, self.budget, enters, seed)
        return best

    def _restarted(
        self, problem: Problem, best: Candidates, budget: int, enters: bool, seed: int
    ) -> tuple[Candidates, Tensor]:
        n_forwards = _FORWARDS * max(budget, _LEAST_FORWARDS) - _FORWARDS_KEPT
        return restart(problem, best, budget, n_forwards, seed, enters)

    def _left(self, problem: Problem) -> Tensor:
        """Gradient evaluations that remain."""
        return self.budget - problem.oracle.gradients_spent


def _on_each_side(problem: Problem, search: Callable[[Problem, bool, Tensor], Candidates]) -> Candidates:
    """Search apart for examples inside the region of their target, which leave it, and for those that enter it."""
    enters = problem.oracle.sign < 0
    n_entering = int(enters.sum())
    if n_entering in (0, len(problem)):
        return search(problem, n_entering > 0, problem.oracle.all_rows)
    best = Candidates.none(problem)
    for side in (False, True):
        rows = (enters == side).nonzero().flatten()
        best = best.replaced(rows, search(problem.select(rows), side, rows))
    return best


def _or_scanned(problem: Problem, best: Candidates, seed: int) -> Candidates:
    """What random lines find, for examples where slopes led nowhere."""
    rows = torch.isinf(best.distance).nonzero().flatten()
    return best.replaced(rows, scan(problem.select(rows), seed)) if len(rows) > 0 else best
