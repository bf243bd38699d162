"""Tables of networks, with a row for each measure and a column for each network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from normality_summary import sign
from report import print_claims, print_table


def show(result: Mapping[str, Any], references: Sequence[str]) -> None:
    """Means, those of each seed, and differences to the networks that are ``references``."""
    by_column = result["means"]
    print_table(transposed(by_column, lambda cell: f"{cell['mean']:.3g} [{cell['low']:.3g}, {cell['high']:.3g}]"))
    print("\nEach seed\n")
    print_table(transposed(by_column, lambda cell: "  ".join(f"{mean:.3g}" for mean in cell["seeds"])))
    for reference in references:
        print(f"\nDifferences to {reference}; + or - where the intervals of all seeds lie on that side of zero\n")
        print_table(transposed(result[f"differences to {reference}"], difference_in_words))
    print()
    print_claims(result["claims"])


def transposed(cells: Mapping[str, Mapping[str, Any]], text: Callable[[Any], str]) -> dict[str, dict[str, str]]:
    """A row for each column of numbers, with a column for each network."""
    rows = next(iter(cells.values()), {})
    return {
        row: {name: text(columns[row]) if columns[row]["n"] else "-" for name, columns in cells.items()} for row in rows
    }


def difference_in_words(cell: Mapping[str, Any]) -> str:
    return f"{cell['mean']:+.3g} [{cell['low']:.3g}, {cell['high']:.3g}] {' +-'[sign(cell)]}"
