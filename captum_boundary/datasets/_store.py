"""A folder of explanations: whose it is, which file holds what, and how files come into it, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from pyarrow.fs import LocalFileSystem
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from captum_boundary.errors import BoundaryError

__all__ = ["SCHEMA", "Explanation", "FolderError", "Store", "atomic_file", "checked_folder", "claimed", "locked"]
__all__ += ["packed", "read_rows", "stored_tensors"]

_PACKED = {"compression": "zstd"}
_PER_FOLDER = 1000
_N_JOINED = 100  # batches whose rows are held at once when the table is put together
_PATIENCE = 60  # seconds in which another process writes the manifest
_SHOWN = 12  # differences between two runs
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows knows no quota


class FolderError(BoundaryError, RuntimeError):
    r"""A folder of explanations cannot be used: it is another run's, in use, incomplete, or on a full disk."""


@dataclass(frozen=True)
class Explanation:
    r"""What is known of one example. What does not exist, or could not be found, is None.

    Attributes:

        index (int): Index in the data set.
        name (str): File of the example, where the data set knows it.
        label (int): Class that the data set gives.
        prediction (int): Class that the model gives.
        target (int): Class that was explained.
        adversarial (int): Class on the other side of the nearest boundary.
        distance (float): Distance of the boundary point, infinite where none was found.
        margin (float): Score of ``target`` over the best of the other classes, at the example itself.
        found (bool): Whether a boundary point was found.
        evaluations (int): Forward and backward passes that the search spent.
        completeness_gap (float): Convergence delta of the attributions.
        note (str): What the data set warned of when the example was read.
        error (str): Why the example could not be read or explained.
        digest (str): Digest of the example's inputs and label.
        attributions (Tensor or tuple[Tensor, ...]): Attributions, shaped like the example, or a map ``(h, w)`` where
            ``map_size`` was given. NaN where no boundary point was found.
        points (Tensor or tuple[Tensor, ...]): Boundary point, if it was stored.
    """

    index: int
    name: str | None
    label: int | None
    prediction: int | None
    target: int | None
    adversarial: int | None
    distance: float | None
    margin: float | None
    found: bool | None
    evaluations: int | None
    completeness_gap: float | None
    note: str | None
    error: str | None
    digest: str | None
    attributions: Tensor | tuple[Tensor, ...] | None
    points: Tensor | tuple[Tensor, ...] | None


_KINDS = {"int": pa.int64(), "str": pa.string(), "float": pa.float64(), "bool": pa.bool_()}
SCHEMA = pa.schema([(field.name, _KINDS[str(field.type).split()[0]]) for field in fields(Explanation)[:-2]])


