"""Benchmark of distances of features alone where the truth is known: prints tables with intervals.

    python tests/benchmarks/feature_distance.py [--n-examples 100]

Tables: ten columns of normal numbers, and one logit learned by a small network. The sign of the first column says which
of the next two decides, so that two columns matter for each row and the other eight do not. Images: one glyph makes the
class, among others that do not (see synthetic_images.py), and the segments are the nine squares in which glyphs may
stand.

Every method gives each feature one number: 1 / distance where it moves alone (BoundaryDistance), the loss of the margin
where it is replaced by the mean or by values of other examples (Captum's FeatureAblation; Occlusion with windows of a
column or square is the same), and Captum's Integrated Gradients from the mean. "Equal cost" rows take as many passes,
a gradient being two more than a forward pass. Columns:

* first: whether the feature with the largest number is one that decides.
* over others: how often one that decides has a larger number than one that does not.
* passes: forward passes and twice the gradients, of one example.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
from captum.attr import FeatureAblation, IntegratedGradients, Saliency
from counting import CountedModel, Counter
from intervals import interval, paired_difference
from report import print_table
from synthetic_images import GLYPH, make_images, trained_network
from torch import Tensor, nn

from captum_boundary import BoundaryDistance, NearestBoundary

BUDGET = 10
N_COLUMNS = 10


class Margin(nn.Module):
    """Of the predicted class of each example, which follows it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        scores = self.model(x)
        scores = torch.stack([-scores[:, 0], scores[:, 0]], dim=1) / 2 if scores.shape[1] == 1 else scores
        others = scores.scatter(1, target[:, None], -math.inf).amax(1)
        return scores.gather(1, target[:, None])[:, 0] - others


class Task:
    """Examples, the group ``(1, ...)`` of each of their values, and which groups ``(N, G)`` decide."""

    def __init__(
        self, model: nn.Module, x: Tensor, groups: Tensor, causes: Tensor, others: Tensor, bounds: Any
    ) -> None:
        self.counter = Counter()
        self.model = CountedModel(model, self.counter).eval()
        self.x, self.groups, self.causes, self.others, self.bounds = x, groups, causes, others, bounds
        scores = model(x)
        self.target = (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)
        self.mean = others.mean(dim=(0, 2, 3) if others.ndim == 4 else 0)
        self.mean = self.mean[:, None, None] if others.ndim == 4 else self.mean
        self.margin = Margin(self.model)

    def of_groups(self, maps: Tensor, is_sum: bool = False) -> Tensor:
        """Numbers ``(N, G)`` of maps."""
        index = self.groups.expand_as(maps).flatten(1)
        sums = maps.new_zeros(len(maps), int(self.groups.max()) + 1).scatter_add_(1, index, maps.flatten(1))
        sizes = torch.zeros_like(sums).scatter_add_(1, index, torch.ones_like(maps).flatten(1))
        return sums if is_sum else sums / sizes


def distances(task: Task) -> Tensor:
    search = NearestBoundary(task.model, bounds=task.bounds, budget=BUDGET)
    return task.of_groups(BoundaryDistance(task.model, search).attribute(task.x, feature_mask=task.groups))


def ablation(task: Task, n_draws: int | None) -> Tensor:
    """Loss of the margin where a feature becomes the mean, or values of other examples."""
    method, total = FeatureAblation(task.margin), torch.zeros_like(task.x)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(n_draws or 1):
            rows = torch.randint(len(task.others), (len(task.x),), generator=draws)
            baselines = task.mean.expand_as(task.x) if n_draws is None else task.others[rows]
            options = {"baselines": baselines, "feature_mask": task.groups}
            total += method.attribute(task.x, additional_forward_args=task.target, **options)
    return task.of_groups(total / (n_draws or 1))


def path(task: Task, n_steps: int) -> Tensor:
    method = IntegratedGradients(task.margin)
    options = {"n_steps": n_steps, "internal_batch_size": 1000, "additional_forward_args": task.target}
    return task.of_groups(method.attribute(task.x, task.mean.expand_as(task.x).contiguous(), **options), is_sum=True)


