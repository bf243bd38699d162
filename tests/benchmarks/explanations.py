"""Benchmark of explanations on pretrained networks: prints tables and claims, saves JSON after every row.

    CAPTUM_BOUNDARY_DATA=FOLDER python tests/benchmarks/explanations.py [--quick] [--data imagenet|cifar10]
        [--n-gradients 50] [--skip 12]

Every method explains the predicted class of the first images that the network classifies correctly, as in the boundary
attribution paper (https://arxiv.org/abs/2103.11257). All boundary methods share the boundary points of one search,
whose cost is counted in the row of each. Columns:

* Loc, EG, PP, Con: localization on the object's box (ImageNet only), higher is better.
* insertion (into a blurred image, higher is better) and deletion (to the mean color, lower is better), as in RISE, and
  the first less the second.
* infidelity: share of the squared drops of the score, when random squares are occluded, that the sums of
  attributions in them do not predict; 1 is that of an empty map.
* sensitivity: largest change of the map, at unit length, within a maximum norm of 0.02, on the first few images.
* gradients, forwards, seconds: model evaluations and time for an image.

Means come with 95 % bootstrap intervals over images, and so do paired differences to integrated gradients, and of one
leading method to all others. Methods that take any number of gradients take ``--n-gradients``.
``--quick`` takes 6 images, coarse curves and one image for sensitivity. ``--resume`` goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import zoo
from explanation_measures import HIGHER_IS_BETTER, ON_OBJECT, Batch, Settings, evaluate, prepare
from explanation_methods import LEADER, N_GRADIENTS, REFERENCE, Explainer, explainers
from intervals import Values, interval, paired_difference
from report import Claim, print_claims, print_table, save
from torch import Tensor, nn
from tqdm import tqdm

COSTS = ("gradients", "forwards", "seconds")
N_BACKGROUNDS = 20
DEFAULT_IMAGES = {"imagenet": 50, "cifar10": 100}
BATCH_SIZES = {"imagenet": 10, "cifar10": 50}


def load(data: str) -> tuple[nn.Module, Tensor, Tensor, Tensor | None]:
    """Network, images, labels, and boxes where there are any."""
    if data == "imagenet":
        return zoo.imagenet_squeezenet(), *zoo.load_boxed_images("imagenet_val50_boxes")
    return zoo.cifar_resnet20(), *zoo.load_images("cifar10_test500"), None


def run(
    data: str,
    n_images: int,
    n_skipped: int,
    n_gradients: int,
    settings: Settings,
    names: list[str] | None,
    leader: str,
    path: Path,
    resume: bool,
) -> dict[str, Any]:
    model, images, labels, boxes = load(data)
    with torch.no_grad():
        is_correct = torch.cat([model(part).argmax(dim=1) for part in images.split(50)]) == labels
    mean_color = zoo.Normalization().mean
    methods = explainers(mean_color, backgrounds=images[~is_correct][:N_BACKGROUNDS], n_gradients=n_gradients)
    unknown = set(names or ()) - set(methods)
    if unknown:
        sys.exit(f"--only takes {'; '.join(methods)}, but not {'; '.join(unknown)}")
    if leader not in methods:
        sys.exit(f"--leader takes one of {'; '.join(methods)}, but not {leader}")
    chosen = is_correct.nonzero().flatten()[n_skipped:][:n_images]
    result: dict[str, Any] = {
        "images": len(chosen),
        "of which correct, of all": [int(is_correct.sum()), len(labels)],
        "skipped": n_skipped,
        "settings": asdict(settings) | {"n_gradients": n_gradients},
        "per image": {},
        "claims": [],
    }
    section = data if n_gradients == N_GRADIENTS else f"{data}, {n_gradients} gradients"
    section += f", without the first {n_skipped}" * (n_skipped > 0)
    if resume:
        result["per image"] = finished_rows(section, result, path)

    missing = [name for name in names or methods if name not in result["per image"]]
    searches = any(methods[name].uses_boundary for name in missing)
    parts = chosen.split(settings.batch_size)
    with tqdm(total=len(parts) * (len(missing) + 1), unit="batch") as bar:
        bar.set_description("boundaries")
        batches = []
        for part in parts:
            its_boxes = None if boxes is None else boxes[part]
            batches.append(prepare(model, images[part], labels[part], its_boxes, mean_color, searches))
            bar.update()
        if searches:
            result["boundaries found"] = sum(int(batch.boundary.found.sum()) for batch in batches if batch.boundary)
        for name in missing:
            bar.set_description(name)
            row = measured(methods[name], model, batches, mean_color, settings, bar.update)
            rows = result["per image"] | {name: row}
            result["per image"] = {name: rows[name] for name in methods if name in rows}
            save(section, result | summary(rows, leader), path)
    result |= summary(result["per image"], leader)
    result["claims"] = claims(result)
    save(section, result, path)
    return result


def measured(
    method: Explainer,
    model: nn.Module,
    batches: list[Batch],
    mean_color: Tensor,
    settings: Settings,
    on_batch: Callable[[], Any],
) -> dict[str, Values]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting forward, backward hooks and attributes on non-linear")
        return evaluate(method, model, batches, mean_color, settings, on_batch)


def finished_rows(section: str, result: Mapping[str, Any], path: Path) -> dict[str, dict[str, Values]]:
    """Rows of an earlier run with the same images and settings."""
    earlier = json.loads(path.read_text()).get(section, {}) if path.exists() else {}
    is_same = all(earlier.get(key) == result[key] for key in ("images", "skipped", "settings"))
    return earlier["per image"] if is_same else {}


def summary(per_image: Mapping[str, Mapping[str, Values]], leader: str) -> dict[str, Any]:
    """Means with intervals, and paired differences to the reference and to the leader where they are known."""
    means = {
        name: {column: asdict(interval(values)) for column, values in columns.items()}
        for name, columns in per_image.items()
    }
    return {
        "means": means,
        "differences": differences(per_image, REFERENCE),
        "leader": leader,
        "differences to the leader": differences(per_image, leader),
    }


def differences(per_image: Mapping[str, Mapping[str, Values]], other: str) -> dict[str, dict[str, Any]]:
    """Of every method to one ``other``, image by image."""
    return {
        name: {
            column: asdict(paired_difference(values, per_image[other][column]))
            for column, values in columns.items()
            if column not in COSTS
        }
        for name, columns in per_image.items()
        if other in per_image and name != other
    }


def claims(result: Mapping[str, Any]) -> list[Claim]:
    """What the paper finds of BIG and IG, and this project of its boundaries."""
    claims = []
    if "boundaries found" in result:
        found, n_images = result["boundaries found"], result["images"]
        claims.append(Claim(f"a boundary point for each of {n_images} images", found, found == n_images))
    for column, difference in result["differences"].get("BIG", {}).items():
        if column in ON_OBJECT:
            claims.append(
                Claim(f"{column}: BIG less IG, whole interval above 0", difference["low"], difference["low"] > 0)
            )
    return claims


def show(result: Mapping[str, Any]) -> None:
    n_correct, n_all = result["of which correct, of all"]
    print(f"\n{result['images']} of the {n_correct} images that are classified correctly (of {n_all})", end="")
    print(f", from number {result['skipped'] + 1} on\n")
    print_table({name: shown(columns, COSTS) for name, columns in result["means"].items()})
    print(f"\nDifferences to {REFERENCE} (higher is better: {', '.join(HIGHER_IS_BETTER)}; lower: the others)\n")
    print_table({name: shown(columns) for name, columns in result["differences"].items()})
    print(f"\nDifferences to {result['leader']}\n")
    print_table({name: shown(columns) for name, columns in result["differences to the leader"].items()})
    print()
    print_claims(result["claims"])


def shown(columns: Mapping[str, Mapping[str, float]], plain: tuple[str, ...] = ()) -> dict[str, str]:
    """Intervals as text; those of ``plain`` columns, which hardly vary, as their mean alone."""
    texts = {}
    for name, cell in columns.items():
        if cell["n"] == 0:
            texts[name] = "-"
        else:
            texts[name] = f"{cell['mean']:.3g}" + ("" if name in plain else f" [{cell['low']:.3g}, {cell['high']:.3g}]")
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DEFAULT_IMAGES, default="imagenet", help="(default: %(default)s)")
    parser.add_argument("--n-images", type=int, help="at most (default: 50 of ImageNet, 100 of CIFAR-10, 6 if quick)")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many first ones, which chose the leader")
    parser.add_argument("--n-gradients", type=int, default=N_GRADIENTS, help="for each image (default: %(default)s)")
    parser.add_argument("--only", help="rows to compute, separated by semicolons (default: all)")
    parser.add_argument("--leader", default=LEADER, help="row that all others are compared with (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON")
    parser.add_argument("--quick", action="store_true", help="few images and coarse measures")
    parser.add_argument("--n-curve-steps", type=int, help="of insertion and deletion (default: 50, 8 if quick)")
    parser.add_argument("--no-sensitivity", action="store_true", help="leave out the measure that takes longest")
    parser.add_argument("--resume", action="store_true", help="keep the rows that an interrupted run has saved")
    parser.add_argument("--threads", type=int, help="threads of torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = Settings(
        n_curve_steps=options.n_curve_steps or (8 if options.quick else 50),
        sensitivity_images=0 if options.no_sensitivity else 1 if options.quick else 5,
        sensitivity_samples=1 if options.quick else 3,
        batch_size=BATCH_SIZES[options.data],
    )
    n_images = options.n_images or (6 if options.quick else DEFAULT_IMAGES[options.data])
    names = options.only.split(";") if options.only else None
    path = options.output / ("explanations-quick.json" if options.quick else "explanations.json")
    choice = (options.data, n_images, options.skip, options.n_gradients)
    try:
        show(run(*choice, settings, names, options.leader, path, options.resume))
    except zoo.DataNotSetError as error:
        sys.exit(str(error))
    print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
