"""Where tensors come from: from what the model computes, or from its further arguments alone, as masks do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Origins"]

# Of whose arguments, other than the first, only shape, dtype and device are read.
_CASTS = frozenset({"expand_as", "reshape_as", "to", "type_as", "view_as"})


class Origins(TorchFunctionMode):
    """The numbers that inputs or parameters have a part in, while operations are watched."""

    counts_parameters = True

    def __init__(self) -> None:
        super().__init__()
        self._computed = WeakTensorKeyDictionary()

    def add(self, values: Any) -> None:
        """Take tensors of numbers for inputs, or for computed from them."""
        for leaf in tree_flatten(values)[0]:
            if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
                self._computed[leaf] = None

    def __contains__(self, value: object) -> bool:
        is_parameter = self.counts_parameters and isinstance(value, nn.Parameter)
        return is_parameter or (isinstance(value, Tensor) and value in self._computed)

    def combined(self, name: str, is_computed: list[bool]) -> None:
        """What else to do with an operation, by its name and which of its operands are computed."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        is_like = name.endswith("_like") or name.startswith("new_")
        operands = () if is_like else args[:1] if name in _CASTS else (args, kwargs)
        is_computed = [leaf in self for leaf in tree_flatten(operands)[0]]
        result = func(*args, **(kwargs or {}))
        if any(is_computed):
            self.combined(name, is_computed)
            self.add(args[0] if name == "__setitem__" else result)
        return result
