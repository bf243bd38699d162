"""The constants of the search for the nearest boundary that trade one thing for another."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from captum_boundary.errors import BoundaryValueError

__all__ = ["NearestBoundarySettings"]


@dataclass(frozen=True)
class NearestBoundarySettings:
    """The constants of :class:`NearestBoundary`. The defaults suit all networks that it was measured on.

    The page "How the search works" explains the phases that they belong to. Shares and rates lie between 0 and 1;
    counts are of gradients unless another unit is named. Tolerances that follow from the precision of numbers are
    constants of the modules that use them.

    Raises:

        BoundaryValueError: For a constant that is negative or not finite.
    """

    # Newton phase (DeepFool, https://arxiv.org/abs/1511.04599).
    smoothing: float = 1 / 12  # temperature of the log-sum-exp over rivals, as a share of the input's margin
    newton_steps: int = 10  # at most
    newton_overshoot: float = 1.02  # of a step over the linearized boundary; DeepFool's value
    slow_decrease: float = 0.8  # a step that leaves more of the margin than this is slow, and two end the phase
    random_lines: int = 64  # forwards where slopes lead nowhere; half as many in few dimensions, where restarts follow
    data_range_share: float = 0.75  # of the further Newton steps without bounds: those inside the data range

    # Active-set refinement (cutting planes; Goldfarb and Idnani, https://doi.org/10.1007/BF02591962).
    refinement_steps: int = 4  # before and after the descent, at most
    refinement_share: float = 0.1  # of the budget, at most
    planes: int = 8  # linearizations kept for each example
    linearity: float = 0.25  # error of a prediction, as a share of the input's margin, up to which it is trusted

    # Several classes as rows of one batch; successive halving (https://arxiv.org/abs/1502.07943).
    race_linearity: float = 0.3  # as `linearity`, of the first Newton step: else no class is committed to
    screened_share: float = 0.15  # gradients for linearized distances of the classes with the highest scores
    race_rows: int = 6  # of an example at a budget of 200 or more; half as many below
    race_share: float = 0.55  # of the budget up to the last halving; all rounds have as much

    # Descent along the boundary (DDN, https://arxiv.org/abs/1811.09600).
    restart_period: int = 40  # gradients of one descent
    first_rate: float = 0.05  # by which the radius changes; ten times less in the end
    rate_multiplier: float = 0.25  # doubled with every step on the same side; the rate is multiplied if that is above 1
    max_rate: float = 0.3
    continued_step_scale: float = 0.5  # of the steps from the incumbent, relative to those from the first points
    sampling_radius: float = 1 / 3  # of normals in l2, of the distance and of the root of the steps; linf 1/2, l1 3/4
    descent_share: float = 0.5  # of the budget in few dimensions, where restarts have the rest
    pair_share: float = 0.4  # of the budget for the descent of each of an example's many boundaries

    # l1: sequential linear programs with a shrinking trust region.
    trust_radius: float = 1.0  # at first, of the largest change of a coordinate at first contact; a tenth in the end
    slope_memory: float = 0.6  # share of earlier slopes in the average
    aim_gain: float = 0.2  # share of a shortfall that the next steps aim further by

    # Restarts in few dimensions.
    restart_gradients: int = 16  # of one restart, at most
    restart_share: float = 0.6  # of a descent that restarts may have in many dimensions, where refinement ended it
    random_directions: int = 12  # forwards before a restart; 7 in targeted searches, 4 in more than 16 dimensions

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise BoundaryValueError(f"{field.name} must be finite and not negative, but it is {value!r}.")
