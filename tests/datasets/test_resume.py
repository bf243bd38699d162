"""A run that is killed goes on where it was, and ends with the bytes of a run that was not."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
from small_data import N_CLASSES, Rows, contents, small_model

from captum_boundary import BoundaryIntegratedGradients, NearestBoundary
from captum_boundary.datasets import (
    ExampleError,
    FolderError,
    _store,
    explain_dataset,
    load_explanations,
    merge_explanations,
)
from captum_boundary.datasets._store import atomic_file, locked
from captum_boundary.errors import BoundaryValueError

SUPPORT = Path(__file__).parents[1] / "support"
SCRIPT = """
import sys
import torch
from captum_boundary import BoundaryIntegratedGradients, NearestBoundary
from captum_boundary.datasets import explain_dataset
from small_data import N_CLASSES, Rows, small_model

torch.set_num_threads(1)
model = small_model()
big = BoundaryIntegratedGradients(model, NearestBoundary(model, budget=5))
print("ready", flush=True)
explain_dataset(big, Rows(int(sys.argv[2])), sys.argv[1], batch_size=4, options={"n_steps": 5})
"""


def explain(out, **changes):
    model = small_model()
    big = BoundaryIntegratedGradients(model, NearestBoundary(model, budget=5))
    arguments = {"dataset": Rows(20), "batch_size": 4, "options": {"n_steps": 5}, **changes}
    return explain_dataset(arguments.pop("explainer", big), arguments.pop("dataset"), out, **arguments)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """What a run has written that nothing interrupted. Tests change copies of it alone."""
    return explain(tmp_path_factory.mktemp("whole")).path


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "folder")


def start(script: Path, out: Path, n_rows: int, n_processes: int = 1) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])}
    return subprocess.Popen(
        [sys.executable, *(launcher if n_processes > 1 else []), str(script), str(out), str(n_rows)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def n_batches(folder: Path) -> int:
    return len(list(folder.rglob("[!.]*.parquet")))


def kill_at(process: subprocess.Popen, folder: Path, n_done: int, seconds: float) -> None:
    """Kill it some time after it began to work, and wrote batches up to a number."""
    for line in process.stdout:
        if line.startswith("ready"):
            break
    while n_batches(folder) < n_done and process.poll() is None:
        time.sleep(0.01)
    time.sleep(seconds)
    if process.poll() is None:
        kill(process)
    else:
        finish(process)


def kill(process: subprocess.Popen) -> None:
    """Kill a process and all that it has started, which torchrun puts into groups of their own."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(family)


