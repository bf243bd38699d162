"""What an accelerator is asked to do, and by whom: the package itself, the forward passes of models, or autograd."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
from torch import nn

import captum_boundary

__all__ = ["Cost", "Counts", "count", "counting"]

_PACKAGE = os.path.dirname(captum_boundary.__file__) + os.sep


@dataclass
class Cost:
    """What was asked of the device."""

    operations: int = 0  # kernels, views not being any
    synchronizations: int = 0  # the host waits for the device
    copies: int = 0  # from the host to the device


@dataclass
class Counts:
    """Costs by who asked, and where the package did."""

    own: Cost = field(default_factory=Cost)
    model: Cost = field(default_factory=Cost)  # the forward passes of modules that are not the package's
    backward: Cost = field(default_factory=Cost)
    forward_calls: int = 0
    backward_calls: int = 0
    names: Counter[str] = field(default_factory=Counter)  # of own operations
    lines: dict[str, Counter[str]] = field(  # of the package, for each kind of its own cost
        default_factory=lambda: {kind: Counter() for kind in ("operations", "synchronizations", "copies")}
    )


_counts: Counts | None = None
_asking = "own"


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what is asked of the device in the meantime."""
    global _counts
    call_module, autograd = nn.Module.__call__, torch.autograd
    make_gradients, run_engine = autograd._make_grads, autograd._engine_run_backward
    counts = Counts()

    def call_counted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _asking == "model" or type(module).__module__.split(".")[0] == captum_boundary.__name__:
            return call_module(module, *args, **kwargs)
        counts.forward_calls += 1
        with _asked_by("model"):
            return call_module(module, *args, **kwargs)

    def make_counted(*args: Any, **kwargs: Any) -> Any:
        with _asked_by("backward"):
            return make_gradients(*args, **kwargs)

    def run_counted(*args: Any, **kwargs: Any) -> Any:
        counts.backward_calls += 1
        with _asked_by("backward"):
            return run_engine(*args, **kwargs)

    outer, _counts = _counts, counts
    try:
        with (
            mock.patch.object(nn.Module, "__call__", call_counted),
            mock.patch.object(autograd, "_make_grads", make_counted),
            mock.patch.object(autograd, "_engine_run_backward", run_counted),
        ):
            yield counts
    finally:
        _counts = outer


@contextmanager
def _asked_by(who: str) -> Iterator[None]:
    global _asking
    outer, _asking = _asking, who
    try:
        yield
    finally:
        _asking = outer


def count(name: str, cost: Cost) -> None:
    """Add what the operation ``name`` costs, while anybody is counting."""
    if _counts is None or cost == Cost():
        return
    total: Cost = getattr(_counts, _asking)
    line = _line() if _asking == "own" else None
    for kind, amount in vars(cost).items():
        if amount:
            setattr(total, kind, getattr(total, kind) + amount)
            if line is not None:
                _counts.lines[kind][line] += amount
    if line is not None and cost.operations:
        _counts.names[name] += cost.operations


def _line() -> str:
    """The innermost line of the package that is being run."""
    frame = sys._getframe()
    while frame is not None:
        if (file := _file_of_package(frame.f_code.co_filename)) is not None:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@lru_cache(None)
def _file_of_package(path: str) -> str | None:
    return path.removeprefix(_PACKAGE).replace(os.sep, "/") if path.startswith(_PACKAGE) else None
