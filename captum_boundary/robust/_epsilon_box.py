"""All points within a distance of the inputs, in the numbers that the inputs' own dtypes can hold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_boundary._base.geometry import Box
from captum_boundary._base.oracle import MarginOracle

__all__ = ["within"]


def within(epsilon: float, oracle: MarginOracle, box: Box) -> Box:
    """The part of ``box`` within ``epsilon`` of the inputs in every coordinate.

    Its limits are rounded towards the inputs, so that points rounded to the inputs' dtypes do not leave it. Where
    ``epsilon`` is lost in rounding, nothing but the input is left.
    """
    x = oracle.x.double()
    lower = torch.maximum(box.lower.double(), x - epsilon)
    upper = torch.minimum(box.upper.double(), x + epsilon)
    return Box(-_rounded_down(-lower, oracle), _rounded_down(upper, oracle))


def _rounded_down(limit: Tensor, oracle: MarginOracle) -> Tensor:
    """The largest points at or below ``limit`` ``(N, D)`` in the dtypes of the inputs."""
    nearest = oracle.unpack(limit)
    below = tuple(torch.nextafter(part, torch.full_like(part, -math.inf)) for part in nearest)
    return torch.where(oracle.pack(nearest) > limit, oracle.pack(below), oracle.pack(nearest))
