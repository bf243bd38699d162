"""Why gradients of robust networks do or do not look normal: along the path to the boundary, and under smoothing.

    python tests/benchmarks/published_paths.py [--networks FOLDER] [--group mnist ...]

On the straight path from each image to its boundary point, the gradient of the margin (of the class and the one beyond
the boundary) is compared with that at the boundary, whose direction is the normal.

* length: its norm relative to that at the boundary, as a power of 2, at shares of the path; 0 is the image.
* cosine: with the normal, at the same shares.
* cosine, d before: the same at an l2 distance of d from the boundary, where the image is at least as far.
* on the object: cosine at the image over the pixels that are not black; off the object: the share of a squared norm
  that lies on black pixels (MNIST and Fashion-MNIST alone).
* score, centered score: cosine at the image for the class's score in place of the margin, and for what is left of it
  after the mean of all scores was taken away, which changes no decision and no probability. PP of BIG is the share of
  the map of that score which is positive.
* smoothed: cosine at the image for the network smoothed by Gaussian noise, and that network's own boundary.

Explanations of a cosine that falls with robustness make different predictions. *Distance alone*: robust boundaries are
merely farther away, so that at an equal distance from the boundary a robust network is no less normal than a standard
one. *Plateau and cliff*: the score is flat around the image and falls at the boundary, so that the gradient at the
image is less than half as long as that at the boundary, and at an equal distance it is less normal too. *Blind on
black*: a robust network does not react to small changes of black pixels, through which the path to its boundary leads;
then at least half of what its cosine lacks to the standard one is there again on the object. *Shared by all classes*:
the gradient of a score has a part that all scores share and no boundary knows of; then at least half of what the
score's cosine lacks to the standard one is there again for centered scores.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from intervals import Values
from normality_published import GROUPS, get, of_all_seeds, run_groups
from normality_summary import STANDARD, differences, means, sign
from published_networks import images_of, parser_of
from rar_checkpoint import Checkpoint, plain
from rar_data import Data, pixels
from report import Claim
from torch import Tensor, nn

from captum_boundary import BoundaryIntegratedGradients, BoundaryPoints, NearestBoundary, SmoothedModel
from captum_boundary.metrics import cosine_similarity, normal_alignment, positive_percentage

BOUNDS = (0.0, 1.0)
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)
BEFORE = {"mnist": (0.25, 0.5, 1.0), "fashion_mnist": (0.1, 0.25, 0.5), "cifar10": (0.05, 0.1, 0.25)}
STDEVS = {"mnist": (0.1, 0.2, 0.4), "fashion_mnist": (0.05, 0.1, 0.2), "cifar10": (0.02, 0.05, 0.1)}
BLACK_GROUND = ("mnist", "fashion_mnist")
N_SAMPLES, SMOOTHED_BUDGET = 64, 40
AT_IMAGE = "cosine, 0.0"
FLAT, MAX_POWER = -1.0, 10.0  # powers of 2


def main() -> None:
    run_groups(parse(), "published_paths.json", examine)


def examine(name: str, options: argparse.Namespace) -> dict[str, Any]:
    group = GROUPS[name]
    data = images_of(group.dataset)
    per_seed = of_all_seeds(name, lambda source: finish(group.dataset, source, data, options))
    to_standard = differences(per_seed, STANDARD)
    found = means(per_seed)
    return {
        "settings": {"images": options.images, "budget": options.budget},
        "per image": per_seed,
        "means": found,
        f"differences to {STANDARD}": to_standard,
        "claims": predictions(found, to_standard, BEFORE[group.dataset]),
    }


def finish(dataset: str, source: str, data: Data, options: argparse.Namespace) -> dict[str, Values]:
    """The columns of one network, or what is left of them."""
    settings = {"source": source, "images": options.images, "budget": options.budget}
    kept = Checkpoint(options.output / f"{plain(f'{dataset} {source}')}.way.pt", settings)
    columns = kept.load()
    if columns is None:
        model = get(source, dataset, data, options)
        images = pixels(data.test_images[: options.images]), data.test_labels[: options.images]
        columns = columns_of(model, *images, dataset, options.budget)
        kept.save(columns)
    return columns


def columns_of(model: nn.Module, images: Tensor, labels: Tensor, dataset: str, budget: int) -> dict[str, Values]:
    """Columns of one number for each image, None where it is classified wrongly or nearer than asked for."""
    with torch.no_grad():
        rows = (model(images).argmax(dim=1) == labels).nonzero().flatten()
    measured = measure(model, images[rows], labels[rows], dataset, budget)
    columns = {}
    for name, values in measured.items():
        column = values.new_full((len(images),), torch.nan).index_copy_(0, rows, values)
        columns[name] = [None if value != value else value for value in column.double().tolist()]
    return columns


def measure(model: nn.Module, images: Tensor, labels: Tensor, dataset: str, budget: int) -> dict[str, Tensor]:
    """Columns ``(N,)``; not a number where an image is nearer to its boundary than asked for."""
    boundary = NearestBoundary(model, bounds=BOUNDS, budget=budget).find(images, labels)
    way = images - boundary.points
    normal = margin_gradient(model, boundary.points, boundary)
    columns = {"distance": boundary.distance}
    if dataset in BLACK_GROUND:
        columns |= on_and_off(margin_gradient(model, images, boundary), normal, images > 0)
    for name, scores in (("score", model), ("centered score", Centered(model))):
        columns[name] = normal_alignment(scores, images, boundary, labels)
        big = BoundaryIntegratedGradients(scores).attribute(images, labels, boundary=boundary)
        columns[f"PP of BIG, {name}"] = positive_percentage(big, torch.ones_like(images[:, 0], dtype=torch.bool))
    for share in SHARES:
        gradient = margin_gradient(model, images - share * way, boundary)
        ratio = gradient.flatten(1).norm(dim=1) / normal.flatten(1).norm(dim=1)
        columns[f"length, {share}"] = ratio.log2().clamp(-MAX_POWER, MAX_POWER)
        columns[f"cosine, {share}"] = cosine_similarity(gradient, normal)
    for distance in BEFORE[dataset]:
        share_left = (distance / boundary.distance).view(-1, 1, 1, 1)
        alike = cosine_similarity(margin_gradient(model, boundary.points + share_left * way, boundary), normal)
        columns[f"cosine, {distance} before"] = alike.where(boundary.distance >= distance, torch.nan)
    for stdev in STDEVS[dataset]:
        smoothed = SmoothedModel(model, stdev=stdev, n_samples=N_SAMPLES)
        columns[f"smoothed, {stdev}"] = smoothed_alignment(smoothed, images, labels)
    return columns


class Centered(nn.Module):
    """Scores less their mean over all classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model(images)
        return scores - scores.mean(dim=1, keepdim=True)


