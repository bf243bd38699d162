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
    "data range first": Part(
        {"data_range_share": _NEVER},
        {"captum_boundary.search._problem.Problem.has_data_range": False},
        acts=lambda case: not case.is_bounded,
    ),
    # Refinement.
    "refinement": Part({"refinement_share": _NEVER}, acts=lambda case: not case.is_one_of_many),
    "several planes": Part({"planes": 1}, acts=_l2),
    "a look at linearity": Part({"linearity": _ALWAYS}, acts=_many_dimensions),
    # Classes compete.
    "competition of classes": Part({"race_rows": 1}, acts=_many_dimensions),
    # Descent.
    "descents start over": Part({"restart_period": 10**6}, acts=_many_dimensions),
    "rate follows linearizations": Part(
        {"max_rate": _NEVER}, acts=lambda case: case.norm != 1 and not case.is_one_of_many
    ),
    "sampled normals": Part({"sampling_radius": _NEVER}, acts=_many_dimensions),
    "sampling ends half-way": Part(
        replaced={f"{_NEAREST}.descent._FIRST_PART": 1.0}, acts=lambda case: _many_dimensions(case) and case.norm != 1
    ),
    "sampling half as far in linf": Part(
        replaced={"captum_boundary._core.norms._LInf.sampling_radius": 1.0},
        acts=lambda case: _many_dimensions(case) and case.norm == math.inf,
    ),
    # l1.
    "average of slopes": Part({"slope_memory": _NEVER}, acts=_l1),
    "aim follows shortfalls": Part({"aim_gain": _NEVER}, acts=_l1),
    "wider sampling in l1": Part(replaced={f"{_NEAREST}.descent._WIDENING": 1.0}, acts=_l1),
    # Few dimensions.
    "descent in few dimensions": Part({"descent_share": _NEVER}, acts=_few_dimensions),
    "restarts": Part(replaced={f"{_NEAREST}.solver.restart": _no_restart}, acts=_few_dimensions),
    "several random directions": Part({"random_directions": 1}, acts=_few_dimensions),
    "look whether all is linear": Part(
        replaced={f"{_NEAREST}.refinement._LINEAR": {torch.float32: -1.0, torch.float64: -1.0}}
    ),
    # Onto the boundary.
    "a look further along the line": Part(replaced={"captum_boundary.search._line_search._EXTENSIONS": ()}),
}
