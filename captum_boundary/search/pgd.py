"""The closest boundary by projected gradient descent in balls of growing radii."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.bounds import Bounds
from captum_boundary._core.checks import check_count, plain_number
from captum_boundary._core.margin import rival_scores
from captum_boundary._core.norms import Norm
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search.boundary_search import BoundarySearch
from captum_boundary.search.search_problem import SearchProblem

__all__ = ["PGDBoundary"]


class PGDBoundary(BoundarySearch):
    r"""Boundary points by projected gradient descent, the search of the boundary attribution paper.

    The cross-entropy of the target class is raised (lowered, where the input lies outside the region of its target) by
    normalized gradient steps, projected onto a ball around the input and onto the bounds. Balls of growing radii are
    tried; the first that holds a point of another class ends the search of that example, and the last such point in
    it is moved back along the straight line to the input until it lies on the boundary.

    :class:`NearestBoundary` mostly finds closer points for fewer gradients. This search is here to reproduce the paper
    and as a second opinion in :class:`ClosestBoundary`.

    More details regarding the pipeline can be found in the original paper: https://arxiv.org/abs/2103.11257. Descent
    within a ball is that of https://arxiv.org/abs/1706.06083.

    Args:

        forward_func (Callable): The model or any function that returns class scores ``(N, C)``, or ``(N,)`` or
            ``(N, 1)`` for a binary model.
        epsilons (Sequence[float], optional): Radii of the balls, increasing, in the norm of the search and the units of
            the inputs. Default: (36/255, 64/255, 0.3, 0.5, 0.7, 0.9, 1.1), for images in [0, 1]
        attack_steps (int, optional): Steps within each ball, each of one gradient. Default: 40
        attack_step_size (float, optional): Length of a step, in the same units as ``epsilons`` and not relative to
            them. Default: None, twice the radius divided by ``attack_steps``
        random_start (bool, optional): Start each ball at a random point, which lies in the same direction from every
            example. Default: True
        bounds (tuple, optional): Limits that no point leaves, as in :class:`BoundarySearch`. Default: None
        norm (float or Norm, optional): Norm of the balls, the steps and the distance, as in :class:`BoundarySearch`. A
            step follows the gradient for 2, its sign for ``math.inf``, and the one coordinate with the steepest slope
            among those that the bounds leave free for 1. Default: 2
        max_distance (float, optional): Boundary points further away count as not found. Default: None
        strict (bool, optional): Raise an error where some example has no boundary point. Default: False
        generator (torch.Generator, optional): Source of the random start. Default: None, a fixed seed: the same one on
            every call.
        show_progress (bool, optional): Show a progress bar. Default: False
        internal_batch_size (int, optional): Examples that pass through the model at once. Default: None, all of them.

    Raises:

        BoundaryValueError: For radii, steps, bounds and numbers that make no sense.
        BoundaryTypeError: For arguments of the wrong type.

    Examples::

        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> search = PGDBoundary(model, epsilons=(0.5, 1.0), random_start=False)
        >>> boundary = search.find(torch.tensor([[1.0, 0.0]]))
        >>> boundary.found, boundary.adversarial
        (tensor([True]), tensor([1]))
        >>> bool((boundary.distance - 0.5**0.5).abs() < 1e-3)
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        epsilons: Sequence[float] = (36 / 255, 64 / 255, 0.3, 0.5, 0.7, 0.9, 1.1),
        attack_steps: int = 40,
        attack_step_size: float | None = None,
        random_start: bool = True,
        bounds: Bounds = None,
        norm: float | Norm = 2,
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
        check_count("attack_steps", attack_steps)
        if attack_step_size is not None and (
            not isinstance(attack_step_size, numbers.Real) or not 0 < attack_step_size < math.inf
        ):
            raise BoundaryValueError(
                f"attack_step_size must be positive and finite, or None, but it is {attack_step_size!r}."
            )
        self.epsilons = increasing_radii(epsilons)
        self.attack_steps = int(attack_steps)
        self.attack_step_size = plain_number(attack_step_size)
        self.random_start = random_start

    _description = "PGD boundary"

    def propose(self, problem: SearchProblem) -> Tensor:
        r"""The last iterates beyond the boundary, in the smallest balls that hold any."""
        ends, rows = problem.x, torch.arange(len(problem), device=problem.x.device)
        part, start = problem, self._start(problem)
        for ball, radius in enumerate(self.epsilons):
            here, crossed = self._descend(part, radius, start, ball)
            ends = ends.index_copy(0, rows, here)
            active = (~crossed).nonzero().flatten()
            if len(active) == 0:
                break
            part, rows = part.select(active), rows[active]
        return ends

    def _start(self, problem: SearchProblem) -> Tensor:
        """A point ``(1, D)`` of the unit ball: one for all examples, so that none depends on its place in the batch."""
        size = (1, problem.x.shape[1])
        if not self.random_start:
            return problem.x.new_zeros(size)
        return problem.norm.random_in_ball(size, problem.generator, torch.float64).to(problem.x)

    def _descend(self, problem: SearchProblem, radius: float, start: Tensor, ball: int) -> tuple[Tensor, Tensor]:
        """The last iterates beyond the boundary within one ball, else the inputs, and for which rows there is one."""
        x = problem.x
        radii = x.new_full((len(x),), radius)
        step_size = 2 * radius / self.attack_steps if self.attack_step_size is None else self.attack_step_size
        ends, crossed = x, torch.zeros_like(radii, dtype=torch.bool)
        points = problem.clamp(x + radius * start)
        for step in range(self.attack_steps):
            beyond, slope = _log_odds(problem, points)
            ends, crossed = torch.where(beyond[:, None], points, ends), crossed | beyond
            points = points - step_size * _steepest(slope, points, problem)
            points = problem.clamp(x + problem.norm.project_onto_ball(points - x, radii))
            problem.progress((ball * self.attack_steps + step + 1) / (len(self.epsilons) * self.attack_steps))
        beyond = problem.signed_margin(points) < 0
        return torch.where(beyond[:, None], points, ends), crossed | beyond


