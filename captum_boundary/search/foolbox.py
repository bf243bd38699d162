"""Any attack of Foolbox as a search for the boundary."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.norms import Norm
from captum_boundary.errors import BoundaryError, BoundaryTypeError, BoundaryValueError
from captum_boundary.search.boundary_search import BoundarySearch
from captum_boundary.search.pgd import increasing_radii
from captum_boundary.search.search_problem import SearchProblem

__all__ = ["FoolboxBoundary"]


class FoolboxBoundary(BoundarySearch):
    r"""Boundary points from any attack of Foolbox 3.

    The attack only has to get across: its points are moved back along the straight lines to the inputs until they lie
    on the boundary, and their labels are checked again. Examples inside the region of their target are attacked with
    the criterion ``Misclassification``, examples outside it with ``TargetedMisclassification``, which not every attack
    supports. Inputs of a tuple are attacked as one flat vector.

    Attacks that draw random numbers, or stop all examples at once, treat an example differently in another batch. With
    ``internal_batch_size=1`` every example is attacked alone and nothing depends on the batch.

    Needs the package foolbox: ``pip install captum-boundary[foolbox]``. More details regarding Foolbox can be found in
    its paper: https://doi.org/10.21105/joss.02607

    Args:

        forward_func (Callable): The model or any function that returns class scores ``(N, C)``, or ``(N,)`` or
            ``(N, 1)`` for a binary model. Most attacks expect logits.
        attack (foolbox.attacks.Attack): The attack, for example ``foolbox.attacks.DDNAttack()``. Choose one that
            measures distance in ``norm``.
        bounds (tuple, optional): Limits that no point leaves, two finite numbers. Foolbox knows no others.
            Default: (0, 1)
        epsilons (Sequence[float], optional): Increasing radii, for attacks that need a fixed one: each example keeps
            the smallest that succeeds. Default: None, for attacks that minimize the distance themselves.
        norm (float or Norm, optional): Norm of the distance, as in :class:`BoundarySearch`. Default: 2
        max_distance (float, optional): Boundary points further away count as not found. Default: None
        strict (bool, optional): Raise an error where some example has no boundary point. Default: False
        generator (torch.Generator, optional): Source of a seed for attacks that draw random numbers. The global random
            state is left as it was. Default: None, a fixed seed: the same one on every call.
        show_progress (bool, optional): Show a progress bar of the examples that are done. Default: False
        internal_batch_size (int, optional): Examples that are attacked at once. Default: None, all of them.

    Raises:

        ImportError: Where foolbox is not installed.
        BoundaryValueError: For bounds, radii and numbers that make no sense.
        BoundaryTypeError: For arguments of the wrong type.

    Examples::

        >>> from foolbox.attacks import DDNAttack
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> search = FoolboxBoundary(model, DDNAttack(steps=50))
        >>> boundary = search.find(torch.tensor([[0.8, 0.2]]))
        >>> boundary.found, boundary.adversarial
        (tensor([True]), tensor([1]))
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        attack: Any,
        *,
        bounds: tuple[float, float] = (0, 1),
        epsilons: Sequence[float] | None = None,
        norm: float | Norm = 2,
        max_distance: float | None = None,
        strict: bool = False,
        generator: torch.Generator | None = None,
        show_progress: bool = False,
        internal_batch_size: int | None = None,
    ) -> None:
        limits = _two_numbers(bounds)
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
        _check_attack(attack, epsilons)
        self.limits = limits
        self.attack = attack
        self.epsilons = None if epsilons is None else increasing_radii(epsilons)

    _description = "Foolbox"

    def propose(self, problem: SearchProblem) -> Tensor:
        r"""The attack's points; the inputs of examples that it does not even begin with."""
        points = problem.x
        for leave in (True, False):
            rows = (problem.targeted != leave).nonzero().flatten()
            if len(rows) == 0:
                continue
            with problem.seeded():
                points = points.index_copy(0, rows, self._attack(problem.select(rows), leave))
        return torch.where(torch.isfinite(points), points, problem.x)

    def _attack(self, problem: SearchProblem, leave: bool) -> Tensor:
        """The attack's points ``(n, D)``, from the smallest radius that succeeds where radii are given."""
        points = problem.x.clamp(*self.limits)
        todo = torch.arange(len(points), device=points.device)
        for epsilon in self.epsilons or (None,):
            reached, success = self._reached(problem.select(todo), points[todo], leave, epsilon)
            points[todo[success]] = reached[success]
            todo = todo[~success]
            if len(todo) == 0:
                break
        return points

    def _reached(
        self, problem: SearchProblem, start: Tensor, leave: bool, epsilon: float | None
    ) -> tuple[Tensor, Tensor]:
        """Points ``(n, D)`` that the attack reaches from ``start``, and for which examples it succeeds."""
        from foolbox.criteria import Misclassification, TargetedMisclassification
        from foolbox.models.pytorch import PyTorchModel

        criterion = Misclassification if leave else TargetedMisclassification
        model = PyTorchModel(_ClassScores(problem).eval(), bounds=self.limits, device=start.device)
        # A copy, for some attacks change what they are given.
        shaped = _shaped(problem, start.clone())
        try:
            _, clipped, success = self.attack(model, shaped, criterion(problem.target), epsilons=epsilon)
        except ValueError as error:
            if isinstance(error, BoundaryError):
                raise
            if "init_attack failed" in str(error):
                return self._reached_apart(problem, start, leave, epsilon)
            if "unsupported criterion" not in str(error):
                raise
            raise BoundaryValueError(
                f"{type(self.attack).__name__} cannot be used for examples {'in' if leave else 'out'}side the "
                f"region of their target, rows {problem.example_index.tolist()}: it does not support "
                f"{criterion.__name__}. "
                f"{'Choose another attack.' if leave else 'Choose an attack that does, or leave target=None.'}"
            ) from error
        return clipped.detach().flatten(1), success

    def _reached_apart(
        self, problem: SearchProblem, start: Tensor, leave: bool, epsilon: float | None
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`_reached`, where the attack gave up on the whole batch since it cannot begin with some example.

        Which one, it does not tell: halves are attacked apart, until it stands alone.
        """
        if len(problem) == 1:
            return start, torch.zeros(1, dtype=torch.bool, device=start.device)
        rows = torch.arange(len(problem), device=start.device)
        halves = [
            self._reached(problem.select(half), start[half], leave, epsilon)
            for half in torch.split(rows, (len(rows) + 1) // 2)
        ]
        points, success = zip(*halves, strict=True)
        return torch.cat(points), torch.cat(success)


def _shaped(problem: SearchProblem, points: Tensor) -> Tensor:
    """Flat points in the shape of the inputs where there is one, for attacks that look for channels or pixels."""
    inputs = problem.inputs if isinstance(problem.inputs, tuple) else (problem.inputs,)
    return points.reshape(inputs[0].shape) if len(inputs) == 1 and inputs[0].ndim > 1 else points


class _ClassScores(torch.nn.Module):
    """The model as Foolbox expects it: one tensor of points of the examples in, class scores ``(n, C)`` out."""

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, points: Tensor) -> Tensor:
        if len(points) != len(self.problem):
            raise BoundaryValueError(
                f"The attack asked for the scores of {len(points)} points for {len(self.problem)} examples, "
                "which cannot be told apart. Choose an attack that evaluates one point for each example."
            )
        points = points.flatten(1)
        # Some attacks divide by the length of a vanishing gradient. The input stands in for what comes of it.
        return self.problem.scores(torch.where(torch.isfinite(points), points, self.problem.x))


def _check_attack(attack: Any, epsilons: object) -> None:
    try:
        from foolbox.attacks import base
    except ImportError as error:
        raise ImportError(
            "FoolboxBoundary needs the package foolbox: pip install captum-boundary[foolbox]. "
            "NearestBoundary needs nothing more and mostly finds closer points."
        ) from error
    if not isinstance(attack, base.Attack):
        raise BoundaryTypeError(
            f"attack must be an attack of Foolbox 3, for example foolbox.attacks.DDNAttack(), but it is {attack!r}."
        )
    innermost = attack
    while isinstance(innermost, base.Repeated):
        innermost = innermost.attack
    if epsilons is None and isinstance(innermost, base.FixedEpsilonAttack):
        raise BoundaryValueError(
            f"{type(innermost).__name__} needs a fixed radius: give epsilons, for example (0.1, 0.3, 1.0), of which "
            "each example keeps the smallest that succeeds."
        )


def _two_numbers(bounds: Any) -> tuple[float, float]:
    numeric = isinstance(bounds, (tuple, list)) and all(isinstance(side, numbers.Real) for side in bounds)
    if not numeric or len(bounds) != 2 or not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise BoundaryValueError(
            f"Foolbox needs bounds of two finite numbers, lower < upper, but they are {bounds!r}. For bounds that "
            "differ between channels, put the normalization inside the model and give inputs in [0, 1]."
        )
    return float(bounds[0]), float(bounds[1])
