"""What is written in pictures: as it is, inside of the figure, and never over other words."""

from __future__ import annotations

import itertools

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn

from captum_boundary import NearestBoundary
from captum_boundary.visualization import (
    compare_attributions,
    plot_boundary_slice,
    plot_feature_changes,
    show_boundary_point,
)

NAMES = {
    "short": ["cat", "dog", "eel"],
    "dollars": ["under $50k", "over $50k", "$\\frac{"],
    "long": ["soft-coated wheaten terrier of the west", "Staffordshirebullterrieroftheverylongname", "eel"],
}
ROUNDING = 1.0  # pixels


def texts_of(figure: Figure) -> list[Text]:
    """The texts that are drawn, which are not all that there are: ticks outside of the axes are not."""
    drawn = []
    draw = Text.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", lambda text, *args: (drawn.append(text), draw(text, *args)))
        figure.canvas.draw()
    by_id = {id(text): text for text in drawn if text.get_visible() and text.get_text().strip()}
    return list(by_id.values())


def check(figure: Figure) -> None:
    """No text leaves the figure or lies over another, and none of those that users give is mathematics."""
    texts = texts_of(figure)
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    width, height = figure.canvas.get_width_height()
    for words, box in boxes:
        assert min(box.x0, box.y0) >= -ROUNDING, f"{words!r} leaves the figure: {box}"
        assert box.x1 <= width + ROUNDING, f"{words!r} leaves the figure: {box}"
        assert box.y1 <= height + ROUNDING, f"{words!r} leaves the figure: {box}"
    for (words, box), (other_words, other) in itertools.combinations(boxes, 2):
        across = min(box.x1, other.x1) - max(box.x0, other.x0)
        up = min(box.y1, other.y1) - max(box.y0, other.y0)
        assert across <= ROUNDING or up <= ROUNDING, f"{words!r} overlaps {other_words!r}"


def images() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval(), torch.rand(2, 1, 8, 8)


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("n_methods", [1, 5, 24])
def test_comparisons(names, n_methods):
    model, x = images()
    boundary = NearestBoundary(model, budget=4).find(x)
    methods = [f"{names[index % 3]} {index}" for index in range(n_methods)]
    figure, axes = compare_attributions(
        x, {name: torch.randn(2, 1, 8, 8) for name in methods}, boundary=boundary, class_names=names, bounds=(-9, 9)
    )
    check(figure)
    given = [text for axis in axes.flat for text in (axis.title, axis.xaxis.label) if text.get_text()]
    assert len(given) >= n_methods
    assert not any(text.get_parse_math() for text in given)


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_comparisons_of_models(names):
    model, x = images()
    boundary = NearestBoundary(model, budget=4).find(x)
    maps = {f"{name} {index}": {"IG": torch.randn(2, 1, 8, 8)} for index, name in enumerate(names)}
    figure, _ = compare_attributions(x, maps, boundary=dict.fromkeys(maps, boundary), class_names=names, bounds=(-9, 9))
    check(figure)


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_boundary_points(names):
    model, x = images()
    boundary = NearestBoundary(model, budget=4).find(x)
    check(show_boundary_point(x, boundary, class_names=names, bounds=(-9, 9))[0])


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_slices_and_changes(names):
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(3, 4)
    boundary = NearestBoundary(model, budget=4).find(x)
    figure, axis = plot_boundary_slice(model, x, boundary, class_names=names, resolution=20)
    contour_labels = {id(text) for text in axis.texts}
    assert not any(text.get_parse_math() for text in texts_of(figure) if id(text) not in contour_labels)
    legend = axis.get_legend().get_window_extent()
    assert legend.x1 <= figure.bbox.x1 + ROUNDING
    assert axis.title.get_window_extent().x1 <= figure.bbox.x1 + ROUNDING
    assert axis.title.get_window_extent().x0 >= -ROUNDING
    figure, _ = plot_feature_changes(x, boundary, feature_names=[*names, "rooms"], class_names=names)
    check(figure)