def _log_odds(problem: SearchProblem, points: Tensor) -> tuple[Tensor, Tensor]:
    """Whether points lie beyond the boundary, ``(n,)``, and slopes ``(n, D)`` of the log-odds of the target.

    The gradient of the cross-entropy, -log p_t, is that of the log-odds of t times -(1 - p_t). Steps are normalized, so
    both make the same ones, but the log-odds do not vanish where the model is confident.
    """
    points = points.detach().requires_grad_()
    scores = problem.scores(points)
    own = scores.gather(1, problem.target[:, None]).squeeze(1)
    odds = own - rival_scores(scores, problem.target).logsumexp(dim=1)
    (slope,) = torch.autograd.grad(torch.where(problem.targeted, -odds, odds).sum(), points)
    return problem.margin_of(scores.detach()) < 0, slope


def increasing_radii(epsilons: Sequence[float]) -> tuple[float, ...]:
    """Return radii as a tuple, or say what is wrong with them."""
    if isinstance(epsilons, str) or not isinstance(epsilons, Sequence):
        raise BoundaryTypeError(f"epsilons must be a sequence of numbers, but it is {type(epsilons).__name__}.")
    if not all(isinstance(radius, numbers.Real) for radius in epsilons):
        raise BoundaryTypeError(f"epsilons must be a sequence of numbers, but it is {epsilons!r}.")
    radii = tuple(float(radius) for radius in epsilons)
    positive = all(0 < radius < math.inf for radius in radii)
    if not radii or not positive or any(a >= b for a, b in pairwise(radii)):
        raise BoundaryValueError(
            f"epsilons must hold positive, finite radii, each larger than the one before, but it is {epsilons!r}."
        )
    return radii


def _steepest(slope: Tensor, points: Tensor, problem: SearchProblem) -> Tensor:
    """Vectors ``(n, D)`` of unit norm (zero for a zero slope) along which a function with this slope rises fastest."""
    if problem.norm.is_sparse:
        # A coordinate that already lies at its bound would use up the whole step and move nothing.
        slope = slope * torch.where(slope > 0, points > problem.lower, points < problem.upper)
    return problem.norm.steepest(slope)
