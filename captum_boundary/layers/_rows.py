"""What belongs to each example in the inputs, outputs and layers of a model, whatever structure it has there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["Activation", "Constant", "Row", "StandIn", "Tree", "tree_of"]


@dataclass(frozen=True)
class Constant:
    """A value that is the same for all examples."""

    value: Any

    def fill(self, rows: tuple[Tensor, ...], n_examples: int) -> Any:
        return _fresh(self.value) if isinstance(self.value, Tensor) else self.value


@dataclass(frozen=True)
class Row:
    """A tensor with one entry for each example, by its index among these; the model has examples in ``dimension``."""

    index: int
    dimension: int

    def fill(self, rows: tuple[Tensor, ...], n_examples: int) -> Tensor:
        return _fresh(rows[self.index]).movedim(0, self.dimension)


@dataclass(frozen=True)
class Activation(Row):
    """As :class:`Row`, a tensor of the layer that is to be moved and differentiated."""

    def fill(self, rows: tuple[Tensor, ...], n_examples: int) -> Tensor:
        return rows[self.index].movedim(0, self.dimension).clone()  # which the model may change in-place


@dataclass(frozen=True)
class StandIn:
    """The form of a tensor whose values nothing reads."""

    like: Tensor  # a number of its dtype, on its device
    shape: tuple[int, ...]
    dimension: int

    def fill(self, rows: tuple[Tensor, ...], n_examples: int) -> Tensor:
        shape = list(self.shape)
        shape[self.dimension] = n_examples
        return _fresh(self.like).expand(shape)


Leaf = Constant | Row | StandIn


def _fresh(tensor: Tensor) -> Tensor:
    """A tensor that the model may change in-place, and that hooks for gradients can be set on, as Captum does."""
    source = tensor.detach()
    if source.is_floating_point() and torch.is_grad_enabled():
        source.requires_grad_()
    return source.clone()


@dataclass(frozen=True)
class Tree:
    """Nested values, each of which is filled in."""

    leaves: tuple[Leaf, ...]
    spec: TreeSpec

    def fill(self, rows: tuple[Tensor, ...], n_examples: int) -> Any:
        return tree_unflatten([leaf.fill(rows, n_examples) for leaf in self.leaves], self.spec)

    def replaced(self, replace: Callable[[Leaf], Leaf]) -> Tree:
        """The tree with other leaves."""
        return Tree(tuple(replace(leaf) for leaf in self.leaves), self.spec)


def _examples_dimension(full: Any, few: Any, n_full: int, n_few: int) -> int | None:
    """The dimension of the examples, from the same value for ``n_full`` and for ``n_few`` of them.

    It is -1 where the value does not depend on them, and None where it does in some other way.
    """
    if not isinstance(full, Tensor) or not isinstance(few, Tensor):
        return -1 if _is_same(full, few) else None
    if full.shape == few.shape:
        return -1 if _is_close(full, few) else None
    if full.ndim != few.ndim:
        return None
    different = [d for d, sizes in enumerate(zip(full.shape, few.shape, strict=True)) if sizes[0] != sizes[1]]
    sizes = {(full.shape[d], few.shape[d]) for d in different}
    return different[0] if len(different) == 1 and sizes == {(n_full, n_few)} else None


def tree_of(full: Any, few: Any, n_full: int, n_few: int, rows: list[Tensor]) -> Tree | None:
    """The leaves of a nested value, whose tensors with an entry for each example are added to ``rows``.

    None where some value depends on the examples in another way than having one entry for each.
    """
    values, spec = tree_flatten(full)
    few_values, few_spec = tree_flatten(few)
    if spec != few_spec:
        return None
    dimensions = [
        _examples_dimension(value, few_value, n_full, n_few)
        for value, few_value in zip(values, few_values, strict=True)
    ]
    if None in dimensions:
        return None
    leaves: list[Leaf] = []
    for value, dimension in zip(values, dimensions, strict=True):
        if dimension is None or dimension < 0:
            leaves.append(Constant(value))
        else:
            leaves.append(Row(len(rows), dimension))
            rows.append(value.movedim(dimension, 0))
    return Tree(tuple(leaves), spec)


def _is_close(one: Tensor, other: Tensor) -> bool:
    if one.is_floating_point() and one.dtype == other.dtype:
        return torch.allclose(one, other, equal_nan=True)
    return torch.equal(one, other)


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # whatever the comparison of two objects of the model may raise
        return False
