"""Gaussian noise that is the same on every device and in every precision, and copies of examples that carry it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["NoiseSource", "follow", "seed_of", "slices"]


def seed_of(generator: torch.Generator | None) -> int:
    """A seed drawn from the user's generator, or always the same."""
    if generator is None:
        return 0
    return int(torch.randint(2**31, (1,), generator=generator, device=generator.device))


class NoiseSource:
    """Random numbers that all examples of a batch share, so that results do not depend on the others in it.

    They are drawn on the CPU in single precision, whatever the inputs are.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def normal(self, n_samples: int, inputs: tuple[Tensor, ...], stdevs: tuple[float, ...]) -> tuple[Tensor, ...]:
        """For each input ``(N, ...)``, the noise ``(n_samples, ...)`` of that many copies of any example."""
        return tuple(
            (stdev * torch.randn(n_samples, *tensor.shape[1:], **self._options)).to(tensor.device, tensor.dtype)
            for tensor, stdev in zip(inputs, stdevs, strict=True)
        )

    def uniform(self, n_samples: int) -> Tensor:
        """Numbers ``(n_samples,)`` from [0, 1), on the CPU."""
        return torch.rand(n_samples, **self._options)

    @property
    def _options(self) -> dict[str, Any]:
        return {"generator": self._generator, "device": "cpu", "dtype": torch.float32}


def slices(total: int, size: int) -> list[slice]:
    """Consecutive ranges of at most ``size`` of ``total`` entries."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def follow(argument: Any, examples: slice, n_copies: int, n_examples: int) -> Any:
    """A further argument of the model for copies of some examples: tensors with N entries follow their examples."""
    if isinstance(argument, Tensor) and argument.ndim > 0 and len(argument) == n_examples:
        return argument[examples].repeat_interleave(n_copies, dim=0)
    return argument
