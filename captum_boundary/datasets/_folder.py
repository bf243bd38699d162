"""A folder of explanations: what lies where, what is there already, and how files come into it, whole or not at all."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from captum_boundary.datasets.errors import FolderError

__all__ = ["Folder", "write_atomically"]

_PER_FOLDER = 1000
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows knows no quota


class Folder:
    """The files of a run, two for each batch, named by the batch's first example."""

    def __init__(self, path: Path, n_examples: int, batch_size: int) -> None:
        self.path = path
        self.n_examples = n_examples
        self.batch_size = batch_size

    @property
    def n_batches(self) -> int:
        """Number of batches of the whole data set."""
        return -(-self.n_examples // self.batch_size)

    def examples(self, batch: int) -> range:
        """Places in the data set of the examples of a batch."""
        return range(batch * self.batch_size, min((batch + 1) * self.batch_size, self.n_examples))

    def rows(self, batch: int) -> Path:
        """The Parquet file of a batch, written last: a batch with it is done."""
        return self._file("rows", batch, "parquet")

    def tensors(self, batch: int) -> Path:
        """The safetensors file of a batch."""
        return self._file("tensors", batch, "safetensors")

    @property
    def table(self) -> Path:
        """All rows in one file, once all batches are done."""
        return self.path / "table.parquet"

    def done(self) -> set[int]:
        """Batches that are done."""
        batches = (int(path.stem) // self.batch_size for path in self._entries("rows", ".parquet"))
        return {batch for batch in batches if self.tensors(batch).exists()}

    def n_done(self) -> int:
        """How many batches are done, without a look at each."""
        return sum(1 for _ in self._entries("rows", ".parquet"))

    def write(self, batch: int, rows: bytes, tensors: bytes) -> None:
        """Write the files of a batch."""
        write_atomically(self.tensors(batch), lambda file: file.write(tensors))
        write_atomically(self.rows(batch), lambda file: file.write(rows))

    def foreign(self) -> Path | None:
        """Something in the folder, if there is anything that cannot be left over from a killed run."""
        return next((path for path in self.path.iterdir() if not path.name.startswith(".")), None)

    def remove_leftovers(self) -> None:
        """Remove what killed processes had begun to write."""
        for path in self.path.rglob(".*.tmp"):
            path.unlink(missing_ok=True)

    def _file(self, kind: str, batch: int, suffix: str) -> Path:
        first = batch * self.batch_size
        return self.path / kind / f"{batch // _PER_FOLDER:04d}" / f"{first:09d}.{suffix}"

    def _entries(self, kind: str, suffix: str) -> Iterator[Path]:
        for folder in (self.path / kind).glob("[0-9]*"):
            yield from (folder / entry.name for entry in os.scandir(folder) if _is_whole(entry.name, suffix))


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], durable: bool = True) -> None:
    """Let ``write`` fill a file that is there with all of its content, or not at all, whenever the process dies.

    A ``durable`` one outlives a crash of the machine as well.
    """
    begun = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with begun.open("wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        begun.replace(path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        begun.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise FolderError(
                f"No space is left for {path}. Nothing that was written is lost: make room and start the same run "
                "again. Coarse maps (map_size) and float16 take less of it."
            ) from error
        raise


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere folders cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_whole(name: str, suffix: str) -> bool:
    return name.endswith(suffix) and not name.startswith(".")
