"""Robust Attribution Regularization (https://arxiv.org/abs/1905.09957): training, evaluation, a table and a picture.

    python tests/benchmarks/rar.py --dataset mnist --objective all --scale cpu

Objectives: ``natural`` (cross-entropy), ``madry`` (adversarial training), ``input_gradient`` (input-gradient
regularization), ``ig_norm`` and ``ig_sum_norm``. At ``--scale cpu`` small networks train for ten minutes at most an
objective on two cores; ``--scale paper`` has the published networks, steps and attacks, and needs a GPU. ``--quick`` is
a run of everything in about a minute.

A run that was stopped goes on where it was when started again, and what is finished is not done again: objectives can
be trained one by one and put in one table in the end. On the CPU the same seed and number of threads give the same
numbers, however often the run was stopped.

Data come from the folder that CAPTUM_BOUNDARY_DATA names, or else from torchvision, which downloads them.

Columns: NA and AA are accuracies on the test images, and on those under PGD of the same epsilon. IN is the share of the
most attributed pixels that stay among them under the attribution attack, CO Kendall's tau of the maps: means over
images that the network classifies correctly, each network its own as in the paper. ``random`` is the same under random
moves of the size of the attack. A gradient is one image that passes through the network and back.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rar_checkpoint import Checkpoint, CheckpointError
from rar_data import Data, DataNotReachableError, load
from rar_evaluation import evaluate
from rar_picture import draw
from rar_settings import OBJECTIVES, PAPER_NAMES, Evaluation, evaluation, training
from rar_training import Run, make_deterministic, train
from report import Claim, print_claims, print_table, save


def main() -> None:
    options = parse()
    make_deterministic(options.threads)
    variants = {"smooth": options.smooth, "softplus": options.softplus_beta is not None, "quick": options.quick}
    name = "-".join([options.dataset, options.scale, *(name for name, is_chosen in variants.items() if is_chosen)])
    folder = options.output / name
    try:
        data = load(options.dataset, options.data)
        results = {objective: finish(objective, data, folder, options) for objective in options.objective}
    except (CheckpointError, DataNotReachableError) as error:
        sys.exit(str(error))

    settings = evaluation(options.dataset, options.scale, options.quick)
    rows = {objective: result["row"] for objective, result in results.items()}
    summary = summarize(data, options, settings)
    print(f"\n{name}: {summary}\n")
    print_table(rows)
    expected = [] if options.quick or options.dataset == "digits" else claims(rows)
    if expected:
        print()
        print_claims(expected)
    has_picture = draw(
        {objective: result["shown"] for objective, result in results.items()},
        data.test_images,
        settings.k,
        folder / "maps.png",
    )
    save("rar", {"data": data.source, "summary": summary, "rows": rows, "claims": expected}, folder / "table.json")
    print(f"\nSaved {folder / 'table.json'}" + (f" and {folder / 'maps.png'}" if has_picture else ""))


def finish(objective: str, data: Data, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate, or what is left of both."""
    device = torch.device(options.device)
    train_settings = training(
        options.dataset,
        objective,
        options.scale,
        options.seed,
        options.quick,
        options.smooth,
        options.weight,
        options.softplus_beta,
    )
    test_settings = evaluation(options.dataset, options.scale, options.quick)
    both = {**asdict(train_settings), "evaluation": asdict(test_settings)}
    run = Run(train_settings, data, device)
    train(run, Checkpoint(folder / f"{objective}.pt", asdict(train_settings)), options.save_seconds)
    evaluated = Checkpoint(folder / f"{objective}-evaluation.pt", both)
    result = evaluated.load()
    if result is None:
        result = evaluate(run, data.to(device), test_settings)
        evaluated.save(result)
    return result


def claims(rows: Mapping[str, Mapping[str, float]]) -> list[Claim]:
    """What the paper found, where all of its objectives are in the table."""
    if not {"natural", "madry", "ig_norm", "ig_sum_norm"} <= rows.keys():
        return []
    found = []
    for column in ("IN %", "CO"):
        natural, madry, *ours = (rows[name][column] for name in ("natural", "madry", "ig_norm", "ig_sum_norm"))
        found.append(Claim(f"{column}: madry above natural, by", madry - natural, madry > natural))
        found.append(Claim(f"{column}: ig_norm and ig_sum_norm above madry, by", min(ours) - madry, min(ours) > madry))
    gain, loss = (
        rows["ig_sum_norm"]["IN %"] - rows["natural"]["IN %"],
        rows["natural"]["NA %"] - rows["ig_sum_norm"]["NA %"],
    )
    found.append(Claim("ig_sum_norm: IN at least 15 points above natural, by", gain, gain >= 15))
    found.append(Claim("ig_sum_norm: NA at most 2 points below natural, by", loss, loss <= 2))
    return found


def summarize(data: Data, options: argparse.Namespace, settings: Evaluation) -> str:
    n_test, n_train = len(data.test_labels), len(data.train_labels)
    n_pgd = min(settings.pgd_images or n_test, n_test)
    return (
        f"{n_train} images to train with; NA on {n_test} test images; AA on {n_pgd}, PGD of {settings.pgd_steps} "
        f"steps; epsilon {settings.epsilon:.4g}; attribution attack of {settings.attack_steps} steps"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("--dataset", choices=list(PAPER_NAMES), required=True)
    parser.add_argument(
        "--objective",
        nargs="+",
        choices=[*OBJECTIVES, "all"],
        default=["all"],
        metavar="NAME",
        help=f"{', '.join(OBJECTIVES)}, or all",
    )
    parser.add_argument("--scale", choices=["cpu", "paper"], default="cpu")
    parser.add_argument("--smooth", action="store_true", help="GELUs, which let IG objectives see the network bend")
    parser.add_argument(
        "--softplus-beta", type=float, help="IG objectives see ReLUs as softplus of this sharpness (default: as ReLUs)"
    )
    parser.add_argument("--weight", type=float, help="of the regularizer (default: the paper's)")
    parser.add_argument("--quick", action="store_true", help="a run of everything in about a minute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--output", type=Path, default=here / "results" / "rar", help="folder for all that is written")
    parser.add_argument("--data", type=Path, default=here / "results" / "downloads", help="folder for downloads")
    parser.add_argument("--save-seconds", type=float, default=30.0, help="time between checkpoints (default: 30)")
    options = parser.parse_args()
    if "all" in options.objective:
        options.objective = list(OBJECTIVES)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


if __name__ == "__main__":
    main()
