"""What a descent knows where it stands, and what it asks of a way to go on."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from captum_boundary._core.geometry import Box
from captum_boundary._core.oracle import Linearization
from captum_boundary.search._problem import Candidates, Problem

__all__ = ["Place", "Walk"]


class Place(NamedTuple):
    """Where the examples of a descent stand."""

    points: Tensor  # (n, D)
    move: Tensor  # (n, D) their ways from the inputs
    distance: Tensor  # (n,) lengths of these
    plane: Linearization  # the decision there, to first order
    box: Box  # limits of the next points


class Walk(Protocol):
    """From one point to the next."""

    def select(self, going: slice) -> None:
        """Go on with some examples alone."""

    def next_points(self, here: Problem, at: Place, best: Candidates, step: int) -> Tensor:
        """Points ``(n, D)`` to go to."""
