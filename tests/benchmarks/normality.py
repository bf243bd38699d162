"""Do robust networks' attributions look normal? Networks trained in six ways: tables, claims, a picture and JSON.

    python tests/benchmarks/normality.py --dataset mnist fashion_mnist [--quick]

"Robust Models Are More Interpretable Because Attributions Look Normal" (https://arxiv.org/abs/2103.11257) finds that
the more robust a network is, the more its input gradients resemble the normals of the boundaries nearby, and the nearer
ordinary attributions are to boundary attributions. Here one architecture is trained as usual, adversarially at three
strengths, and for stable attributions (https://arxiv.org/abs/1905.09957) by the two objectives of that paper.

Rows of the tables are means. The first two are over 1000 test images, the others over the first ones, to be explained,
as far as the network classifies them correctly:

* accuracy; robust accuracy, under PGD at the epsilon of the strongest training.
* distance: l2, to the nearest boundary point that is an image; optimality: 1 where it is closest, to first order.
* alignment: cosine of the gradient of the class's score and the boundary's unit normal at that point; of margins: the
  same for the gradient of the difference of both classes' scores.
* gradient kept: cosine of the score's gradients at the image and at an l2 distance of 0.5 towards the boundary point,
  the same distance for all networks.
* neighbors: mean cosine between the normals of the boundaries with the three strongest other classes.
* |SM - BSM|, |IG - BIG|: l2 distance of ordinary and boundary attributions; at unit length: after both were brought to
  l2 norm 1, so that the size of a network's gradients does not count.
* EG, PP, Con: localization of each attribution on the object, which is taken to be all pixels that are not black.

Intervals are 95 % bootstrap intervals over images of means over seeds. Differences are paired by image and seed. A run
that was stopped goes on where it was when started again. ``--quick`` is a smoke run on digits in less than a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from intervals import Values
from normality_measures import evaluate
from normality_picture import draw
from normality_summary import STANDARD, claims, differences, means
from normality_tables import show
from rar_checkpoint import Checkpoint, CheckpointError
from rar_data import Data, DataNotReachableError, load, pixels
from rar_settings import Training, evaluation, training
from rar_training import Run, make_deterministic, train
from report import save
from tqdm.auto import tqdm

N_CLASSIFIED = 1000  # test images of the accuracies
STRONGEST = "adversarial"
# Objective, and epsilon as a share of the paper's.
NETWORKS: Mapping[str, tuple[str, float]] = {
    STANDARD: ("natural", 1.0),
    "adversarial / 4": ("madry", 0.25),
    "adversarial / 2": ("madry", 0.5),
    STRONGEST: ("madry", 1.0),
    "ig_norm": ("ig_norm", 1.0),
    "ig_sum_norm": ("ig_sum_norm", 1.0),
}


def main() -> None:
    options = parse()
    make_deterministic(options.threads)
    path = options.output / "normality.json"
    jobs = [(seed, dataset, name) for seed in range(options.seeds) for dataset in options.dataset for name in NETWORKS]
    per_seed: dict[str, dict[str, list[dict[str, Values]]]] = {dataset: {} for dataset in options.dataset}
    try:
        data = {dataset: load(dataset, options.data) for dataset in options.dataset}
        with tqdm(jobs, unit="network") as bar:
            for seed, dataset, name in bar:
                bar.set_description(f"{dataset}, seed {seed}, {name}")
                per_seed[dataset].setdefault(name, []).append(finish(dataset, name, seed, data[dataset], options))
                save(section(dataset, options), collected(per_seed[dataset], options), path)
    except (CheckpointError, DataNotReachableError) as error:
        sys.exit(str(error))
    shown = {}
    for dataset in options.dataset:
        result = collected(per_seed[dataset], options) | summary(per_seed[dataset])
        save(section(dataset, options), result, path)
        print(f"\n{section(dataset, options)}\n")
        show(result, (STANDARD, STRONGEST))
        shown[section(dataset, options)] = result["means"]
    picture = options.output / "normality.png"
    draw(shown, picture)
    print(f"\nSaved {path} and {picture}")


def finish(dataset: str, name: str, seed: int, data: Data, options: argparse.Namespace) -> dict[str, Values]:
    """Train and measure, or what is left of both."""
    settings = schedule(dataset, name, seed, options.steps, options.batch_size, options.smooth)
    file = options.output / f"{section(dataset, options)}-{name.replace(' / ', '-')}-{seed}"
    measured = Checkpoint(
        file.with_suffix(".measures.pt"), {**asdict(settings), "n_images": options.images, "budget": options.budget}
    )
    columns = measured.load()
    if columns is None:
        run = Run(settings, data, torch.device(options.device))
        train(run, Checkpoint(file.with_suffix(".pt"), asdict(settings)), options.save_seconds)
        images, labels = (tensor[:N_CLASSIFIED].to(options.device) for tensor in (data.test_images, data.test_labels))
        attack = evaluation(dataset, "cpu", quick=False)
        columns = evaluate(run.network, pixels(images), labels, attack, options.images, options.budget)
        measured.save(columns)
    return columns


def section(dataset: str, options: argparse.Namespace) -> str:
    """Where results are kept."""
    return f"{dataset}-smooth" if options.smooth else dataset


def schedule(dataset: str, name: str, seed: int, n_steps: int | None, batch_size: int | None, smooth: bool) -> Training:
    """That of the benchmark of training, which None leaves as it is, with a share of its epsilon."""
    objective, share = NETWORKS[name]
    settings = training(dataset, objective, "cpu", seed, quick=False, smooth=smooth)
    n_steps = n_steps or settings.n_steps
    shrunk = n_steps / settings.n_steps
    strength = {key: share * settings.loss[key] for key in ("epsilon", "attack_step_size") if key in settings.loss}
    return replace(
        settings,
        n_steps=n_steps,
        batch_size=batch_size or settings.batch_size,
        learning_rates=tuple((int(shrunk * begin), rate) for begin, rate in settings.learning_rates),
        warm_up=int(shrunk * settings.warm_up),
        loss={**settings.loss, **strength},
    )


def collected(per_seed: Mapping[str, list[dict[str, Values]]], options: argparse.Namespace) -> dict[str, Any]:
    """All numbers that are known so far."""
    names = ("steps", "batch_size", "images", "budget", "seeds")
    return {"settings": {name: getattr(options, name) for name in names}, "per image": per_seed, "claims": []}


def summary(per_seed: Mapping[str, list[dict[str, Values]]]) -> dict[str, Any]:
    to_standard = differences(per_seed, STANDARD)
    return {
        "means": means(per_seed),
        f"differences to {STANDARD}": to_standard,
        f"differences to {STRONGEST}": differences(per_seed, STRONGEST),
        "claims": claims(to_standard),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("--dataset", nargs="+", choices=["mnist", "fashion_mnist", "digits"], default=["mnist"])
    parser.add_argument("--smooth", action="store_true", help="GELUs in place of ReLUs")
    parser.add_argument("--seeds", type=int, default=2, help="networks of each kind (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of training (default: those of rar.py at --scale cpu)")
    parser.add_argument("--batch-size", type=int, help="of training (default: that of rar.py at --scale cpu)")
    parser.add_argument("--images", type=int, default=100, help="to explain (default: %(default)s)")
    parser.add_argument("--budget", type=int, default=40, help="of each search, in gradients (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke run on digits")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--output", type=Path, default=here / "results" / "normality", help="folder for all results")
    parser.add_argument("--data", type=Path, default=here / "results" / "downloads", help="folder for downloads")
    parser.add_argument("--save-seconds", type=float, default=30.0, help="time between checkpoints (default: 30)")
    options = parser.parse_args()
    if options.quick:
        options.dataset, options.seeds, options.steps = ["digits"], 1, 40
        options.images, options.budget = 10, 10
        options.output /= "quick"
    return options


if __name__ == "__main__":
    main()
