"""The constants of the search for the nearest boundary that trade one thing for another."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from captum_boundary._core.checks import plain_number
from captum_boundary.errors import BoundaryValueError

__all__ = ["NearestBoundarySettings"]


@dataclass(frozen=True)
class NearestBoundarySettings:
    """The constants of :class:`NearestBoundary`. The defaults suit all networks that it was measured on.

    The page "How the search works" explains the phases that they belong to, and has the networks of the ablation: what
    is said here of a search without a part is by how much farther its points are at budget 40, unless another budget is
    named. Shares and rates lie between 0 and 1; counts are of gradients unless another unit is named. Tolerances that
    follow from the precision of numbers are constants of the modules that use them.

    Attributes:

        smoothing (float): Temperature of the log-sum-exp over rivals, as a share of the input's margin. Without: up to
            1.7 %, within chance.
        newton_steps (int): Newton steps, at most.
        newton_overshoot (float): Length of a step, relative to that to the linearized boundary; DeepFool's value. With
            1: 0.2 % at budget 10 (ResNet-2B).
        slow_decrease (float): A step that leaves more of the margin than this is slow, and two end the phase. Without:
            4 to 7 % at budget 10 (tiny networks).
        random_lines (int): Random lines, a forward pass each, where slopes lead nowhere; a quarter as many in few
            dimensions, where restarts follow.
        data_range_share (float): Share of the further Newton steps, without bounds, that stay inside the data range.
            Without a data range: 31 % in l1, 106 % at budget 10 (MNIST).
        refinement_share (float): Gradients of a refinement, as a share of the budget or of one descent's. Without: as
            near, for 2 to 11 gradients more in few dimensions.
        planes (int): Linearizations kept for each example. With one: 1 to 4 % (tiny networks).
        linearity (float): Error of a prediction, as a share of the input's margin, up to which it is trusted: a
            refinement goes on, and classes compete after a first Newton step that misses by no more. Without: 2 %
            (MNIST).
        screened_share (float): Share of the budget for linearized distances of the classes with the highest scores.
        race_rows (int): Rows of an example, at most, and one for every two classes that are screened; in l1 there is no
            competition with fewer. Without a competition: 1.7 % (ResNet-2B), but 2 to 3 % nearer on MNIST.
        restart_period (int): Gradients of one descent. Without restarts: 12 % at budget 200 (MNIST).
        first_rate (float): Rate by which the radius changes; ten times less in the end.
        max_rate (float): Largest rate, where linearizations say that the boundary is as far away. Without: 22 to 45 %
            in l2 (MNIST).
        sampling_radius (float): How far from the points slopes are sampled, relative to their distance; half as far in
            linf. Without: 24 to 26 % (MNIST), 0.4 to 1.2 % (ResNet-2B).
        descent_share (float): Share of the budget that ends with the first descent: in few dimensions, where restarts
            have the rest, and of classes that compete, in equal rounds. Without a descent in few dimensions: 1.4 % in
            linf (table).
        pair_share (float): Share of the budget for the descent of each of an example's many boundaries.
        slope_memory (float): Share of earlier slopes in the average, in l1. Without: 16 % (MNIST).
        aim_gain (float): Share of a shortfall that the next steps aim further by, in l1. Without: 47 % (MNIST).
        restart_gradients (int): Gradients of one restart, at most.
        random_directions (int): Random directions, a forward pass each, before a restart. With one: 2 % (tiny
            networks).

    Raises:

        BoundaryValueError: For a constant that is negative or not finite.
    """

    # Newton phase (DeepFool, https://arxiv.org/abs/1511.04599).
    smoothing: float = 1 / 12
    newton_steps: int = 10
    newton_overshoot: float = 1.02
    slow_decrease: float = 0.8
    random_lines: int = 64
    data_range_share: float = 0.75

    # Active-set refinement (cutting planes; Goldfarb and Idnani, https://doi.org/10.1007/BF02591962).
    refinement_share: float = 0.1
    planes: int = 8
    linearity: float = 0.25

    # Several classes as rows of one batch; successive halving (https://arxiv.org/abs/1502.07943).
    screened_share: float = 0.15
    race_rows: int = 6

    # Descent along the boundary (DDN, https://arxiv.org/abs/1811.09600).
    restart_period: int = 40
    first_rate: float = 0.05
    max_rate: float = 0.3
    sampling_radius: float = 1 / 3
    descent_share: float = 0.5
    pair_share: float = 0.4

    # l1: sequential linear programs with a shrinking trust region.
    slope_memory: float = 0.6
    aim_gain: float = 0.2

    # Restarts in few dimensions.
    restart_gradients: int = 16
    random_directions: int = 8

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise BoundaryValueError(f"{field.name} must be finite and not negative, but it is {value!r}.")
            object.__setattr__(self, field.name, plain_number(value))
