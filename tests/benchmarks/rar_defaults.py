"""Training with RARLoss as a user would, who gives no setting but epsilon: how far does it come in some minutes?

    python tests/benchmarks/rar_defaults.py --dataset mnist --minutes 1 3 [--setting all]

A small network from scratch, Adam at its default rate of 1e-3, batches of 64. Time is the processor's, of all threads
together; tests do not count. NA on the first 1,000 test images, AA under PGD with 40 steps on 300 of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rar_data import Data, DataNotReachableError, load, pixels
from rar_evaluation import accuracy, pgd
from rar_networks import build
from rar_settings import evaluation
from report import Claim, print_claims, print_table, save
from torch import nn
from tqdm.auto import tqdm

from captum_boundary.robust import RARLoss

# Size and options of RARLoss. Those without options are the defaults, which are what is claimed.
SETTINGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "sum": ("sum", {}),
    "ig_norm, smooth": ("ig_norm", {"smooth": "softplus"}),
    "sum, no warm-up": ("sum", {"warmup": 0}),
    "sum, 10 attack steps": ("sum", {"attack_steps": 10}),
    "ig_norm, smooth, 1 attack node, 5 attack steps": (
        "ig_norm",
        {"smooth": "softplus", "n_steps": 3, "attack_n_steps": 1, "attack_steps": 5},
    ),
    "ig_norm, smooth, 10 attack nodes, 50 nodes": (
        "ig_norm",
        {"smooth": "softplus", "n_steps": 50, "attack_n_steps": 10},
    ),
    "ig_norm": ("ig_norm", {}),
}
DEFAULTS = ["sum", "ig_norm, smooth"]
BATCH_SIZE = 64


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    try:
        data = load(options.dataset, options.data)
    except DataNotReachableError as error:
        sys.exit(str(error))
    names = list(SETTINGS) if "all" in options.setting else options.setting
    rows = {}
    for name in names:
        rows |= learn(name, data, options)
    print_table(rows)
    claims = check(rows) if options.dataset == "mnist" else []
    print_claims(claims)
    save(f"defaults on {options.dataset}", {"data": data.source, "rows": rows, "claims": claims}, options.output)


def learn(name: str, data: Data, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One row for each of the times."""
    size, settings = SETTINGS[name]
    tests = replace(evaluation(options.dataset, "cpu", quick=False), pgd_images=options.pgd_images)
    network = build(data.image_shape, data.n_classes, "cpu", seed=0)
    rar = RARLoss(network, size, epsilon=tests.epsilon, bounds=(0, 1), **settings)
    optimizer = torch.optim.Adam(network.parameters())
    generator = torch.Generator().manual_seed(0)
    order, seconds, rows = torch.empty(0, dtype=torch.long), 0.0, {}
    with tqdm(total=round(60 * max(options.minutes)), desc=name, unit="s") as bar:
        for minutes in sorted(options.minutes):
            while seconds < 60 * minutes:
                begin = time.process_time()
                if len(order) < BATCH_SIZE:
                    order = torch.randperm(len(data.train_labels), generator=generator)
                batch, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
                optimizer.zero_grad()
                rar(pixels(data.train_images[batch]), data.train_labels[batch]).backward()
                optimizer.step()
                seconds += time.process_time() - begin
                bar.update(round(seconds) - bar.n)
            rows[f"{name}, {minutes:g} min"] = {
                "steps / s": rar.training_calls / seconds,
                **tested(network, data, tests),
            }
    return rows


def tested(network: nn.Module, data: Data, tests: Any) -> dict[str, float]:
    images, labels = pixels(data.test_images[:1000]), data.test_labels[:1000]
    n = tests.pgd_images
    perturbed = pgd(network, images[:n], labels[:n], tests, torch.Generator().manual_seed(0))
    return {"NA %": accuracy(network, images, labels), "AA %": accuracy(network, perturbed, labels[:n])}


def check(rows: Mapping[str, Mapping[str, float]]) -> list[Claim]:
    """What the defaults reach on MNIST, epsilon 0.3, in at most three (``"sum"``) and five minutes of a processor."""
    claims = []
    for name, row in rows.items():
        setting, minutes = name.rsplit(", ", 1)
        if setting == "sum" and minutes == "3 min":
            claims.append(Claim(f"{name}: NA at least 85", row["NA %"], row["NA %"] >= 85))
            claims.append(Claim(f"{name}: AA at least 60", row["AA %"], row["AA %"] >= 60))
        if setting == "ig_norm, smooth" and minutes in ("3 min", "5 min"):
            claims.append(Claim(f"{name}: NA at least 80", row["NA %"], row["NA %"] >= 80))
    return claims


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist", choices=["mnist", "fashion_mnist", "digits"])
    parser.add_argument("--setting", nargs="+", choices=[*SETTINGS, "all"], default=DEFAULTS, metavar="NAME")
    parser.add_argument("--minutes", nargs="+", type=float, default=[1.0, 3.0])
    parser.add_argument("--pgd-images", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "results" / "downloads")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "rar_defaults.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