def on_and_off(gradient: Tensor, normal: Tensor, on_object: Tensor) -> dict[str, Tensor]:
    """Columns ``(N,)`` of what lies on the object, and what on the black ground."""
    off = {
        f"{name} off the object": 1 - cosine_similarity(map_, map_ * on_object).square()
        for name, map_ in (("gradient", gradient), ("normal", normal))
    }
    return {"cosine on the object": cosine_similarity(gradient * on_object, normal * on_object), **off}


def margin_gradient(model: nn.Module, points: Tensor, boundary: BoundaryPoints) -> Tensor:
    """That of the score of the class less that of the class beyond the boundary."""
    leaves = points.clone().requires_grad_()
    scores = model(leaves)
    own, other = (scores.gather(1, column[:, None]) for column in (boundary.target, boundary.adversarial))
    (gradient,) = torch.autograd.grad((own - other).sum(), leaves)
    return gradient


def smoothed_alignment(smoothed: SmoothedModel, images: Tensor, labels: Tensor) -> Tensor:
    """Cosine of the margin's gradient and the normal of the smoothed network, where that is right about the image."""
    with torch.no_grad():
        rows = (smoothed(images).argmax(dim=1) == labels).nonzero().flatten()
    boundary = NearestBoundary(smoothed, bounds=BOUNDS, budget=SMOOTHED_BUDGET).find(images[rows], labels[rows])
    alike = normal_alignment(smoothed, images[rows], boundary, labels[rows], score="margin")
    return alike.new_full((len(images),), torch.nan).index_copy_(0, rows, alike)


def predictions(found: Mapping[str, Any], to_standard: Mapping[str, Any], distances: tuple[float, ...]) -> list[Claim]:
    """Of the explanations, for every robust network whose cosine is surely below that of the standard one."""
    claims = []
    for name, columns in to_standard.items():
        if sign(columns["score"]) == -1:
            text = f"{name}: shared by all classes: of what the score's cosine lacks, at most half is lacking centered"
            claims.append(share_left(text, columns, "centered score", "score"))
        if sign(columns[AT_IMAGE]) != -1:
            continue
        for distance in distances:
            column = columns[f"cosine, {distance} before"]
            text = f"{name}: distance alone: no less normal {distance} before the boundary, by"
            claims.append(Claim(text, column["mean"] or 0.0, sign(column) != -1))
        length = found[name]["length, 0.0"]
        text = f"{name}: plateau and cliff: gradient at the image less than half as long as at the boundary"
        claims.append(Claim(text, length["mean"], length["high"] < FLAT))
        if "cosine on the object" in columns:
            text = f"{name}: blind on black: of what the cosine lacks, at most half is lacking on the object"
            claims.append(share_left(text, columns, "cosine on the object", AT_IMAGE))
    return claims


def share_left(text: str, differences: Mapping[str, Any], column: str, whole: str) -> Claim:
    """That a difference to the standard network is at most half of another one."""
    share = differences[column]["mean"] / differences[whole]["mean"]
    return Claim(text, share, share <= 0.5)


def parse() -> argparse.Namespace:
    parser = parser_of(__doc__, 60, "first test images")
    parser.add_argument("--group", nargs="+", choices=list(GROUPS), default=["mnist", "fashion_mnist", "unpadded"])
    parser.add_argument("--budget", type=int, default=1000, help="of each search, in gradients (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
