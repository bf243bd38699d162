"""Boundary attributions of an ImageNet network and ordinary ones: ``docs/images/imagenet.png``.

Images of ImageNet may not be handed on, so the picture shows all photographs of ``tutorials/photographs``, which are in
the public domain. The weights are those that :mod:`zoo` describes.

    python tests/benchmarks/real_network_picture.py
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torchvision.io import decode_image
from torchvision.models import SqueezeNet1_0_Weights
from zoo import imagenet_squeezenet

from captum_boundary import BoundaryGradCam, BoundaryIntegratedGradients, BoundaryPoints, NearestBoundary
from captum_boundary.visualization import compare_attributions

ROOT = Path(__file__).parents[2]
AT_ONCE = 10
AMPLIFICATION = 200
BEYOND_FULL_COLOR = 10  # per cent of each map's total
N_COLORS = 256


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
    target = boundary.target
    path = {"internal_batch_size": AT_ONCE}
    where = BoundaryGradCam(model, model[1].features)
    return {
        "Grad-CAM": grad_cam(model, images, target),
        "IG": IntegratedGradients(model).attribute(images, target=target, **path).detach(),
        "BIG": BoundaryIntegratedGradients(model, search).attribute(images, boundary=boundary, **path).detach(),
        "BoundaryGradCam": where.attribute(images, target, **path),
    }


def grad_cam(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    cams = LayerGradCam(model, model[1].features).attribute(images, target, relu_attributions=True)
    return LayerAttribution.interpolate(cams, images.shape[2:], "bilinear").detach()


def draw(images: Tensor, boundary: BoundaryPoints, maps: dict[str, Tensor]) -> Figure:
    """The maps, and the displacement to the boundary in place of boundary points, which look like the images."""
    figure, axes = compare_attributions(
        images,
        maps,
        boundary=boundary,
        class_names=SqueezeNet1_0_Weights.DEFAULT.meta["categories"],
        outlier_perc=BEYOND_FULL_COLOR,
        plt_fig_axis=(Figure(figsize=(10, 4.2), layout="constrained"), None),
    )
    axes[0, 1].title.set_text(f"change × {AMPLIFICATION}")  # noqa: RUF001
    for panel, change in zip(axes[:, 1], boundary.points - images, strict=True):
        gray = (0.5 + AMPLIFICATION * change).clamp(0, 1)
        panel.images[0].set_data(gray.permute(1, 2, 0).numpy())
    return figure


def save(figure: Figure, path: Path) -> None:
    """Save with few colors: maps of a real network look like noise, which does not compress."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", pad_inches=0.05)
    picture = Image.open(buffer).convert("RGB")
    palette = picture.quantize(N_COLORS, method=Image.Quantize.MAXCOVERAGE, kmeans=5)
    picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


if __name__ == "__main__":
    main()
