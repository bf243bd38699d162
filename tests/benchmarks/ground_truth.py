"""Benchmark of explanations where the truth is known: prints a table with intervals, saves JSON.

    python tests/benchmarks/ground_truth.py [--quick]

Small networks are trained on images in which one glyph, in a random place and color, makes the class, among others
that are drawn alike for all classes. Every method explains the predicted class of test images. Columns:

* top: share of the 49 highest pixels of the map that lie on the 49 of the glyph's square; 0.09 for a random map.
* EG, Con: energy and concentration on the square. Loc and PP count signs, and are left out.
* gradients, forwards: for an image.

Means come with 95 % bootstrap intervals over the images of all networks, and so do paired differences to the leader of
the table.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from counting import CountedModel, Counter
from explanation_methods import N_GRADIENTS, Explainer, explainers, search
from explanations import shown
from intervals import Values, interval, paired_difference
from report import print_table, save
from synthetic_images import GLYPH, make_images, trained_network
from torch import Tensor, nn
from tqdm import tqdm

from captum_boundary import BoundaryPoints
from captum_boundary.metrics import concentration, energy_game, topk_intersection

COSTS = ("gradients", "forwards")
N_BACKGROUNDS = 20


def run(n_networks: int, n_images: int, n_steps: int, n_gradients: int, names: list[str] | None) -> dict[str, Any]:
    images, classes, masks = make_images(n_images, seed=0)
    backgrounds = make_images(N_BACKGROUNDS, seed=1)[0]
    methods = explainers(images.mean(dim=(0, 2, 3))[:, None, None], backgrounds, n_gradients)
    unknown = set(names or ()) - set(methods)
    if unknown:
        sys.exit(f"--only takes {'; '.join(methods)}, but not {'; '.join(unknown)}")
    methods = {name: methods[name] for name in names or methods}
    per_image: dict[str, dict[str, Values]] = {name: {} for name in methods}
    n_correct = []
    with tqdm(total=n_networks * (len(methods) + 1)) as bar:
        for seed in range(n_networks):
            bar.set_description("training")
            network = trained_network(seed, n_steps)
            target = network(images).argmax(dim=1)
            rows = (target == classes).nonzero().flatten()
            n_correct.append(len(rows))
            counter = Counter()
            boundary = search(CountedModel(network, counter)).find(images[rows], target[rows])
            spent = (counter.gradients / len(rows), counter.forwards / len(rows))
            bar.update()
            for name, explainer in methods.items():
                bar.set_description(name)
                measured = evaluate(explainer, network, images[rows], target[rows], masks[rows], boundary, spent)
                for column, values in measured.items():
                    per_image[name].setdefault(column, []).extend(
                        None if math.isnan(value) else value for value in values.tolist()
                    )
                bar.update()
    return {"images": n_images, "correct": n_correct, "per image": per_image, "claims": []} | summary(per_image)


def evaluate(
    explainer: Explainer,
    network: nn.Module,
    images: Tensor,
    target: Tensor,
    masks: Tensor,
    boundary: BoundaryPoints,
    spent: tuple[float, float],
) -> dict[str, Tensor]:
    counter = Counter()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting forward, backward hooks and attributes on non-linear")
        maps = explainer.explain(
            CountedModel(network, counter).eval(), images.clone().requires_grad_(), target, boundary
        ).detach()
    costs = (counter.gradients / len(images), counter.forwards / len(images))
    if explainer.uses_boundary:
        costs = (costs[0] + spent[0], costs[1] + spent[1])
    return {
        "top": topk_intersection(maps.sum(dim=1), masks, GLYPH**2),
        "EG": energy_game(maps, masks),
        "Con": concentration(maps, masks),
        **{name: torch.full((len(images),), cost) for name, cost in zip(COSTS, costs, strict=True)},
    }


def summary(per_image: dict[str, dict[str, Values]]) -> dict[str, Any]:
    means = {
        name: {column: asdict(interval(values)) for column, values in columns.items()}
        for name, columns in per_image.items()
    }
    leader = max(means, key=lambda name: means[name]["top"]["mean"])
    differences = {
        name: {
            column: asdict(paired_difference(values, per_image[leader][column]))
            for column, values in columns.items()
            if column not in COSTS
        }
        for name, columns in per_image.items()
        if name != leader
    }
    return {"means": means, "leader": leader, "differences to the leader": differences}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--n-images", type=int, default=100, help="for each network (default: %(default)s)")
    parser.add_argument("--n-steps", type=int, default=250, help="of training (default: %(default)s)")
    parser.add_argument("--n-gradients", type=int, default=N_GRADIENTS, help="for each image (default: %(default)s)")
    parser.add_argument("--only", help="rows to compute, separated by semicolons (default: all)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON")
    parser.add_argument("--quick", action="store_true", help="one network and 10 images")
    parser.add_argument("--threads", type=int, help="threads of torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    n_networks, n_images = (1, 10) if options.quick else (options.networks, options.n_images)
    names = options.only.split(";") if options.only else None
    result = run(n_networks, n_images, options.n_steps, options.n_gradients, names)
    save(f"{options.n_gradients} gradients", result, options.output / "ground_truth.json")
    print(f"\n{n_networks} networks, {result['correct']} of {n_images} images are classified correctly\n")
    print_table({name: shown(columns, COSTS) for name, columns in result["means"].items()})
    print(f"\nDifferences to {result['leader']}, which has the highest mean top\n")
    print_table({name: shown(columns) for name, columns in result["differences to the leader"].items()})


if __name__ == "__main__":
    main()
