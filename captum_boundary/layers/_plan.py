"""How to evaluate a model from a layer on: what its modules before the layer returned, and for which examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.layers._recording import Call, Pass, names_of
from captum_boundary.layers._rows import Activation, Leaf, Row, StandIn, Tree, tree_of

__all__ = ["Plan", "plan_of"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a model is given and what is filled in while it is evaluated from a layer on.

    Tensors with an entry for each example are not part of it: activations first, they are the rows that fill it.
    """

    arguments: Tree  # inputs and further arguments of the model
    # Modules that are called before the layer, in their order, and what they return. Those with None are evaluated,
    # since what they return cannot be divided among the examples.
    calls: tuple[tuple[nn.Module, Tree | None], ...]
    # What the layers return, a tuple with an entry for each; if `at_input`, the arguments of the one layer.
    layer: Tree
    at_input: bool  # whether the layer itself is evaluated
    n_activations: int  # tensors of the layer that are moved
    n_rows: int  # tensors with an entry for each example, activations included

    @property
    def rows_of_layers(self) -> list[set[int]]:
        """Which activations are of which layer."""
        parts = tree_unflatten(self.layer.leaves, self.layer.spec)
        return [{leaf.index for leaf in tree_flatten(part)[0] if isinstance(leaf, Activation)} for part in parts]

    def __deepcopy__(self, memo: object) -> Plan:
        return self  # of the very modules of the model; sensitivity_max copies all arguments

    def reduced(self, read: set[int], returned: set[int], rows: tuple[Tensor, ...]) -> tuple[Plan, tuple[Tensor, ...]]:
        """The plan and its rows, where only activations that are ``read`` are moved.

        Rows that are neither read nor ``returned`` get stand-ins, which take no memory.
        """
        moved = [row for row in range(self.n_activations) if row in read] or list(range(self.n_activations))
        kept = moved + [row for row in range(self.n_rows) if row in read | returned and row not in moved]
        number = {row: index for index, row in enumerate(kept)}

        def slimmed(leaf: Leaf) -> Leaf:
            if not isinstance(leaf, Row):
                return leaf
            if leaf.index in number:
                kind = Activation if isinstance(leaf, Activation) and leaf.index in moved else Row
                return kind(number[leaf.index], leaf.dimension)
            row = rows[leaf.index].movedim(0, leaf.dimension)
            return StandIn(row.new_zeros(()), tuple(row.shape), leaf.dimension)

        plan = replace(
            self,
            arguments=self.arguments.replaced(slimmed),
            calls=tuple((module, tree and tree.replaced(slimmed)) for module, tree in self.calls),
            layer=self.layer.replaced(slimmed),
            n_activations=len(moved),
            n_rows=len(kept),
        )
        return plan, tuple(rows[row] for row in kept)


def plan_of(
    full: Pass,
    few: Pass,
    arguments: tuple[tuple[Any, ...], tuple[Any, ...]],
    sizes: tuple[int, int],
    layers: tuple[nn.Module, ...],
    at_input: bool,
) -> tuple[Plan, tuple[Tensor, ...]]:
    """The plan and its rows, from passes of all examples and of a few, with the ``arguments`` and ``sizes`` of both."""
    name = names_of(layers)
    value, few_value = (
        of.layer_inputs if at_input else tuple(of.layer_outputs[number] for number in range(len(layers)))
        for of in (full, few)
    )
    entries: list[Tensor] = []
    tree = tree_of(value, few_value, *sizes, entries)
    if tree is None:
        raise BoundaryValueError(
            f"The {'input' if at_input else 'output'} of the layer, {name}, cannot be divided among the examples: some "
            "entry depends on them without having one dimension for them (several rows an example, a sum over all, or "
            "an object such as a cache, which models of transformers do without if use_cache=False). Choose a layer "
            "before or after it."
        )
    # Keyword arguments and whatever is not floating point stay as they are.
    n_positional = len(tree_flatten(value[0])[0]) if at_input else len(tree.leaves)
    movable = [
        leaf.index
        for leaf in tree.leaves[:n_positional]
        if isinstance(leaf, Row) and entries[leaf.index].is_floating_point()
    ]
    if at_input:
        computed = [
            leaf.index for leaf, own in zip(tree.leaves, few.is_computed, strict=False) if own and isinstance(leaf, Row)
        ]
        movable = [row for row in movable if row in computed] or movable  # neither masks nor states of zeros
    if not movable:
        raise BoundaryTypeError(_nothing_to_move(name, at_input, entries))
    order = movable + [row for row in range(len(entries)) if row not in movable]
    number = {row: index for index, row in enumerate(order)}

    def sorted_in(leaf: Leaf) -> Leaf:
        if not isinstance(leaf, Row):
            return leaf
        kind = Activation if leaf.index in movable else Row
        return kind(number[leaf.index], leaf.dimension)

    rows = [entries[row] for row in order]
    # Tensors with N entries follow their examples, all else is the very same for all of them.
    arguments_tree = cast(Tree, tree_of(*arguments, *sizes, rows))
    calls = tuple(_skipped(full.before, few.before, sizes, rows))
    return Plan(arguments_tree, calls, tree.replaced(sorted_in), at_input, len(movable), len(rows)), tuple(rows)


def _skipped(
    full: list[Call], few: list[Call], sizes: tuple[int, int], rows: list[Tensor]
) -> Iterator[tuple[nn.Module, Tree | None]]:
    """The outermost calls before the layer that need not be made again, and those that must be, around others."""
    if [call.module for call in full] != [call.module for call in few]:
        raise BoundaryValueError(
            "The model calls other modules for another number of examples, so that it cannot be evaluated from a layer "
            "on. Write its forward without conditions on the size of the batch."
        )
    for call, few_call in zip(full, few, strict=True):
        is_scripted = isinstance(call.module, torch.jit.ScriptModule)
        tree = None if is_scripted else tree_of(call.output, few_call.output, *sizes, rows)
        yield call.module, tree
        if tree is None:
            yield from _skipped(call.calls, few_call.calls, sizes, rows)


def _nothing_to_move(name: str, at_input: bool, entries: list[Tensor]) -> str:
    side = "input" if at_input else "output"
    if entries and not any(entry.is_floating_point() for entry in entries):
        dtypes = ", ".join(sorted({str(entry.dtype) for entry in entries}))
        hint = "Its output may be what you look for." if at_input else "Choose a layer that computes numbers."
        return f"The {side} of the layer, {name}, holds no floating-point tensor to be moved, but {dtypes}. {hint}"
    if at_input:
        return (
            f"The layer, {name}, is given no tensor of the examples by position. Those given by keyword stay as they "
            "are: take the output of a layer instead."
        )
    return (
        f"The output of the layer, {name}, is the same for all examples, so that there is nothing in it to move for "
        "one of them. Choose a layer after it."
    )
