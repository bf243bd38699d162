"""One run over a data set, as each process of a team does its part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from captum.attr import Attribution
from torch.utils.data import DataLoader, Dataset

from captum_boundary.datasets._batch import BatchExplainer, Explained
from captum_boundary.datasets._careful import CarefulExplainer
from captum_boundary.datasets._coarse import coarse
from captum_boundary.datasets._describe import describe
from captum_boundary.datasets._examples import Example, Failure, Reader
from captum_boundary.datasets._files import SCHEMA, rows_file, tensors_file
from captum_boundary.datasets._folder import Folder, write_atomically
from captum_boundary.datasets._form import class_names_of, find_form
from captum_boundary.datasets._lock import Lock
from captum_boundary.datasets._manifest import as_json, check_same, read_manifest, versions
from captum_boundary.datasets._progress import Progress
from captum_boundary.datasets._team import Team
from captum_boundary.datasets.errors import FolderError

__all__ = ["Run", "Settings"]

# Batches whose rows are held at once when the table is put together.
_N_JOINED = 100


@dataclass(frozen=True)
class Settings:
    """What is asked of a run, beside the explainer and the data."""

    target: int | str | None
    options: dict[str, Any]
    batch_size: int
    dtype: torch.dtype
    map_size: tuple[int, int] | None
    save_points: bool
    seed: int
    n_examples: int
    class_names: Sequence[str] | None
    strict: bool
    resume: bool
    shard: tuple[int, int]
    num_workers: int
    show_progress: bool

    def of_results(self) -> dict[str, Any]:
        """Those on which results depend."""
        names = ("target", "options", "batch_size", "dtype", "map_size", "save_points", "seed", "n_examples")
        return {name: describe(getattr(self, name)) for name in names}


class Run:
    """Explains the batches that a folder lacks."""

    def __init__(
        self, explainer: Attribution, dataset: Dataset[Any], path: Path, device: torch.device, settings: Settings
    ) -> None:
        self.settings = settings
        self.folder = Folder(path, settings.n_examples, settings.batch_size)
        self.explain = BatchExplainer(
            explainer, settings.target, settings.options, device, settings.seed, settings.save_points
        )
        sample = Reader(dataset, settings.seed)
        self.form = find_form(self.explain, sample, settings.n_examples, settings.map_size)
        self.reader = Reader(dataset, settings.seed, self.form, settings.strict)
        self.manifest = {
            "data": {
                "class": describe(type(dataset)),
                "sample": sample.digest(sorted({0, settings.n_examples // 2, settings.n_examples - 1})),
                "class_names": class_names_of(dataset, settings.class_names, self.form),
                "form": None if self.form is None else describe(self.form._asdict()),
            },
            "explainer": describe(explainer),
            "multiplies_by_inputs": _multiplies_by_inputs(explainer),
            "settings": settings.of_results(),
            "device": device.type,
            "versions": versions(),
        }

    def work(self, team: Team) -> None:
        """Do this process's part of what is missing, wait for the others, and put the table together."""
        locks = self._locks()
        try:
            missing, manifest = team.first(lambda: self._open(*locks))
            team.together(lambda: self._join(locks, manifest))
            self._explain_batches(missing[team.rank :: team.size], is_first=team.rank == 0)
            team.together(lambda: None)
            team.first(self._write_table)
        finally:
            for lock in locks:
                lock.release()

    def _locks(self) -> list[Lock]:
        """What a run holds: the folder, alone, or together with other shards, and then its own shard."""
        index, count = self.settings.shard
        names = [".lock"] if count == 1 else [".lock", f".lock-{index}-of-{count}"]
        return [Lock(self.folder.path / name) for name in names]

    def _open(self, lock: Lock, lock_of_shard: Lock | None = None) -> tuple[list[int], dict[str, Any]]:
        """The batches that are missing, and the folder's manifest. Only one process does this."""
        folder, manifest = self.folder, self.folder.path / "manifest.json"
        if folder.path.exists() and not folder.path.is_dir():
            raise FolderError(f"out must be a folder, but {folder.path} is a file.")
        folder.path.mkdir(parents=True, exist_ok=True)
        if lock_of_shard is None:
            lock.take_alone()
            folder.remove_leftovers()
        else:
            lock.share()
            lock_of_shard.take_alone()
        foreign = folder.foreign()  # before the manifest, which another shard may be writing
        if manifest.exists():
            if not self.settings.resume:
                raise FolderError(f"{folder.path} holds explanations already. Resume that run, or give another folder.")
            self._check_manifest(read_manifest(folder.path), f"in {folder.path}")
        elif foreign is not None:
            raise FolderError(f"{folder.path} holds other files, such as {foreign.name}. Give a folder of its own.")
        else:
            write_atomically(manifest, lambda file: file.write(as_json(self.manifest)))
        for held in filter(None, (lock, lock_of_shard)):
            held.share()  # before the other processes ask for it
        done = folder.done()
        if len(done) < folder.n_batches:
            folder.table.unlink(missing_ok=True)
        index, count = self.settings.shard
        return [batch for batch in range(index, folder.n_batches, count) if batch not in done], self.manifest

    def _join(self, locks: Sequence[Lock], manifest: dict[str, Any]) -> None:
        for lock in locks:
            lock.share()
        self._check_manifest(manifest, "of the first process")

    def _check_manifest(self, manifest: dict[str, Any], place: str) -> None:
        check_same(manifest, self.manifest, place, "Give this run a folder of its own, or the settings of the other.")

    def _explain_batches(self, batches: Sequence[int], is_first: bool) -> None:
        careful = CarefulExplainer(self._explain_part, self.settings.strict)
        places: list[Any] = [self.folder.examples(batch) for batch in batches]  # ranges, however large the data set
        loader: DataLoader[Any] = DataLoader(
            self.reader,
            batch_sampler=places,
            collate_fn=_as_it_is,
            num_workers=self.settings.num_workers,
            generator=torch.Generator().manual_seed(self.settings.seed),  # not the global one
        )
        progress = Progress(self.folder, self.settings.show_progress and is_first)
        try:
            for batch, read in zip(batches, loader, strict=True):
                parts, failures = careful([example for example in read if isinstance(example, Example)])
                failures += [failure for failure in read if isinstance(failure, Failure)]
                self.folder.write(batch, rows_file(parts, failures), tensors_file(parts, self.settings.dtype))
                progress.update()
        finally:
            progress.close()

    def _explain_part(self, examples: Sequence[Example]) -> Explained:
        explained = self.explain(examples)
        size = self.settings.map_size
        if size is None:
            return explained
        return explained._replace(attributions=tuple(coarse(tensor, size) for tensor in explained.attributions))

    def _write_table(self) -> None:
        """Join the rows of all batches, once the last batch of the last shard is done."""
        if self.folder.n_done() == self.folder.n_batches and not self.folder.table.exists():
            write_atomically(self.folder.table, self._join_rows)

    def _join_rows(self, file: IO[bytes]) -> None:
        n_batches = self.folder.n_batches
        with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
            for start in range(0, n_batches, _N_JOINED):
                batches = range(start, min(start + _N_JOINED, n_batches))
                rows = [pq.ParquetFile(self.folder.rows(batch)).read() for batch in batches]
                writer.write_table(pa.concat_tables(rows))


def _as_it_is(examples: list[Any]) -> list[Any]:
    return examples


def _multiplies_by_inputs(explainer: Attribution) -> bool | None:
    try:
        return bool(explainer.multiplies_by_inputs)
    except (AttributeError, NotImplementedError):  # Captum's base class has the property, but not all methods do
        return None
