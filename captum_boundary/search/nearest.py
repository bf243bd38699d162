"""The closest decision boundary, for a few dozen gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_boundary._base.bounds import Bounds
from captum_boundary._base.checks import check_count
from captum_boundary._base.geometry import Box
from captum_boundary._base.oracle import MarginOracle
from captum_boundary.search._approach import approach, scan
from captum_boundary.search._descent import descend, dive
from captum_boundary.search._incumbents import Incumbents
from captum_boundary.search._refinement import explore, refine, settle
from captum_boundary.search.boundary_search import BoundarySearch

__all__ = ["NearestBoundary"]

# Gradients for the exact local search before the descent, and again after it, as a share of the budget and at most.
_REFINEMENT_SHARE = 0.1
_MAX_REFINEMENT = 4
# In few dimensions the descent leaves restarts a share of the budget; in many it is the better use of all of it.
_DESCENT_SHARE = 0.5
# Gradients of the one descent that each of an example's many boundaries gets, as a share of the budget.
_DIVE_SHARE = 0.4


class NearestBoundary(BoundarySearch):
    r"""The nearest decision boundary, for a few dozen gradients: the search to use unless there is a reason not to.

    Newton steps on a smoothed margin reach the boundary (after DeepFool, https://arxiv.org/abs/1511.04599). Where the
    boundary is made of few smooth pieces, its nearest point is then found exactly, by projecting the input onto the
    last few linearisations together, and the rest of the budget goes to restarts from the other classes and from random
    directions. Where it is jagged, as that of a deep network is, the search descends along it with averaged normals
    (after DDN, https://arxiv.org/abs/1811.09600). In the end every point is moved onto the boundary itself.

    Examples that pass the first-order test leave the batch, and so do those whose restarts gain nothing. Distances are
    upper bounds: no search of this kind can prove that nothing is nearer.

    Args:

        forward_func (Callable): The model or any function that returns class scores ``(N, C)``, or ``(N,)`` or
            ``(N, 1)`` for a binary model. Logits are best. Probabilities work as long as their gradients do not vanish.
        bounds (tuple, optional): Limits that no point leaves: a pair ``(lower, upper)`` of numbers or of tensors that
            broadcast to an input, or a tuple of such pairs (or None), one for each input. Default: None, no limits.
        norm (float, optional): Norm of the distance, 2, ``math.inf`` or 1, over all inputs of a tuple together.
            Default: 2
        budget (int, optional): Gradient evaluations an example at most. 10 gives a quick idea, 200 is thorough. Forward
            passes come on top, in deep networks about as many as gradients. Default: 40
        max_distance (float, optional): Boundary points further away count as not found. Default: None
        strict (bool, optional): Raise a :class:`BoundaryNotFoundError` where some example has no boundary point, in
            place of a :class:`BoundaryNotFoundWarning`. Default: False
        generator (torch.Generator, optional): Source of the restarts' directions. Default: None, the same ones on every
            call.
        show_progress (bool, optional): Show a progress bar, in gradients of the budget. Default: False
        internal_batch_size (int, optional): Examples that pass through the model at once, to bound memory. The search
            itself keeps up to about ten vectors of the size of an input for each example. Default: None, all of them.

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
        self.budget = budget

    def _cross(self, oracle: MarginOracle, box: Box) -> Tensor:
        search = Incumbents(oracle, box, self.norm, self.budget, self._seed())
        with self._progress(oracle, self.budget):
            self._improve(search)
        return search.points

    def _cross_pairs(self, pairs: MarginOracle, box: Box, starts: Tensor | None) -> Tensor:
        search = Incumbents(pairs, box, self.norm, self.budget, self._seed())
        n_steps = math.ceil(_DIVE_SHARE * self.budget)
        with self._progress(pairs, self.budget if search.few_dimensions else n_steps):
            if starts is None and search.few_dimensions:
                approach(search, pairs.all_rows)
            else:
                starts_of_all = search.x if starts is None else starts
                dive(search, pairs.all_rows, starts_of_all, torch.full_like(pairs.all_rows, n_steps))
            scan(search, pairs.all_rows[torch.isinf(search.distance)])
            if search.few_dimensions:
                settle(search, pairs.all_rows[torch.isfinite(search.distance)])
                if starts is None:
                    explore(search, pairs.all_rows)
        return search.points

    def _progress(self, oracle: MarginOracle, n_gradients: int) -> tqdm[Any]:
        bar = tqdm(total=n_gradients, desc="Nearest boundary", unit="gradient", disable=not self.show_progress)
        if self.show_progress:
            oracle.on_gradient = lambda: bar.update(int(oracle.n_gradient.max()) - bar.n)
        return bar

    def _improve(self, search: Incumbents) -> None:
        all_rows = search.oracle.all_rows
        approach(search, all_rows)
        scan(search, all_rows[torch.isinf(search.distance)])

        rows = all_rows[torch.isfinite(search.distance)]
        n_refinements = min(_MAX_REFINEMENT, math.ceil(_REFINEMENT_SHARE * self.budget))
        settled = refine(search, rows, search.points[rows], n_refinements)

        jagged = rows[~settled]
        left = search.left(jagged)
        n_steps = (_DESCENT_SHARE * left).long() if search.few_dimensions else (left - n_refinements).clamp_min(0)
        descend(search, jagged, n_steps)
        settled[~settled] = refine(search, jagged, search.points[jagged], n_refinements)

        restarts_pay = torch.ones_like(all_rows, dtype=torch.bool)
        restarts_pay[rows[~settled]] = search.few_dimensions
        explore(search, all_rows[restarts_pay])
