"""The parts of the search for the nearest boundary, and how each of them is turned off."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from captum_boundary import NearestBoundary
from captum_boundary.search import BoundarySearch, NearestBoundarySettings
from captum_boundary.search._problem import Incumbent

FULL = "full search"
_NEVER, _ALWAYS = 0.0, 1e9
_NEAREST = "captum_boundary.search.nearest"


@dataclass(frozen=True)
class Case:
    """What decides whether a part of the search can act at all."""

    norm: float
    is_small: bool = False  # at most 512 dimensions
    is_bounded: bool = True
    is_targeted: bool = False
    is_one_of_many: bool = False


def _anywhere(_: Case) -> bool:
    return True


def _many_dimensions(case: Case) -> bool:
    return not (case.is_small or case.is_one_of_many)


def _l2(case: Case) -> bool:
    return case.norm == 2 and not (case.is_one_of_many and not case.is_small)


def _l1(case: Case) -> bool:
    return case.norm == 1 and not case.is_one_of_many


def _few_dimensions(case: Case) -> bool:
    return case.is_small


def _spheres(case: Case) -> bool:
    return case.norm != 1 or case.is_one_of_many


@dataclass(frozen=True)
class Part:
    """One part: the settings without it, or the constants and functions that are replaced where there is none."""

    settings: Mapping[str, float] = field(default_factory=dict)
    replaced: Mapping[str, Any] = field(default_factory=dict)
    acts: Callable[[Case], bool] = _anywhere
    seed: int | None = None

    def search(self, model: Any, budget: int, norm: float, bounds: Any) -> BoundarySearch:
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        settings = NearestBoundarySettings(**self.settings)  # type: ignore[arg-type]
        return NearestBoundary(model, bounds=bounds, norm=norm, budget=budget, settings=settings, generator=generator)

    @contextmanager
    def off(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, value in self.replaced.items():
                stack.enter_context(mock.patch(name, value))
            yield


def _no_restart(problem: Any, settings: Any, incumbent: Incumbent, *_: Any) -> tuple[Incumbent, Tensor]:
    return incumbent, torch.zeros_like(incumbent.phase, dtype=torch.bool)


PARTS: Mapping[str, Part] = {
    FULL: Part(),
    "other random numbers": Part(seed=1),
    # First contact.
    "smoothed margin": Part({"smoothing": _NEVER}),
    "longer Newton steps": Part({"newton_overshoot": 1.0}),
    "an end after slow steps": Part({"slow_decrease": _ALWAYS}),
    # Refinement.
    "refinement": Part({"refinement_steps": 0}, acts=lambda case: not case.is_one_of_many or case.is_small),
    "several planes": Part({"planes": 1}, acts=_l2),
    "an end where planes mislead": Part({"linearity": _ALWAYS}, acts=_many_dimensions),
    "planes are dropped": Part(replaced={"captum_boundary.search._problem._SLACK": math.inf}, acts=_l2),
    "final step in few dimensions": Part(
        replaced={f"{_NEAREST}.cutting_planes._final_step": lambda multipliers, *_: multipliers},
        acts=lambda case: case.is_small and _l2(case),
    ),
    # Classes compete.
    "competition of classes": Part({"race_rows": 1}, acts=_many_dimensions),
    "competition only where linear": Part({"race_linearity": _ALWAYS}, acts=_many_dimensions),
    "more classes from budget 80": Part(
        replaced={f"{_NEAREST}.class_race._LARGE_BUDGET": _ALWAYS}, acts=_many_dimensions
    ),
    "further Newton steps of classes": Part(
        replaced={f"{_NEAREST}.class_race._NEWTON_STEPS": 0}, acts=_many_dimensions
    ),
    # Descent.
    "descents start over": Part({"restart_period": 10**6}, acts=_many_dimensions),
    "rate doubles": Part({"rate_multiplier": _NEVER}, acts=_spheres),
    "rate doubles and follows linearizations": Part(
        {"max_rate": _NEVER}, acts=lambda case: case.norm != 1 and not case.is_one_of_many
    ),
    "shorter steps from the incumbent": Part({"continued_step_scale": 1.0}, acts=_many_dimensions),
    "sampled normals": Part({"sampling_radius": _NEVER}, acts=_many_dimensions),
    "sampling ends half-way": Part(
        replaced={f"{_NEAREST}.descent._FIRST_PART": 1.0}, acts=lambda case: _many_dimensions(case) and case.norm != 1
    ),
    "sampling radius by norm": Part(
        replaced={
            "captum_boundary._core.norms._LInf.sampling_radius": 1.0,
            "captum_boundary._core.norms._L1.sampling_radius": 1.0,
        },
        acts=lambda case: _many_dimensions(case) and case.norm != 2,
    ),
    "data range first": Part(
        {"data_range_share": _NEVER},
        {"captum_boundary.search._problem.Problem.has_data_range": False},
        acts=lambda case: not case.is_bounded,
    ),
    # l1.
    "average of slopes": Part({"slope_memory": _NEVER}, acts=_l1),
    "aim follows shortfalls": Part({"aim_gain": _NEVER}, acts=_l1),
    "wider sampling in l1": Part(replaced={f"{_NEAREST}.descent._WIDENING": 1.0}, acts=_l1),
    # Few dimensions.
    "descent in few dimensions": Part({"descent_share": _NEVER}, acts=_few_dimensions),
    "restarts": Part(replaced={f"{_NEAREST}.solver.restart": _no_restart}),
    "several random directions": Part({"random_directions": 1}, acts=_few_dimensions),
    "look whether all is linear": Part(
        replaced={f"{_NEAREST}.refinement._LINEAR": {torch.float32: -1.0, torch.float64: -1.0}}
    ),
    # Onto the boundary.
    "a look further along the line": Part(replaced={"captum_boundary.search._line_search._EXTENSIONS": ()}),
}

# Other values, where one constant could stand for two.
VARIANTS: Mapping[str, Part] = {
    "race_linearity 0.25, as linearity": Part({"race_linearity": 0.25}, acts=_many_dimensions),
    "screened_share 0.1": Part({"screened_share": 0.1}, acts=_many_dimensions),
    "race_share 0.5": Part({"race_share": 0.5}, acts=_many_dimensions),
    "six rows at all budgets": Part(replaced={f"{_NEAREST}.class_race._LARGE_BUDGET": 0}, acts=_many_dimensions),
    "competition from one budget": Part(
        replaced={f"{_NEAREST}.class_race._LEAST_BUDGET": {False: 20, True: 20}}, acts=_many_dimensions
    ),
    "last step 0.05": Part(replaced={f"{_NEAREST}.step_rules._LAST_STEP": 0.05}, acts=lambda case: case.norm != 1),
    "last rate 0.4": Part(replaced={f"{_NEAREST}.step_rules._LAST_RATE": 0.4}, acts=lambda case: case.norm != 1),
    "last rate 0.05": Part(replaced={f"{_NEAREST}.step_rules._LAST_RATE": 0.05}, acts=lambda case: case.norm != 1),
    "from afar, last step 0.01": Part(
        replaced={f"{_NEAREST}.step_rules._LAST_STEP_FROM_AFAR": 0.01}, acts=lambda case: case.is_one_of_many
    ),
    "from afar, last rate 0.005": Part(
        replaced={f"{_NEAREST}.step_rules._FROM_AFAR": 0.005}, acts=lambda case: case.is_one_of_many
    ),
    "pair_share 0.5": Part({"pair_share": 0.5}, acts=lambda case: case.is_one_of_many),
    "slope_memory 0.5": Part({"slope_memory": 0.5}, acts=_l1),
    "slow_decrease 0.75": Part({"slow_decrease": 0.75}),
    "continued_step_scale 0.3": Part({"continued_step_scale": 0.3}, acts=_many_dimensions),
    "restarts of 8 gradients": Part({"restart_gradients": 8}, acts=_few_dimensions),
    "refinement of 8 gradients": Part({"refinement_steps": 8}, acts=lambda case: not case.is_one_of_many),
    "refinement_share 0.2": Part({"refinement_share": 0.2}, acts=lambda case: not case.is_one_of_many),
    "exact projections of Newton steps": Part(replaced={f"{_NEAREST}.first_contact._PROJECTION_STEPS": 32}),
    "3 steps of projections": Part(
        replaced={f"{_NEAREST}.cutting_planes._NEWTON_STEPS": 3}, acts=lambda case: case.norm == math.inf
    ),
    "2 steps of projections": Part(replaced={f"{_NEAREST}.first_contact._PROJECTION_STEPS": 2}),
}
