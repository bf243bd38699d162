"""Weights of several boundaries, from their distances."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["Weighting", "check_weighting", "weigh"]

Weighting = str | Callable[[Tensor], Tensor]


# Up to a factor, which cancels: the nearest boundary has weight 1, so that no sum of weights underflows.
_WEIGHTINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "softmin": lambda distance: torch.exp(1 - distance / distance.amin(dim=1, keepdim=True)),
    "inverse": lambda distance: distance.amin(dim=1, keepdim=True) / distance,
    "uniform": torch.ones_like,
}


def check_weighting(weighting: object) -> None:
    """Refuse what is neither the name of a weighting nor a function."""
    if isinstance(weighting, str):
        if weighting not in _WEIGHTINGS:
            names = ", ".join(f'"{name}"' for name in _WEIGHTINGS)
            raise BoundaryValueError(f"weighting must be one of {names}, or a function, but it is {weighting!r}.")
    elif not callable(weighting):
        raise BoundaryTypeError(f"weighting must be a name or a function, but it is {type(weighting).__name__}.")


def weigh(weighting: Weighting, distance: Tensor) -> Tensor:
    """Weights ``(N, K)`` that sum to one over the finite ``distance`` ``(N, K)`` of each row; all zero if none is."""
    found = torch.isfinite(distance)
    if isinstance(weighting, str):
        # An input on the boundary itself has a distance of zero, and its boundary then all the weight.
        weights = _WEIGHTINGS[weighting](distance.clamp_min(torch.finfo(distance.dtype).tiny))
    else:
        weights = _checked(weighting(distance.clone()), distance, found)
    weights = torch.where(found, weights, 0.0)
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


def _checked(weights: object, distance: Tensor, found: Tensor) -> Tensor:
    if not isinstance(weights, Tensor):
        raise BoundaryTypeError(f"weighting must return a Tensor, but it returned {type(weights).__name__}.")
    if weights.shape != distance.shape:
        raise BoundaryValueError(
            f"weighting must return one weight for each distance, of shape {tuple(distance.shape)}, but it returned "
            f"{tuple(weights.shape)}."
        )
    weights = torch.where(found, weights.detach().to(distance), 0.0)
    total = weights.sum(dim=1)
    bad = ~torch.isfinite(total) | (weights < 0).any(dim=1) | (found.any(dim=1) & (total == 0))
    if bad.any():
        row = int(bad.nonzero()[0])
        raise BoundaryValueError(
            f"weighting must return finite weights, none negative and one positive, for the boundaries that were "
            f"found, but for the distances {distance[row].tolist()} it returned {weights[row].tolist()}."
        )
    return weights
