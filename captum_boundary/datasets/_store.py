"""A folder of explanations: which file holds what, and how files come into it, whole or not at all."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from captum_boundary.errors import BoundaryError

__all__ = [
    "SCHEMA",
    "FolderError",
    "Store",
    "checked_folder",
    "locked",
    "rows_file",
    "tensors_file",
    "write_atomically",
]

_COLUMNS = {
    "index": pa.int64(),
    **{"name": pa.string(), "label": pa.int64(), "prediction": pa.int64(), "target": pa.int64()},
    **{"adversarial": pa.int64(), "distance": pa.float64(), "margin": pa.float64(), "found": pa.bool_()},
    **{"evaluations": pa.int64(), "completeness_gap": pa.float64()},
    **{"note": pa.string(), "error": pa.string(), "digest": pa.string()},
}
SCHEMA = pa.schema([pa.field(name, kind, nullable=name != "index") for name, kind in _COLUMNS.items()])
_PER_FOLDER = 1000
_N_JOINED = 100  # batches whose rows are held at once when the table is put together
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows knows no quota
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


class FolderError(BoundaryError, RuntimeError):
    r"""A folder of explanations cannot be used: it is another run's, in use, incomplete, or on a full disk."""


class Store:
    """The files of a run, two for each batch, named by the batch's first example."""

    def __init__(self, path: Path, n_examples: int, batch_size: int) -> None:
        self.path = path
        self.n_examples = n_examples
        self.batch_size = batch_size
        self.n_batches = -(-n_examples // batch_size)
        self.table = path / "table.parquet"

    def examples(self, batch: int) -> range:
        """Indices of the examples of a batch."""
        return range(batch * self.batch_size, min((batch + 1) * self.batch_size, self.n_examples))

    def rows(self, batch: int) -> Path:
        """The Parquet file of a batch, written last: a batch with it is done."""
        return self._file("rows", batch, "parquet")

    def tensors(self, batch: int) -> Path:
        """The safetensors file of a batch."""
        return self._file("tensors", batch, "safetensors")

    def written(self) -> list[int]:
        """Batches with rows, in order, without a look into their files."""
        folders = sorted((self.path / "rows").glob("[0-9]*"))
        names = (entry.name for folder in folders for entry in os.scandir(folder))
        stems = [name[: -len(".parquet")] for name in names if name.endswith(".parquet") and not name.startswith(".")]
        return sorted(int(stem) // self.batch_size for stem in stems if stem.isdigit())

    def is_done(self, batch: int) -> bool:
        """Whether both files of a batch can be read. What a full disk or a broken copy left is as good as missing."""
        try:
            with self.rows(batch).open("rb") as file:
                n_rows = pq.read_metadata(file).num_rows
            with safe_open(self.tensors(batch), framework="pt"):
                return bool(n_rows == len(self.examples(batch)))
        except (pa.ArrowException, SafetensorError, OSError):
            return False

    def write(self, batch: int, rows: bytes, tensors: bytes, writer: str) -> None:
        """Write the files of a batch."""
        write_atomically(self.tensors(batch), lambda file: file.write(tensors), writer)
        write_atomically(self.rows(batch), lambda file: file.write(rows), writer)

    def finish(self, writer: str) -> bool:
        """Put the table of all rows together if all batches are done, and remove what killed processes had begun."""
        if len(self.written()) < self.n_batches or not all(map(self.is_done, range(self.n_batches))):
            return False
        if not self._has_whole_table():
            write_atomically(self.table, self._join_rows, writer)
        for kind in ("rows", "tensors"):
            for path in (self.path / kind).rglob(".*.tmp"):
                path.unlink(missing_ok=True)
        return True

    def digests(self, batch: int) -> dict[int, str | None]:
        """The digests of a batch's examples as they were when they were explained."""
        table = read_parquet(self.rows(batch), ["index", "digest"])
        return dict(zip(*(table.column(name).to_pylist() for name in ("index", "digest")), strict=True))

    def read_table(self, columns: Sequence[str] | None, filter: Any) -> pa.Table:  # noqa: A002, Arrow's name
        """The rows that there are, in the order of the data set."""
        files = [self.table] if self.table.exists() else [self.rows(batch) for batch in self.written()]
        if not files:
            return SCHEMA.empty_table().select(list(columns or SCHEMA.names))
        return pa.concat_tables(read_parquet(file, columns, filter) for file in files)

    def read_tensors(self, batch: int, index: int) -> dict[str, Tensor]:
        """The tensors of one example, without the rest of the file. Empty if it was not explained."""
        path = self.tensors(batch)
        try:
            with safe_open(path, framework="pt") as file:
                place = (file.get_tensor("index") == index).nonzero().flatten().tolist()
                names = [name for name in file.keys() if name != "index"]  # noqa: SIM118, a file is no mapping
                rows = [slice(row, row + 1) for row in place[:1]]
                stored = {name: file.get_slice(name)[row][0] for name in names for row in rows}
        except (SafetensorError, OSError) as error:
            raise FolderError(f"{path} cannot be read: {error}. The same run, started again, redoes it.") from error
        scales = {name: stored.pop(name) for name in list(stored) if name.endswith(".scale")}
        return {
            name: tensor.float() * scales[f"{name}.scale"] if f"{name}.scale" in scales else tensor
            for name, tensor in stored.items()
        }

    def _has_whole_table(self) -> bool:
        try:
            with self.table.open("rb") as file:
                return bool(pq.read_metadata(file).num_rows == self.n_examples)
        except (pa.ArrowException, OSError):
            return False

    def _join_rows(self, file: IO[bytes]) -> None:
        with pq.ParquetWriter(file, SCHEMA, compression="zstd") as joined:
            for start in range(0, self.n_batches, _N_JOINED):
                batches = range(start, min(start + _N_JOINED, self.n_batches))
                joined.write_table(pa.concat_tables(read_parquet(self.rows(batch)) for batch in batches))

    def _file(self, kind: str, batch: int, suffix: str) -> Path:
        return self.path / kind / f"{batch // _PER_FOLDER:04d}" / f"{batch * self.batch_size:09d}.{suffix}"


def rows_file(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A Parquet file with ``rows`` in the order of the data set; what a row does not have is null."""
    ordered = sorted(rows, key=lambda row: row["index"])
    sink = pa.BufferOutputStream()
    columns = {name: [row.get(name) for row in ordered] for name in SCHEMA.names}
    pq.write_table(pa.table(columns, SCHEMA), sink, compression="zstd")
    return bytes(sink.getvalue())


def tensors_file(index: Sequence[int], tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> bytes:
    """A safetensors file: ``index`` of the examples that were explained, and their tensors in this order."""
    stored = {"index": torch.tensor(index, dtype=torch.int64)}
    for kind, parts in tensors.items():
        for number, tensor in enumerate(parts):
            name = kind if len(parts) == 1 else f"{kind}.{number}"
            if kind == "attributions" and dtype == torch.float16:
                stored |= _half(name, tensor)
            else:
                stored[name] = (tensor.to(dtype) if kind == "attributions" else tensor).contiguous()
    return bytes(save(stored))


def read_parquet(path: Path, columns: Sequence[str] | None = None, filter: Any = None) -> pa.Table:  # noqa: A002
    """A Parquet file as a table. It is opened here: Arrow would read ``run:1`` as the address of a file system."""
    try:
        with path.open("rb") as file:
            return pq.read_table(file, columns=None if columns is None else list(columns), filters=filter)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, pa.ArrowInvalid) and "No match for FieldRef" in str(error):
            raise  # an unknown column, not a broken file
        raise FolderError(f"{path} cannot be read: {error}. The same run, started again, redoes it.") from error


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], writer: str = "", durable: bool = True) -> None:
    """Let ``write`` fill a file that is there with all of its content, or not at all, whenever the process dies.

    A ``durable`` one outlives a crash of the machine as well. ``writer`` tells apart who may write it at once.
    """
    begun = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with begun.open("wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        begun.replace(path)
        if durable and os.name == "posix":  # elsewhere folders cannot be opened
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except FileNotFoundError:
        if not path.exists():  # else another run was faster, and has removed what this one had begun
            raise
    except OSError as error:
        begun.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise FolderError(
                f"No space is left for {path}. Nothing that was written is lost: make room and start the same run "
                "again. Coarse maps (map_size) and float16 take less of it."
            ) from error
        raise


@contextmanager
def locked(path: Path, timeout: float) -> Iterator[None]:
    """Hold a lock, which the system takes away from a process that is killed, or say that another run has it."""
    lock, owner = FileLock(path, timeout=timeout), path.with_name(f"{path.name}.owner")
    try:
        lock.acquire()
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout:
        name = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise FolderError(
            f"Another run is writing to {path.parent} ({name}). Wait until it is done, stop it, or give this one "
            "another folder."
        ) from None
    except (NotImplementedError, OSError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in _NO_LOCKS:
            raise
    try:  # without locks, two runs write the same bytes, each file at once
        yield
    finally:
        lock.release()


def checked_folder(out: str | os.PathLike[str]) -> Path:
    """The folder that ``out`` names, or an error for a name that not every library can write to."""
    path = Path(out).expanduser()
    try:
        str(path.absolute()).encode("utf-8")
    except UnicodeEncodeError as error:
        raise FolderError(f"The name of the folder must be UTF-8, but it is {str(path)!r}. Choose another.") from error
    return path


def _half(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Half precision with a power of two for each example, so that no attribution is too large or too small for it."""
    largest = tensor.float().reshape(len(tensor), -1).abs().amax(dim=1)
    usable = largest.isfinite() & (largest > 0)
    exponent = torch.frexp(largest).exponent.clamp(max=127)  # 2**128 is no float32
    scale = torch.where(usable, torch.exp2(exponent.float()), 1.0)
    halves = (tensor.float() / scale.view(-1, *[1] * (tensor.ndim - 1))).half()
    return {name: halves.contiguous(), f"{name}.scale": scale}
