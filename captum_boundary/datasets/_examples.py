"""Examples of a data set as they are read: each by itself, so that one that cannot be read harms no other."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from captum_boundary.datasets._describe import hash_of_tensors
from captum_boundary.datasets._seeds import kept_randomness, seed_everything
from captum_boundary.datasets.errors import ExampleError
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["Example", "Failure", "Form", "Reader", "check_dataset", "form_of", "message_of"]


@dataclass(frozen=True)
class Example:
    """One example: its place in the data set, its inputs without a batch dimension, and its class if it has one."""

    index: int
    inputs: tuple[Tensor, ...]
    as_tuple: bool
    label: int | None


@dataclass(frozen=True)
class Failure:
    """An example that could not be read or explained, and why."""

    index: int
    label: int | None
    message: str


class Form(NamedTuple):
    """What all examples of a data set have in common."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    as_tuple: bool
    n_classes: int

    def check(self, example: Example) -> None:
        """Raise an error if an example cannot share a batch with the others."""
        shapes, dtypes = form_of(example.inputs)
        if (shapes, dtypes, example.as_tuple) != (self.shapes, self.dtypes, self.as_tuple):
            raise BoundaryValueError(
                f"All examples must be alike, but this one has shape {_shown(shapes)} and dtype {_shown(dtypes)} where "
                f"the first has {_shown(self.shapes)} and {_shown(self.dtypes)}. Bring them to one form in the data "
                "set's transform."
            )
        if not all(torch.isfinite(tensor).all() for tensor in example.inputs):
            raise BoundaryValueError("It contains NaN or infinity.")
        if example.label is not None and not 0 <= example.label < self.n_classes:
            raise BoundaryValueError(
                f"Its label is {example.label}, but the model has classes 0 to {self.n_classes - 1}. If labels mean "
                "something else, leave them out of the data set."
            )


class Reader(Dataset[Any]):
    """A data set that answers with an :class:`Example` or a :class:`Failure`, the same whenever it is asked.

    Whatever the data set draws at random, it draws from seeds of the example. With ``strict``, failures are raised.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, form: Form | None = None, strict: bool = False) -> None:
        self.dataset = dataset
        self.seed = seed
        self.form = form
        self.strict = strict

    def __getitem__(self, index: int) -> Example | Failure:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example | Failure]:
        with kept_randomness():
            return [self._read(index) for index in indices]

    def readable(self, stop: int) -> Iterator[Example]:
        """The examples before ``stop`` that can be read, as they are asked for."""
        return (example for index in range(stop) if isinstance(example := self[index], Example))

    def digest(self, indices: Sequence[int]) -> str:
        """A digest of a few examples, which tells data sets apart."""
        digest = hashlib.sha256()
        for example in self.__getitems__(indices):
            inputs = example.inputs if isinstance(example, Example) else ()
            content = hash_of_tensors({str(number): tensor for number, tensor in enumerate(inputs)})
            digest.update(f"{example.index} {example.label} {content}".encode())
        return digest.hexdigest()

    def _read(self, index: int) -> Example | Failure:
        seed_everything(self.seed, index)
        label = None
        try:
            inputs, as_tuple, label = parse(self.dataset[index])
            example = Example(index, inputs, as_tuple, label)
            if self.form is not None:
                self.form.check(example)
            return example
        except Exception as error:
            if self.strict:
                raise ExampleError(f"Example {index} could not be read. {message_of(error)}") from error
            return Failure(index, label, message_of(error))


def check_dataset(dataset: object) -> None:
    """Refuse what has no examples that can be asked for by their place."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise BoundaryTypeError(
            "dataset must be a torch.utils.data.Dataset with __getitem__ and __len__, so that every example keeps its "
            f"place when a run goes on, but it is a {type(dataset).__name__}."
        )
    if len(dataset) == 0:
        raise BoundaryValueError("dataset must hold at least one example, but it is empty.")


def message_of(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}"


def parse(item: Any) -> tuple[tuple[Tensor, ...], bool, int | None]:
    """Inputs, whether they came as a tuple, and the label, from whatever form a data set has."""
    label = None
    if isinstance(item, list | tuple) and len(item) in (1, 2):
        item, label = (*item, None)[:2]
    inputs = tuple(item) if isinstance(item, list | tuple) else (item,)
    if not inputs or not all(isinstance(tensor, Tensor) for tensor in inputs):
        raise BoundaryTypeError(
            "An example must be a Tensor, or (Tensor, label), or ((Tensor, ...), label) for several inputs, but it is "
            f"{_kind(item)}. Convert it in the data set's transform."
        )
    if not all(tensor.is_floating_point() for tensor in inputs):
        raise BoundaryTypeError(
            f"Inputs must be floating point, but their dtype is {_shown(tuple(t.dtype for t in inputs))}. Convert them "
            "in the data set's transform."
        )
    return inputs, isinstance(item, list | tuple), None if label is None else operator.index(label)


def form_of(inputs: tuple[Tensor, ...]) -> tuple[tuple[tuple[int, ...], ...], tuple[torch.dtype, ...]]:
    """Shapes and dtypes of an example's inputs."""
    return tuple(tuple(tensor.shape) for tensor in inputs), tuple(tensor.dtype for tensor in inputs)


def _kind(item: object) -> str:
    if isinstance(item, list | tuple):
        return f"({', '.join(type(part).__name__ for part in item)})"
    return type(item).__name__


def _shown(values: tuple[object, ...]) -> str:
    return str(values[0] if len(values) == 1 else values)
