"""Where tensors come from: from what the model computes, or from its further arguments alone, as masks do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

__all__ = ["Origins"]

# Of whose arguments, other than the first, only shape, dtype and device are read.
_CASTS = frozenset({"expand_as", "reshape_as", "to", "type_as", "view_as"})


class Origins(TorchFunctionMode):
    """The numbers that inputs or parameters have a part in, while operations are watched."""

    def __init__(self) -> None:
        super().__init__()
        self._computed: dict[int, Tensor] = {}

    def add(self, value: Any) -> None:
        for leaf in tree_flatten(value)[0]:
            if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
                self._computed[id(leaf)] = leaf  # the tensor too, lest its id be given away

    def __contains__(self, value: object) -> bool:
        return isinstance(value, nn.Parameter) or id(value) in self._computed

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if not name.endswith("_like") and not name.startswith("new_"):
            read = args[:1] if name in _CASTS else (args, kwargs)
            if any(leaf in self for leaf in tree_flatten(read)[0]):
                self.add(args[0] if name == "__setitem__" else result)
        return result
