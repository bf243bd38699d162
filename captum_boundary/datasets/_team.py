"""The processes that share a run: those of the process group, or this one alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from captum_boundary.errors import BoundaryError

__all__ = ["Team"]

T = TypeVar("T")

# Who is done first waits for the others, which may take hours.
_PATIENCE = timedelta(days=30)


class Team:
    """A few words between processes. They are exchanged over gloo, whatever the user's process group is made of."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self._group: Any = None
        if dist.is_available() and dist.is_initialized():
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def first(self, act: Callable[[], T]) -> T:
        """Let the first process act. Its result is everyone's, and so is its error."""
        outcome: Any = _attempt(act) if self.rank == 0 else None
        if self._group is not None:
            shared = [_sendable(outcome)]
            dist.broadcast_object_list(shared, src=0, group=self._group)
            outcome = outcome or shared[0]
        result: T = _result(outcome)
        return result

    def together(self, act: Callable[[], T]) -> T:
        """Let every process act, and wait for all. If one fails, all do."""
        outcome: Any = _attempt(act)
        if self._group is not None:
            errors: list[Any] = [None] * self.size
            dist.all_gather_object(errors, _sendable((None, outcome[1])), group=self._group)
            failed = [rank for rank, (_, error) in enumerate(errors) if error is not None]
            if failed and outcome[1] is None:
                outcome = (None, BoundaryError(f"Process {failed[0]} failed: {errors[failed[0]][1]}"))
        result: T = _result(outcome)
        return result


def _attempt(act: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return act(), None
    except Exception as error:
        return None, error


def _result(outcome: tuple[T, Exception | None]) -> T:
    value, error = outcome
    if error is not None:
        raise error
    return value


def _sendable(outcome: Any) -> Any:
    """The outcome with an error that can be pickled, which not every library's can."""
    if outcome is None or outcome[1] is None or isinstance(outcome[1], BoundaryError):
        return outcome
    return None, BoundaryError(f"{type(outcome[1]).__name__}: {outcome[1]}")
