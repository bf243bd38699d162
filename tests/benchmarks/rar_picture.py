"""Attribution maps before and after an attack, for every way of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

CELL = 1.1
KEPT, NEW = torch.tensor([0.0, 0.35, 0.75]), torch.tensor([0.9, 0.4, 0.0])
LEGEND = "Darker: more attribution.  Blue: among the {k} largest before the attack.  Orange: newcomers after it."


def draw(shown: Mapping[str, Mapping[str, Tensor]], images: Tensor, k: int, path: Path, n_images: int = 4) -> bool:
    """Save a picture of the first ``n_images`` that every objective has maps of; ``images`` are those of the test.

    False, and no picture, where there is no such image.
    """
    rows = [row for row in next(iter(shown.values()))["rows"].tolist() if all(row in s["rows"] for s in shown.values())]
    rows = rows[:n_images]
    if not rows:
        return False
    width, height = (1.2 + 2.15 * len(shown)) * CELL, (len(rows) * 1.25 + 0.9) * CELL
    is_narrow = len(shown) < 3
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    columns = figure.add_gridspec(
        1,
        1 + len(shown),
        width_ratios=[1] + [2] * len(shown),
        wspace=0.08,
        left=0.01,
        right=0.99,
        top=0.88,
        bottom=0.12 if is_narrow else 0.08,
    )
    pictures = columns[0].subgridspec(len(rows), 1).subplots(squeeze=False)
    for axis, row in zip(pictures[:, 0], rows, strict=True):
        _show(axis, images[row].permute(1, 2, 0), "image" if row == rows[0] else "")
    for column, (objective, maps) in enumerate(shown.items(), start=1):
        pairs = columns[column].subgridspec(len(rows), 2, wspace=0.04).subplots(squeeze=False)
        for axes, row in zip(pairs, rows, strict=True):
            _draw_pair(axes, maps, maps["rows"].tolist().index(row), k)
        pairs[0, 0].set_title(f"{objective}\nbefore", size=9)
        pairs[0, 1].set_title("\nafter", size=9)
    legend = LEGEND.format(k=k)
    figure.supxlabel(legend.replace("  ", "\n") if is_narrow else legend, size=9)
    figure.savefig(path)
    return True


def _draw_pair(axes: list[Axes], maps: Mapping[str, Tensor], index: int, k: int) -> None:
    before, after = maps["before"][index], maps["after"][index]
    top_before = _top(before, k)
    _show(axes[0], _tinted(before, [(top_before, KEPT)]))
    _show(axes[1], _tinted(after, [(_top(after, k), NEW), (top_before & _top(after, k), KEPT)]))
    axes[0].set_xlabel(f"IN {100 * maps['intersection'][index]:.0f} %", size=8, labelpad=2)
    axes[1].set_xlabel(f"tau {maps['tau'][index]:.2f}", size=8, labelpad=2)


def _top(values: Tensor, k: int) -> Tensor:
    rows = values.flatten().topk(k).indices
    return torch.zeros(values.numel(), dtype=torch.bool).index_fill_(0, rows, True).view_as(values)


def _tinted(values: Tensor, tints: list[tuple[Tensor, Tensor]]) -> Tensor:
    """A map ``(H, W)`` as ink on paper, in color where a tint's mask is set."""
    strength = (values / values.max()).clamp(0, 1)[..., None].sqrt()
    ink = torch.zeros(*values.shape, 3)
    for mask, color in tints:
        ink[mask] = color
        strength = torch.where(mask[..., None], strength.clamp_min(0.4), strength)
    return 1 - strength * (1 - ink)


def _show(axis: Axes, pixels: Tensor, title: str = "") -> None:
    axis.imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255 if pixels.dtype == torch.uint8 else 1)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, size=9)
    for side in axis.spines.values():
        side.set_color("0.75")
