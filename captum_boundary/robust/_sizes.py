"""Size functions of attributions, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["Size", "size_of"]

SizeFunction = Callable[[Tensor], Tensor]


class Size(NamedTuple):
    """How large an attribution is, and the training loss that is built on it."""

    of: SizeFunction | None  # (N, ...) -> (N,); None for the plain sum, which completeness gives without a path
    weight: float  # of the regulariser in the paper's experiments, where it has one
    at_perturbed: bool  # whether the loss itself is taken at the perturbed inputs
    method: str = "riemann_right"

    def measure(self, attribution: Tensor) -> Tensor:
        """Sizes ``(N,)`` of attributions ``(N, ...)``."""
        assert self.of is not None
        sizes = self.of(attribution)
        if not isinstance(sizes, Tensor) or sizes.shape != attribution.shape[:1]:
            came = f"shape {tuple(sizes.shape)}" if isinstance(sizes, Tensor) else type(sizes).__name__
            raise BoundaryValueError(
                f"size must map attributions of shape {tuple(attribution.shape)} to one number for each example, a "
                f"Tensor of shape ({len(attribution)},), but it returned {came}."
            )
        return sizes


def size_of(size: str | SizeFunction, power: float) -> Size:
    """The size function that a user names, or gives."""
    named = {
        "ig_norm": Size(_l1, weight=1.0, at_perturbed=False),
        "ig_sum_norm": Size(_l1, weight=0.1, at_perturbed=True),
        "sum": Size(None, weight=1.0, at_perturbed=True),
        # The first term of the left sum is the gradient at the input itself.
        "norm_power": Size(partial(_l1_power, power=power), weight=1.0, at_perturbed=False, method="riemann_left"),
    }
    if callable(size):
        return Size(size, weight=1.0, at_perturbed=False)
    if not isinstance(size, str):
        raise BoundaryTypeError(f"size must be a name or a function of attributions, but it is {type(size).__name__}.")
    if size not in named:
        raise BoundaryValueError(
            f"size must be one of {', '.join(map(repr, named))}, or a function of attributions, but it is {size!r}."
        )
    return named[size]


def _l1(attribution: Tensor) -> Tensor:
    return attribution.reshape(len(attribution), -1).abs().sum(dim=1)


def _l1_power(attribution: Tensor, power: float) -> Tensor:
    return _l1(attribution) ** power
