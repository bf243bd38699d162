"""What each part of the search for the nearest boundary is worth: it is turned off, and distances are compared.

    CAPTUM_BOUNDARY_DATA=FOLDER python tests/benchmarks/ablation.py [--only "madry, l2"] [--quick]

Distances without a part are divided by those of the full search, image by image; the table has the geometric mean of
these ratios, which is 1 where only chance differs, and its 95 % interval. What chance does is the row of other random
numbers. Every run is saved as it ends, and a run that was saved is not repeated: an interrupted command goes on.
``--quick`` takes ten images, and no budget of 200.

Beside the data that zoo.py describes, the folder holds ``mnist.npz`` with ``test_images`` (N, 28, 28) uint8 and
``test_labels`` (N,), and in ``robust`` the state dictionaries ``mnist_pgd_madry.pt``
(https://github.com/locuslab/fast_adversarial), ``mnist_convex.pt`` and ``cifar_convex_l2.pt``
(https://github.com/locuslab/convex_adversarial), and ``cifar_resnet2b.pt``
(https://github.com/Verified-Intelligence/alpha-beta-CROWN).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoo
from ablation_parts import FULL, PARTS, Case, Part
from intervals import interval
from published_networks import ResNet, small
from report import print_table, save
from torch import Tensor, nn

from captum_boundary import AggregatedBoundaryNormals
from captum_boundary.errors import BoundaryNotFoundWarning
from captum_boundary.search import BoundaryPoints

NORMS = {"l2": 2, "linf": math.inf, "l1": 1}
LIMIT = 3.0  # of the inputs of the tiny networks
N_CASES = 80  # tiny networks of each shape
SHAPES = ((2, 3), (4, 3), (6, 3))  # their inputs and classes
N_ROWS = 500  # of the table
EXACT = 1e-3  # relative error of a distance that is exact

Distances = tuple[Tensor, float]  # (n,), infinite where not found, and gradients of an example
Measure = Callable[[Part, int], Distances]


@dataclass(frozen=True)
class Setting:
    """Examples on which the parts are compared."""

    case: Case
    measure: Measure
    exact: Tensor | None = None


@cache
def images_of(network: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in evaluation mode, images and labels."""
    if network == "ResNet-20":
        return zoo.cifar_resnet20(), *zoo.load_images("cifar10_test500")
    of_pixels = partial(zoo.Normalization, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    of_convex = partial(zoo.Normalization, (0.485, 0.456, 0.406), (0.225, 0.225, 0.225))
    name, build, normalization = {
        "madry": ("mnist_pgd_madry", small((1, 28, 28)), nn.Identity),
        "convex": ("mnist_convex", small((1, 28, 28)), nn.Identity),
        "convex l2": ("cifar_convex_l2", small((3, 32, 32)), of_convex),
        "ResNet-2B": ("cifar_resnet2b", partial(ResNet, 8, 16, 1), of_pixels),
    }[network]
    model = build()
    model.load_state_dict(torch.load(zoo.data_folder() / "robust" / f"{name}.pt", weights_only=True))
    model = nn.Sequential(normalization(), model).eval().requires_grad_(False)
    if not name.startswith("mnist"):
        return model, *zoo.load_images("cifar10_test500")
    with np.load(zoo.data_folder() / "mnist.npz") as arrays:
        images, labels = torch.from_numpy(arrays["test_images"][:500]), torch.from_numpy(arrays["test_labels"][:500])
    return model, images[:, None].float().div(255), labels.long()


def of_images(network: str, norm: str, n_images: int, is_bounded: bool = True) -> Setting:
    model, images, labels = images_of(network)
    images, _ = zoo.first_correct(model, images, labels, n_images)
    bounds = (0, 1) if is_bounded else None
    return Setting(
        Case(NORMS[norm], is_bounded=is_bounded),
        lambda part, budget: measured(part.search(model, budget, NORMS[norm], bounds).find(images)),
    )


def of_classes(network: str, norm: str, n_images: int, sampling: str) -> Setting:
    """Several boundaries of each image, for each of which less is spent."""
    model, images, labels = images_of(network)
    images, _ = zoo.first_correct(model, images, labels, n_images)

    def measure(part: Part, budget: int) -> Distances:
        normals = AggregatedBoundaryNormals(model, search=part.search(model, budget, NORMS[norm], (0, 1)))
        boundary = normals.attribute(images, n_boundaries=5, sampling=sampling, return_boundary=True)[1]
        return boundary.distance.flatten(), boundary.n_gradient.double().mean().item() / 5

    return Setting(Case(NORMS[norm], is_one_of_many=True), measure)


def of_table(norm: str) -> Setting:
    """A network with random weights and a box around its inputs."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    for parameter in model.parameters():
        width = parameter.shape[-1] if parameter.ndim > 1 else 1
        parameter.data = torch.randn(parameter.shape, generator=generator) * (2 / width) ** 0.5
    rows = torch.rand(N_ROWS, 30, generator=torch.Generator().manual_seed(1))
    return Setting(
        Case(NORMS[norm], is_small=True),
        lambda part, budget: measured(part.search(model.eval(), budget, NORMS[norm], (0, 1)).find(rows)),
    )


@cache
def of_tiny_networks(is_targeted: bool) -> Setting:
    """Random networks of two to six inputs, whose distances were found by enumeration."""
    from exact_distances import relu_scores, tiny_networks

    networks = list(tiny_networks(N_CASES, 1, LIMIT, is_targeted, SHAPES))

    def measure(part: Part, budget: int) -> Distances:
        found = []
        for x, target, *parameters, _ in networks:
            search = part.search(relu_scores, budget, 2, (-LIMIT, LIMIT))
            found.append(measured(search.find(x, target if is_targeted else None, tuple(parameters))))
        return torch.cat([distance for distance, _ in found]), float(np.mean([n for _, n in found]))

    exact = torch.cat([batch[-1] for batch in networks])
    return Setting(Case(2, is_small=True, is_targeted=is_targeted), measure, exact)


def measured(boundary: BoundaryPoints) -> Distances:
    return boundary.distance, boundary.n_gradient.double().mean().item()


def settings(n_images: int, quick: bool) -> Iterator[tuple[str, int, Callable[[], Setting]]]:
    """Names, budgets and settings."""
    for budget in (40, 10) if quick else (40, 200, 10):
        n_small, n_large = n_images * 2 // 5 if budget == 200 else n_images, max(1, n_images // 6)
        yield "tiny, left", budget, partial(of_tiny_networks, False)
        yield "tiny, entered", budget, partial(of_tiny_networks, True)
        for norm in NORMS:
            yield f"table, {norm}", budget, partial(of_table, norm)
            for name in ("madry", "ResNet-2B", "convex", "convex l2"):
                yield f"{name}, {norm}", budget, partial(of_images, name, norm, n_small)
            if budget != 200 or norm == "l2":
                yield f"ResNet-20, {norm}", budget, partial(of_images, "ResNet-20", norm, n_large)
        if budget == 40:
            yield "ResNet-20, l2, no bounds", budget, partial(of_images, "ResNet-20", "l2", n_large, False)
            for norm in ("l2", "l1"):
                yield f"madry, {norm}, no bounds", budget, partial(of_images, "madry", norm, n_small, False)
            yield "ResNet-2B, l2, five classes", budget, partial(of_classes, "ResNet-2B", "l2", n_small // 2, "classes")
            yield "ResNet-2B, l2, five lines", budget, partial(of_classes, "ResNet-2B", "l2", n_small // 2, "random")


def summary(without: Mapping[str, Any], full: Mapping[str, Any], exact: Tensor | None) -> dict[str, Any]:
    """One row of a table: a part is worth what distances grow by without it."""
    distance, reference = (torch.tensor(run["distance"], dtype=torch.float64) for run in (without, full))
    is_found, was_found = distance.isfinite(), reference.isfinite()
    change = (distance / reference).log()[is_found & was_found]
    mean = interval(change.tolist())
    row = {
        "farther %": percent(mean.mean),
        "low": percent(mean.low),
        "high": percent(mean.high),
        "> 1 % farther": 100 * (change > 0.01).double().mean().item(),
        "> 1 % nearer": 100 * (change < -0.01).double().mean().item(),
        "found %": 100 * is_found.double().mean().item(),
        "gradients": without["gradients"],
        "seconds": without["seconds"],
    }
    if exact is not None:
        row["exact %"] = 100 * (distance < (1 + EXACT) * exact).double().mean().item()
    return row


def percent(log_ratio: float | None) -> float | None:
    return None if log_ratio is None else 100 * math.expm1(log_ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=100, help="two fifths of them at budget 200, a sixth for ResNet-20"
    )
    parser.add_argument("--only", default="", help="settings whose names contain this")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="these parts alone (default: all)")
    parser.add_argument("--quick", action="store_true", help="few images, without a budget of 200")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sys.path.append(str(Path(__file__).parents[1] / "support"))
    warnings.simplefilter("ignore", BoundaryNotFoundWarning)
    parts = {name: PARTS[name] for name in (FULL, *options.parts)} if options.parts else PARTS

    name_of_file = "ablation-quick" if options.quick else "ablation"
    options.output.mkdir(parents=True, exist_ok=True)
    log = options.output / f"{name_of_file}.jsonl"
    runs = {}
    for line in log.read_text().splitlines() if log.exists() else ():
        run = json.loads(line)
        runs[run["setting"], run["part"]] = run
    path = options.output / f"{name_of_file}.json"
    for name, budget, make in settings(10 if options.quick else options.images, options.quick):
        key = f"{name}, budget {budget}"
        if options.only not in key:
            continue
        try:
            setting = make()
        except zoo.DataNotSetError as error:
            sys.exit(str(error))
        rows = {}
        for part_name, part in parts.items():
            if not part.acts(setting.case):
                continue
            if (key, part_name) not in runs:
                begin = time.perf_counter()
                with part.off():
                    distance, gradients = setting.measure(part, budget)
                run = {
                    "setting": key,
                    "part": part_name,
                    "gradients": gradients,
                    "seconds": time.perf_counter() - begin,
                    "distance": distance.tolist(),
                }
                runs[key, part_name] = run
                with log.open("a") as file:
                    file.write(json.dumps(run) + "\n")
            rows[part_name] = summary(runs[key, part_name], runs[key, FULL], setting.exact)
        print(f"\n{key}: without each part\n", flush=True)
        print_table(rows)
        save(key, {"rows": rows, "claims": []}, path)
    print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
