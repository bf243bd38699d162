"""Means with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_RESAMPLES = 10_000

Values = list[float | None]  # one for each image; None where there is none


@dataclass(frozen=True)
class Interval:
    """A mean of ``n`` values and its 95 % percentile-bootstrap interval; None where there is no value."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


def interval(values: Values) -> Interval:
    """Of the mean of ``values``, with the same resamples on every call."""
    return _interval(np.array(values, dtype=float))


def paired_difference(values: Values, reference: Values) -> Interval:
    """Of the mean of ``values - reference``, image by image."""
    return _interval(np.array(values, dtype=float) - np.array(reference, dtype=float))


def _interval(values: NDArray[np.float64]) -> Interval:
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return Interval(None, None, None, 0)
    draws = np.random.default_rng(0).integers(len(known), size=(N_RESAMPLES, len(known)))
    low, high = np.percentile(known[draws].mean(axis=1), [2.5, 97.5])
    return Interval(float(known.mean()), float(low), float(high), len(known))
