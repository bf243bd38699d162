"""What one attribution method is worth on some images, number by number and image by image."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from captum.metrics import sensitivity_max
from counting import CountedModel, Counter
from explanation_methods import Explainer, search
from intervals import Values
from torch import Tensor, nn

from captum_boundary import BoundaryPoints
from captum_boundary.metrics import (
    concentration,
    deletion,
    energy_game,
    insertion,
    localization,
    positive_percentage,
)

ON_OBJECT = {"Loc": localization, "EG": energy_game, "PP": positive_percentage, "Con": concentration}
HIGHER_IS_BETTER = (*ON_OBJECT, "insertion", "ins - del")

N_PATCHES = 50
RADIUS = 0.02  # of the moves of sensitivity, in the maximum norm


@dataclass(frozen=True)
class Settings:
    n_curve_steps: int
    sensitivity_images: int
    sensitivity_samples: int
    batch_size: int


@dataclass
class Batch:
    """Images with all that does not depend on the method: boundary points, and drops of the score under removals."""

    images: Tensor
    target: Tensor
    boxes: Tensor | None
    boundary: BoundaryPoints | None  # None where no method looks at it
    search_gradients: float  # per image, as all that follows
    search_forwards: float
    search_seconds: float
    patches: Tensor  # (R, N, H, W)
    drops: Tensor  # (R, N)


def prepare(
    model: nn.Module, images: Tensor, target: Tensor, boxes: Tensor | None, mean_color: Tensor, searches: bool
) -> Batch:
    counter = Counter()
    begin = time.perf_counter()
    boundary = search(CountedModel(model, counter)).find(images, target) if searches else None
    seconds = time.perf_counter() - begin
    patches = random_patches(len(images), images.shape[-1])
    return Batch(
        images=images,
        target=target,
        boxes=boxes,
        boundary=boundary,
        search_gradients=counter.gradients / len(images),
        search_forwards=counter.forwards / len(images),
        search_seconds=seconds / len(images),
        patches=patches,
        drops=score_drops(model, images, target, patches, mean_color),
    )


def random_patches(n_images: int, side: int) -> Tensor:
    """Squares of a quarter of the image's side, anywhere in it, the same for every method: ``(R, N, H, W)``."""
    generator = torch.Generator().manual_seed(0)
    size = side // 4
    corners = torch.randint(side - size + 1, (2, N_PATCHES, n_images, 1), generator=generator)
    rows, columns = ((torch.arange(side) >= corner) & (torch.arange(side) < corner + size) for corner in corners)
    return rows[..., :, None] & columns[..., None, :]


def score_drops(model: nn.Module, images: Tensor, target: Tensor, patches: Tensor, mean_color: Tensor) -> Tensor:
    """What the target's output loses when each patch is occluded by the mean color."""
    with torch.no_grad():
        whole = model(images).gather(1, target[:, None]).squeeze(1)
        painted = (model(torch.where(patch[:, None], mean_color, images)) for patch in patches)
        return torch.stack([whole - scores.gather(1, target[:, None]).squeeze(1) for scores in painted])


def infidelity(maps: Tensor, patches: Tensor, drops: Tensor) -> Tensor:
    """Captum's infidelity with ``normalize=True`` for removed patches, relative to that of an empty map.

    The share of the squared drops that the attributions in the patches, times one best factor, leave unexplained: 0 for
    a map that predicts all drops in proportion, 1 for one that predicts nothing.
    """
    sums = (maps.sum(dim=1) * patches).sum(dim=(2, 3))
    explained = (sums * drops).sum(dim=0) ** 2 / ((sums**2).sum(dim=0) * (drops**2).sum(dim=0))
    return 1 - torch.where((sums == 0).all(dim=0), 0.0, explained)


def evaluate(
    explainer: Explainer,
    model: nn.Module,
    batches: list[Batch],
    mean_color: Tensor,
    settings: Settings,
    on_batch: Callable[[], None],
) -> dict[str, Values]:
    """Columns of numbers, one for each image."""
    columns: dict[str, Values] = {}
    n_left = settings.sensitivity_images
    for batch in batches:
        measured = _evaluate_batch(explainer, model, batch, mean_color, settings)
        sensitivity = torch.full((len(batch.images),), torch.nan)
        if n_left > 0:
            sensitivity[:n_left] = _sensitivity(explainer, model, batch, n_left, settings)
        n_left -= len(batch.images)
        for name, values in {**measured, "sensitivity": sensitivity}.items():
            columns.setdefault(name, []).extend(None if math.isnan(value) else value for value in values.tolist())
        on_batch()
    return columns


def _evaluate_batch(
    explainer: Explainer, model: nn.Module, batch: Batch, mean_color: Tensor, settings: Settings
) -> dict[str, Tensor]:
    images, target = batch.images, batch.target
    counter = Counter()
    begin = time.perf_counter()
    maps = _explain(explainer, CountedModel(model, counter).eval(), images, target, batch.boundary)
    seconds = (time.perf_counter() - begin) / len(images)
    gradients, forwards = counter.gradients / len(images), counter.forwards / len(images)
    if explainer.uses_boundary:
        seconds += batch.search_seconds
        gradients += batch.search_gradients
        forwards += batch.search_forwards
    curve = {"target": target, "n_steps": settings.n_curve_steps}
    measured = {} if batch.boxes is None else {name: call(maps, batch.boxes) for name, call in ON_OBJECT.items()}
    inserted = insertion(model, images, maps, **curve)
    deleted = deletion(model, images, maps, baselines=mean_color, **curve)
    return {
        **measured,
        "insertion": inserted,
        "deletion": deleted,
        "ins - del": inserted - deleted,
        "infidelity": infidelity(maps, batch.patches, batch.drops),
        "gradients": torch.full((len(images),), gradients),
        "forwards": torch.full((len(images),), forwards),
        "seconds": torch.full((len(images),), seconds),
    }


def _sensitivity(explainer: Explainer, model: nn.Module, batch: Batch, n_images: int, settings: Settings) -> Tensor:
    """Largest change of the map when the image moves a little; boundaries are searched again each time.

    Maps have unit length here, so that it is their pattern that counts. The size of some, as those of a loss, varies by
    orders of magnitude.
    """
    images, target = batch.images[:n_images], batch.target[:n_images]
    generator = torch.Generator().manual_seed(0)

    def explain(inputs: Tensor | tuple[Tensor], target: Tensor) -> Tensor | tuple[Tensor]:
        if isinstance(inputs, tuple):  # Captum asks about the images as a tuple, and about moved ones without
            return (explain(inputs[0], target),)
        maps = _explain(explainer, model, inputs, target, None)
        return maps / maps.flatten(1).norm(dim=1)[:, None, None, None]

    def move(inputs: Tensor) -> Tensor:
        noise = torch.empty_like(inputs).uniform_(-RADIUS, RADIUS, generator=generator)
        return (inputs + noise).clamp(0, 1)

    return sensitivity_max(
        explain,
        images,
        move,
        n_perturb_samples=settings.sensitivity_samples,
        max_examples_per_batch=len(images),
        target=target,
    )


def _explain(
    explainer: Explainer, model: nn.Module, images: Tensor, target: Tensor, boundary: BoundaryPoints | None
) -> Tensor:
    """Attributions with the same random numbers on every call."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002, Captum draws from the legacy state
    with torch.enable_grad():
        return explainer.explain(model, images.clone().requires_grad_(), target, boundary).detach()
