"""Copies of models that share their tensors, and whatever else cannot be copied."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["copy_model"]


def copy_model(model: nn.Module, share_tensors: bool = True) -> nn.Module:
    """A copy of the modules, with the very parameters and buffers unless ``share_tensors`` is false.

    What cannot be copied, such as a lock, an open file, a generator or a process group, is shared with the model.
    """
    memo: dict[int, Any] = {}
    if share_tensors:
        memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # deepcopy refuses these, such as stored activations
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception:  # an attribute may raise anything
        for module in model.modules():
            for name, value in vars(module).items():
                if name not in ("_modules", "_parameters", "_buffers"):
                    _share_what_cannot_be_copied(value, memo, {id(each) for each in model.modules()})
        return copy.deepcopy(model, memo)


def _share_what_cannot_be_copied(value: Any, memo: dict[int, Any], seen: set[int]) -> None:
    """Note in the memo of a deep copy the innermost parts of ``value`` that cannot be copied."""
    if id(value) in seen or id(value) in memo:
        return
    seen.add(id(value))
    if _can_be_copied(value, memo):
        return
    for part in _parts_of(value):
        _share_what_cannot_be_copied(part, memo, seen)
    if not _can_be_copied(value, memo):
        memo[id(value)] = value


def _can_be_copied(value: Any, memo: Mapping[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:  # whatever the attribute's own code raises
        return False
    return True


def _parts_of(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    return list(getattr(value, "__dict__", {}).values())
