"""How many points pass through a model at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

__all__ = ["batches", "points_at_once", "saved_bytes"]

# Input values that keep a CPU busy and suit its caches. A few points of large inputs are faster than one as well, and
# so they are taken where what is saved for the backward pass allows.
_CPU_VALUES = 2**18
_CPU_POINTS = 10
_CPU_BYTES = 2**29
_ACCELERATOR_BYTES = 2**31


def batches(n_examples: int, size: int) -> list[slice]:
    """Rows of consecutive batches of at most ``size`` examples."""
    return [slice(first, min(first + size, n_examples)) for first in range(0, n_examples, size)]


def points_at_once(forward_pass: Callable[[], object], model: object, x: Tensor) -> int:
    """Points that an attack on inputs ``x`` ``(N, D)`` takes at once, by what the forward pass of one of them saves."""
    on_cpu = x.device.type == "cpu"
    by_values = _CPU_VALUES // x.shape[1] if on_cpu else 0
    if by_values >= _CPU_POINTS:
        return by_values
    saved = saved_bytes(forward_pass, model.parameters() if isinstance(model, nn.Module) else ())
    by_memory = min(_CPU_BYTES // saved, _CPU_POINTS) if on_cpu else _ACCELERATOR_BYTES // saved
    return max(1, by_values, by_memory)


def saved_bytes(forward_pass: Callable[[], object], apart_from: Iterable[Tensor]) -> int:
    """What a forward pass saves for the backward pass, at least 1."""
    saved = 0
    known = {tensor.data_ptr() for tensor in apart_from}

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.nbytes if tensor.data_ptr() not in known else 0
        return tensor.detach()  # an output that its own graph held would never be freed

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        forward_pass()
    return max(saved, 1)
