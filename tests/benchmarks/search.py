"""Benchmark of the boundary search on pretrained networks: prints tables and claims, saves JSON.

    CAPTUM_BOUNDARY_DATA=FOLDER python tests/benchmarks/search.py [--quick] [--only cifar,imagenet,resnet18]

``--quick`` takes 20 CIFAR-10 and 4 ImageNet images and the cheaper searches, for a look in a few minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import zoo
from captum.attr import DeepLift
from measures import distances, local_optimality, quality
from report import Claim, peak_memory, print_claims, print_table, save
from rivals import ATTACKS, Run, nearest_of, run_minimization, run_ours, run_released_pgd
from torch import Tensor, nn

from captum_boundary import (
    BoundaryAttribution,
    BoundaryIntegratedGradients,
    BoundaryPoints,
    BoundarySaliency,
    NearestBoundary,
    PGDBoundary,
)

PIPELINE = "PGDs+CW (paper)"
DDN = "Foolbox DDN-100"
RIVALS = (*ATTACKS, PIPELINE)
BATCH = 10  # images that pass through the ImageNet network at once


def ours(budget: int) -> str:
    return f"ours, budget {budget}"


def cifar(n_images: int, quick: bool) -> dict[str, Any]:
    """ResNet-20 on the first correctly classified CIFAR-10 test images, against Foolbox and the paper's pipeline."""
    model = zoo.cifar_resnet20()
    images, labels = zoo.first_correct(model, *zoo.load_images("cifar10_test500"), n_images)
    model(images.clone().requires_grad_()).sum().backward()  # first calls are slow

    runs = {name: search(model, images, labels) for name, search in cifar_searches(quick).items()}

    def distance(run: Run) -> Tensor:
        return distances(model, images, labels, run.points)

    runs[PIPELINE] = nearest_of(runs["PGDs (paper)"], runs["Foolbox CW"], distance)
    by_name = {name: distance(run) for name, run in runs.items()}
    best = torch.stack(list(by_name.values())).amin(dim=0)
    best_rival = torch.stack([by_name[name] for name in RIVALS if name in by_name]).amin(dim=0)
    rows = {
        name: {
            **quality(model, images, labels, run.points),
            "forwards": run.forwards,
            "gradients": run.gradients,
            "evaluations": run.evaluations,
            "seconds": run.seconds,
            "time / pipeline": run.seconds / runs[PIPELINE].seconds,
            "optimality %": 100 * local_optimality(by_name[name], best),
            "ratio to best rival": (by_name[name] / best_rival).mean().item(),
        }
        for name, run in runs.items()
    }
    rows["best of rivals"] = {"distance mean": best_rival.mean().item(), "distance median": best_rival.median().item()}
    rows["best of all"] = {"distance mean": best.mean().item(), "distance median": best.median().item()}
    return {"images": n_images, "rows": rows, "claims": cifar_claims(rows, n_images)}


def cifar_searches(quick: bool) -> dict[str, Callable[[nn.Module, Tensor, Tensor], Run]]:
    def our(search: Any, **options: Any) -> Callable[[nn.Module, Tensor, Tensor], Run]:
        return lambda model, images, labels: run_ours(partial(search, bounds=(0, 1), **options), model, images)

    searches = {
        ours(budget): our(NearestBoundary, budget=budget) for budget in ((10, 40) if quick else (10, 20, 40, 100, 200))
    }
    searches["ours, PGDBoundary"] = our(PGDBoundary)
    for name, attack in ATTACKS.items():
        if not (quick and name == "Foolbox DDN-1000"):
            searches[name] = partial(run_minimization, attack)
    searches["PGDs (paper)"] = run_released_pgd
    return searches


def cifar_claims(rows: Mapping[str, Mapping[str, Any]], n_images: int) -> list[Claim]:
    mine = [row for name, row in rows.items() if name.startswith("ours, budget")]
    row, pipeline = rows[ours(40)], rows[PIPELINE]
    over_ddn = row["distance mean"] / rows[DDN]["distance mean"]
    below = 100 * (1 - row["distance mean"] / pipeline["distance mean"])
    evaluations = row["evaluations"] / pipeline["evaluations"]
    n_valid = min(min(row["found"], row["valid alone"]) for row in mine)
    overshoot = max(row["overshoot max"] for row in mine)
    claims = [
        Claim(f"all {n_images} found and valid one by one, at every budget", n_valid, n_valid == n_images),
        Claim("|margin(x')| <= 1e-3 |margin(x)| everywhere, at every budget", overshoot, overshoot <= 1e-3),
        Claim("budget 40: mean distance relative to DDN-100's <= 1", over_ddn, over_ddn <= 1),
        Claim("budget 40: mean distance at least 8 % below the pipeline's", below, below >= 8),
        Claim("budget 40: at most a tenth of the pipeline's evaluations", evaluations, evaluations <= 0.1),
        Claim("budget 40: under a fifth of its time", row["time / pipeline"], row["time / pipeline"] < 0.2),
    ]
    if ours(200) in rows:
        over_best = rows[ours(200)]["distance mean"] / rows["best of rivals"]["distance mean"]
        claims.append(
            Claim("budget 200: mean relative to the rivals' best per image <= 1.01", over_best, over_best <= 1.01)
        )
    return claims


