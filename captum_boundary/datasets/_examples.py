"""Examples of a data set as they are read: each by itself, so that one that cannot be read harms no other."""

from __future__ import annotations

import hashlib
import operator
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from captum_boundary.datasets._identity import hash_of_tensors
from captum_boundary.errors import BoundaryError, BoundaryTypeError, BoundaryValueError

__all__ = ["Example", "ExampleError", "ExampleSpec", "ExampleWarning", "Reader"]
__all__ += ["check_dataset", "files_of", "message_of", "preserve_rng_state", "printable", "seed_everything"]

_LONGEST_MESSAGE = 1000


class ExampleError(BoundaryError, RuntimeError):
    r"""An example could not be read or explained and ``strict=True`` asked to be told."""


class ExampleWarning(UserWarning):
    r"""Some examples of a data set could not be read or explained: their rows say why."""


@dataclass(frozen=True)
class Example:
    """One example: what its row holds of it, with an ``error`` if it failed, and inputs without a batch dimension."""

    facts: dict[str, Any]
    inputs: tuple[Tensor, ...] = ()
    as_tuple: bool = False

    @property
    def index(self) -> int:
        """Its place in the data set."""
        return int(self.facts["index"])

    @property
    def form(self) -> tuple[Any, ...]:
        """Shapes and dtypes of its inputs, and whether they came as a tuple."""
        return (
            tuple(tuple(each.shape) for each in self.inputs),
            tuple(each.dtype for each in self.inputs),
            self.as_tuple,
        )

    def failed(self, error: Exception) -> Example:
        """The same, failed."""
        return Example({**self.facts, "error": message_of(error)})


class ExampleSpec(NamedTuple):
    """What all examples of a data set have in common."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    as_tuple: bool
    n_classes: int

    def check(self, example: Example) -> None:
        """Raise an error if an example cannot share a batch with the others."""
        if example.form != self[:3]:
            shapes, dtypes, _ = example.form
            raise BoundaryValueError(
                f"All examples must be alike, but this one has shape {_shown(shapes)} and dtype {_shown(dtypes)} where "
                f"the first has {_shown(self.shapes)} and {_shown(self.dtypes)}. Bring them to one form in the data "
                "set's transform."
            )
        if not all(torch.isfinite(tensor).all() for tensor in example.inputs):
            raise BoundaryValueError("It contains NaN or infinity.")
        label = example.facts["label"]
        if label is not None and not 0 <= label < self.n_classes:
            raise BoundaryValueError(
                f"Its label is {label}, but the model has classes 0 to {self.n_classes - 1}. If labels mean "
                "something else, leave them out of the data set."
            )


class Reader(Dataset[Any]):
    """A data set that answers with an :class:`Example`, failed or not, and the same whenever it is asked.

    Whatever the data set draws at random, it draws from seeds of the example. With ``strict``, failures are raised.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, spec: ExampleSpec | None = None, strict: bool = False) -> None:
        self.dataset = dataset
        self.seed = seed
        self.spec = spec
        self.strict = strict

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        with preserve_rng_state():
            return [self._read(index) for index in indices]

    def readable(self, stop: int) -> Iterator[Example]:
        """The examples before ``stop`` that can be read, as they are asked for."""
        return (example for index in range(stop) if "error" not in (example := self[index]).facts)

    def batches(self, batches: Any, num_workers: int) -> Iterator[list[Example]]:
        """The examples of each batch of indices, read by other processes where there are ``num_workers``."""
        generator = torch.Generator().manual_seed(self.seed)  # not the global one
        options: Any = {"batch_sampler": batches, "num_workers": num_workers, "generator": generator}
        return iter(DataLoader(self, collate_fn=list, **options))

    def _read(self, index: int) -> Example:
        seed_everything(self.seed, index)
        facts: dict[str, Any] = {"index": index, "name": _name_of(self.dataset, index), "label": None, "digest": None}
        example = Example(facts)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):  # of code, not of the example
                warnings.simplefilter("ignore", kind)
            try:
                inputs, as_tuple, label = parse(self.dataset[index])
                facts["label"], example = label, Example(facts, inputs, as_tuple)
                if self.spec is not None:
                    self.spec.check(example)
                content = hash_of_tensors({str(number): tensor for number, tensor in enumerate(inputs)})
                facts["digest"] = hashlib.sha256(f"{label} {content}".encode()).hexdigest()[:32]
            except Exception as error:
                if self.strict:
                    raise ExampleError(f"Example {index} could not be read. {message_of(error)}") from error
                if not -(2**63) <= (facts["label"] or 0) < 2**63:  # the message has it
                    facts["label"] = None
                example = example.failed(error)
        notes = dict.fromkeys(printable(str(warning.message)) for warning in said)
        example.facts["note"] = " ".join(notes)[:_LONGEST_MESSAGE] or None
        return example


