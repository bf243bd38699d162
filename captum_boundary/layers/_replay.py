"""The model from a layer on: one pass in which nothing before the layer is computed again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from captum_boundary.errors import BoundaryValueError
from captum_boundary.layers._plan import Plan
from captum_boundary.layers._recording import as_written, forward_replaced, names_of
from captum_boundary.layers._rows import Row, Tree

__all__ = ["Readings", "replay"]

# What a tensor may be asked without a look at its values.
_FORM = frozenset({"size", "dim", "ndimension", "numel", "nelement", "__len__", "is_floating_point", "requires_grad_"})


def replay(
    plan: Plan,
    forward_func: Callable[..., Any],
    layers: tuple[nn.Module, ...],
    rows: tuple[Tensor, ...],
    readings: Readings | None = None,
) -> Any:
    """Evaluate the model from the layer on, with ``rows`` of ``n`` examples."""
    n_examples = len(rows[0])
    left: dict[nn.Module, list[Tree | None]] = {}
    for module, tree in plan.calls:
        left.setdefault(module, []).append(tree)
    n_layer_calls = [0] * len(layers)

    def filled(tree: Tree) -> Any:
        value = tree.fill(rows, n_examples)
        if readings is not None:
            readings.watch(tree, value)
        return value

    def or_computed(module: nn.Module) -> Callable[..., Any]:
        trees, forward = left[module], module.forward

        def forward_before_the_layer(*args: Any, **kwargs: Any) -> Any:
            tree = trees.pop(0) if trees else None
            return forward(*args, **kwargs) if tree is None else filled(tree)

        return forward_before_the_layer

    def forward_of_layer(number: int, layer_forward: Callable[..., Any], *_: Any, **__: Any) -> Any:
        n_layer_calls[number] += 1
        if not plan.at_input:
            return filled(plan.layer)[number]
        args, kwargs = filled(plan.layer)
        return layer_forward(*args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(as_written(forward_func))
        for module in left:
            if not isinstance(module, torch.jit.ScriptModule):
                stack.enter_context(forward_replaced(module, or_computed(module)))
        for number, layer in enumerate(layers):
            stack.enter_context(forward_replaced(layer, partial(forward_of_layer, number, layer.forward)))
        output = forward_func(*filled(plan.arguments))
    if any(n != 1 for n in n_layer_calls) or any(tree is not None for trees in left.values() for tree in trees):
        raise BoundaryValueError(
            f"The model took another way to the layer, {names_of(layers)}, than at the inputs. It cannot be "
            "evaluated from a layer on, where its forward has conditions on values or keeps a state."
        )
    return output


class Readings(TorchFunctionMode):
    """Which rows the operations of a pass have read, other than their shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: set[int] = set()
        self._watched: dict[int, tuple[Tensor, int]] = {}

    def watch(self, tree: Tree, value: Any) -> None:
        for leaf, tensor in zip(tree.leaves, tree_flatten(value)[0], strict=True):
            if isinstance(leaf, Row):
                self._watched[id(tensor)] = tensor, leaf.index  # the tensor too, lest its id be given away

    def returned(self, output: Any) -> set[int]:
        """The rows that are part of the output, as they are."""
        leaves = tree_flatten(output)[0]
        return {self._watched[id(leaf)][1] for leaf in leaves if id(leaf) in self._watched}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        asks_form = name in _FORM or (name == "__get__" and not isinstance(result, Tensor))
        if self._watched and not asks_form:
            for leaf in tree_flatten((args, kwargs))[0]:
                if isinstance(leaf, Tensor) and id(leaf) in self._watched:
                    self.rows.add(self._watched[id(leaf)][1])
        return result
