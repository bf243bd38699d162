"""The constants of the search."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from captum_boundary import NearestBoundary
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search import NearestBoundarySettings, nearest
from captum_boundary.search._problem import Phase


def test_there_are_few_constants_and_they_do_not_change() -> None:
    """Those of the modules count as well, but for the units of a status."""
    files = sorted(Path(nearest.__file__).parent.glob("*.py"))
    texts = [
        re.findall(r"^(_?[A-Z]+(?:_[A-Z]+)*(?:, _?[A-Z_]+)*) = ", file.read_text(), re.MULTILINE) for file in files
    ]
    names = [name for text in texts for names in text for name in names.split(", ")]
    assert {"_FIRST_PART", "_LAST_STEP", "_LAST_RATE", "_OPTIMAL"} <= set(names)
    assert (
        len(dataclasses.fields(NearestBoundarySettings)) + len(set(names) - {"_OPTIMAL", "_STALLED", "_BUDGET"}) <= 29
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        NearestBoundarySettings().smoothing = 1.0


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_constant_that_makes_no_sense_is_refused(value) -> None:
    with pytest.raises(BoundaryValueError, match="newton_overshoot must be finite"):
        NearestBoundarySettings(newton_overshoot=value)


def test_settings_of_another_type_are_refused() -> None:
    with pytest.raises(BoundaryTypeError, match="settings must be NearestBoundarySettings or None, but it is dict"):
        NearestBoundary(torch.nn.Linear(2, 2), settings={"smoothing": 1.0})


def test_settings_reach_the_search() -> None:
    """Random lines are the last resort where slopes are zero."""
    model = lambda x: torch.where(x[:, 0] > 0.5, -1.0, 1.0) + 0 * x.sum(dim=1)  # noqa: E731
    x = torch.zeros(1, 600)
    by_lines = NearestBoundary(model).find(x)
    by_restarts = NearestBoundary(model, settings=NearestBoundarySettings(random_lines=0)).find(x)
    assert by_lines.status // 10 == Phase.LINE_SEARCH
    assert by_restarts.status // 10 == Phase.RESTART