def slope(task: Task) -> Tensor:
    maps = Saliency(task.margin).attribute(task.x.clone().requires_grad_(), additional_forward_args=task.target)
    return task.of_groups(maps.square(), is_sum=True).sqrt()


def table_task(seed: int, n_examples: int) -> Task:
    numbers = torch.Generator().manual_seed(seed)
    rows = torch.randn(8192, N_COLUMNS, generator=numbers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(N_COLUMNS, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def deciding(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, x[:, 1], x[:, 2])

    for _ in range(1500):
        batch = rows[torch.randint(4096, len(rows), (128,), generator=numbers)]
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch)[:, 0], (deciding(batch) > 0).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.requires_grad_(False)
    right = rows[:4096][(model(rows[:4096])[:, 0] > 0) == (deciding(rows[:4096]) > 0)]
    print(f"table: {len(right) / 4096:.1%} of new rows are right")
    x = right[:n_examples]
    causes = torch.zeros(len(x), N_COLUMNS, dtype=torch.bool)
    causes[:, 0] = True
    causes[torch.arange(len(x)), torch.where(x[:, 0] > 0, 1, 2)] = True
    return Task(model, x, torch.arange(N_COLUMNS)[None], causes, right[n_examples:], None)


def image_task(seed: int, n_examples: int) -> Task:
    model = trained_network(seed, 250)
    images, classes, masks = make_images(2 * n_examples + 200, seed=seed)
    right = model(images).argmax(1) == classes
    print(f"images: {float(right.float().mean()):.1%} of new ones are right")
    side = GLYPH + 1
    numbers = torch.arange(images.shape[-1]) // side
    groups = (numbers[:, None] * (images.shape[-1] // side) + numbers)[None, None]
    images, masks = images[right], masks[right]
    causes = nn.functional.max_pool2d(masks[:, None], side).flatten(1) > 0
    n = n_examples
    return Task(model, images[:n], groups, causes[:n], images[n:], (0, 1))


def measured(values: Tensor, causes: Tensor) -> dict[str, Tensor]:
    size = values.nan_to_num(0.0, posinf=1e9)
    apart = size[:, :, None] - size[:, None, :]
    pairs = causes[:, :, None] & ~causes[:, None, :]
    above = ((apart > 0).float() + 0.5 * (apart == 0)) * pairs
    return {
        "first": causes.gather(1, size.argmax(1, keepdim=True))[:, 0].float(),
        "over others": above.sum((1, 2)) / pairs.sum((1, 2)),
    }


def compare(tasks: list[Task]) -> None:
    n_groups = int(tasks[0].groups.max()) + 1
    counted: dict[str, int] = {}
    columns: dict[str, dict[str, Tensor]] = {}

    def add(label: str, method: Callable[[Task], Tensor]) -> int:
        rows, passes = [], []
        for task in tasks:
            before = task.counter.forwards + 2 * task.counter.gradients
            rows.append(measured(method(task), task.causes))
            passes.append((task.counter.forwards + 2 * task.counter.gradients - before) / len(task.x))
        columns[label] = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        counted[label] = round(sum(passes) / len(passes))
        return counted[label]

    passes = add("BoundaryDistance", distances)
    add("FeatureAblation, mean", lambda task: ablation(task, None))
    add("FeatureAblation, 8 draws", lambda task: ablation(task, 8))
    add("FeatureAblation, equal cost", lambda task: ablation(task, passes // (n_groups + 1)))
    add("IntegratedGradients, equal cost", lambda task: path(task, passes // 3))
    add("norm of the gradient", slope)
    reference = columns["BoundaryDistance"]
    print_table(
        {
            label: {
                **{name: shown(interval(values.tolist())) for name, values in row.items()},
                "BoundaryDistance less it, over others": shown(
                    paired_difference(reference["over others"].tolist(), row["over others"].tolist())
                ),
                "passes": counted[label],
            }
            for label, row in columns.items()
        }
    )


def shown(cell: Any) -> str:
    return f"{cell.mean:.3f} [{cell.low:.3f}, {cell.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-examples", type=int, default=100, help="of each of two networks (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for make in (table_task, image_task):
        compare([make(seed, options.n_examples) for seed in (0, 1)])
        print()


if __name__ == "__main__":
    main()
