"""Modules that answer otherwise in training mode, found however a model is wrapped, and left as they were."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["TrainingMode", "watched_training_mode"]


class TrainingMode:
    """Modules in training mode whose outputs change from one evaluation to the next, and their running statistics."""

    def __init__(self) -> None:
        self.was_found = False
        self._statistics: dict[Tensor, Tensor] = {}

    def look_at(self, module: nn.Module, *_: Any) -> None:
        if not module.training:
            return
        drops = isinstance(module, _DropoutNd) or (isinstance(module, nn.RNNBase) and module.dropout > 0)
        if drops or isinstance(module, _BatchNorm):
            self.was_found = True
        if isinstance(module, _BatchNorm):
            for buffer in module.buffers(recurse=False):
                if buffer not in self._statistics:
                    self._statistics[buffer] = buffer.clone()

    def put_back(self) -> None:
        with torch.no_grad():
            for buffer, value in self._statistics.items():
                buffer.copy_(value)


@contextmanager
def watched_training_mode(forward_func: Callable[..., Any], stacklevel: int = 6) -> Iterator[Callable[[], bool]]:
    """Leave running statistics as they are in the end.

    Yields what is to be called after the first evaluation of ``forward_func``: it warns of such modules, and says
    whether there are any. Modules of a plain function, also of one that a module holds, cannot be listed, only seen at
    work, by a hook until then. The warning names the place ``stacklevel`` calls above, the user's.
    """
    found = TrainingMode()
    modules = list(forward_func.modules()) if isinstance(forward_func, nn.Module) else []
    for module in modules:
        found.look_at(module)
    hook = nn.modules.module.register_module_forward_pre_hook(found.look_at) if len(modules) < 2 else None

    def first_evaluation_is_over() -> bool:
        if hook is not None:
            hook.remove()
        if found.was_found:
            warnings.warn(
                "The model has dropout or batch normalisation in training mode, so its decisions change from one "
                "evaluation to the next. Call model.eval() before searching for its boundary.",
                UserWarning,
                stacklevel=stacklevel,
            )
        return found.was_found

    try:
        yield first_evaluation_is_over
    finally:
        if hook is not None:
            hook.remove()
        found.put_back()
