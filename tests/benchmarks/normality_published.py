"""Do robust networks' attributions look normal where others trained the networks? Tables, claims and JSON.

    python tests/benchmarks/normality_published.py [--networks FOLDER] [--group mnist ...]

The measures are those of normality.py. In each group the networks have one architecture, and ``standard`` ones are
trained here as usual, since the sources have none: on the whole of MNIST and Fashion-MNIST, but on 2,000 images of
CIFAR-10 only, which makes them weak. Two groups have a standard network that was published too, but whose shape is not
quite that of the robust ones: ``unpadded`` differs by one small linear layer, ``residual`` by depth and normalization.
Robust accuracies are all at the least epsilon of the group; those at each network's own are printed by
published_networks.py. A run that was stopped goes on where it was when started again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from intervals import Values
from normality_measures import evaluate
from normality_summary import STANDARD, claims, differences, means
from normality_tables import show
from published_networks import NetworkNotFoundError, images_of, load_published, parser_of
from rar_checkpoint import Checkpoint, CheckpointError, plain
from rar_data import Data, DataNotReachableError, pixels
from rar_settings import Evaluation, Training
from rar_training import Run, train
from report import save
from torch import nn
from tqdm.auto import tqdm
from zoo import DataNotSetError, cifar_resnet20

N_CLASSIFIED = 500  # test images of the accuracies
TRAINED = ("trained here, seed 0", "trained here, seed 1")
RESNET20 = "ResNet-20"


@dataclass(frozen=True)
class Group:
    dataset: str
    epsilon: float  # of the robust accuracies
    networks: Mapping[str, tuple[str, ...]]  # one source for each seed


GROUPS = {
    "mnist": Group(
        "mnist",
        0.1,
        {
            STANDARD: TRAINED,
            "provable 0.1": ("provable 0.1", "provable 0.1, seed 1"),
            "adversarial 0.3": ("adversarial 0.3",),
            "provable 0.3": ("provable 0.3",),
        },
    ),
    "fashion_mnist": Group("fashion_mnist", 0.1, {STANDARD: TRAINED, "provable 0.1": ("fashion, provable 0.1",)}),
    "cifar10": Group(
        "cifar10",
        2 / 255,
        {
            STANDARD: TRAINED,
            **{name: (name,) for name in ("CNN-A-Mix", "CNN-A-Mix-4", "CNN-A-Adv", "CNN-A-Adv-4")},
            **{name: (name,) for name in ("provable 2/255", "provable l2 36/255", "provable 8/255")},
        },
    ),
    "unpadded": Group("cifar10", 2 / 255, {STANDARD: ("Marabou",), "ConvSmall": ("ConvSmall",)}),
    "residual": Group(
        "cifar10", 2 / 255, {STANDARD: (RESNET20,), "ResNet-2B": ("ResNet-2B",), "ResNet-4B": ("ResNet-4B",)}
    ),
}


def main() -> None:
    run_groups(parse(), "normality_published.json", measure_group)


def run_groups(
    options: argparse.Namespace, file: str, measure: Callable[[str, argparse.Namespace], dict[str, Any]]
) -> None:
    """Measure, save and show one group after the other."""
    torch.set_num_threads(options.threads)
    path = options.output / file
    try:
        for name in options.group:
            result = measure(name, options)
            save(name, result, path)
            print(f"\n{name}\n")
            show(result, (STANDARD,))
    except (CheckpointError, DataNotReachableError, DataNotSetError, NetworkNotFoundError) as error:
        sys.exit(str(error))
    print(f"\nSaved {path}")


def measure_group(name: str, options: argparse.Namespace) -> dict[str, Any]:
    group = GROUPS[name]
    data = images_of(group.dataset)
    per_seed = of_all_seeds(name, lambda source: finish(group, source, data, options))
    to_standard = differences(per_seed, STANDARD)
    return {
        "settings": {"images": options.images, "budget": options.budget, "epsilon": group.epsilon},
        "per image": per_seed,
        "means": means(per_seed),
        f"differences to {STANDARD}": to_standard,
        "claims": claims(to_standard),
    }


def of_all_seeds(name: str, columns_of: Callable[[str], dict[str, Values]]) -> dict[str, list[dict[str, Values]]]:
    """The columns of every source of a group, by network."""
    sources = [(network, source) for network, seeds in GROUPS[name].networks.items() for source in seeds]
    per_seed: dict[str, list[dict[str, Values]]] = {}
    for network, source in tqdm(sources, name, unit="network"):
        per_seed.setdefault(network, []).append(columns_of(source))
    return per_seed


def finish(group: Group, source: str, data: Data, options: argparse.Namespace) -> dict[str, Values]:
    """The measures of one network, or what is left of them."""
    settings = {"source": source, "epsilon": group.epsilon, "n_images": options.images, "budget": options.budget}
    measured = Checkpoint(options.output / f"{plain(f'{group.dataset} {source}')}.measures.pt", settings)
    columns = measured.load()
    if columns is None:
        network = get(source, group.dataset, data, options)
        images, labels = pixels(data.test_images[:N_CLASSIFIED]), data.test_labels[:N_CLASSIFIED]
        attack = Evaluation(group.epsilon, 100, group.epsilon / 10, 1, 1, 1, 0.1)
        columns = evaluate(network, images, labels, attack, options.images, options.budget)
        measured.save(columns)
    return columns


def get(source: str, dataset: str, data: Data, options: argparse.Namespace) -> nn.Module:
    """The network of a ``source``, which is trained first where nobody published it."""
    if source == RESNET20:
        return cifar_resnet20()
    if source not in TRAINED:
        return load_published(source, options.networks)
    settings = usual_training(dataset, TRAINED.index(source))
    run = Run(settings, data, torch.device("cpu"))
    train(run, Checkpoint(options.output / f"{dataset}-{settings.seed}.pt", asdict(settings)), save_seconds=30)
    return run.network.requires_grad_(False)


def usual_training(dataset: str, seed: int) -> Training:
    return Training(
        dataset,
        "natural",
        "cpu",
        seed,
        n_steps=4000,
        batch_size=64,
        optimizer="adam",
        learning_rates=((0, 2e-3), (2700, 4e-4)),
        augment=dataset == "cifar10",
    )


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__, 100, "to explain")
    parser.add_argument("--group", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--budget", type=int, default=1000, help="of each search, in gradients (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
