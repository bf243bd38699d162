"""The process-wide settings around a call of Captum: random states are kept, and a default device does not matter."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["default_device_of", "preserve_rng_state"]


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Leave the global random states of Python, NumPy and PyTorch, on every device, as they were.

    Captum's methods draw from them, and so do models. What happens inside starts from the states as they stand.
    """
    states = [(restore, save()) for save, restore in _generators()]
    try:
        yield
    finally:
        for restore, state in states:
            restore(state)


def _generators() -> Iterator[tuple[Callable[[], Any], Callable[[Any], object]]]:
    """How to read and write each global random state; devices that are not in use yet have none."""
    yield random.getstate, random.setstate
    yield np.random.get_state, np.random.set_state
    yield torch.get_rng_state, torch.set_rng_state
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all
    if torch.xpu.is_initialized():  # type: ignore[no-untyped-call]
        yield torch.xpu.get_rng_state_all, torch.xpu.set_rng_state_all
    if torch.backends.mps.is_available():
        yield torch.mps.get_rng_state, torch.mps.set_rng_state


@contextmanager
def default_device_of(device: torch.device) -> Iterator[None]:
    """Where the user has set a default device, let it be that of the inputs, for Captum makes tensors without one."""
    if torch.empty(0).device.type == "cpu":  # torch.get_default_device overlooks contexts in PyTorch 2.4
        yield
        return
    with device:
        yield
