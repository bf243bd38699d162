"""Are the boundary points of published robust networks the nearest ones? Budgets, restarts, bounds and another search.

    python tests/benchmarks/published_points.py [--networks FOLDER] [--images 30]

For every network, the mean distance of a search relative to that of the nearest points that any of the searches within
bounds found, image by image: with budgets of 40 and 1000, the latter with restarts in three sets of directions, and by
Foolbox's DDN. "Spread" is that of the three means. Distances without bounds are relative to the same ones. Cosines are
those of the margin's gradient at the image and the normal at the point. A run that was stopped goes on where it was
when started again.
"""

from __future__ import annotations

import argparse
import sys

import torch
from measures import distances
from published_networks import PUBLISHED, NetworkNotFoundError, images_of, load_published, parser_of
from rar_checkpoint import Checkpoint, CheckpointError, plain
from rar_data import DataNotReachableError, pixels
from report import Claim, print_claims, print_table, save
from rivals import ATTACKS, run_minimization
from torch import Tensor, nn
from tqdm.auto import tqdm
from zoo import DataNotSetError, first_correct

from captum_boundary import BoundaryPoints, NearestBoundary
from captum_boundary.metrics import normal_alignment

SMALL, LARGE = 40, 1000
SEEDS = (0, 1, 2)
TOLERANCE = 0.02
BOUNDS = (0.0, 1.0)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    rows = {}
    try:
        for name in tqdm(options.only, unit="network"):
            rows[name] = finish(name, options)
    except (CheckpointError, DataNotReachableError, DataNotSetError, NetworkNotFoundError) as error:
        sys.exit(str(error))
    found = claims(rows)
    print_table(rows)
    print()
    print_claims(found)
    settings = {"images": options.images}
    save("points", {"settings": settings, "rows": rows, "claims": found}, options.output / "published_points.json")


def finish(name: str, options: argparse.Namespace) -> dict[str, float]:
    kept = Checkpoint(options.output / f"{plain(name)}.points.pt", {"name": name, "images": options.images})
    row = kept.load()
    if row is None:
        data = images_of(PUBLISHED[name].dataset)
        network = load_published(name, options.networks)
        row = compare(network, *first_correct(network, pixels(data.test_images), data.test_labels, options.images))
        kept.save(row)
    return row


def compare(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """One row of the table."""

    def search(budget: int, bounds: tuple[float, float] | None = BOUNDS, seed: int = 0) -> BoundaryPoints:
        generator = torch.Generator().manual_seed(seed)
        return NearestBoundary(network, budget=budget, bounds=bounds, generator=generator).find(images, labels)

    small, large = search(SMALL), [search(LARGE, seed=seed) for seed in SEEDS]
    other = run_minimization(ATTACKS["Foolbox DDN-1000"], network, images, labels)
    of_other = distances(network, images, labels, other.points)
    best = torch.stack([small.distance, *(boundary.distance for boundary in large), of_other]).amin(dim=0).mean().item()
    means = [boundary.distance.mean().item() for boundary in large]
    return {
        "nearest": best,
        f"{SMALL}": small.distance.mean().item() / best,
        f"{LARGE}": sum(means) / len(means) / best,
        "spread": (max(means) - min(means)) / best,
        "DDN-1000": of_other.mean().item() / best,
        f"{SMALL}, no bounds": search(SMALL, bounds=None).distance.mean().item() / best,
        f"{LARGE}, no bounds": search(LARGE, bounds=None).distance.mean().item() / best,
        f"cosine, {SMALL}": cosine(network, images, labels, small),
        f"cosine, {LARGE}": cosine(network, images, labels, large[0]),
    }


def cosine(network: nn.Module, images: Tensor, labels: Tensor, boundary: BoundaryPoints) -> float:
    return normal_alignment(network, images, boundary, labels, score="margin").nanmean().item()


def claims(rows: dict[str, dict[str, float]]) -> list[Claim]:
    """Agreement of all columns of distances, network by network."""
    found = []
    for name, row in rows.items():
        for column in (f"{SMALL}", f"{LARGE}", "DDN-1000"):
            text = f"{name}: {column} within {TOLERANCE:.0%} of the nearest"
            found.append(Claim(text, row[column], row[column] <= 1 + TOLERANCE))
        ratio = row[f"{LARGE}, no bounds"] / row[f"{LARGE}"]
        text = f"{name}: {LARGE} without bounds within {TOLERANCE:.0%} of that with"
        found.append(Claim(text, ratio, abs(ratio - 1) <= TOLERANCE))
    return found


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__, 30, "correctly classified ones")
    parser.add_argument("--only", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    return parser.parse_args()


if __name__ == "__main__":
    main()
