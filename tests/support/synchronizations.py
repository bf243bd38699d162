"""How often an accelerator would have to be waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["synchronizations"]

_WAITING = {
    "_local_scalar_dense",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
}


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        has_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.count += name in _WAITING or has_mask
        return func(*args, **(kwargs or {}))


def synchronizations(call: Callable[[], object]) -> int:
    """Operations of the call that need to know the values of tensors, or how many there are."""
    with _Counter() as counter:
        call()
    return counter.count
