"""What an attack wants of a map: to lower a weighted sum of the shares that features have of all attribution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from captum_boundary._base.agreement import center_of_mass, center_shift, top_features
from captum_boundary._base.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust._attribution_maps import AttributionMaps

__all__ = ["Aim", "aim_of"]


class Aim(ABC):
    """Maps are given as shares ``(N, P)``: not negative, of sum one."""

    @abstractmethod
    def pull(self, shares: Tensor) -> Tensor:
        """Weights ``(N, P)`` of the shares in the sum that is to fall."""

    @abstractmethod
    def value(self, shares: Tensor) -> Tensor:
        """How far from its aim the attack is, ``(N,)``: the lower, the better."""

    def weights(self, magnitudes: Tensor, shares: Tensor) -> Tensor:
        """Slope ``(N, P)`` of the sum with respect to the map before it is scaled to shares."""
        pull = self.pull(shares)
        total = magnitudes.sum(dim=1, keepdim=True).clamp_min(torch.finfo(magnitudes.dtype).tiny)
        return (pull - (pull * shares).sum(dim=1, keepdim=True)) / total


class _LessMassOn(Aim):
    """Attribution leaves the features with positive weights, and goes to those with negative ones."""

    def __init__(self, features: Tensor) -> None:
        self._features = features

    def pull(self, shares: Tensor) -> Tensor:
        return self._features

    def value(self, shares: Tensor) -> Tensor:
        return (self._features * shares).sum(dim=1)


class _MoveCenter(Aim):
    """The centre of mass of an image goes away from where it was."""

    def __init__(self, clean: Tensor, shape: tuple[int, ...]) -> None:
        self._clean = clean.view(-1, *shape)
        self._start = center_of_mass(self._clean)
        self._ends = clean.new_tensor(shape) - 1
        axes = [torch.arange(size, device=clean.device, dtype=clean.dtype) for size in shape]
        self._positions = torch.cartesian_prod(*axes)

    def pull(self, shares: Tensor) -> Tensor:
        move = center_of_mass(shares.view_as(self._clean)) - self._start
        to_far_corner = torch.where(self._start < self._ends / 2, self._ends, 0) - self._start
        has_moved = (move.abs() > 1e-6 * self._ends.clamp_min(1)).any(dim=1, keepdim=True)
        return -torch.nn.functional.normalize(torch.where(has_moved, move, to_far_corner)) @ self._positions.T

    def value(self, shares: Tensor) -> Tensor:
        return -center_shift(self._clean, shares.view_as(self._clean))


def aim_of(method: str, maps: AttributionMaps, clean: Tensor, k: int, target_map: Any) -> Aim:
    """The aim of an attack on the map ``clean`` ``(N, P)``."""
    if method == "topk":
        return _LessMassOn(top_features(clean, k).to(clean))
    if method == "target":
        return _LessMassOn(-_format_target_map(target_map, maps).to(clean))
    if not maps.is_image:
        raise BoundaryValueError(
            'method="mass_center" needs one input of images, (N, C, H, W), since only maps of pixels have a centre.'
        )
    return _MoveCenter(clean, maps.map_shape)


def _format_target_map(target_map: Any, maps: AttributionMaps) -> Tensor:
    if not isinstance(target_map, Tensor):
        raise BoundaryTypeError(
            f'target_map must be a Tensor with method="target", but it is {type(target_map).__name__}.'
        )
    shape = (maps.n_examples, *maps.map_shape)
    if target_map.shape not in (shape[1:], (1, *shape[1:]), shape):
        raise BoundaryValueError(
            f"target_map must have the shape of a map, {shape[1:]}, or of one for each example, {shape}, but its shape "
            f"is {tuple(target_map.shape)}."
        )
    weights = target_map.detach().to(maps.x).expand(shape).flatten(1)
    if not torch.isfinite(weights).all() or (weights < 0).any() or not (weights > 0).any(dim=1).all():
        raise BoundaryValueError(
            "target_map must be positive where attribution is wanted and 0 elsewhere, in every example, but it holds "
            f"values from {weights.min().item():.4g} to {weights.max().item():.4g}."
        )
    return weights
