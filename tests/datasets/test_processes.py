"""Several processes do the work of one without a word between them, and all stop where one has to."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from captum.attr import Saliency
from small_data import Rows, contents, small_model

from captum_boundary import BoundaryIntegratedGradients, NearestBoundary
from captum_boundary.datasets import ExampleError, ExampleWarning, explain_dataset, load_explanations

SUPPORT = Path(__file__).parents[1] / "support"
OWN = ["-m", "captum_boundary", "explain", "--model", "small_data:small_model"]


def torchrun(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def explain(out: Path, **changes: object) -> None:
    model = small_model()
    big = BoundaryIntegratedGradients(model, NearestBoundary(model, budget=10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExampleWarning)
        explain_dataset(big, Rows(41, broken=(7,)), out, batch_size=4, save_points=True, dtype=torch.float16, **changes)


SCRIPT = """
import sys
from pathlib import Path
import torch
from test_processes import explain
torch.set_num_threads(1)
explain(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    script = folder / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{SCRIPT}")
    done = torchrun(script, folder / "out")
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_two_processes_write_what_one_does(two, tmp_path):
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    explain(tmp_path)
    torch.set_num_threads(n_threads)
    assert contents(two) == contents(tmp_path)
    assert load_explanations(two).is_complete


def test_a_strict_process_ends_them_all_with_its_error(tmp_path):
    (tmp_path / "broken.py").write_text(
        "import small_data\nclass Data(small_data.Rows):\n    def __init__(self):\n"
        "        super().__init__(400, (41,), seconds=0.05)\n"
    )
    words = [*OWN, "--data", "broken:Data", "--out", tmp_path / "out", "--batch-size", 4, "--budget", 3, "--strict"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(SUPPORT), str(tmp_path), *sys.path]),
    }
    shards = [
        subprocess.Popen(
            [sys.executable, *map(str, words), "--shard", f"{index}/2"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    errors = [shard.communicate(timeout=300)[1] for shard in shards]
    assert [shard.returncode for shard in shards] == [1, 1]
    assert all("error: " in error and "Example 41 could not be read. OSError" in error for error in errors)
    assert all("Traceback" not in error for error in errors)
    assert sum("Another process of this run has stopped." in error for error in errors) == 1
    done = len(load_explanations(tmp_path / "out").indices())
    assert done < 390, "the other process went on"


@pytest.mark.exhaustive  # the launcher's own way with processes that fail
def test_a_strict_run_under_torchrun(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(
        "import small_data\nclass Data(small_data.Rows):\n    def __init__(self): super().__init__(41, (7,))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = torchrun(*OWN, "--data", "broken:Data", "--out", tmp_path / "out", "--batch-size", 4, "--strict")
    assert done.returncode == 1
    assert "error: Example 7 could not be read. OSError" in done.stderr
    assert "onnection" not in done.stderr


def test_what_stopped_an_earlier_run_stops_no_later_one(tmp_path):
    rows = Rows(20, broken=(13,))
    with pytest.raises(ExampleError):
        explain_dataset(Saliency(small_model()), rows, tmp_path, batch_size=4, strict=True)
    assert (tmp_path / ".stopped").exists()
    assert explain_dataset(Saliency(small_model()), Rows(20), tmp_path, batch_size=4, strict=True).is_complete
    assert not (tmp_path / ".stopped").exists()


def test_a_group_of_processes_is_none_of_its_business(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        assert explain_dataset(Saliency(small_model()), Rows(5), tmp_path / "out", batch_size=2).is_complete
    finally:
        dist.destroy_process_group()
