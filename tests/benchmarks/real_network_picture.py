"""Boundary attributions of an ImageNet network beside ordinary ones: ``docs/images/imagenet.png``.

Images of ImageNet may not be handed on, so the picture shows all photographs of ``tutorials/photographs``, which are in
the public domain. The weights are those that :mod:`zoo` describes.

    python tests/benchmarks/real_network_picture.py
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, Saliency
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torchvision.io import decode_image
from torchvision.models import SqueezeNet1_0_Weights
from zoo import imagenet_squeezenet

from captum_boundary import (
    BoundaryEnergy,
    BoundaryIntegratedGradients,
    BoundaryPoints,
    BoundarySaliency,
    NearestBoundary,
    largest_stdev,
)
from captum_boundary.visualization import compare_attributions

ROOT = Path(__file__).parents[2]
AT_ONCE = 10
AMPLIFICATION = 200
STDEVS = (0.01, 0.02, 0.05, 0.1)  # of noise, of which the largest is taken that the decision stands
WINDOW = 3.0  # standard deviation in pixels
BEYOND_FULL_COLOUR = 10  # per cent of each map's total
N_COLOURS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "imagenet.png")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)

    photographs = sorted((ROOT / "tutorials" / "photographs").glob("*.jpg"))
    images = torch.stack([decode_image(str(path)) for path in photographs]) / 255
    model = imagenet_squeezenet()
    search = NearestBoundary(model, bounds=(0, 1), internal_batch_size=AT_ONCE)
    boundary = search.find(images)
    save(draw(images, boundary, explain(model, images, search, boundary)), options.output)
    print(f"{options.output}: {options.output.stat().st_size / 1000:.0f} kB")


def explain(model: nn.Module, images: Tensor, search: NearestBoundary, boundary: BoundaryPoints) -> dict[str, Tensor]:
    target, leaves = boundary.target, images.clone().requires_grad_()
    path = {"internal_batch_size": AT_ONCE}
    maps = {
        "Saliency": Saliency(model).attribute(leaves, target, abs=False),
        "IG, black": IntegratedGradients(model).attribute(leaves, target=target, **path),
        "BSM": BoundarySaliency(model, search).attribute(images, boundary=boundary),
        "BIG": BoundaryIntegratedGradients(model, search).attribute(images, boundary=boundary, **path),
    }
    cams = LayerGradCam(model, model[1].features).attribute(leaves, target, relu_attributions=True)
    cams = LayerAttribution.interpolate(cams, images.shape[2:], "bilinear")
    maps["energy"] = boundary_energy(model, images, target, energy="common", width=WINDOW)
    maps["× Grad-CAM"] = cams * boundary_energy(model, images, target)  # noqa: RUF001
    return {name: attributions.detach() for name, attributions in maps.items()}


def boundary_energy(model: nn.Module, images: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Of each image with as much noise as its decision stands."""
    stdevs = largest_stdev(model, images, target, stdevs=STDEVS, internal_batch_size=AT_ONCE)
    return torch.cat(
        [
            BoundaryEnergy(model, stdev, internal_batch_size=AT_ONCE).attribute(image[None], int(label), **options)
            for image, label, stdev in zip(images, target, stdevs.tolist(), strict=True)
        ]
    )


def draw(images: Tensor, boundary: BoundaryPoints, maps: dict[str, Tensor]) -> Figure:
    """The maps, and what changes on the way to the boundary in place of boundary points, which look like the images."""
    figure, axes = compare_attributions(
        images,
        maps,
        boundary=boundary,
        class_names=SqueezeNet1_0_Weights.DEFAULT.meta["categories"],
        outlier_perc=BEYOND_FULL_COLOUR,
        figure=Figure(figsize=(10, 3.8), layout="constrained"),
    )
    axes[0, 1].title.set_text(f"change × {AMPLIFICATION}")  # noqa: RUF001
    for panel, change in zip(axes[:, 1], boundary.points - images, strict=True):
        grey = (0.5 + AMPLIFICATION * change).clamp(0, 1)
        panel.images[0].set_data(grey.permute(1, 2, 0).numpy())
    return figure


def save(figure: Figure, path: Path) -> None:
    """Save with few colours: maps of a real network look like noise, which does not compress."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", pad_inches=0.05)
    picture = Image.open(buffer).convert("RGB")
    palette = picture.quantize(N_COLOURS, method=Image.Quantize.MAXCOVERAGE, kmeans=5)
    picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


if __name__ == "__main__":
    main()
