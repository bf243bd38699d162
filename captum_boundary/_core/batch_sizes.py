"""How many points pass through a model at once: where the user leaves it open, as many as fit in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["copies_at_once", "points_at_once", "saved_bytes", "slices"]

# Values of all points together that fit whatever the model is, so that nothing is measured.
_SMALL = 2**18
# Memory for what a forward pass keeps for the backward pass: of a CPU, of an accelerator that does not tell how much it
# has, and the share of what a CUDA device has free.
_CPU_BYTES = 2**28
_ACCELERATOR_BYTES = 2**31
_FREE_SHARE = 0.5


def points_at_once(n_points: int, inputs: tuple[Tensor, ...], model: object, forward_pass: Callable[[], object]) -> int:
    """Points, of ``n_points``, that pass through a model together and back: at least one.

    All of them if they hold few values. Otherwise a forward pass of the model, that of ``inputs``, tells how much
    memory it keeps for the backward pass: as many points as keep 256 MiB on a CPU, half of what is free on a CUDA
    device, and 2 GiB on any other device.
    """
    values = sum(tensor[0].numel() for tensor in inputs)
    if n_points * values <= _SMALL:
        return n_points
    saved_by_a_point = max(1, saved_bytes(model, forward_pass) // len(inputs[0]))
    return max(1, min(n_points, _available_bytes(inputs[0].device) // saved_by_a_point))


def copies_at_once(n_points: int, n_examples: int, n_copies: int) -> tuple[int, int]:
    """Examples, and copies of each, of which at most ``n_points`` pass through a model at once.

    The first pass never has as many rows as there are examples, unless it has each of them once: a function that holds
    tensors of its examples, in their order, would take them for these, and fails on any other number.
    """
    copies = min(n_points, n_copies)
    examples = n_points // copies
    if copies == 1 or examples * copies != n_examples:
        return examples, copies
    return (examples - 1, copies) if examples > 1 else (1, copies - 1)


def slices(total: int, size: int) -> list[slice]:
    """Consecutive ranges of at most ``size`` of ``total`` entries."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def saved_bytes(model: object, forward_pass: Callable[[], object]) -> int:
    """What a forward pass keeps for the backward pass, apart from parameters and buffers of the model."""
    held = (*model.parameters(), *model.buffers()) if isinstance(model, nn.Module) else ()
    known = {tensor.untyped_storage()._cdata for tensor in held}
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        storage = tensor.untyped_storage()
        if not (base.is_leaf and base.requires_grad) and storage._cdata not in known:  # no parameter of a function
            sizes[storage._cdata] = storage.nbytes()
        return tensor.detach()  # an output that its own graph held would never be freed

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = forward_pass()  # kept until the end, so that no storage takes the place of another one
    del output
    return sum(sizes.values())


def _available_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return _CPU_BYTES
    if device.type != "cuda":
        return _ACCELERATOR_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(_FREE_SHARE * (free + cached))
