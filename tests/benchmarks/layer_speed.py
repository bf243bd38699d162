"""What a search in a layer costs beside one of the inputs, and beside one that computes the whole model every time.

    CAPTUM_BOUNDARY_DATA=FOLDER python tests/benchmarks/layer_speed.py [--n-images 4] [--turns 3]

A search of the inputs, and at several layers two searches for the same points: from the layer on, and in the whole
model with a hook that replaces the layer's output. They take turns on one thread, and all spend the whole budget, so
that seconds for a gradient can be compared; ratios are medians over the turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import zoo
from report import Claim, print_claims, print_table, save
from torch import Tensor, nn

from captum_boundary import BoundaryPoints, ModelFromLayer, NearestBoundary

BUDGET = 10


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Of the network after its normalization: a ResNet-20's stages, or fire modules."""
    features = getattr(model[1], "features", None)
    if features is not None:
        return {f"features.{index}": features[index] for index in (3, 7, 12)}
    return {name: getattr(model[1], name) for name in ("layer1", "layer2", "layer3")}


def hooked(model: nn.Module, layer: nn.Module) -> Callable[..., Tensor]:
    """The whole model, with the layer's output replaced in the end."""

    def forward(activations: Tensor, images: Tensor) -> Tensor:
        hook = layer.register_forward_hook(lambda *_: activations.clone())
        try:
            scores: Tensor = model(images)
            return scores
        finally:
            hook.remove()

    return forward


def timed(search: Callable[[], BoundaryPoints]) -> tuple[BoundaryPoints, float]:
    """Boundary points, and milliseconds for a gradient."""
    begin = time.perf_counter()
    boundary = search()
    return boundary, 1000 * (time.perf_counter() - begin) / int(boundary.n_gradient.sum())


def find(forward_func: Callable[..., Any], inputs: Tensor, *arguments: Any) -> BoundaryPoints:
    return NearestBoundary(forward_func, budget=BUDGET).find(inputs, additional_forward_args=arguments)


def compare(model: nn.Module, images: Tensor, n_turns: int) -> dict[str, dict[str, float]]:
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in layers_of(model)}
    for _ in range(n_turns):
        _, of_inputs = timed(partial(find, model, images))
        for name, layer in layers_of(model).items():
            from_layer = ModelFromLayer(model, layer)
            begin = time.perf_counter()
            activations, arguments = from_layer.at(images)
            entering = 1000 * (time.perf_counter() - begin) / len(images)
            points, of_rest = timed(partial(find, from_layer, activations, *arguments))
            expected, of_whole = timed(partial(find, hooked(model, layer), activations, images))
            change = (points.distance - expected.distance).abs() / expected.distance
            found[name].append((of_rest, of_whole / of_rest, of_inputs / of_rest, entering, float(change.max())))
    columns = ("ms a gradient", "whole model / layer", "inputs / layer", "ms to enter, an image", "change of distance")
    return {
        name: dict(zip(columns, map(statistics.median, zip(*turns, strict=True)), strict=True))
        for name, turns in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-images", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.output / "layer_speed.json"
    for name, load, images in (
        ("ResNet-20, 32 x 32", zoo.cifar_resnet20, "cifar10_test500"),
        ("SqueezeNet, 224 x 224", zoo.imagenet_squeezenet, "imagenet_sample50"),
    ):
        try:
            model, (inputs, _) = load(), zoo.load_images(images)
        except zoo.DataNotSetError as error:
            sys.exit(str(error))
        rows = compare(model, inputs[: options.n_images], options.turns)
        last = list(rows)[-1]
        claims = [
            Claim(f"{last}: cheaper than in the whole model", *_more_than(rows[last]["whole model / layer"], 1.0)),
            Claim("the same distances in the whole model, to 1e-3", *_less_than(rows, 1e-3)),
        ]
        print(f"\n{name}\n")
        print_table(rows)
        print_claims(claims)
        save(name, {"rows": rows, "claims": claims}, path)
    print(f"\nSaved {path}")


def _more_than(value: float, least: float) -> tuple[float, bool]:
    return value, value > least


def _less_than(rows: dict[str, dict[str, float]], most: float) -> tuple[float, bool]:
    value = max(row["change of distance"] for row in rows.values())
    return value, value < most


if __name__ == "__main__":
    main()
