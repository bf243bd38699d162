"""Are boundary attributions harder or easier to attack than Integrated Gradients? Tables and JSON.

    python tests/benchmarks/method_attacks.py --network mnist_natural mnist_adversarial cifar10 [--quick]

Three attacks within the same epsilon keep the label and take attribution away from the features that had most of it:

* on IG: made for Integrated Gradients from black; on SM: made for the gradient at the input.
* on BIG: made for Integrated Gradients from each image's nearest boundary point, which is held while the attack runs.

Each is applied to every method, whose maps are computed again at the perturbed image, boundary points included. Numbers
are the share of the strongest features that stay among them, means over correctly classified test images with 95 %
bootstrap intervals. ``worst`` is the lowest of the three attacks, image by image; ``beside IG`` is what a method keeps
more than IG does, each under the worst for it, paired by image; ``random`` is a random move of the same size.

A run that was stopped goes on where it was when started again. MNIST's networks are those of rar.py, whose training
takes minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from captum.attr import DeepLift, IntegratedGradients, Saliency
from intervals import Interval, Values, interval, paired_difference
from rar_checkpoint import Checkpoint, CheckpointError
from rar_data import DataNotReachableError, load, pixels
from rar_settings import training
from rar_training import Run, train
from report import print_table, save
from torch import Tensor, nn
from tqdm.auto import tqdm
from zoo import cifar_resnet20, first_correct, load_images

from captum_boundary import (
    AttributionAttack,
    BoundaryAttribution,
    BoundaryIntegratedGradients,
    BoundarySaliency,
    NearestBoundary,
    evaluate_attribution_robustness,
)
from captum_boundary.attr import separate_activations

REFERENCE = "IG"
BATCH = 20
IG_STEPS = 20


@dataclass(frozen=True)
class Setting:
    """A network, and how it is attacked."""

    objective: str | None  # of the training on MNIST; None for the pretrained network
    epsilon: float
    k: int
    n_images: int
    attack_steps: int


SETTINGS: Mapping[str, Setting] = {
    "mnist_natural": Setting("natural", 0.1, 100, 100, 30),
    "mnist_adversarial": Setting("madry", 0.3, 100, 100, 30),
    "cifar10": Setting(None, 2 / 255, 128, 20, 20),
}

METHODS: Mapping[str, Callable[[nn.Module], Any]] = {
    "SM": lambda model: lambda inputs, target: Saliency(model).attribute(inputs, target, abs=False),
    REFERENCE: lambda model: (
        lambda inputs, target: IntegratedGradients(model).attribute(inputs, target=target, n_steps=IG_STEPS)
    ),
    "DeepLift": lambda model: DeepLift(separate_activations(model)),
    "BSM": lambda model: BoundarySaliency(model, search(model)),
    "BIG": lambda model: (
        lambda inputs, target: BoundaryIntegratedGradients(model, search(model)).attribute(
            inputs, target, n_steps=IG_STEPS
        )
    ),
    "boundary DeepLift": lambda model: BoundaryAttribution(model, DeepLift, search(model)),
}


def search(model: nn.Module) -> NearestBoundary:
    return NearestBoundary(model, bounds=(0, 1), internal_batch_size=BATCH)


def attacks(model: nn.Module, images: Tensor, labels: Tensor, setting: Setting) -> dict[str, AttributionAttack]:
    options = {
        "epsilon": setting.epsilon,
        "bounds": (0, 1),
        "k": setting.k,
        "measure": "topk",
        "attack_steps": setting.attack_steps,
        "attack_step_size": setting.epsilon,
        "n_steps": IG_STEPS,
    }
    boundary = search(model).find(images, labels)
    return {
        "on IG": AttributionAttack(model, **options),
        "on SM": AttributionAttack(model, attribution="gradient", **options),
        "on BIG": AttributionAttack(model, baselines=boundary.points, **options),
    }


def kept(model: nn.Module, images: Tensor, labels: Tensor, setting: Setting) -> dict[str, dict[str, Values]]:
    """Shares that each method keeps under each attack, one for each image."""
    shares: dict[str, dict[str, Values]] = {method: {} for method in METHODS}
    for name, attack in attacks(model, images, labels, setting).items():
        perturbed = attack.perturb(images, labels)
        for method, build in METHODS.items():
            robustness = evaluate_attribution_robustness(
                model, images, labels, attack, attribution=build(model), perturbed=perturbed
            )
            shares[method][name] = robustness.topk_intersection.tolist()
            shares[method]["random"] = robustness.control.topk_intersection.tolist()
    return shares


def summary(shares: Mapping[str, Mapping[str, Values]]) -> dict[str, dict[str, Interval]]:
    worst = {method: _worst(columns) for method, columns in shares.items()}
    return {
        method: {
            **{name: interval(values) for name, values in columns.items()},
            "worst": interval(worst[method]),
            f"beside {REFERENCE}": paired_difference(worst[method], worst[REFERENCE]),
        }
        for method, columns in shares.items()
    }


def _worst(columns: Mapping[str, Values]) -> Values:
    attacked = torch.tensor([values for name, values in columns.items() if name != "random"])
    lowest: Values = attacked.amin(dim=0).tolist()
    return lowest


def network_and_images(name: str, options: argparse.Namespace, setting: Setting) -> tuple[nn.Module, Tensor, Tensor]:
    if setting.objective is None:
        model = cifar_resnet20()
        images, labels = load_images("cifar10_test500")
    else:
        data = load("mnist", options.data)
        settings = training("mnist", setting.objective, "cpu", options.seed, options.quick)
        run = Run(settings, data, torch.device("cpu"))
        train(run, Checkpoint(options.output / f"{setting.objective}.pt", asdict(settings)), 30)
        model, images, labels = run.network, pixels(data.test_images[:1000]), data.test_labels[:1000]
    n_images = 4 if options.quick else setting.n_images
    return model, *first_correct(model, images, labels, n_images)


def finish(name: str, options: argparse.Namespace) -> dict[str, dict[str, Values]]:
    """Shares for all images, batch by batch, or what is left of them."""
    setting = SETTINGS[name]
    of = {**asdict(setting), "seed": options.seed, "quick": options.quick}
    checkpoint = Checkpoint(options.output / f"{name}-kept.pt", of)
    shares: dict[str, dict[str, Values]] = checkpoint.load() or {}
    model, images, labels = network_and_images(name, options, setting)
    for first in tqdm(range(0, len(images), BATCH), name, unit="batch"):
        if shares and first < len(next(iter(next(iter(shares.values())).values()))):
            continue
        rows = slice(first, first + BATCH)
        for method, columns in kept(model, images[rows], labels[rows], setting).items():
            for column, values in columns.items():
                shares.setdefault(method, {}).setdefault(column, []).extend(values)
        checkpoint.save(shares)
    return shares


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    path = options.output / "method_attacks.json"
    try:
        for name in options.network:
            rows = summary(finish(name, options))
            print(f"\n{name}: {SETTINGS[name]}\n")
            print_table({method: {c: _shown(value) for c, value in row.items()} for method, row in rows.items()})
            plain = {method: {c: asdict(value) for c, value in row.items()} for method, row in rows.items()}
            save(name, {"settings": asdict(SETTINGS[name]), "rows": plain, "claims": []}, path)
    except (CheckpointError, DataNotReachableError) as error:
        sys.exit(str(error))
    print(f"\nSaved {path}")


def _shown(value: Interval) -> str:
    return "" if value.mean is None else f"{100 * value.mean:.0f} [{100 * value.low:.0f}, {100 * value.high:.0f}]"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("--network", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a smoke run on a few images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--output", type=Path, default=here / "results" / "method_attacks", help="folder for all files")
    parser.add_argument("--data", type=Path, default=here / "results" / "downloads", help="folder for downloads")
    return parser.parse_args()


if __name__ == "__main__":
    main()
