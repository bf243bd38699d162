"""Examples of a data set as they are read: each by itself, so that one that cannot be read harms no other."""

from __future__ import annotations

import hashlib
import operator
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from captum_boundary._core.random_state import preserve_rng_state, seed_rng
from captum_boundary.datasets._identity import digest_of, hash_of_tensors
from captum_boundary.errors import BoundaryError, BoundaryTypeError, BoundaryValueError

__all__ = ["Example", "ExampleError", "ExampleWarning", "Reader"]
__all__ += ["describe_files", "message_of", "printable", "seed_of"]

_LONGEST_MESSAGE = 1000
_ABOUT_CODE = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)  # and not about an example


class ExampleError(BoundaryError, RuntimeError):
    r"""An example could not be read or explained and ``strict=True`` asked to be told."""


class ExampleWarning(UserWarning):
    r"""Some examples of a data set could not be read or explained: their rows say why."""


@dataclass(frozen=True)
class Example:
    """One example: what its row holds of it, and inputs without a batch dimension; with an error, it has none."""

    index: int
    facts: dict[str, Any]
    inputs: tuple[Tensor, ...] = ()
    as_tuple: bool = False

    def spec(self, n_classes: int) -> dict[str, Any]:
        """What all examples of a data set have in common, if this is one of them."""
        shapes, dtypes = [list(tensor.shape) for tensor in self.inputs], [str(tensor.dtype) for tensor in self.inputs]
        return {"shapes": shapes, "dtypes": dtypes, "as_tuple": self.as_tuple, "n_classes": n_classes}

    def check(self, spec: Mapping[str, Any]) -> None:
        """Raise an error if it cannot share a batch with the others."""
        n_classes, label = spec["n_classes"], self.facts["label"]
        if (own := self.spec(n_classes)) != spec:
            raise BoundaryValueError(
                f"All examples must be alike, but this one has {own}, and the first {spec}. Bring them to one form in "
                "the data set's transform."
            )
        if not all(torch.isfinite(tensor).all() for tensor in self.inputs):
            raise BoundaryValueError("It contains NaN or infinity.")
        if label is not None and not 0 <= label < n_classes:
            raise BoundaryValueError(
                f"Its label is {label}, but the model has classes 0 to {n_classes - 1}. If labels mean something else, "
                "leave them out of the data set."
            )


class Reader(Dataset[Any]):
    """A data set that answers with an :class:`Example`, failed or not; what it draws at random has that one's seed."""

    def __init__(self, dataset: Any, seed: int) -> None:
        if isinstance(dataset, IterableDataset) or not (isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")):
            raise BoundaryTypeError(
                "dataset must be a torch.utils.data.Dataset with __getitem__ and __len__, so that every example keeps "
                f"its place when a run goes on, but it is a {type(dataset).__name__}."
            )
        if len(dataset) == 0:
            raise BoundaryValueError("dataset must hold at least one example, but it is empty.")
        self.dataset, self.seed, self.files = dataset, seed, _files_of(dataset)
        self.spec: dict[str, Any] | None = None  # what examples must be like, once it is known

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        with preserve_rng_state():  # once for a batch: it takes longer than reading a row
            return [self._read(index) for index in indices]

    def readable(self, stop: int) -> Iterator[Example]:
        """The examples before ``stop`` that can be read, as they are asked for."""
        return (example for index in range(stop) if (example := self[index]).inputs)

    def _read(self, index: int) -> Example:
        seed_rng(seed_of(self.seed, index))
        name = self.files[index][1] if self.files else None
        facts: dict[str, Any] = {"index": index, "name": name, "label": None, "digest": None}
        example = Example(index, facts)
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            for kind in _ABOUT_CODE:
                warnings.simplefilter("ignore", kind)
            try:
                inputs, as_tuple, facts["label"] = parse(self.dataset[index])
                read = Example(index, facts, inputs, as_tuple)
                if self.spec is not None:
                    read.check(self.spec)
                content = hash_of_tensors({str(number): tensor for number, tensor in enumerate(inputs)})
                facts["digest"] = digest_of([facts["label"], content])
                example = read
            except Exception as error:
                facts["error"] = message_of(error)
                if not -(2**63) <= (facts["label"] or 0) < 2**63:  # the message has it
                    facts["label"] = None
        notes = dict.fromkeys(printable(str(warning.message)) for warning in noted)
        facts["note"] = " ".join(notes)[:_LONGEST_MESSAGE] or None
        return example


def parse(item: Any) -> tuple[tuple[Tensor, ...], bool, int | None]:
    """Inputs, whether they came as a tuple, and the label, from whatever form a data set has."""
    label = None
    if isinstance(item, list | tuple) and len(item) in (1, 2):
        item, label = (*item, None)[:2]
    inputs = tuple(item) if isinstance(item, list | tuple) else (item,)
    if not inputs or not all(isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in inputs):
        kinds = ", ".join(str(getattr(each, "dtype", type(each).__name__)) for each in inputs)
        raise BoundaryTypeError(
            "An example must be a floating point Tensor, or (Tensor, label), or ((Tensor, ...), label) for several "
            f"inputs, but its inputs are {kinds or 'missing'}. Convert them in the data set's transform."
        )
    return inputs, isinstance(item, list | tuple), None if label is None else operator.index(label)


def describe_files(files: Sequence[tuple[str, str]]) -> dict[str, Any] | None:
    """Digests of the names and sizes, and of the times, of the files of a data set, where it knows them."""
    states = [os.stat(path) if os.path.exists(path) else None for path, _ in files]
    sizes = [(name, state and state.st_size) for (_, name), state in zip(files, states, strict=True)]
    times = digest_of([state and state.st_mtime_ns for state in states])
    return {"count": len(files), "names_and_sizes": digest_of(sizes), "times": times} if files else None


def message_of(error: Exception) -> str:
    """An error in one line that every file can hold."""
    try:
        text = str(error)
    except Exception:
        text = "without a message that can be shown"
    return printable(f"{type(error).__name__}: {text}")[:_LONGEST_MESSAGE]


def printable(text: str) -> str:
    """``text`` without lone surrogates, which names of files and messages may hold and UTF-8 may not."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def seed_of(seed: int, index: int) -> int:
    """The seed of whatever is drawn at random for example ``index`` of a run with ``seed``."""
    return int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:4], "little")


def _files_of(dataset: Any) -> list[tuple[str, str]]:
    """The path of each example's file and its name in the data set, where that has ``samples`` as ``ImageFolder``."""
    if isinstance(dataset, Subset):
        files = _files_of(dataset.dataset)
        return [files[index] for index in dataset.indices] if files else []
    samples = getattr(dataset, "samples", None)
    entries = samples if isinstance(samples, list) and len(samples) == len(dataset) else []
    paths = [sample[0] if isinstance(sample, list | tuple) and sample else sample for sample in entries]
    if not all(isinstance(path, str | Path) for path in paths):
        return []
    prefix = os.path.join(getattr(dataset, "root", None) or "", "")
    return [(str(path), printable(str(path).removeprefix(prefix).replace(os.sep, "/"))) for path in paths]