def imagenet(n_images: int) -> dict[str, Any]:
    """SqueezeNet on ImageNet pictures: search, BSM, BIG and the completeness of BIG."""
    model = zoo.imagenet_squeezenet()
    images = zoo.load_images("imagenet_sample50")[0][:n_images]
    rows: dict[str, dict[str, Any]] = {}
    for budget in (12, 40):
        search = NearestBoundary(model, bounds=(0, 1), budget=budget, internal_batch_size=BATCH)
        boundary, seconds = timed(partial(search.find, images))
        forwards, gradients = (count.double().mean().item() for count in (boundary.n_forward, boundary.n_gradient))
        rows[ours(budget)] = {
            **quality(model, images, boundary.target, boundary.points, BATCH),
            "forwards": forwards,
            "gradients": gradients,
            "evaluations": forwards + 2 * gradients,
            "seconds": seconds,
        }
    # Captum's weights of riemann_trapezoid sum to 1 - 1 / n_steps, hence its errors.
    rules = (("gausslegendre", 50, n_images), ("riemann_trapezoid", 50, n_images), ("riemann_trapezoid", 200, BATCH))
    maps: dict[str, dict[str, Any]] = {"BSM": map_quality(BoundarySaliency(model), images, boundary)[0]}
    for rule, n_steps, n_first in rules:
        options = {"method": rule, "n_steps": n_steps, "internal_batch_size": BATCH}
        big = BoundaryIntegratedGradients(model)
        row, sums = map_quality(big, images[:n_first], boundary, **options)
        maps[f"BIG, {rule}, {n_steps} steps"] = {**row, **completeness(model, images[:n_first], boundary, sums)}
    n_found = min(row["found"] for row in rows.values())
    error = maps["BIG, gausslegendre, 50 steps"]["error median %"]
    n_finite = sum(row["finite"] == row["images"] for row in maps.values())
    claims = [
        Claim(f"all {n_images} found, at every budget", n_found, n_found == n_images),
        Claim("BSM and BIG are finite", n_finite, n_finite == len(maps)),
        Claim("BIG at 50 steps: median completeness error below 1 %", error, error < 1),
    ]
    return {"images": n_images, "rows": rows, "attributions": maps, "claims": claims}


def map_quality(
    attribution: BoundaryAttribution, images: Tensor, boundary: BoundaryPoints, **options: Any
) -> tuple[dict[str, Any], Tensor]:
    """A table row, and the sum ``(N,)`` of each image's attributions, computed in batches to spare memory."""
    begin = time.perf_counter()
    maps = torch.cat(
        [
            attribution.attribute(images[rows], boundary=boundary[rows], **options)
            for rows in torch.arange(len(images)).split(BATCH)
        ]
    ).flatten(1)
    seconds = time.perf_counter() - begin
    return {"images": len(images), "finite": int(maps.isfinite().all(dim=1).sum()), "seconds": seconds}, maps.sum(dim=1)


def completeness(model: nn.Module, images: Tensor, boundary: BoundaryPoints, sums: Tensor) -> dict[str, Any]:
    """Errors of the sums of attributions, relative to what the target's output loses up to the boundary."""
    with torch.no_grad():
        drops = [
            (model(image) - model(point))[0, target]
            for image, point, target in zip(images.split(1), boundary.points.split(1), boundary.target, strict=False)
        ]
    errors = 100 * (sums / torch.stack(drops) - 1).abs()
    return {
        "error median %": errors.median().item(),
        "error mean %": errors.mean().item(),
        "error max %": errors.max().item(),
        "errors > 1 %": int((errors > 1).sum()),
    }


def resnet18() -> dict[str, Any]:
    """torchvision's ResNet-18 as it comes, with its shared in-place activations."""
    model = zoo.random_resnet18()
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    boundary, seconds = timed(lambda: NearestBoundary(model, bounds=(0, 1)).find(images))
    rows: dict[str, dict[str, Any]] = {"search": {"finite": bool(boundary.found.all()), "seconds": seconds}}
    methods = {
        "BSM": BoundarySaliency(model),
        "BIG": BoundaryIntegratedGradients(model),
        "boundary DeepLift": BoundaryAttribution(model, DeepLift),
    }
    for name, method in methods.items():
        attributions, seconds = timed(partial(method.attribute, images, boundary=boundary))
        rows[name] = {"finite": bool(attributions.isfinite().all()), "seconds": seconds}
    n_finite = sum(row["finite"] for row in rows.values())
    claims = [Claim("boundary found; BSM, BIG and boundary DeepLift are finite", n_finite, n_finite == len(rows))]
    return {"images": len(images), "rows": rows, "claims": claims}


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    return call(), time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="CIFAR-10 images (default: 200, or 20 with --quick)")
    parser.add_argument("--only", default="cifar,imagenet,resnet18", help="parts to run (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON")
    parser.add_argument("--quick", action="store_true", help="few images, without the most expensive rows")
    parser.add_argument("--threads", type=int, help="threads of torch")
    options = parser.parse_args()
    sections = {
        "cifar": lambda: cifar(options.images or (20 if options.quick else 200), options.quick),
        "imagenet": lambda: imagenet(4 if options.quick else 50),
        "resnet18": resnet18,
    }
    chosen = options.only.split(",")
    if not set(chosen) <= set(sections):
        parser.error(f"--only takes {', '.join(sections)}, but it is {options.only!r}")
    if options.threads:
        torch.set_num_threads(options.threads)

    path = options.output / ("search-quick.json" if options.quick else "search.json")
    for name in chosen:
        memory_before = peak_memory()
        try:
            result = sections[name]()
        except zoo.DataNotSetError as error:
            sys.exit(str(error))
        print(f"\n{name}: {result['images']} images\n")
        print_table(result["rows"])
        if "attributions" in result:
            print()
            print_table(result["attributions"])
        print(f"\npeak memory: {peak_memory()} MiB, {memory_before} before\n")
        print_claims(result["claims"])
        save(name, result, path)
    print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
