"""Speed and memory of RARLoss, against the loop of https://arxiv.org/abs/1905.09957 written out in plain PyTorch.

    python tests/benchmarks/rar_speed.py [--quick] [--threads 2]

A training step is the attack (7 steps, each with 10 path points) and the loss with its parameter gradients (50 path
points), for the small network of ``rar.py`` and for the paper's. The plain loop takes one path point after the other.
"All at once" is RARLoss with all path points in a single forward pass, ``internal_batch_size`` is five times the batch.
Times are medians of repetitions that take turns, ratios those of the ratios within a turn, since other work on the
machine comes and goes; memory is what a step adds to the peak of a fresh process that has trained without it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rar_networks import build
from report import Claim, print_claims, print_table, save
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_boundary.robust import RARLoss, _pointwise_loss

EPSILON, N_STEPS, ATTACK_STEPS, ATTACK_N_STEPS = 0.3, 50, 7, 10
SETTINGS = {
    "epsilon": EPSILON,
    "n_steps": N_STEPS,
    "attack_steps": ATTACK_STEPS,
    "attack_n_steps": ATTACK_N_STEPS,
    "quadrature": "riemann_right",
    "warmup": 0,
}
SMALL, PAPER = "small network, batch 64", "paper's network, batch 50"
CASES = {SMALL: ("cpu", 64), PAPER: ("paper", 50)}
N_TURNS = {SMALL: 31, PAPER: 8}
POINTS_AT_ONCE = 5  # of every example, with internal_batch_size
PLAIN, OURS, CHUNKED, AT_ONCE = "plain loop", "RARLoss", "internal_batch_size", "all at once"
COMPARED = [(PLAIN, OURS), (CHUNKED, OURS), (CHUNKED, AT_ONCE)]
MEBIBYTE = 2**20


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    memory = {  # first, since a new process inherits the peak of the one that starts it
        (n_steps, chunked): measure_memory(n_steps, chunked, options.device)
        for n_steps in (5, N_STEPS)
        for chunked in (False, True)
    }
    speed = {name: measure_speed(name, device, options.quick) for name in CASES}
    print_table(speed)
    print()
    rows = {f"{n} points" + (", internal_batch_size" if c else ""): {"MiB": value} for (n, c), value in memory.items()}
    print_table(rows)
    claims = check(speed, memory, device)
    print()
    print_claims(claims)
    save(f"speed on {device.type}", {"speed": speed, "memory": rows, "claims": claims}, options.output)
    print(f"\nSaved {options.output}")


def example(name: str, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    scale, n_examples = CASES[name]
    network = build((1, 28, 28), 10, scale, seed=0).to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n_examples, 1, 28, 28, generator=generator)
    return network, images.to(device), torch.randint(10, (n_examples,), generator=generator).to(device)


def measure_speed(name: str, device: torch.device, quick: bool) -> dict[str, float]:
    """Seconds of a training step, and how many times as fast as the plain loop."""
    network, images, labels = example(name, device)

    def ours(**options: Any) -> Callable[[], None]:
        loss = RARLoss(network, "ig_norm", bounds=(0, 1), **SETTINGS, **options)
        return lambda: loss(images, labels).backward()

    ways = {
        PLAIN: lambda: plain_step(network, images, labels).backward(),
        OURS: ours(),
        CHUNKED: ours(internal_batch_size=POINTS_AT_ONCE * len(images)),
        AT_ONCE: all_at_once(ours()),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in tqdm(range(2 if quick else N_TURNS[name]), name):
        for way, step in ways.items():
            network.zero_grad()
            synchronize(device)
            begin = time.perf_counter()
            step()
            synchronize(device)
            seconds[way].append(time.perf_counter() - begin)
    turns = {way: values[1:] for way, values in seconds.items()}  # the first warms up
    medians = {way: statistics.median(values) for way, values in turns.items()}
    compared = {
        f"{slower} / {faster}": statistics.median(a / b for a, b in zip(turns[slower], turns[faster], strict=True))
        for slower, faster in COMPARED
    }
    return {**medians, **compared, "difference": difference(network, images, labels)}


def all_at_once(step: Callable[[], None]) -> Callable[[], None]:
    def unlimited() -> None:
        limits = _pointwise_loss._CPU_BYTES, _pointwise_loss._ACCELERATOR_BYTES
        _pointwise_loss._CPU_BYTES = _pointwise_loss._ACCELERATOR_BYTES = 2**62
        try:
            step()
        finally:
            _pointwise_loss._CPU_BYTES, _pointwise_loss._ACCELERATOR_BYTES = limits

    return unlimited


def difference(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Largest relative difference of the two regularizers at the same perturbed images."""
    loss = RARLoss(network, "ig_norm", bounds=(0, 1), **SETTINGS)
    perturbed = loss.perturb(images, labels)
    ours = loss.regularizer(images, perturbed, labels)
    plain = plain_attribution(network, images, perturbed, labels, N_STEPS).flatten(1).abs().sum(dim=1)
    return ((ours - plain).abs() / plain).max().item()


