"""Randomness that belongs to an example and not to the moment: the same in whatever order, and on whatever process."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["kept_randomness", "seed_everything"]


@contextmanager
def kept_randomness(device: torch.device | None = None, generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """Leave the random states of Python, NumPy, PyTorch and ``generators`` as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002, what others draw from
    states = [generator.get_state() for generator in generators]
    try:
        with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def seed_everything(
    seed: int, index: int, device: torch.device | None = None, generators: Sequence[torch.Generator] = ()
) -> None:
    """Seed all that draws random numbers for example ``index`` of a run with ``seed``."""
    number = int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:4], "little")
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002
    torch.default_generator.manual_seed(number)
    if device is not None and device.type == "cuda":
        torch.cuda.manual_seed(number)
    for generator in generators:
        generator.manual_seed(number)
