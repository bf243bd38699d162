"""What explaining a data set costs beside a bare loop over its batches, and what a second process gains.

    CAPTUM_BOUNDARY_DATA=... python tests/benchmarks/dataset_speed.py [--images 96] [--turns 5]

All variants take turns, each on one thread, and ratios are medians over the turns, so that a busy machine is busy for
all of them. Where others take the cores, a second process gains nothing: look at processor time there. The bare loop
computes the same attributions, distances and convergence deltas, and stores nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
import zoo
from torch.utils.data import DataLoader, TensorDataset

from captum_boundary import BoundaryIntegratedGradients, NearestBoundary
from captum_boundary.datasets import explain_dataset

BATCH_SIZE = 16
OPTIONS = {"n_steps": 10}


def parts(n_images: int) -> tuple[BoundaryIntegratedGradients, TensorDataset]:
    torch.set_num_threads(1)
    model = zoo.cifar_resnet20()
    images, labels = zoo.load_images("cifar10_test500")
    big = BoundaryIntegratedGradients(model, NearestBoundary(model, bounds=(0, 1), budget=10))
    return big, TensorDataset(images[:n_images], labels[:n_images])


def bare_loop(big: BoundaryIntegratedGradients, data: TensorDataset) -> None:
    for images, _ in DataLoader(data, BATCH_SIZE):
        with torch.no_grad():
            target = big.forward_func(images).argmax(dim=1)
        big.attribute(images, target, return_convergence_delta=True, return_boundary=True, **OPTIONS)


def run(big: BoundaryIntegratedGradients, data: TensorDataset) -> None:
    with tempfile.TemporaryDirectory() as folder:
        explain_dataset(big, data, folder, batch_size=BATCH_SIZE, options=OPTIONS)


def timed(act: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the clock, and of the processor."""
    start, start_of_work = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - start, time.process_time() - start_of_work


def work(rank: int, n_processes: int, barrier: Any, out: str, n_images: int) -> None:
    big, data = parts(n_images)
    bare_loop(big, TensorDataset(*data[:BATCH_SIZE]))  # warm
    barrier.wait()
    shard = (rank, n_processes)
    seconds = timed(lambda: explain_dataset(big, data, out, batch_size=BATCH_SIZE, options=OPTIONS, shard=shard))
    Path(f"{out}-{rank}").write_text("{} {}".format(*seconds))


def seconds_of(n_processes: int, n_images: int) -> tuple[float, float]:
    """Seconds on the clock, and of the processor, of the slowest process."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/out"
        barrier = mp.get_context("spawn").Barrier(n_processes)
        mp.spawn(work, (n_processes, barrier, out, n_images), nprocs=n_processes)
        each = [tuple(map(float, Path(f"{out}-{rank}").read_text().split())) for rank in range(n_processes)]
        return max(clock for clock, _ in each), max(processor for _, processor in each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    big, data = parts(options.images)
    bare_loop(big, TensorDataset(*data[:BATCH_SIZE]))
    clock, processor, gains, gains_of_work = [], [], [], []
    for turn in range(options.turns):
        loop, ours = timed(lambda: bare_loop(big, data)), timed(lambda: run(big, data))
        clock.append(ours[0] / loop[0] - 1)
        processor.append(ours[1] / loop[1] - 1)
        one, two = seconds_of(1, options.images), seconds_of(2, options.images)
        gains.append(one[0] / two[0])
        gains_of_work.append(one[1] / two[1])
        print(
            f"turn {turn}: loop {loop[0]:.1f} s ({loop[1]:.1f} s of processor), explain_dataset {ours[0]:.1f} s "
            f"({ours[1]:.1f} s), one process {one[0]:.1f} s ({one[1]:.1f} s), two {two[0]:.1f} s ({two[1]:.1f} s), "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    print(f"overhead: {statistics.median(processor):.1%} of processor time, {statistics.median(clock):.1%} of time")
    print(
        f"two processes: {statistics.median(gains):.2f} times the throughput of one, and "
        f"{statistics.median(gains_of_work):.2f} times if each had a core to itself (by processor time)"
    )


if __name__ == "__main__":
    main()
