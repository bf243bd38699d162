r"""Norms of flat vectors ``(n, D)``, row by row: one object for each, which knows all that depends on the norm.

Projections respect a :class:`Box` exactly. Nothing here waits for an accelerator: loops have fixed lengths, and rows
that are done are masked.
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.geometry import Box, power_of_two, ratio, row_dot
from captum_boundary.errors import BoundaryValueError

__all__ = ["L1", "L2", "LINF", "Norm", "norm_of", "project_along"]


class Norm(ABC):
    r"""A norm of displacements. A subclass can be given as ``norm=`` wherever a number can.

    All methods take and return flat vectors ``(n, D)`` in float32 or float64, one for each example, and treat rows
    alone.

    Attributes:

        name (str): As in "l2 distance".
        has_inner_product (bool): Whether the squared length is that of the l2 norm: projections onto several
            half-spaces are then solved together. Default: False
        is_sparse (bool): Whether shortest displacements change few coordinates, as far as each can go. Linearizations
            are not true that far: a search takes Newton steps in l2 and descends by linear programs with a trust
            region. Default: False
        ball_is_box (bool): Whether a ball limits every coordinate alone, by its radius. Default: False
        sampling_radius (float): How far from its points a search samples slopes, relative to l2. Default: 1.0
    """

    name: str
    has_inner_product: bool = False
    is_sparse: bool = False
    ball_is_box: bool = False
    sampling_radius: float = 1.0

    @property
    @abstractmethod
    def dual(self) -> Norm:
        """The norm of slopes: the distance of a hyperplane is the value there over the dual norm of its normal."""

    @abstractmethod
    def length(self, vectors: Tensor) -> Tensor:
        """Lengths ``(n,)`` of vectors whose squares neither overflow nor underflow; :meth:`safe_length` takes any."""

    @abstractmethod
    def steepest(self, slope: Tensor) -> Tensor:
        """Vectors ``(n, D)`` of length 1 along which a function rises fastest; zero for a zero slope."""

    @abstractmethod
    def project_onto_ball(self, vectors: Tensor, radius: Tensor) -> Tensor:
        """Nearest vectors ``(n, D)``, in the l2 norm, that are no longer than ``radius`` ``(n,)``."""

    @abstractmethod
    def project_onto_half_space(
        self, x: Tensor, normal: Tensor, required: Tensor, box: Box, n_steps: int = 32
    ) -> Tensor:
        r"""Nearest points ``(n, D)`` of ``{y in box : normal . (x - y) >= required}``, in this norm.

        Where the box does not reach the half-space, the result is the point of the box that comes closest to it. A zero
        normal leaves ``x`` where it is.

        Args:

            x (Tensor): Points in the box, ``(n, D)``.
            normal (Tensor): Normals of the half-spaces, ``(n, D)``.
            required (Tensor): What the inner product with the normal must lose, ``(n,)``, not negative.
            box (Box): Limits of the coordinates.
            n_steps (int): Newton steps within a box, where there are any. Each stops short of the half-space or ends on
                it; they are exact as soon as no further coordinate meets a limit, mostly after three.
        """

    def random_in_ball(self, shape: tuple[int, int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Random vectors of length at most 1: isotropic directions, lengths like those of uniform ones."""
        options: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": dtype}
        direction = torch.randn(shape, **options)
        radius = torch.rand(shape[0], **options) ** (1 / shape[1])  # volume grows as r^D: P(length <= r) = r^D
        return direction * (radius / self.length(direction))[:, None]

    def safe_length(self, vectors: Tensor) -> Tensor:
        """Lengths ``(n,)`` of vectors of any size."""
        return self.length(vectors)

    def turned(self, move: Tensor, length: Tensor, slope: Tensor, steepness: Tensor, share: Tensor) -> Tensor:
        """Displacements ``(n, D)`` after a step down their slopes, a ``share`` ``(n,)`` as long as they are, in l2.

        Their lengths and the dual norms of their slopes are given.
        """
        step = ratio(share * L2.length(move), L2.length(slope))
        return torch.addcmul(move, step[:, None], slope, value=-1)

    def with_length(self, move: Tensor, radius: Tensor) -> Tensor:
        """Displacements ``(n, D)`` brought to a length ``(n,)``."""
        growth = ratio(radius, self.length(move))[:, None]
        return self.project_onto_ball(move * growth.clamp_min(1.0), radius)

    def l2_length(self, vectors: Tensor, length: Tensor) -> Tensor:
        """Lengths ``(n,)`` in l2 of vectors whose ``length`` in this norm is known."""
        return L2.length(vectors)

    def for_inputs(self, inputs: tuple[Tensor, ...]) -> Norm:
        """The same for inputs that are flattened side by side, on their device."""
        return self

    def to(self, device: torch.device | str | int) -> Norm:
        """The same on another device."""
        return self

    def plain(self) -> tuple[Norm, Tensor | None]:
        """A norm, and factors ``(D,)`` of the coordinates in which this one is that norm, if there are any.

        A search may then work in these coordinates.
        """
        return self, None


