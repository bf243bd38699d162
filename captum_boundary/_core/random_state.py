"""The random states of Python, NumPy and PyTorch, which others draw from, left as they were."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["preserve_rng_state", "seed_rng"]


@contextmanager
def preserve_rng_state(generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """Leave the global random states, on every device, and those of ``generators`` as they were.

    Captum's methods, attacks and models draw from them. What happens inside starts from the states as they stand.
    """
    states = [(restore, save()) for save, restore in _random_states(generators)]
    try:
        yield
    finally:
        for restore, state in states:
            restore(state)


def seed_rng(seed: int, device: torch.device | None = None) -> None:
    """Seed the global random states of Python, NumPy, PyTorch on the CPU and, where given, of a CUDA device."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, what others draw from
    torch.default_generator.manual_seed(seed)  # torch.manual_seed reaches the generators of every device
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _random_states(
    generators: Sequence[torch.Generator],
) -> Iterator[tuple[Callable[[], Any], Callable[[Any], object]]]:
    """How to read and write each random state; devices that are not in use yet have none."""
    yield random.getstate, random.setstate
    yield np.random.get_state, np.random.set_state
    yield torch.get_rng_state, torch.set_rng_state
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all
    if torch.xpu.is_initialized():  # type: ignore[no-untyped-call]
        yield torch.xpu.get_rng_state_all, torch.xpu.set_rng_state_all
    if torch.backends.mps.is_available():
        yield torch.mps.get_rng_state, torch.mps.set_rng_state
    for generator in generators:
        yield generator.get_state, generator.set_state
