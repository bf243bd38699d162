"""How the search of an example ended."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["BoundaryStatus"]

_FOUND_BY = {
    1: "the search",
    2: "the Newton phase",
    3: "a random line search",
    4: "the active-set refinement",
    5: "the descent along the boundary",
    6: "a restart",
    7: "a change of categories alone",
}
_ENDED = {
    0: "the search ran to its end",
    1: "the point passes the first-order test of a closest point",
    2: "restarts stopped gaining",
    3: "the search ran into its budget",
}
_NOT_FOUND = {
    0: "No point of another class was found: the search ran to its end.",
    3: "No point of another class was found: the search ran into its budget.",
    4: "A point of another class was found, but farther away than max_distance.",
    5: "A point of another class was found, but it did not keep its label when it was evaluated again.",
}


class BoundaryStatus(IntEnum):
    r"""Which phase of a search found a boundary point, and why the search of the example ended.

    A value is ten times the phase, 0 where nothing was found, plus the end; an end of 3 is always the budget. Phases
    other than ``FOUND`` are those of :class:`NearestBoundary` and :class:`CategoricalBoundary`. ``str(status)`` is a
    sentence.

    Examples::

        >>> from captum_boundary.search import BoundaryStatus
        >>> status = BoundaryStatus(43)
        >>> status.name
        'REFINEMENT_BUDGET'
        >>> print(status)
        Found by the active-set refinement; the search ran into its budget.
        >>> status.is_found, status.ran_into_budget
        (True, True)
    """

    NOT_FOUND = 0
    NOT_FOUND_BUDGET = 3
    TOO_FAR = 4
    LABEL_NOT_KEPT = 5

    FOUND = 10
    FOUND_OPTIMAL = 11
    FOUND_STALLED = 12
    FOUND_BUDGET = 13

    NEWTON = 20
    NEWTON_OPTIMAL = 21
    NEWTON_STALLED = 22
    NEWTON_BUDGET = 23

    LINE_SEARCH = 30
    LINE_SEARCH_OPTIMAL = 31
    LINE_SEARCH_STALLED = 32
    LINE_SEARCH_BUDGET = 33

    REFINEMENT = 40
    REFINEMENT_OPTIMAL = 41
    REFINEMENT_STALLED = 42
    REFINEMENT_BUDGET = 43

    DESCENT = 50
    DESCENT_OPTIMAL = 51
    DESCENT_STALLED = 52
    DESCENT_BUDGET = 53

    RESTART = 60
    RESTART_OPTIMAL = 61
    RESTART_STALLED = 62
    RESTART_BUDGET = 63

    CATEGORIES = 70
    CATEGORIES_OPTIMAL = 71
    CATEGORIES_STALLED = 72
    CATEGORIES_BUDGET = 73

    @property
    def is_found(self) -> bool:
        """Whether a boundary point was found."""
        return self >= BoundaryStatus.FOUND

    @property
    def ran_into_budget(self) -> bool:
        """Whether the search ended because its budget was spent: a larger one may find a nearer point."""
        return self % 10 == 3

    def __str__(self) -> str:
        phase, end = divmod(int(self), 10)
        return _NOT_FOUND[end] if phase == 0 else f"Found by {_FOUND_BY[phase]}; {_ENDED[end]}."