class _L2(Norm):
    name = "l2"
    has_inner_product = True

    @property
    def dual(self) -> Norm:
        return self

    def length(self, vectors: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(vectors, dim=1)
        return lengths

    def safe_length(self, vectors: Tensor) -> Tensor:
        unit = power_of_two(vectors)  # the largest entries become about 1, whose squares are in range
        return self.length(vectors / unit) * unit.squeeze(1)

    def steepest(self, slope: Tensor) -> Tensor:
        slope = slope / power_of_two(slope)
        return slope / self.length(slope).clamp_min(torch.finfo(slope.dtype).tiny)[:, None]

    def project_onto_ball(self, vectors: Tensor, radius: Tensor) -> Tensor:
        tiny = torch.finfo(vectors.dtype).tiny
        return vectors * (radius / self.safe_length(vectors).clamp_min(tiny)).clamp_max(1.0)[:, None]

    def project_onto_half_space(
        self, x: Tensor, normal: Tensor, required: Tensor, box: Box, n_steps: int = 32
    ) -> Tensor:
        return project_along(x, normal, normal, required, box, n_steps)

    def turned(self, move: Tensor, length: Tensor, slope: Tensor, steepness: Tensor, share: Tensor) -> Tensor:
        return torch.addcmul(move, ratio(share * length, steepness)[:, None], slope, value=-1)

    def with_length(self, move: Tensor, radius: Tensor) -> Tensor:
        return move * ratio(radius, self.length(move))[:, None]

    def l2_length(self, vectors: Tensor, length: Tensor) -> Tensor:
        return length


class _LInf(Norm):
    name = "linf"
    ball_is_box = True
    sampling_radius = 0.5

    @property
    def dual(self) -> Norm:
        return L1

    def length(self, vectors: Tensor) -> Tensor:
        return vectors.abs().amax(dim=1)  # on CPUs a tenth of the time of torch.linalg.vector_norm

    def steepest(self, slope: Tensor) -> Tensor:
        return slope.sign()

    def project_onto_ball(self, vectors: Tensor, radius: Tensor) -> Tensor:
        return vectors.clamp(-radius[:, None], radius[:, None])

    def project_onto_half_space(
        self, x: Tensor, normal: Tensor, required: Tensor, box: Box, n_steps: int = 32
    ) -> Tensor:
        # A move of length t achieves most where every coordinate goes t against the normal: t |normal|_1.
        return project_along(x, normal, normal.sign(), required, box, n_steps, torch.abs)

    def random_in_ball(self, shape: tuple[int, int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return 2 * torch.rand(shape, generator=generator, device=generator.device, dtype=dtype) - 1

    def turned(self, move: Tensor, length: Tensor, slope: Tensor, steepness: Tensor, share: Tensor) -> Tensor:
        # Every coordinate counts alike.
        return super().turned(move, length, slope.sign(), steepness, share)


class _L1(Norm):
    name = "l1"
    is_sparse = True

    @property
    def dual(self) -> Norm:
        return LINF

    def length(self, vectors: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(vectors, ord=1, dim=1)
        return lengths

    def steepest(self, slope: Tensor) -> Tensor:
        index = slope.abs().argmax(dim=1, keepdim=True)
        return torch.zeros_like(slope).scatter_(1, index, slope.gather(1, index).sign())

    def project_onto_ball(self, vectors: Tensor, radius: Tensor) -> Tensor:
        """Soft thresholding, with the largest of the thresholds that would be right if the k largest values stayed."""
        # If the k largest stay: sum_{i <= k} (|v_i| - threshold) = radius (Duchi et al., 10.1145/1390156.1390191).
        ordered = vectors.abs().sort(dim=1, descending=True).values
        n_kept = torch.arange(1, vectors.shape[1] + 1, device=vectors.device, dtype=vectors.dtype)
        thresholds = (ordered.cumsum(dim=1) - radius[:, None]) / n_kept
        threshold = thresholds.amax(dim=1, keepdim=True).clamp_min(0.0)
        return vectors - vectors.clamp(-threshold, threshold)

    def project_onto_half_space(
        self, x: Tensor, normal: Tensor, required: Tensor, box: Box, n_steps: int = 32
    ) -> Tensor:
        """A fractional knapsack: use up the coordinates with the steepest slope one after the other."""
        required = required[:, None]
        limit = torch.where(normal > 0, box.lower, box.upper)
        gain = torch.fmin(normal * (x - limit), required)  # zero times infinity, where nothing is gained, is NaN
        order, gain = _steepest_first(normal, gain, required)
        missing = required - (gain.cumsum(dim=1) - gain)  # when a coordinate's turn comes
        used = torch.minimum(gain, missing).clamp_min(0.0)
        others = x if order.shape == x.shape else torch.zeros_like(x)  # there are no others where all have an order
        return box.clamp(x - ratio(others.scatter(1, order, used), normal))

    def turned(self, move: Tensor, length: Tensor, slope: Tensor, steepness: Tensor, share: Tensor) -> Tensor:
        # The steepest coordinate says how far a step may go.
        return torch.addcmul(move, ratio(share * LINF.length(move), steepness)[:, None], slope, value=-1)


def _steepest_first(normal: Tensor, gain: Tensor, required: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in the order of their slopes, equal ones as they come, and their gains: a few, where these suffice.

    Only a CPU is asked whether they do: any other device would have to be waited for.
    """
    steepness = normal.abs()
    if normal.device.type == "cpu" and normal.shape[1] >= _MANY:
        few, candidates = steepness.topk(normal.shape[1] // 64, dim=1)
        # Of slopes equal to the least of the few there may be more: none of these is to be needed.
        is_steeper = few > few[:, -1:]
        if bool(((gain.gather(1, candidates) * is_steeper).sum(dim=1, keepdim=True) >= required).all()):
            candidates = candidates.sort(dim=1).values
            few_order = steepness.gather(1, candidates).argsort(dim=1, descending=True, stable=True)
            order = candidates.gather(1, few_order)
            return order, gain.gather(1, order)
    order = steepness.argsort(dim=1, descending=True, stable=True)
    return order, gain.gather(1, order)


def project_along(
    x: Tensor,
    normal: Tensor,
    direction: Tensor,
    required: Tensor,
    box: Box,
    n_steps: int,
    steps: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The projection onto half-spaces where the nearest point is ``x``, moved against one ``direction`` and clipped.

    That leaves one unknown, the length t of the move. The function ``steps`` says of displacements ``(n, D)`` along the
    direction how long they are in its units; by default they are divided by it.
    """
    gain = normal * direction  # normal . (x - y) for each unit of t, coordinate by coordinate
    t = ratio(required, gain.sum(dim=1))[:, None]
    if not box.is_limited:
        return torch.addcmul(x, t, direction, value=-1)
    # What t achieves, normal . (x - y(t)), is concave and piecewise linear: Newton's method is monotone and exact.
    limit = torch.where(direction > 0, box.lower, box.upper)
    # The t where a coordinate meets its limit; of directions of zero, which gain nothing, any number.
    reach = x - limit
    reach = (reach / direction).nan_to_num(nan=0.0, posinf=torch.inf) if steps is None else steps(reach)
    for _ in range(n_steps):
        missing = required - row_dot(torch.minimum(reach, t), gain)
        t = t + ratio(missing, row_dot(gain, (reach > t).to(gain)))[:, None]
    return box.clamp(torch.addcmul(x, t, direction, value=-1))


# From so many coordinates on, to sort all of them takes much longer than to find a sixty-fourth of them.
_MANY = 4096
L1, L2, LINF = _L1(), _L2(), _LInf()
_NORMS: dict[Any, Norm] = {1: L1, 2: L2, math.inf: LINF}


def norm_of(norm: object) -> Norm:
    """The norm that was given as a number or as an object."""
    if isinstance(norm, Norm):
        return norm
    is_number = isinstance(norm, numbers.Real) and not isinstance(norm, bool)
    if not is_number or norm not in _NORMS:
        raise BoundaryValueError(f"norm must be 2, math.inf, 1 or a Norm such as WeightedL2, but it is {norm!r}.")
    return _NORMS[norm]
