"""Benchmark of explanations of a vision transformer: trains it, prints a table, and draws the picture of the guide.

    CAPTUM_BOUNDARY_DATA=FOLDER python tests/benchmarks/vit.py [--n-images 100] [--picture docs/images/vit.png]

A transformer of torchvision (patches of 4 x 4 pixels, 3 blocks with layer normalization, 48 channels) is trained on
Fashion-MNIST, 1,500 batches of 64 images, and stored with the results. The first test images that it classifies
correctly are explained; columns, and the methods that are not of transformers alone, are those of explanations.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import zoo
from explanation_measures import Settings, prepare
from explanation_methods import Explainer, explainers
from explanations import COSTS, measured, shown, summary
from matplotlib.figure import Figure
from report import print_table, save
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from captum_boundary import BoundaryGradCam, BoundaryIntegratedGradients, NearestBoundary
from captum_boundary.visualization import compare_attributions

N_TRAINING_STEPS, N_BATCH = 1500, 64
GRID = (7, 7)
OF_ANY_MODEL = (
    *("IG, black", "Saliency", "InputXGradient", "SmoothGrad, 0.15", "SmoothGrad squared, 0.15"),
    *("BSM", "BIG", "mean of 5 normals", "mean of 5 normals x way"),
    *("BoundaryEnergy, total", "BoundaryEnergy, common", "random signs and sizes"),
)
LEADER = "mean of 5 normals x way"


def untrained() -> VisionTransformer:
    sizes = {"num_layers": 3, "num_heads": 4, "hidden_dim": 48, "mlp_dim": 96, "num_classes": 10}
    model = VisionTransformer(28, 4, **sizes)
    model.conv_proj = nn.Conv2d(1, sizes["hidden_dim"], 4, stride=4)  # of gray images
    return model


def fashion(part: str) -> tuple[Tensor, Tensor, list[str]]:
    """Images ``(N, 1, 28, 28)`` in [0, 1], labels and the names of the classes."""
    with np.load(zoo.data_folder() / "fashion_mnist.npz") as arrays:
        images, labels = (torch.from_numpy(arrays[f"{part}_{kind}"]) for kind in ("images", "labels"))
        return images[:, None].float() / 255, labels.long(), list(map(str, arrays["class_names"]))


def trained(path: Path) -> nn.Module:
    """The transformer, stored where it was trained before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = untrained()
        if not path.exists():
            train(model)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval().requires_grad_(False)


def train(model: nn.Module) -> None:
    images, labels, _ = fashion("train")
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=N_TRAINING_STEPS)
    for step in range(N_TRAINING_STEPS):
        rows = torch.randint(len(images), (N_BATCH,))
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if step % 100 == 99:
            print(f"step {step + 1} of {N_TRAINING_STEPS}: loss {loss.item():.2f}", flush=True)


def blocks_of(model: nn.Module) -> nn.Sequential:
    """Of the transformer, also where its evaluations are counted by a module around it."""
    return next(module for module in model.modules() if isinstance(module, VisionTransformer)).encoder.layers


def grid(tokens: Tensor) -> Tensor:
    """The patches, without the class token, as ``(N, C, 7, 7)``."""
    return tokens[:, 1:].unflatten(1, GRID).permute(0, 3, 1, 2)


