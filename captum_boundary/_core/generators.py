"""Sources of randomness that users hand over."""

from __future__ import annotations

import torch

from captum_boundary.errors import BoundaryTypeError

__all__ = ["check_generator", "seed_of"]


def check_generator(generator: object) -> None:
    """Refuse everything but a source of randomness, or None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise BoundaryTypeError(f"generator must be a torch.Generator, but it is {type(generator).__name__}.")


def seed_of(generator: torch.Generator | None) -> int:
    """A seed drawn from the user's generator, or always the same."""
    if generator is None:
        return 0
    return int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
