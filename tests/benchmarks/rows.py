"""Benchmark of the search on tables of many rows: rows a second, time outside the model, and memory.

    python tests/benchmarks/rows.py [--rows 10000] [--largest 100000] [--threads 1]

The model is a small network (30-16-3) with random weights and a box around its inputs, as for a table of measurements.
Foolbox's DDN with 100 steps runs on the same rows in the same run. Memory is the peak of a process of its own for each
number of rows, less that of one with a single row.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import Claim, peak_memory, print_claims, print_table, save
from torch import Tensor, nn

from captum_boundary import NearestBoundary

N_INPUTS = 30
BUDGETS = (10, 40, 200)
GROUP = 2048  # rows that are searched at once where memory is measured


class Timed(nn.Module):
    """A model that measures how long it runs, forwards; a backward pass takes about twice as long."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seconds = 0.0

    def forward(self, x: Tensor) -> Tensor:
        begin = time.perf_counter()
        scores = self.model(x)
        self.seconds += time.perf_counter() - begin
        if scores.requires_grad:
            scores.register_hook(self._begin)
            x.register_hook(self._end)
        return scores

    def _begin(self, _: Tensor) -> None:
        self.began = time.perf_counter()

    def _end(self, _: Tensor) -> None:
        self.seconds += time.perf_counter() - self.began


def network() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(N_INPUTS, 16), nn.ReLU(), nn.Linear(16, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    return model.requires_grad_(False)


def table(n_rows: int) -> Tensor:
    return torch.rand(n_rows, N_INPUTS, generator=torch.Generator().manual_seed(1))


def ddn(model: nn.Module, inputs: Tensor) -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox imports a deprecated name of scipy
        from foolbox import PyTorchModel
        from foolbox.attacks import DDNAttack
    labels = model(inputs).argmax(dim=1)
    points = DDNAttack(steps=100)(PyTorchModel(model.eval(), bounds=(0, 1)), inputs, labels, epsilons=None)[1]
    is_beyond = model(points).argmax(dim=1) != labels
    return (points - inputs).norm(dim=1)[is_beyond]


def measured(search: Callable[[nn.Module, Tensor], Tensor], inputs: Tensor) -> dict[str, Any]:
    search(network(), inputs[:64])  # first calls are slow
    model = Timed(network())
    begin = time.perf_counter()
    distance = search(model, inputs)
    seconds = time.perf_counter() - begin
    return {
        "found": len(distance),
        "distance mean": distance.mean().item(),
        "rows a second": len(inputs) / seconds,
        "outside the model %": 100 * (1 - model.seconds / seconds),
    }


def memory_of(n_rows: int) -> int:
    """Peak memory in MiB of a process that searches so many rows, in groups."""
    command = [sys.executable, __file__, "--memory-of", str(n_rows)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--largest", type=int, default=100_000, help="rows at which memory is measured, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        NearestBoundary(network(), bounds=(0, 1), budget=10, internal_batch_size=GROUP).find(table(options.memory_of))
        print(peak_memory())
        return

    inputs = table(options.rows)
    searches: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
        f"ours, budget {budget}": lambda model, x, budget=budget: (
            NearestBoundary(model, bounds=(0, 1), budget=budget).find(x).distance
        )
        for budget in BUDGETS
    }
    searches["Foolbox DDN-100"] = ddn
    rows = {name: measured(search, inputs) for name, search in searches.items()}
    print_table(rows)

    sizes = [n for n in (100, 1_000, 10_000, 100_000, 1_000_000) if n <= options.largest]
    base = memory_of(1)
    memory = {f"{n} rows": {"MiB": memory_of(n) - base} for n in sizes}
    print()
    print_table(memory)
    rival = rows["Foolbox DDN-100"]
    claims = [
        Claim(
            f"budget {budget}: mean distance relative to DDN-100's <= 1",
            rows[f"ours, budget {budget}"]["distance mean"] / rival["distance mean"],
            rows[f"ours, budget {budget}"]["distance mean"] <= rival["distance mean"],
        )
        for budget in (40, 200)
    ]
    fewer, most = (memory[f"{n} rows"]["MiB"] for n in sizes[-2:])
    growth = most / max(1, fewer)
    claims.append(Claim("ten times the rows take at most twelve times the memory", growth, growth <= 12))
    print_claims(claims)
    save("rows", {"rows": rows, "memory": memory, "claims": claims}, options.output / "rows.json")


if __name__ == "__main__":
    main()
