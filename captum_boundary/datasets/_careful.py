"""Batches in whatever parts they can be explained: halved where memory ends, and around an example that fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

import torch

from captum_boundary.datasets._batch import Explained
from captum_boundary.datasets._examples import Example, Failure, message_of
from captum_boundary.datasets.errors import ExampleError

__all__ = ["CarefulExplainer", "is_out_of_memory"]

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class CarefulExplainer:
    """Explains batches with ``explain``, and remembers how many examples fit into memory.

    A batch that fails is halved until the example that makes it fail is alone. With ``strict``, its error is raised.
    """

    def __init__(self, explain: Callable[[Sequence[Example]], Explained], strict: bool) -> None:
        self.explain = explain
        self.strict = strict
        self.size: int | None = None

    def __call__(self, examples: Sequence[Example]) -> tuple[list[Explained], list[Failure]]:
        done: list[Explained] = []
        failures: list[Failure] = []
        waiting = [list(examples)] if examples else []
        while waiting:
            part = waiting.pop()
            if self.size is not None and len(part) > self.size:
                waiting += [part[self.size :], part[: self.size]]
                continue
            outcome = self._attempt(part)
            if isinstance(outcome, Explained):
                done.append(outcome)
            elif len(part) == 1:
                failures.append(self._failure(part[0], outcome))
            else:
                half = (len(part) + 1) // 2
                if is_out_of_memory(outcome):
                    self.size = half
                waiting += [part[half:], part[:half]]
        return done, failures

    def _attempt(self, examples: Sequence[Example]) -> Explained | Exception:
        try:
            return self.explain(examples)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # which hold tensors
            if is_out_of_memory(error) and torch.cuda.is_available():
                torch.cuda.empty_cache()
            return error

    def _failure(self, example: Example, error: Exception) -> Failure:
        if self.strict:
            raise ExampleError(f"Example {example.index} could not be explained. {message_of(error)}") from error
        return Failure(example.index, example.label, message_of(error))


def is_out_of_memory(error: Exception) -> bool:
    """Whether fewer examples at once may help."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)