def kill_and_resume(tmp_path: Path, n_rows: int, n_kills: int) -> list[int]:
    """How many batches there were after each kill; in the end, everything is as if nothing had happened."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    explain(whole, dataset=Rows(n_rows))
    chance = random.Random(1)
    done = []
    for number in range(n_kills):
        process = start(script, killed, n_rows, n_processes=1 + number % 2)
        kill_at(process, killed, n_batches(killed) + chance.randrange(5), chance.uniform(0, 0.1))
        done.append(n_batches(killed))
    explain(killed, dataset=Rows(n_rows))
    assert contents(killed) == contents(whole)
    return done


def test_a_killed_run_goes_on(tmp_path):
    done = kill_and_resume(tmp_path, n_rows=120, n_kills=2)
    assert done == sorted(done)
    assert done[-1] < 30, "it was killed before it was done"


@pytest.mark.exhaustive
def test_a_run_that_is_killed_at_twenty_random_moments_ends_with_the_same_bytes(tmp_path):
    done = kill_and_resume(tmp_path, n_rows=400, n_kills=20)
    assert done == sorted(done)
    assert len(set(done)) > 10
    assert done[-1] < 100
    print("batches after each kill:", done)


def test_only_what_is_missing_is_done(folder):
    before = contents(folder)
    for path in sorted(folder.rglob("*.parquet"))[1:3]:
        path.unlink()
    rows = Rows(20)
    read = []
    original = Rows.__getitem__

    class Watched(Rows):
        def __getitem__(self, index):
            read.append(index)
            return original(rows, index)

    Watched.__module__, Watched.__qualname__ = Rows.__module__, Rows.__qualname__
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    explain(folder, dataset=Watched(20))
    assert contents(folder) == before
    changed = [path.stem for path, when in times.items() if path.stat().st_mtime_ns != when]
    assert sorted(changed) == ["000000004", "000000008"]
    assert set(read) >= {0, 3, *range(4, 12), 12, 15, 16, 19}  # first and last of batches that are done
    assert len(read) <= 1 + 3 * 3 + 2 * 4  # the form of all, three of each batch that is done, and what is missing


def test_a_complete_run_changes_nothing(folder):
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("[!.]*.*")}
    explain(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("[!.]*.*")} == times


def test_after_an_exception_in_the_data_set(whole, tmp_path):
    broken = Rows(20, broken=(13,))
    with pytest.raises(ExampleError, match=r"Example 13 could not be read. OSError: example 13"):
        explain(tmp_path / "failed", dataset=broken, strict=True)
    assert load_explanations(tmp_path / "failed").indices() == list(range(12))
    explain(tmp_path / "failed")
    assert contents(tmp_path / "failed") == contents(whole)


def test_after_a_full_disk(whole, tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(_store.os, "fsync", full)
        with pytest.raises(FolderError, match=r"No space is left for .*Nothing that was written is lost"):
            explain(tmp_path / "full")
    assert not list(tmp_path.rglob("*.tmp"))
    explain(tmp_path / "full")
    assert contents(tmp_path / "full") == contents(whole)


def test_leftovers_of_killed_processes_are_removed(folder):
    before = contents(folder)
    (folder / "rows" / "0000" / ".000000000.parquet.123.tmp").write_bytes(b"half of it")
    assert explain(folder).indices() == list(range(20))
    assert contents(folder) == before


SAME_MODEL = small_model()
OTHERS = {
    "a batch size": ({"batch_size": 5}, ["settings.batch_size: 4 in", "5 now"]),
    "options": ({"options": {"n_steps": 6}}, ["settings.options.n_steps: 5 in", "6 now"]),
    "a target": ({"target": "label"}, ["settings.target: null in", '"label" now']),
    "a model": (
        {"explainer": IntegratedGradients(small_model(seed=1))},
        ["explainer.class", "forward_func.parameters"],
    ),
    "a budget": (
        {"explainer": BoundaryIntegratedGradients(SAME_MODEL, NearestBoundary(SAME_MODEL, budget=6))},
        ["explainer.search.budget: 5 in", "6 now"],
    ),
    "a length": ({"dataset": Rows(21)}, ["settings.n_examples: 20 in"]),
    "half precision": ({"dtype": torch.float16}, ['settings.dtype: "torch.float32" in']),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_another_run_is_refused(folder, name):
    before = contents(folder)
    changes, words = OTHERS[name]
    with pytest.raises(FolderError, match=r"those of another run. What differs:") as caught:
        explain(folder, **changes)
    assert all(word in str(caught.value) for word in words), caught.value
    assert contents(folder) == before


def test_other_versions_are_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FolderError, match=r'versions.torch: "1.0" in'):
        explain(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(FolderError, match=r"manifest.json cannot be read"):
        explain(folder)


def test_a_run_does_not_go_on_unless_it_may(tmp_path):
    explain(tmp_path, resume=False)
    with pytest.raises(FolderError, match="holds explanations already"):
        explain(tmp_path, resume=False)


def test_methods_with_random_numbers_go_on(tmp_path):
    tunnel = NoiseTunnel(Saliency(small_model()))
    explain(tmp_path, explainer=tunnel, options={})
    before = contents(tmp_path)
    (tmp_path / "rows" / "0000" / "000000008.parquet").unlink()
    torch.rand(3)
    explain(tmp_path, explainer=tunnel, options={})
    assert contents(tmp_path) == before


def test_two_runs_cannot_write_to_one_folder(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    first = start(script, tmp_path / "out", n_rows=4000)
    try:
        while not list((tmp_path / "out").rglob("[!.]*.parquet")):
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.05)
        with pytest.raises(FolderError, match=rf"Another run is writing to .* \(process {first.pid} on "):
            explain(tmp_path / "out")
    finally:
        kill(first)


def test_shards_may_share_a_folder(whole, tmp_path):
    out = tmp_path / "out"
    assert not explain(out, shard=(1, 2)).is_complete
    begun = out / "rows" / "0000" / ".000000000.parquet.0-of-3.tmp"
    begun.write_bytes(b"what a killed shard had begun")
    with locked(out / ".lock-0-of-2", 0):
        with pytest.raises(FolderError, match="Another run is writing"):
            explain(out, shard=(0, 2))
        explain(out, shard=(1, 2))
    assert begun.exists()
    assert explain(out, shard=(0, 2)).is_complete
    assert not begun.exists()
    assert contents(out) == contents(whole)


def test_a_whole_run_beside_a_shard_does_no_harm(whole, tmp_path):
    """Both write the same bytes, each file at once: whoever is second to a batch replaces it by itself."""
    out = tmp_path / "out"

    class Interrupted(Rows):
        def __getitem__(self, index):
            if index == 10:  # both shards come and go while the whole run is at work
                for shard in ((0, 2), (1, 2)):
                    explain(out, shard=shard)
                assert load_explanations(out).is_complete
            return super().__getitem__(index)

    Interrupted.__module__, Interrupted.__qualname__ = Rows.__module__, Rows.__qualname__
    assert explain(out, dataset=Interrupted(20)).is_complete
    assert contents(out) == contents(whole)


def test_rows_of_some_examples_of_a_batch_are_not_all(folder):
    before = contents(folder)
    path = folder / "rows" / "0000" / "000000008.parquet"
    pq.write_table(pq.ParquetFile(path).read().slice(0, 2), path)
    (folder / "table.parquet").unlink()
    assert explain(folder).is_complete
    assert contents(folder) == before


def test_a_file_whose_beginning_another_run_has_removed_is_there(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"the same")
    with atomic_file(path):
        next(tmp_path.glob(".rows.parquet.*.tmp")).unlink()
    path.unlink()
    with pytest.raises(FileNotFoundError), atomic_file(path):
        next(tmp_path.glob(".rows.parquet.*.tmp")).unlink()


def test_shards_on_machines_of_their_own_are_merged(whole, tmp_path):
    parts = [tmp_path / str(index) for index in range(3)]
    for index, part in enumerate(parts):
        assert not explain(part, shard=(index, 3)).is_complete
    assert not merge_explanations(parts[:2], tmp_path / "merged").is_complete
    assert merge_explanations(parts, tmp_path / "merged").is_complete
    assert contents(tmp_path / "merged") == contents(whole)
    explain(tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(whole)
    into_a_part = merge_explanations(parts[1:], parts[0])
    assert into_a_part.is_complete
    assert contents(parts[0]) == contents(whole)


def test_only_shards_of_one_run_are_merged(tmp_path):
    explain(tmp_path / "0", shard=(0, 2))
    explain(tmp_path / "1", shard=(1, 2), options={"n_steps": 6})
    with pytest.raises(FolderError, match=r"settings\.options\.n_steps: 6 in"):
        merge_explanations([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    with pytest.raises(FolderError, match="There is no folder"):
        merge_explanations([tmp_path / "0", tmp_path / "2"], tmp_path / "merged")
    with pytest.raises(BoundaryValueError, match="at least one folder"):
        merge_explanations([], tmp_path / "merged")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("all of it")
    with pytest.raises(FolderError, match="holds other files, such as thesis"):
        merge_explanations([tmp_path / "0"], tmp_path / "foreign")


def test_torchrun_names_the_shard(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert explain(tmp_path).indices() == [*range(4, 8), *range(12, 16)]
    assert explain(tmp_path, shard=(0, 1)).is_complete
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(BoundaryValueError, match=r"shard must be \(i, n\).*, but it is \('one', 2\)"):
        explain(tmp_path)


@pytest.mark.parametrize(
    "what",
    ["half of the rows", "no rows", "rows with a fault", "half of the tensors", "no tensors", "missing tensors"],
)
def test_files_that_cannot_be_read_are_done_again(folder, what):
    before = contents(folder)
    rows = folder / "rows" / "0000" / "000000008.parquet"
    path = rows if "rows" in what else folder / "tensors" / "0000" / "000000008.safetensors"
    content = path.read_bytes()
    if what.startswith("missing"):
        path.unlink()
    else:
        parts = {"half": content[: len(content) // 2], "no": b"", "rows": content[:8] + bytes(400) + content[408:]}
        path.write_bytes(parts[what.split()[0]])
    (folder / "table.parquet").unlink()
    with pytest.raises(FolderError, match=path.name):
        load_explanations(folder)[9]
    if path == rows:
        with pytest.raises(FolderError, match=path.name):
            load_explanations(folder).table()
    assert explain(folder).is_complete
    assert contents(folder) == before


@pytest.mark.filterwarnings("ignore::captum_boundary.datasets.ExampleWarning")
def test_a_table_of_rows_that_are_gone_is_written_anew(tmp_path):
    explain(tmp_path, dataset=Rows(20, broken=(9,)), strict=False)
    assert load_explanations(tmp_path).table().column("error").null_count == 19
    (tmp_path / "rows" / "0000" / "000000008.parquet").unlink()
    explain(tmp_path)
    assert load_explanations(tmp_path).table().column("error").null_count == 20
    (tmp_path / "table.parquet").write_bytes(b"half of it")
    with pytest.raises(FolderError, match=r"table\.parquet cannot be read"):
        load_explanations(tmp_path).table()
    assert explain(tmp_path).table().num_rows == 20


class Changed(Rows):
    """Rows of which one has another value, or another label."""

    def __init__(self, index, value=0.0, label=0):
        super().__init__(20)
        self.inputs[index] += value
        self.labels[index] = (self.labels[index] + label) % N_CLASSES

    def __len__(self):
        return 20


Changed.__qualname__, Changed.__module__ = Rows.__qualname__, Rows.__module__


@pytest.mark.parametrize("changes", [{"value": 1e-6}, {"label": 1}])
@pytest.mark.parametrize(("index", "verify"), [(0, False), (11, False), (12, False), (19, False), (6, True)])
def test_examples_that_have_changed_are_found(folder, index, verify, changes):
    with pytest.raises(FolderError, match=f"Example {index} is not the one that was explained"):
        explain(folder, dataset=Changed(index, **changes), verify=verify)


def test_one_of_the_others_is_looked_at_by_chance(folder, monkeypatch):
    monkeypatch.setattr("random.SystemRandom.choice", lambda _, examples: examples[1])
    explain(folder, dataset=Changed(6, value=1.0))
    monkeypatch.setattr("random.SystemRandom.choice", lambda _, examples: examples[2])
    with pytest.raises(FolderError, match="Example 6 is not the one"):
        explain(folder, dataset=Changed(6, value=1.0))


def test_an_example_that_cannot_be_read_any_more_is_told(folder):
    with pytest.raises(FolderError, match=r"Example 4 .* has changed \(OSError: example 4"):
        explain(folder, dataset=Rows(20, broken=(4,)))


def test_a_users_version_is_part_of_the_identity(tmp_path):
    explain(tmp_path, version="weights of May")
    with pytest.raises(FolderError, match='version: "weights of May" in'):
        explain(tmp_path, version="weights of June")


@pytest.mark.parametrize("name", ["run:1", "s3:x", "file:x", "a b?c#d%20", "\u00fc\u4e2d"])
def test_names_of_folders_are_names(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert explain(name).is_complete
    assert load_explanations(name).table(["index"]).num_rows == 20
    assert load_explanations(name)[7].index == 7
    assert (tmp_path / name / "table.parquet").exists()


def test_other_names_of_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert explain("~/mine").path == tmp_path / "mine"
    before = list(tmp_path.iterdir())
    for name in (tmp_path / "caf\udce9", "~nobody-by-this-name/out", b"bytes", 5):
        with pytest.raises(FolderError, match="must be UTF-8"):
            explain(name)
    assert list(tmp_path.iterdir()) == before