class Store:
    """The files of a run: what it depends on, and two for each batch, named by the batch's first example."""

    def __init__(self, path: Path) -> None:
        self.path, self.table, manifest = path, path / "table.parquet", path / "manifest.json"
        if not manifest.is_file():
            raise FolderError(f"There is no folder of explanations {path}: it has no manifest.json.")
        try:
            self.manifest: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
            self.data, settings = self.manifest["data"], self.manifest["settings"]
            self.n_examples, self.batch_size = int(settings["n_examples"]), int(settings["batch_size"])
            self.n_batches = -(-self.n_examples // self.batch_size)
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:
            raise FolderError(f"{manifest} cannot be read: {error!r}.") from error

    def check_same(self, wanted: Mapping[str, Any]) -> None:
        """Refuse results of another run, which differ in more than the times of files."""
        there, here = _flat(self.manifest), _flat(json.loads(json.dumps(wanted)))
        lines = [
            f"  {name}: {json.dumps(there.get(name))[:60]} in {self.path}, {json.dumps(here.get(name))[:60]} now"
            for name in sorted({*there, *here} - {"data.files.times"})
            if there.get(name, _flat) != here.get(name, _flat)
        ]
        if lines:
            title = f"The results in {self.path} are those of another run. What differs:"
            more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            remedy = "Give this run a folder of its own, or the settings of the other."
            raise FolderError("\n".join([title, *lines[:_SHOWN], *more, remedy]))

    def examples(self, batch: int) -> range:
        return range(batch * self.batch_size, min((batch + 1) * self.batch_size, self.n_examples))

    def files(self, batch: int) -> tuple[Path, Path]:
        """The tensors and the rows of a batch. Rows are written last: a batch with them is done."""
        folder, name = f"{batch // _PER_FOLDER:04d}", f"{batch * self.batch_size:09d}"
        return self.path / "tensors" / folder / f"{name}.safetensors", self.path / "rows" / folder / f"{name}.parquet"

    def rows(self, batches: Iterable[int]) -> list[Path]:
        return [self.files(batch)[1] for batch in batches]

    def written(self) -> list[int]:
        """Batches with rows, in order, without a look into their files."""
        stems = (path.stem for path in self.path.glob("rows/*/[0-9]*.parquet"))
        return sorted(int(stem) // self.batch_size for stem in stems if stem.isdigit())

    def is_done(self, batch: int) -> bool:
        """Whether both files of a batch can be read. What a full disk or a broken copy left is as good as missing."""
        tensors, rows = self.files(batch)
        try:
            with safe_open(tensors, framework="pt"):
                return _n_rows(rows) == len(self.examples(batch))
        except (SafetensorError, OSError):
            return False

    def write(self, batch: int, *contents: bytes) -> None:
        """Write the files of a batch: its tensors and its rows, as :func:`packed` has made them."""
        self.table.unlink(missing_ok=True)  # it has rows that are gone
        for path, content in zip(self.files(batch), contents, strict=True):
            with atomic_file(path) as file:
                file.write(content)

    def finish(self) -> None:
        """Put the table of all rows together if all batches are done, and remove what stopped processes have left."""
        if not all(map(self.is_done, range(self.n_batches))):
            return
        if _n_rows(self.table, ["index"]) != self.n_examples:
            files = self.rows(range(self.n_batches))
            with atomic_file(self.table) as file, pq.ParquetWriter(file, SCHEMA, **_PACKED) as joined:
                for first in range(0, self.n_batches, _N_JOINED):
                    joined.write_table(read_rows(files[first : first + _N_JOINED]))
        for path in (self.path / ".stopped", *self.path.rglob(".*.tmp")):
            path.unlink(missing_ok=True)

    def read_tensors(self, batch: int, index: int) -> dict[str, Any]:
        """Attributions and points of one example, in the form it has, without the rest of the file."""
        path, _ = self.files(batch)
        try:
            with safe_open(path, framework="pt") as file:
                rows = (file.get_tensor("index") == index).nonzero().flatten().tolist()  # none, if it was not explained
                names = file.keys()
                stored = {name: file.get_slice(name)[row : row + 1][0] for row in rows for name in names}
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
        found = {}
        for name in ("attributions", "points"):
            keys = [key for key in (name, *(f"{name}.{number}" for number in range(len(stored)))) if key in stored]
            scaled = ((stored[key], stored.get(f"{key}.scale")) for key in keys)
            tensors = tuple(tensor if scale is None else tensor.float() * scale for tensor, scale in scaled)
            found[name] = tensors[0] if keys == [name] else tensors or None
        return found


@contextmanager
def claimed(path: Path, manifest: Mapping[str, Any], shard: str) -> Iterator[Store]:
    """The store of a run, in a new folder or its own, for one process a shard; the last one finishes the run."""
    if path.exists() and not path.is_dir():
        raise FolderError(f"out must be a folder, but {path} is a file.")
    path.mkdir(parents=True, exist_ok=True)
    with locked(path / f".lock-{shard}", timeout=0):
        with locked(path / ".lock", _PATIENCE):
            if not (path / "manifest.json").exists():
                if foreign := sorted(each.name for each in path.iterdir() if not each.name.startswith(".")):
                    raise FolderError(f"{path} holds other files, such as {foreign[0]}. Give a folder of its own.")
                with atomic_file(path / "manifest.json") as file:
                    file.write(json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n")
        store = Store(path)
        store.check_same(manifest)
        yield store
        store.finish()


def packed(rows: Iterable[Mapping[str, Any]], tensors: dict[str, Tensor]) -> tuple[bytes, bytes]:
    """The contents of the files of a batch; what a row does not have is null."""
    with pa.BufferOutputStream() as stream:
        pq.write_table(pa.Table.from_pylist(sorted(rows, key=itemgetter("index")), SCHEMA), stream, **_PACKED)
        return save(tensors), stream.getvalue().to_pybytes()


def stored_tensors(name: str, values: Any, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Tensors with an entry for each example, under the names that files have them by; one name for each input."""
    stored = {}
    parts = values if isinstance(values, tuple) else (values,)
    for number, part in enumerate(parts):
        key, tensor = name if len(parts) == 1 else f"{name}.{number}", part.detach().cpu()
        if dtype == torch.float16:  # with a scale for each example, so that nothing is too large or too small for it
            largest = tensor.float().reshape(len(tensor), -1).abs().amax(dim=1).nan_to_num(0, posinf=0)
            exponent = torch.frexp(largest).exponent.clamp(max=127)  # 2**128 is no float32
            scale = stored[f"{key}.scale"] = torch.exp2(exponent.float())
            tensor = tensor.float() / scale.view(-1, *[1] * (tensor.ndim - 1))
        stored[key] = tensor if dtype is None else tensor.to(dtype)
    return stored


def read_rows(files: Sequence[Path], columns: Sequence[str] | None = None, filter: Any = None) -> pa.Table:  # noqa: A002
    """The rows of Parquet files, in their order."""
    paths = [str(path.absolute()) for path in files]
    try:
        source = pyarrow.dataset.dataset(paths, SCHEMA, "parquet", LocalFileSystem())  # or s3:x would be an address
        return source.to_table(None if columns is None else list(columns), filter)
    except (pa.ArrowInvalid, OSError) as error:
        if "No match for FieldRef" in str(error):
            raise  # an unknown column, not a broken file
        raise _unreadable(next((path for path in files[1:] if not _n_rows(path)), files[0]), error) from error


@contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """A file that is there whole or not at all, whenever the process dies and, if it is ``durable``, the machine."""
    begun = path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.tmp")  # each process has its own
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with begun.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        begun.replace(path)
    except FileNotFoundError:
        if not path.exists():  # else another run was faster, and has removed what this one had begun
            raise
    except OSError as error:
        begun.unlink(missing_ok=True)
        if error.errno not in _FULL:
            raise
        raise FolderError(
            f"No space is left for {path}. Nothing that was written is lost: make room and start the same run again. "
            "Coarse maps (map_size) and float16 take less of it."
        ) from error


@contextmanager
def locked(path: Path, timeout: float) -> Iterator[None]:
    """Hold a lock, which the system takes away from a process that is killed, or say that another run has it."""
    lock, owner = FileLock(path, timeout=timeout), path.with_name(f"{path.name}.owner")
    try:
        held = lock.acquire()
    except Timeout:
        name = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise FolderError(
            f"Another run is writing to {path.parent} ({name}). Wait until it is done, stop it, or give this one "
            "another folder."
        ) from None
    with held:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield


def checked_folder(out: str | os.PathLike[str]) -> Path:
    """The folder that ``out`` names, or an error for a name that not every library can write to."""
    try:
        path = Path(out).expanduser()
        str(path.absolute()).encode("utf-8")
    except (UnicodeEncodeError, TypeError, RuntimeError) as error:
        raise FolderError(f"The name of the folder must be UTF-8, but it is {out!r}. Choose another.") from error
    return path


def _n_rows(path: Path, columns: Sequence[str] | None = None) -> int:
    """Rows that can be read; 0 where there is no such file, or a part of one."""
    try:
        return int(read_rows([path], columns).num_rows)
    except FolderError:
        return 0


def _unreadable(path: Path, error: Exception) -> FolderError:
    return FolderError(f"{path} cannot be read: {error}. The same run, started again, redoes it.")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """The entries of a manifest at any depth, by their place in it."""
    if not isinstance(value, dict) or not value:
        return {name[1:]: value}
    return {place: leaf for key, part in value.items() for place, leaf in _flat(part, f"{name}.{key}").items()}
