"""A run that is killed goes on where it was, and ends with the bytes of a run that was not."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
from small_data import Rows, contents, small_model

from captum_boundary import BoundaryIntegratedGradients, NearestBoundary
from captum_boundary.datasets import ExampleError, FolderError, _folder, explain_dataset, load_explanations
from captum_boundary.datasets._lock import Lock

SUPPORT = Path(__file__).parents[1] / "support"
SCRIPT = """
import sys
import torch
from captum_boundary import BoundaryIntegratedGradients, NearestBoundary
from captum_boundary.datasets import explain_dataset
from small_data import Rows, small_model

torch.set_num_threads(1)
model = small_model()
big = BoundaryIntegratedGradients(model, NearestBoundary(model, budget=5))
if "WORLD_SIZE" in __import__("os").environ:
    torch.distributed.init_process_group("gloo")
print("ready", flush=True)
explain_dataset(big, Rows(int(sys.argv[2])), sys.argv[1], batch_size=4, options={"n_steps": 5})
"""


def explain(out, **changes):
    model = small_model()
    big = BoundaryIntegratedGradients(model, NearestBoundary(model, budget=5))
    arguments = {"dataset": Rows(20), "batch_size": 4, "options": {"n_steps": 5}, **changes}
    return explain_dataset(arguments.pop("explainer", big), arguments.pop("dataset"), out, **arguments)


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


def test_only_what_is_missing_is_done(tmp_path):
    explain(tmp_path)
    before = contents(tmp_path)
    for path in sorted(tmp_path.rglob("*.parquet"))[1:3]:
        path.unlink()
    rows = Rows(20)
    read = []
    original = Rows.__getitem__

    class Watched(Rows):
        def __getitem__(self, index):
            read.append(index)
            return original(rows, index)

    Watched.__module__, Watched.__qualname__ = Rows.__module__, Rows.__qualname__
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    explain(tmp_path, dataset=Watched(20))
    assert contents(tmp_path) == before
    changed = [path.stem for path, when in times.items() if path.stat().st_mtime_ns != when]
    assert sorted(changed) == ["000000004", "000000008"]
    assert set(read) == {0, *range(4, 12), 10, 19}  # 0, 10 and 19 are the sample


def test_a_complete_run_changes_nothing(tmp_path):
    explain(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("[!.]*.*")}
    explain(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("[!.]*.*")} == times


def test_after_an_exception_in_the_data_set(tmp_path):
    explain(tmp_path / "whole")
    broken = Rows(20, broken=(13,))
    with pytest.raises(ExampleError, match=r"Example 13 could not be read. OSError: example 13"):
        explain(tmp_path / "failed", dataset=broken, strict=True)
    assert load_explanations(tmp_path / "failed").indices() == list(range(12))
    explain(tmp_path / "failed")
    assert contents(tmp_path / "failed") == contents(tmp_path / "whole")


def test_after_a_full_disk(tmp_path, monkeypatch):
    explain(tmp_path / "whole")
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(_folder.os, "fsync", full)
        with pytest.raises(FolderError, match=r"No space is left for .*Nothing that was written is lost"):
            explain(tmp_path / "full")
    assert not list(tmp_path.rglob("*.tmp"))
    explain(tmp_path / "full")
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    explain(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "rows" / "0000" / ".000000000.parquet.123.tmp").write_bytes(b"half of it")
    assert explain(tmp_path).indices() == list(range(20))
    assert contents(tmp_path) == before


SAME_MODEL = small_model()
OTHERS = {
    "a batch size": ({"batch_size": 5}, ["settings.batch_size: 4 in", "5 now"]),
    "options": ({"options": {"n_steps": 6}}, ["settings.options.n_steps: 5 in", "6 now"]),
    "a target": ({"target": "label"}, ["settings.target: null in", '"label" now']),
    "a model": ({"explainer": IntegratedGradients(small_model(seed=1))}, ["explainer.class", "forward_func.weights"]),
    "a budget": (
        {"explainer": BoundaryIntegratedGradients(SAME_MODEL, NearestBoundary(SAME_MODEL, budget=6))},
        ["explainer.search.budget: 5 in", "6 now"],
    ),
    "a length": ({"dataset": Rows(21)}, ["settings.n_examples: 20 in"]),
    "data": ({"dataset": Rows(21), "limit": 20}, ["data.sample"]),
    "half precision": ({"dtype": torch.float16}, ['settings.dtype: "torch.float32" in']),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_another_run_is_refused(tmp_path, name):
    explain(tmp_path)
    before = contents(tmp_path)
    changes, words = OTHERS[name]
    with pytest.raises(FolderError, match=r"those of another run. What differs:") as caught:
        explain(tmp_path, **changes)
    assert all(word in str(caught.value) for word in words), caught.value
    assert contents(tmp_path) == before


def test_other_versions_are_refused(tmp_path):
    explain(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FolderError, match=r'versions.torch: "1.0" in'):
        explain(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(FolderError, match=r"manifest.json cannot be read"):
        explain(tmp_path)


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


def test_shards_may_share_a_folder(tmp_path):
    explain(tmp_path / "whole")
    out = tmp_path / "out"
    assert not explain(out, shard=(1, 2)).is_complete
    begun = out / "rows" / "0000" / ".000000000.parquet.elsewhere.123.tmp"
    begun.write_bytes(b"what the other shard is writing")
    shard = Lock(out / ".lock-0-of-2")
    shard.take_alone()
    with pytest.raises(FolderError, match="Another run is writing"):
        explain(out, shard=(0, 2))
    explain(out, shard=(1, 2))
    assert begun.exists()
    shard.release()
    whole = Lock(out / ".lock")
    whole.share()
    with pytest.raises(FolderError, match="Another run is writing"):
        explain(out)
    assert explain(out, shard=(0, 2)).is_complete
    whole.release()
    explain(out)
    assert not begun.exists()
    assert contents(out) == contents(tmp_path / "whole")


def test_shards_on_machines_of_their_own_are_merged_by_copying(tmp_path):
    explain(tmp_path / "whole")
    merged = tmp_path / "merged"
    for index in range(3):
        part = explain(tmp_path / str(index), shard=(index, 3))
        assert not part.is_complete
        for path in (tmp_path / str(index)).rglob("*.*"):
            if path.is_file():
                copy = merged / path.relative_to(tmp_path / str(index))
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    assert explain(merged).is_complete
    assert contents(merged) == contents(tmp_path / "whole")
