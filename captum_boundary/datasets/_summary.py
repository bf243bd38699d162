"""What can be said of a whole data set: numbers, distances by class, and which classes lie side by side."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["summarize"]

_N_EXTREMES = 12
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def summarize(table: pa.Table) -> dict[str, Any]:
    """The summary of the rows of a data set; None for shares and means of nothing.

    ``classes`` has, for each explained class, its examples, those with a boundary point, and quantiles of their
    distances; ``neighbors`` counts pairs of explained and adversarial class.
    """
    names = ("index", "label", "prediction", "target", "adversarial", "distance", "margin", "found", "evaluations")
    columns = {name: _floats(table.column(name)) for name in names}
    index, label, prediction, target, adversarial, distance, margin, found, evaluations = columns.values()
    explained, searched, is_found = np.isfinite(target), np.isfinite(found), found == 1
    judged = explained & np.isfinite(label)
    by = np.where(is_found, distance, np.nan) if searched.any() else margin
    known = np.isfinite(by)
    order = index[known][np.argsort(by[known], kind="stable")].astype(int).tolist()
    pairs = zip(target[is_found].astype(int).tolist(), adversarial[is_found].astype(int).tolist(), strict=True)
    classes = []
    for each in np.unique(target[explained]):
        near = distance[(target == each) & is_found]
        quantiles = np.quantile(near, _QUANTILES).tolist() if len(near) else []
        classes.append(
            {"target": int(each), "n": int((target == each).sum()), "found": len(near), "distances": quantiles}
        )
    return {
        "n_examples": table.num_rows,
        "n_failed": int((~explained).sum()),
        "accuracy": _mean(label[judged] == prediction[judged]),
        "found": _mean(is_found[searched]),
        "distance": float(np.median(distance[is_found])) if is_found.any() else None,
        "evaluations": _mean(evaluations[searched]),
        "classes": classes,
        "neighbors": Counter(pairs),
        "least_certain": order[:_N_EXTREMES],
        "most_certain": order[::-1][:_N_EXTREMES],
    }


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _floats(column: Any) -> Any:
    return np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=float)  # NaN where there is nothing