def check_dataset(dataset: object) -> None:
    """Refuse what has no examples that can be asked for by their place."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise BoundaryTypeError(
            "dataset must be a torch.utils.data.Dataset with __getitem__ and __len__, so that every example keeps its "
            f"place when a run goes on, but it is a {type(dataset).__name__}."
        )
    if len(dataset) == 0:
        raise BoundaryValueError("dataset must hold at least one example, but it is empty.")


def parse(item: Any) -> tuple[tuple[Tensor, ...], bool, int | None]:
    """Inputs, whether they came as a tuple, and the label, from whatever form a data set has."""
    label = None
    if isinstance(item, list | tuple) and len(item) in (1, 2):
        item, label = (*item, None)[:2]
    inputs = tuple(item) if isinstance(item, list | tuple) else (item,)
    if not inputs or not all(isinstance(tensor, Tensor) for tensor in inputs):
        kind = f"({', '.join(type(part).__name__ for part in item)})" if isinstance(item, list | tuple) else None
        raise BoundaryTypeError(
            "An example must be a Tensor, or (Tensor, label), or ((Tensor, ...), label) for several inputs, but it is "
            f"{kind or type(item).__name__}. Convert it in the data set's transform."
        )
    if not all(tensor.is_floating_point() for tensor in inputs):
        raise BoundaryTypeError(
            f"Inputs must be floating point, but their dtype is {_shown(tuple(t.dtype for t in inputs))}. Convert them "
            "in the data set's transform."
        )
    return inputs, isinstance(item, list | tuple), None if label is None else operator.index(label)


def files_of(dataset: Any) -> dict[str, Any] | None:
    """Digests of the names and sizes, and of the times, of the files of a data set with ``samples``."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, list) or not samples or _path_of(samples[0]) is None:
        return None
    names, times = hashlib.sha256(), hashlib.sha256()
    root = getattr(dataset, "root", None)
    for sample in samples:
        path = str(_path_of(sample))
        state = os.stat(path) if os.path.exists(path) else None
        size, time = (None, None) if state is None else (state.st_size, state.st_mtime_ns)
        names.update(f"{_relative(path, root)!r} {size}\n".encode())
        times.update(f"{time}\n".encode())
    return {"count": len(samples), "names_and_sizes": names.hexdigest()[:32], "times": times.hexdigest()[:32]}


def message_of(error: Exception) -> str:
    """An error in one line that every file can hold."""
    return printable(f"{type(error).__name__}: {error}")[:_LONGEST_MESSAGE]


def printable(text: str) -> str:
    """``text`` without lone surrogates, which names of files and messages may hold and UTF-8 may not."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def preserve_rng_state(
    device: torch.device | None = None, generators: Sequence[torch.Generator] = ()
) -> Iterator[None]:
    """Leave the random states of Python, NumPy, PyTorch and ``generators`` as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002, what others draw from
    states = [generator.get_state() for generator in generators]
    try:
        with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def seed_everything(
    seed: int, index: int, device: torch.device | None = None, generators: Sequence[torch.Generator] = ()
) -> None:
    """Seed all that draws random numbers for example ``index`` of a run with ``seed``."""
    number = int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:4], "little")
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002
    torch.default_generator.manual_seed(number)
    if device is not None and device.type == "cuda":
        torch.cuda.manual_seed(number)
    for generator in generators:
        generator.manual_seed(number)


def _name_of(dataset: Any, index: int) -> str | None:
    """The file of an example, where the data set knows it, as torchvision's ``ImageFolder`` does."""
    while isinstance(dataset, Subset):
        index, dataset = dataset.indices[index], dataset.dataset
    samples = getattr(dataset, "samples", None)
    path = _path_of(samples[index]) if isinstance(samples, list) and index < len(samples) else None
    return None if path is None else printable(_relative(path, getattr(dataset, "root", None)))


def _path_of(sample: Any) -> str | None:
    path = sample[0] if isinstance(sample, list | tuple) and sample else sample
    return os.fspath(path) if isinstance(path, str | Path) else None


def _relative(path: str, root: Any) -> str:
    if root is None or not Path(path).is_relative_to(root):
        return path
    return Path(path).relative_to(root).as_posix()


def _shown(values: tuple[object, ...]) -> str:
    return str(values[0] if len(values) == 1 else values)
