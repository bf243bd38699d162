"""Explanations read back from their folder, one at a time or as a table, and shards brought together in one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset

from captum_boundary.datasets._store import Explanation, FolderError, Store, checked_folder, claimed, read_rows
from captum_boundary.errors import BoundaryValueError

__all__ = ["Explanation", "Explanations", "load_explanations", "merge_explanations", "told"]


class Explanations(Dataset[Explanation]):
    r"""A folder of explanations as a data set whose examples have the same places as those they explain.

    Nothing is held in memory but one batch of rows.

    Args:

        out (str or PathLike): Folder that :func:`explain_dataset` has written.

    Examples::

        >>> import tempfile
        >>> import torch
        >>> from captum.attr import Saliency
        >>> from captum_boundary.datasets import explain_dataset
        >>> out = tempfile.mkdtemp()
        >>> explanations = explain_dataset(Saliency(torch.nn.Linear(4, 3)), torch.randn(10, 4), out, batch_size=4)
        >>> explanations.is_complete, explanations[-1].index, explanations.table(["index", "prediction"]).shape
        (True, 9, (10, 2))
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self.store = Store(checked_folder(out))
        self.path, self.manifest = self.store.path, self.store.manifest
        self._last: tuple[int, list[dict[str, Any]]] = (-1, [])

    def __len__(self) -> int:
        """Number of examples of the data set, explained or not yet."""
        return self.store.n_examples

    def __getitem__(self, index: int) -> Explanation:
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"There are {len(self)} explanations, but number {index} was asked for.")
        batch = place // self.store.batch_size
        if self._last[0] != batch:  # rows of the last batch that was asked for are at hand
            files, examples = self.store.rows([batch]), self.store.examples(batch)
            if not files[0].exists():
                raise FolderError(
                    f"Examples {examples[0]} to {examples[-1]} have not been explained yet: run explain_dataset again "
                    "to go on. indices() lists those that have."
                )
            self._last = (batch, read_rows(files).to_pylist())
        row = self._last[1][place % self.store.batch_size]
        return Explanation(**row, **self.store.read_tensors(batch, place))

    @property
    def is_complete(self) -> bool:
        r"""Whether all examples have been explained."""
        return self.store.table.exists()

    @property
    def class_names(self) -> list[str] | None:
        r"""Names of the model's classes, if they are known."""
        names: list[str] | None = self.store.data.get("class_names")
        return names

    def distance_text(self, distance: float | None = None) -> str:
        r"""A distance with its norm and units, such as ``"l2 distance 0.0055 in pixels of [0, 1]"``."""
        norm, units = self.manifest.get("norm"), self.store.data.get("units")
        number = "" if distance is None else f" {distance:.4g}"
        return f"{'' if norm is None else f'l{norm} '}distance{number} in {units or 'units of the inputs'}"

    def indices(self) -> list[int]:
        r"""Examples that have been explained, in order: all of them once the run is complete."""
        return [index for batch in self.store.written() for index in self.store.examples(batch)]

    def table(self, columns: Sequence[str] | None = None, filter: Any = None) -> pa.Table:  # noqa: A002, Arrow's name
        r"""The rows as an Arrow table, in the order of the data set. ``.to_pandas()`` makes a data frame of it.

        Args:

            columns (Sequence[str], optional): Columns to read. Default: None, all of them.
            filter (pyarrow.compute.Expression, optional): Rows to read, such as
                ``pyarrow.compute.field("distance") < 1``. Default: None, all of them.

        Returns:

            - **table** (*pyarrow.Table*): One row for each example that has been explained.
        """
        files = [self.store.table] if self.is_complete else self.store.rows(self.store.written())
        return read_rows(files, columns, filter)


def told(explanations: Explanations, column: str) -> str:
    """How many rows have an ``"error"`` or a ``"note"``, and the first of them; empty where none has."""
    rows = explanations.table(["index", column], pc.field(column).is_valid())
    if rows.num_rows == 0:
        return ""
    first = rows.slice(0, 1).to_pylist()[0]
    return (
        f"{rows.num_rows} of {len(explanations)} examples have {'an error' if column == 'error' else 'a note'} in "
        f"their row, the first of them example {first['index']}: {first[column]}"
    )


def load_explanations(out: str | os.PathLike[str]) -> Explanations:
    r"""Read explanations back from their folder, also while a run is still writing to it.

    Args:

        out (str or PathLike): Folder that :func:`explain_dataset` has written.

    Returns:

        - **explanations** (*Explanations*): A data set with one :class:`Explanation` for each example, and a table of
          all numbers.

    Raises:

        FolderError: If there is no such folder, or it holds no explanations.

    Examples::

        >>> import tempfile
        >>> import torch
        >>> from captum_boundary import BoundarySaliency
        >>> from captum_boundary.datasets import explain_dataset, load_explanations
        >>> out = tempfile.mkdtemp()
        >>> model = torch.nn.Linear(4, 3)
        >>> _ = explain_dataset(BoundarySaliency(model), list(torch.randn(6, 4)), out, batch_size=4)
        >>> explanations = load_explanations(out)
        >>> explanations[5].found, explanations.table(["distance"]).num_rows
        (True, 6)
    """
    return Explanations(out)


def merge_explanations(parts: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Explanations:
    r"""Copy the explanations of several folders into one, and put their table together once nothing is missing.

    Each folder holds a shard of the same run, as ``explain_dataset(..., shard=(i, n))`` writes it. What ``out`` holds
    already is kept. Processes that write to the same folder need no merging: the last of them does it.

    Args:

        parts (Iterable[str or PathLike]): Folders that :func:`explain_dataset` has written.
        out (str or PathLike): Folder for all of them. Made if it does not exist; it may be one of the parts.

    Returns:

        - **explanations** (*Explanations*): What ``out`` holds now. ``is_complete`` says whether that is everything.

    Raises:

        BoundaryValueError: If there are no parts.
        FolderError: If a part holds no explanations, if they are not of the same run, and if ``out`` is in use or
            holds something else.

    Examples::

        >>> import tempfile
        >>> import torch
        >>> from captum.attr import Saliency
        >>> from captum_boundary.datasets import explain_dataset, merge_explanations
        >>> saliency, rows = Saliency(torch.nn.Linear(4, 3)), list(torch.randn(10, 4))
        >>> parts = [tempfile.mkdtemp() for _ in range(2)]
        >>> for index, part in enumerate(parts):
        ...     _ = explain_dataset(saliency, rows, part, batch_size=4, shard=(index, 2))
        >>> merge_explanations(parts, tempfile.mkdtemp()).is_complete
        True
    """
    stores, path = [Store(checked_folder(part)) for part in parts], checked_folder(out)
    if not stores:
        raise BoundaryValueError("parts must hold at least one folder of explanations, but it is empty.")
    for store in stores[1:]:
        store.check_same(stores[0].manifest)
    with claimed(path, stores[0].manifest, "merge") as merged:
        for part in stores:
            for batch in part.written():
                if part.is_done(batch) and not merged.is_done(batch):
                    merged.write(batch, *(file.read_bytes() for file in part.files(batch)))
    return Explanations(path)
