"""Means and differences over images and seeds, with intervals."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from intervals import Values, interval, paired_difference
from numpy.typing import NDArray
from report import Claim

Columns = Mapping[str, Values]  # of one network, one number for each image
PerSeed = Mapping[str, Sequence[Columns]]  # by the name of the network, then by seed

STANDARD = "standard"
# What the paper finds of robust networks, as the sign of their difference to the standard one.
EXPECTED = {
    "alignment": 1,
    "|SM - BSM|": -1,
    "|SM - BSM| at unit length": -1,
    "|IG - BIG|": -1,
    "|IG - BIG| at unit length": -1,
}


def means(per_seed: PerSeed) -> dict[str, Any]:
    """By network and column: the mean over seeds, its interval over images, and the mean of each seed."""
    return {
        name: {
            column: {
                **asdict(interval(over_seeds([columns[column] for columns in seeds]))),
                "seeds": [interval(columns[column]).mean for columns in seeds],
            }
            for column in seeds[0]
        }
        for name, seeds in per_seed.items()
    }


def differences(per_seed: PerSeed, reference: str) -> dict[str, Any]:
    """By network and column, image by image and seed by seed: the mean over seeds with its interval over images, and
    the interval of each seed."""
    found: dict[str, Any] = {}
    for name, seeds in per_seed.items():
        pairs = list(zip(seeds, per_seed.get(reference, []), strict=False))
        if name == reference or not pairs:
            continue
        found[name] = {}
        for column in seeds[0]:
            by_seed = [_minus(own[column], other[column]) for own, other in pairs]
            found[name][column] = {
                **asdict(interval(over_seeds(by_seed))),
                "seeds": [asdict(paired_difference(own[column], other[column])) for own, other in pairs],
            }
    return found


def over_seeds(values: Sequence[Values]) -> Values:
    """Each image's mean over the seeds that have a number for it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return _values(np.nanmean(np.array(values, dtype=float), axis=0))


def sign(difference: Mapping[str, Any]) -> int:
    """1 or -1 where the intervals of all seeds lie on that side of zero, or else 0."""
    if all(seed["n"] and seed["low"] > 0 for seed in difference["seeds"]):
        return 1
    if all(seed["n"] and seed["high"] < 0 for seed in difference["seeds"]):
        return -1
    return 0


def claims(to_standard: Mapping[str, Any]) -> list[Claim]:
    """What the paper finds, for every network that was not trained in the standard way."""
    return [
        Claim(
            f"{name}: {column} {'above' if expected > 0 else 'below'} that of {STANDARD} for every seed, by",
            columns[column]["mean"],
            sign(columns[column]) == expected,
        )
        for name, columns in to_standard.items()
        for column, expected in EXPECTED.items()
    ]


def _minus(values: Values, reference: Values) -> Values:
    return _values(np.array(values, dtype=float) - np.array(reference, dtype=float))


def _values(numbers: NDArray[np.float64]) -> Values:
    return [None if np.isnan(number) else float(number) for number in numbers]
