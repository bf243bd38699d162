"""What can be said of a whole data set: numbers, distances by class, and which classes lie side by side."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["ClassSummary", "Summary", "summarise"]

_N_EXTREMES = 12
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClassSummary:
    """Examples of one explained class. ``distances`` are quantiles of those that were found."""

    target: int
    n_examples: int
    n_found: int
    distances: tuple[float, ...]


@dataclass(frozen=True)
class Summary:
    """All of a data set. Shares are None where nothing is known."""

    n_examples: int
    n_failed: int
    found: float | None
    accuracy: float | None
    distance: float | None
    evaluations: float | None
    classes: list[ClassSummary]
    neighbours: Counter[tuple[int, int]]
    least_certain: list[int]
    most_certain: list[int]


def summarise(table: pa.Table) -> Summary:
    """The summary of the rows of a data set."""
    columns = {name: _floats(table, name) for name in table.column_names if name != "error"}
    target, distance, found = columns["target"], columns["distance"], columns["found"] == 1
    label, prediction = columns["label"], columns["prediction"]
    explained = np.isfinite(target)
    searched = np.isfinite(columns["found"])
    judged = explained & np.isfinite(label)
    by = np.where(found, distance, np.nan) if searched.any() else columns["margin"]
    order = columns["index"][np.isfinite(by)][np.argsort(by[np.isfinite(by)], kind="stable")].astype(int)
    pairs = zip(target[found].astype(int).tolist(), columns["adversarial"][found].astype(int).tolist(), strict=True)
    return Summary(
        n_examples=table.num_rows,
        n_failed=int((~explained).sum()),
        found=_mean(found[searched]),
        accuracy=_mean(label[judged] == prediction[judged]),
        distance=float(np.median(distance[found])) if found.any() else None,
        evaluations=_mean(columns["evaluations"][searched]),
        classes=[_of_class(int(each), target == each, found, distance) for each in np.unique(target[explained])],
        neighbours=Counter(pairs),
        least_certain=order[:_N_EXTREMES].tolist(),
        most_certain=order[::-1][:_N_EXTREMES].tolist(),
    )


def _of_class(target: int, members: NDArray[np.bool_], found: NDArray[np.bool_], distance: Floats) -> ClassSummary:
    near = distance[members & found]
    quantiles = tuple(np.quantile(near, _QUANTILES).tolist()) if len(near) else ()
    return ClassSummary(target, int(members.sum()), len(near), quantiles)


def _floats(table: pa.Table, name: str) -> Floats:
    """A column as floating point, NaN where there is nothing."""
    return np.array(table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=float)


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None