def boundary_grad_cam(energy: str, n_gradients: int, model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    method = BoundaryGradCam(model, blocks_of(model)[-2], reshape_transform=grid)
    return method.attribute(images, target, energy=energy, n_samples=n_gradients // 4 * 2)


def grad_cam(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM of the last block but one, as large as the image."""
    kept: list[Tensor] = []
    handle = blocks_of(model)[-2].register_forward_hook(lambda *args: kept.append(args[-1]))
    score = model(images.clone().requires_grad_()).gather(1, target[:, None]).sum()
    handle.remove()
    (slope,) = torch.autograd.grad(score, kept)
    cam = (grid(kept[0]) * grid(slope).mean(dim=(2, 3), keepdim=True)).sum(dim=1, keepdim=True).relu()
    return nn.functional.interpolate(cam, images.shape[2:], mode="bilinear")


@torch.no_grad()
def attention_rollout(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Attention rollout (https://arxiv.org/abs/2005.00928) of the class token, which knows of no class."""
    weights: list[Tensor] = []

    def attend(module: nn.MultiheadAttention, args: tuple[Tensor, ...]) -> None:
        weights.append(nn.MultiheadAttention.forward(module, *args, need_weights=True)[1])

    handles = [block.self_attention.register_forward_pre_hook(attend) for block in blocks_of(model)]
    model(images)
    for handle in handles:
        handle.remove()
    joint = torch.eye(weights[0].shape[-1])
    for attention in weights:
        joint = (attention + torch.eye(attention.shape[-1])) / 2 @ joint
    patches = joint[:, 0, 1:].view(-1, 1, *GRID)
    return nn.functional.interpolate(patches, images.shape[2:], mode="bilinear")


def methods(images: Tensor, n_gradients: int) -> dict[str, Explainer]:
    every = explainers(images.mean(dim=(0, 2, 3)).view(-1, 1, 1), images[:20], n_gradients)
    own: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
        "Grad-CAM": grad_cam,
        "attention rollout": attention_rollout,
        "BoundaryGradCam, total": partial(boundary_grad_cam, "total", n_gradients),
        "BoundaryGradCam, common": partial(boundary_grad_cam, "common", n_gradients),
    }
    rows = {name: every[name] for name in OF_ANY_MODEL}
    return rows | {name: Explainer(lambda *args, explain=explain: explain(*args[:3])) for name, explain in own.items()}


def run(model: nn.Module, n_images: int, n_gradients: int, settings: Settings, path: Path) -> dict[str, object]:
    images, labels, _ = fashion("test")
    with torch.no_grad():
        is_correct = torch.cat([model(part).argmax(dim=1) for part in images.split(500)]) == labels
    print(f"{is_correct.float().mean():.1%} of {len(labels)} test images are classified correctly", flush=True)
    chosen = is_correct.nonzero().flatten()[:n_images]
    mean_color = images.mean().view(1, 1, 1)
    batches = [
        prepare(model, images[part], labels[part], None, mean_color, True) for part in chosen.split(settings.batch_size)
    ]
    rows = {}
    for name, method in methods(images, n_gradients).items():
        rows[name] = measured(method, model, batches, mean_color, settings, lambda: None)
        print(name, flush=True)
    result = {"images": len(chosen), "per image": rows, "claims": []} | summary(rows, LEADER)
    save("Fashion-MNIST, vision transformer", result, path)
    return result


def draw(model: nn.Module, n_gradients: int) -> Figure:
    """One image of each of four classes and its maps."""
    images, labels, names = fashion("test")
    with torch.no_grad():
        is_correct = model(images[:500]).argmax(dim=1) == labels[:500]
    rows = [int(((labels[:500] == label) & is_correct).nonzero()[0]) for label in (0, 5, 7, 8)]
    some, target = images[rows], labels[rows]
    search = NearestBoundary(model, bounds=(0, 1))
    boundary = search.find(some)
    plain = explainers(some.mean().view(1, 1, 1), some, n_gradients)
    maps = {
        "IG, black": plain["IG, black"].explain(model, some, target, None).detach(),
        "attention rollout": attention_rollout(model, some, target),
        "Grad-CAM": grad_cam(model, some, target).detach(),
        "BIG": BoundaryIntegratedGradients(model, search).attribute(some, boundary=boundary),
        "normals × displacement": plain[LEADER].explain(model, some, target, None),  # noqa: RUF001
        "BoundaryGradCam": boundary_grad_cam("total", n_gradients, model, some, target),
    }
    canvas = Figure(figsize=(10, 5.6), layout="constrained")
    figure, _ = compare_attributions(
        some, maps, boundary=boundary, class_names=names, outlier_perc=2, plt_fig_axis=(canvas, None)
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-images", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--n-gradients", type=int, default=50, help="for each image (default: %(default)s)")
    parser.add_argument("--picture", type=Path, help="draw this file, and measure nothing")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--threads", type=int, help="threads of torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        model = trained(options.output / "vit.pt")
    except zoo.DataNotSetError as error:
        sys.exit(str(error))
    if options.picture:
        draw(model, options.n_gradients).savefig(options.picture, dpi=110)
        return
    settings = Settings(n_curve_steps=28, sensitivity_images=5, sensitivity_samples=3, batch_size=50)
    result = run(model, options.n_images, options.n_gradients, settings, options.output / "vit.json")
    print_table({name: shown(columns, COSTS) for name, columns in result["means"].items()})
    print(f"\nDifferences to {LEADER}\n")
    print_table({name: shown(columns) for name, columns in result["differences to the leader"].items()})


if __name__ == "__main__":
    main()
