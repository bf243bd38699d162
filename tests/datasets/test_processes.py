"""Several processes do the work of one, and say so when they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from captum.attr import Saliency
from small_data import Rows, contents, small_model

from captum_boundary import BoundaryError, BoundaryIntegratedGradients, NearestBoundary
from captum_boundary.datasets import explain_dataset


def explain(out: Path, rank: int = 0, seed: int = 0) -> None:
    torch.set_num_threads(1)
    model = small_model(seed=seed * rank)
    big = BoundaryIntegratedGradients(model, NearestBoundary(model, budget=10))
    explain_dataset(big, Rows(41, broken=(7,)), out, batch_size=4, save_points=True, dtype=torch.float16)


def work(rank: int, address: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    explain(Path(out))
    # All are told: of a folder that the first refuses, of a model that is another one on the second.
    for place, seed in ((f"{out}/..", 0), (f"{out}-other", 1)):
        try:
            explain(Path(place), rank, seed)
        except BoundaryError as error:
            Path(f"{out}-{rank}-{seed}.txt").write_text(str(error))
    explain(Path(out))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("This PyTorch has no gloo.")
    folder: Path = tmp_path_factory.mktemp("processes")
    mp.spawn(work, args=(f"file://{folder}/rendezvous", str(folder / "two")), nprocs=2)
    return folder


def test_two_processes_write_what_one_does(folder, tmp_path):
    n_threads = torch.get_num_threads()
    explain(tmp_path)
    torch.set_num_threads(n_threads)
    assert contents(folder / "two") == contents(tmp_path)


def test_every_process_is_told_of_a_refused_folder(folder):
    for rank in (0, 1):
        assert "holds other files" in (folder / f"two-{rank}-0.txt").read_text()


def test_every_process_is_told_of_another_model(folder):
    assert "forward_func.weights" in (folder / "two-1-1.txt").read_text()
    assert (
        "Process 1 failed: The results of the first process are those of another run"
        in (folder / "two-0-1.txt").read_text()
    )


def fail(rank: int, address: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    explain_dataset(Saliency(small_model()), Rows(41, broken=(7,)), out, batch_size=4, strict=True)


def test_one_process_that_stops_leaves_no_other_waiting(folder, tmp_path):
    with pytest.raises(mp.ProcessRaisedException, match=r"Example 7 could not be read|Connection closed"):
        mp.spawn(fail, args=(f"file://{tmp_path}/rendezvous", str(tmp_path / "out")), nprocs=2)


def test_a_group_of_one(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        assert explain_dataset(Saliency(small_model()), Rows(5), tmp_path / "out", batch_size=2).is_complete
    finally:
        dist.destroy_process_group()
