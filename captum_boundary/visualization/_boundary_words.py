"""Boundary points in words."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch

from captum_boundary._core.checks import names_in_order
from captum_boundary.errors import BoundaryValueError
from captum_boundary.search import BoundaryPoints
from captum_boundary.visualization._images import Array
from captum_boundary.visualization._panels import AxesArray, caption, say, show_image

__all__ = ["NOT_FOUND", "BoundaryWords", "check_example", "show_point"]

NOT_FOUND = "no boundary\npoint found"


def check_example(boundary: BoundaryPoints, example: object) -> None:
    """Refuse a row that does not exist, or has no boundary point to be drawn."""
    n = len(boundary)
    if not isinstance(example, numbers.Integral) or int(example) not in range(-n, n):
        raise BoundaryValueError(f"example must be a row of the {n} inputs, but it is {example!r}.")
    if not boundary.found[int(example)]:
        raise BoundaryValueError(
            f"example {example} has no boundary point. Choose one where boundary.found is True, or search with wider "
            "bounds or a larger budget."
        )


class BoundaryWords:
    """What to write about the boundary point of a row."""

    def __init__(self, boundary: BoundaryPoints, class_names: Sequence[str] | None) -> None:
        class_names = names_in_order(class_names)
        largest = int(torch.maximum(boundary.target, boundary.adversarial).max())
        if class_names is not None and len(class_names) <= largest:
            raise BoundaryValueError(
                f"class_names must name every class in the order of the model's outputs, but it has "
                f"{len(class_names)} names, and the boundary is one of class {largest}."
            )
        self.boundary = boundary
        self._class_names = class_names

    def name(self, index: int) -> str:
        """The name of a class, or its number."""
        if self._class_names is None or index >= len(self._class_names):
            return f"class {index}"
        return str(self._class_names[index])

    def sides(self, row: int) -> tuple[str, str]:
        """The class on the side of the input, and that at the boundary point.

        Of an input outside the region of its target, the boundary knows only that it is not of that class.
        """
        boundary = self.boundary
        target, is_found = self.name(int(boundary.target[row])), bool(boundary.found[row])
        is_inside = bool(boundary.margin[row] < 0) == is_found
        beyond = self.name(int(boundary.adversarial[row])) if is_found else "none"
        return (target, beyond) if is_inside else (f"not {target}", target if is_found else "none")

    def distance(self, row: int) -> str:
        """How far the boundary point is."""
        return f"distance {float(self.boundary.distance[row]):.3g}"


def show_point(panels: AxesArray, picture: Array, words: BoundaryWords, row: int) -> None:
    """Write the classes on either side below an image and its boundary point, and show the latter."""
    here, there = words.sides(row)
    caption(panels[0], here)
    if words.boundary.found[row]:
        show_image(panels[1], picture)
        caption(panels[1], f"{there}\n{words.distance(row)}")
    else:
        say(panels[1], NOT_FOUND)
