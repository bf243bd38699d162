"""The training benchmark: killed at any moment it goes on as if nothing had been, and it overwrites nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from scripts import Finished, run_script

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "rar.py"
NAME = "digits-cpu-quick"


def arguments(output: Path, *options: str) -> list[str]:
    always = ["--dataset", "digits", "--quick", "--threads", "1", "--save-seconds", "0", "--output", str(output)]
    return [*always, *options]


def run(output: Path, *options: str) -> Finished:
    return run_script(SCRIPT, *arguments(output, *options))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uninterrupted run of one objective."""
    output = tmp_path_factory.mktemp("uninterrupted")
    done = run(output, "--objective", "ig_sum_norm")
    assert done.returncode == 0, done.stderr
    return output / NAME


def row(folder: Path) -> dict[str, float]:
    table = json.loads((folder / "table.json").read_text())["rar"]["rows"]["ig_sum_norm"]
    return {name: value for name, value in table.items() if name != "seconds / step"}


@pytest.mark.exhaustive
def test_killed_and_resumed_equals_uninterrupted(finished: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / NAME / "ig_sum_norm.pt"
    moments = random.Random(time.time_ns())
    for _ in range(2):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        command = [sys.executable, str(SCRIPT), *arguments(tmp_path, "--objective", "ig_sum_norm")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
    assert checkpoint.exists()
    done = run(tmp_path, "--objective", "ig_sum_norm")
    assert done.returncode == 0, done.stderr

    resumed, uninterrupted = (
        torch.load(path, weights_only=True)["state"] for path in (checkpoint, finished / "ig_sum_norm.pt")
    )
    assert resumed["n_done"] == uninterrupted["n_done"]
    for part in ("network", "batches"):
        for name, tensor in uninterrupted[part].items():
            assert torch.equal(resumed[part][name], tensor), name
    assert row(tmp_path / NAME) == row(finished)
    assert (tmp_path / NAME / "maps.png").stat().st_size > 0


def test_what_is_finished_is_not_done_again(finished: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in finished.glob("*.pt")}
    assert len(files) == 2
    assert run(finished.parent, "--objective", "ig_sum_norm").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in finished.glob("*.pt")} == files


@pytest.mark.parametrize("damage", ["cut short", "one byte", "another file"])
def test_damaged_checkpoints_are_named_and_kept(damage: str, finished: Path, tmp_path: Path) -> None:
    content = bytearray((finished / "ig_sum_norm.pt").read_bytes())
    if damage == "cut short":
        content = content[: len(content) // 2]
    elif damage == "one byte":
        content[len(content) // 2] ^= 255
    else:
        content = bytearray(b"no checkpoint")
    path = tmp_path / NAME / "ig_sum_norm.pt"
    path.parent.mkdir()
    path.write_bytes(content)
    done = run(tmp_path, "--objective", "ig_sum_norm")
    assert done.returncode == 1
    assert f"{path} cannot be read" in done.stderr
    assert "Remove the file to start again" in done.stderr
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_checkpoints_of_other_settings_are_named_and_kept(finished: Path) -> None:
    path = finished / "ig_sum_norm.pt"
    content = path.read_bytes()
    done = run(finished.parent, "--objective", "ig_sum_norm", "--seed", "1")
    assert done.returncode == 1
    assert f"{path} is of other settings: seed was 0 and is now 1" in done.stderr
    assert path.read_bytes() == content


def test_objectives_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "--objective", "ig_nrom")
    assert done.returncode == 2
    assert "invalid choice: 'ig_nrom'" in done.stderr
    assert not list(tmp_path.iterdir())
