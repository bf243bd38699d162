"""How near searches come in linf and l1: prints tables and claims, saves JSON.

    CAPTUM_BOUNDARY_DATA=FOLDER python tests/benchmarks/norms.py [--norm l1 linf] [--images 100] [--quick]

The first CIFAR-10 test images that a ResNet-20 classifies correctly, within [0, 1]. Distances are compared, image by
image, with the nearest point of all rows of the table, among which are ours at a budget of 1,000 and Foolbox's Fast
Minimum-Norm attack (https://arxiv.org/abs/2102.12827) with 1,000 steps. ``--quick`` leaves these two out.
"""

from __future__ import annotations

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import zoo
from foolbox.attacks import L1FMNAttack, LInfFMNAttack
from measures import distances
from report import Claim, print_claims, print_table, save
from rivals import run_minimization, run_ours
from torch import Tensor, nn

from captum_boundary import NearestBoundary

NORMS = {"l1": 1, "linf": math.inf}
FAST_MINIMUM_NORM = {"l1": L1FMNAttack, "linf": LInfFMNAttack}
# By how many per cent the mean distance may lie above that of the nearest points known.
TARGETS = {("l1", 40): 5.0, ("l1", 200): 1.5, ("linf", 40): 1.5, ("linf", 200): 0.5}


def compare(norm: str, model: nn.Module, images: Tensor, labels: Tensor, quick: bool) -> dict[str, Any]:
    """Rows of one norm's table, and what was hoped of them."""
    runs = {}
    for budget in (10, 40, 200) if quick else (10, 40, 200, 1000):
        search = partial(NearestBoundary, norm=NORMS[norm], bounds=(0, 1), budget=budget)
        runs[f"ours, budget {budget}"] = run_ours(search, model, images)
    if not quick:
        runs["Foolbox FMN-1000"] = run_minimization(FAST_MINIMUM_NORM[norm](steps=1000), model, images, labels)
    distance = {name: distances(model, images, labels, run.points, NORMS[norm]) for name, run in runs.items()}
    best = torch.stack(list(distance.values())).amin(dim=0)
    rows = {
        name: {
            "found": int(distance[name].isfinite().sum()),
            "distance mean": distance[name].mean().item(),
            "above best %": 100 * (distance[name].mean() / best.mean() - 1).item(),
            "by image %": 100 * ((distance[name] / best).mean() - 1).item(),
            "evaluations": run.evaluations,
            "seconds": run.seconds,
        }
        for name, run in runs.items()
    }
    claims = []
    for (of, budget), most in TARGETS.items():
        above = rows[f"ours, budget {budget}"]["above best %"]
        if of == norm:
            claims.append(Claim(f"{norm}, budget {budget}: mean at most {most} % above the best", above, above <= most))
    return {"images": len(images), "rows": rows, "claims": claims}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norm", nargs="+", choices=list(NORMS), default=list(NORMS))
    parser.add_argument("--images", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="without the most expensive rows")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON")
    parser.add_argument("--threads", type=int, help="threads of torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        model = zoo.cifar_resnet20()
        images, labels = zoo.first_correct(model, *zoo.load_images("cifar10_test500"), options.images)
    except zoo.DataNotSetError as error:
        sys.exit(str(error))
    path = options.output / ("norms-quick.json" if options.quick else "norms.json")
    for norm in options.norm:
        result = compare(norm, model, images, labels, options.quick)
        print(f"\n{norm}: {result['images']} images\n")
        print_table(result["rows"])
        print()
        print_claims(result["claims"])
        save(norm, result, path)
    print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