def plain_attribution(network: nn.Module, start: Tensor, end: Tensor, labels: Tensor, n_steps: int) -> Tensor:
    total = torch.zeros_like(start)
    for k in range(1, n_steps + 1):
        point = start + k / n_steps * (end - start)
        point = point if point.requires_grad else point.requires_grad_()
        loss = nn.functional.cross_entropy(network(point), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point, create_graph=True)
        total = total + gradient * (end - start) / n_steps
    return total


def plain_step(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    points = (images + EPSILON * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
    for _ in range(ATTACK_STEPS):
        points = points.detach().requires_grad_()
        size = plain_attribution(network, images, points, labels, ATTACK_N_STEPS).abs().sum()
        (gradient,) = torch.autograd.grad(size, points)
        points = points.detach() + 2.5 * EPSILON / ATTACK_STEPS * gradient.sign()
        points = points.clamp(images - EPSILON, images + EPSILON).clamp(0, 1)
    size = plain_attribution(network, images, points.detach(), labels, N_STEPS).abs().sum()
    return nn.functional.cross_entropy(network(images), labels) + size / len(images)


def measure_memory(n_steps: int, chunked: bool, device: str) -> float:
    """MiB that a step, with one step of the attack, adds to the peak of a fresh process that has trained without it."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)  # what is free goes back to the system, which counts the rest
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(added_memory, (n_steps, chunked, device))


def added_memory(n_steps: int, chunked: bool, device_name: str) -> float:
    torch.set_num_threads(1)
    device = torch.device(device_name)
    network, images, labels = example(PAPER, device)
    options = {**SETTINGS, "n_steps": n_steps, "attack_steps": 1}
    if chunked:
        options["internal_batch_size"] = POINTS_AT_ONCE * len(images)
    loss = RARLoss(network, "ig_norm", bounds=(0, 1), **options)
    nn.functional.cross_entropy(network(images), labels).backward()  # what every training step needs
    before = peak(device)
    loss(images, labels).backward()
    return (peak(device) - before) / MEBIBYTE


def peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check(
    speed: dict[str, dict[str, float]], memory: dict[tuple[int, bool], float], device: torch.device
) -> list[Claim]:
    claims = []
    for name, row in speed.items():
        least = 5 if device.type == "cuda" else 1.2 if name == SMALL else 1
        ratio = row[f"{PLAIN} / {OURS}"]
        claims.append(Claim(f"{name}: times as fast as the plain loop, at least {least}", ratio, ratio >= least))
        apart = row["difference"]
        claims.append(Claim(f"{name}: same regularizer to 1e-5", apart, apart <= 1e-5))
        for other in (AT_ONCE, OURS):
            cost = row[f"{CHUNKED} / {other}"]
            claims.append(Claim(f"{name}: time with {CHUNKED} / {other}, at most 1.3", cost, cost <= 1.3))
    growth = memory[N_STEPS, True] / memory[5, True]
    claims.append(Claim("memory of 50 points / 5 with internal_batch_size, at most 1.3", growth, growth <= 1.3))
    return claims


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repetition")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "rar_speed.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
