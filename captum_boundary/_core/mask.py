"""Masks that hold values in place: a held value stays that of the input, and has no slope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.flat import pack
from captum_boundary._core.geometry import Box
from captum_boundary._core.outputs import config_of
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["Mask", "MaskedModel", "box_within", "movable_values"]

Mask = Tensor | tuple[Tensor | None, ...] | None


def movable_values(mask: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Where values of ``inputs`` may move, as booleans of their shapes, or say what is wrong with ``mask``."""
    if mask is None:
        return None
    masks = mask if isinstance(mask, (tuple, list)) else (mask,) * len(inputs)
    if len(masks) != len(inputs):
        raise BoundaryValueError(
            f"mask holds {len(masks)} mask(s) for {len(inputs)} input(s): give one for each, None where all may move."
        )
    return tuple(
        _movable(one, tensor, index, len(inputs)) for index, (one, tensor) in enumerate(zip(masks, inputs, strict=True))
    )


def _movable(mask: Any, tensor: Tensor, index: int, n_inputs: int) -> Tensor:
    name, of = (f"mask[{index}]", f"inputs[{index}]") if n_inputs > 1 else ("mask", "inputs")
    if mask is None:
        return torch.ones_like(tensor, dtype=torch.bool)
    if not isinstance(mask, Tensor):
        raise BoundaryTypeError(f"{name} must be a Tensor, or a tuple of them, but it is {type(mask).__name__}.")
    movable = mask.detach().to(tensor.device) != 0
    if mask.dtype != torch.bool and not (movable == mask.to(tensor.device)).all():
        raise BoundaryValueError(
            f"{name} must be 1 (or True) where values may move and 0 (or False) where they are held, but it has "
            f"values from {mask.min():.4g} to {mask.max():.4g}."
        )
    if 1 < mask.ndim < tensor.ndim and mask.shape == tensor.shape[: mask.ndim]:
        # It may broadcast as well, where dimensions happen to be equal, and hold other values than were meant.
        raise BoundaryValueError(
            f"{name} of shape {tuple(mask.shape)} has the first dimensions of {of} of shape {tuple(tensor.shape)}, but "
            f"broadcasting begins with the last ones. Add those that are missing: "
            f"mask[..., {', '.join(['None'] * (tensor.ndim - mask.ndim))}]."
        )
    try:
        return movable.broadcast_to(tensor.shape).contiguous()
    except RuntimeError:
        several = " Where there are several inputs, give a tuple: torch.zeros(1) holds one, None lets it move."
        raise BoundaryValueError(
            f"{name} of shape {tuple(mask.shape)} does not broadcast to {of} of shape {tuple(tensor.shape)}. A mask of "
            "tokens (N, L) for their embeddings (N, L, E) has shape (N, L, 1): mask[..., None]."
            f"{several if n_inputs > 1 else ''}"
        ) from None


def box_within(box: Box, inputs: tuple[Tensor, ...], movable: tuple[Tensor, ...] | None) -> Box:
    """The box, ``(N, D)`` and as wide as nothing in the coordinates of the inputs that may not move."""
    if movable is None:
        return box
    x = pack(tuple(tensor.detach() for tensor in inputs))
    free = torch.cat([part.flatten(1).to(x.device) for part in movable], dim=1)
    return Box(torch.where(free, box.lower, x), torch.where(free, box.upper, x))


class MaskedModel:
    """A model of the values that may move: the others are those of the inputs, whatever points it is asked about.

    Masks and inputs are the last arguments, so that they follow their examples.
    """

    def __init__(self, forward_func: Callable[..., Any], n_inputs: int) -> None:
        self._forward_func = forward_func
        self.config = config_of(forward_func)
        self._n_inputs = n_inputs

    def __call__(self, *arguments: Any) -> Any:
        n = self._n_inputs
        held = zip(arguments[-2 * n : -n], arguments[:n], arguments[-n:], strict=True)
        points = (torch.where(movable, point, x) for movable, point, x in held)
        return self._forward_func(*points, *arguments[n : -2 * n])
