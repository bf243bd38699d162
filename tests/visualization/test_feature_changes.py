"""What changed in a row of a table: every change, no other, with its values, in words and as bars."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn

from captum_boundary import BoundaryPoints, NearestBoundary
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search import CategoricalBoundary
from captum_boundary.visualization import describe_feature_changes, plot_feature_changes

NAMES = ["age", "income", "color_red", "color_blue", "color=green", "sold"]
CATEGORIES = {"color": [2, 3, 4], "sold": [5]}
INPUTS = torch.tensor([[0.5, -1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0, 1.0, 1.0]])


def points_at(points: torch.Tensor, found: tuple[bool, ...] = (True, True)) -> BoundaryPoints:
    return BoundaryPoints(
        points=points,
        target=torch.tensor([0, 1]),
        adversarial=torch.tensor([1, 0]),
        distance=(points - INPUTS).norm(dim=1),
        margin=torch.tensor([-1e-5 if each else 1.0 for each in found]),
        found=torch.tensor(found),
        n_forward=torch.ones(2, dtype=torch.long),
        n_gradient=torch.ones(2, dtype=torch.long),
    )


POINTS = torch.tensor([[0.5, 0.25, 0.0, 1.0, 0.0, 0.0], [-2.5, 2.0, 0.0, 0.0, 1.0, 0.0]])


def test_sentences_say_what_changed():
    sentences = describe_feature_changes(INPUTS, points_at(POINTS), feature_names=NAMES, categories=CATEGORIES)
    assert sentences == [
        "class 1 instead of class 0, if income were 0.25 instead of -1 and color were blue instead of red.",
        "class 0 instead of class 1, if age were -2.5 instead of 0 and sold were no instead of yes.",
    ]


def test_sentences_are_in_the_units_and_names_of_the_user():
    mean, std = torch.tensor([40.0, 50_000.0, 0, 0, 0, 0]), torch.tensor([10.0, 20_000.0, 1, 1, 1, 1])
    sentences = describe_feature_changes(
        INPUTS,
        points_at(POINTS),
        feature_names=NAMES,
        categories=CATEGORIES,
        class_names=["refused", "granted"],
        unscale=lambda table: table * std + mean,
    )
    assert sentences[0].startswith("granted instead of refused, if income were 55,000 instead of 30,000 and color")
    assert sentences[1].startswith("refused instead of granted, if age were 15 instead of 40 and sold")


def test_small_changes_are_counted_and_rounding_is_none():
    points = INPUTS + torch.tensor([0.5, 0.3, 0.0, 0.0, 0.0, 1e-7])
    points[1] += torch.tensor([0.0, 0.0, 0.1, 0.2, 0.0, 0.0])
    boundary = points_at(points)
    (first, second) = describe_feature_changes(INPUTS, boundary, n_features=1)
    assert first == "class 1 instead of class 0, if feature 0 were 1 instead of 0.5 and 1 more changed by less."
    assert second.endswith("and 3 more changed by less.")
    (first, _) = describe_feature_changes(INPUTS, boundary)
    assert first == (
        "class 1 instead of class 0, if feature 0 were 1 instead of 0.5 and feature 1 were -0.7 instead of -1."
    )


def test_groups_without_names_and_points_between_categories():
    points = INPUTS.clone()
    points[0, 2:5] = torch.tensor([0.0, 0.0, 1.0])
    points[1, 2:5] = torch.tensor([0.25, 0.0, 0.75])
    sentences = describe_feature_changes(INPUTS, points_at(points), feature_names=NAMES, categories=[[2, 3, 4], [5]])
    assert sentences[0] == "class 1 instead of class 0, if it were color=green instead of color_red."
    assert sentences[1] == "class 0 instead of class 1, if it were (0.25, 0, 0.75) instead of color=green."


def test_rows_without_a_point_say_so():
    boundary = points_at(torch.stack([POINTS[0], INPUTS[1]]), found=(True, False))
    sentences = describe_feature_changes(INPUTS, boundary)
    assert sentences[1] == "No other decision than class 1 was found."
    with pytest.raises(BoundaryValueError, match="example 1 has no boundary point"):
        plot_feature_changes(INPUTS, boundary, example=1)


def test_a_region_that_was_entered_is_named():
    model = nn.Linear(2, 3)
    inputs = torch.randn(1, 2, generator=torch.Generator().manual_seed(0))
    target = int(model(inputs).argmin())
    boundary = NearestBoundary(model).find(inputs, target)
    (sentence,) = describe_feature_changes(inputs, boundary)
    assert sentence.startswith(f"class {target} instead of not class {target}, if feature")


def test_bars_are_the_changes_the_largest_at_the_top():
    boundary = points_at(POINTS)
    figure, axis = plot_feature_changes(INPUTS, boundary, feature_names=NAMES, categories=CATEGORIES)
    assert figure is axis.figure
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([1.25, 1.0])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["income", "color"]
    assert [text.get_text() for text in axis.texts] == ["-1 → 0.25", "red → blue"]
    assert axis.yaxis_inverted()
    assert axis.get_title() == f"class 1 instead of class 0, distance {float(boundary.distance[0]):.3g}"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["higher", "another category"]
    _, axis = plot_feature_changes(INPUTS, boundary, example=-1, feature_names=NAMES, categories=CATEGORIES)
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([-2.5, 1.0])
    colors = {bar.get_facecolor() for bar in axis.patches}
    assert len(colors) == 2


def test_bars_that_are_left_out_are_counted():
    boundary = points_at(POINTS)
    _, axis = plot_feature_changes(INPUTS, boundary, n_features=2)
    assert len(axis.patches) == 2
    assert axis.get_xlabel() == "change, in the units of the search (1 smaller not shown)"
    figure, given = plt.subplots()
    assert plot_feature_changes(INPUTS, boundary, plt_fig_axis=(figure, given)) == (figure, given)


def test_examples_may_be_numbers_of_numpy():
    _, axes = plot_feature_changes(INPUTS, points_at(POINTS), example=np.argmax([0, 1]), feature_names=NAMES)
    assert axes.get_title() == "class 0 instead of class 1, distance 2.69"
    plt.close("all")


def test_changes_of_a_search_are_told_as_they_are():
    model = nn.Linear(6, 2)
    boundary = CategoricalBoundary(NearestBoundary(model, norm=1), CATEGORIES, fixed=[0]).find(INPUTS)
    for row in range(2):
        _, axis = plot_feature_changes(INPUTS, boundary, example=row, feature_names=NAMES, categories=CATEGORIES)
        change = boundary.points[row] - INPUTS[row]
        shown = dict(zip((label.get_text() for label in axis.get_yticklabels()), axis.patches, strict=True))
        assert ("income" in shown) == (change[1].abs() > 1e-5)
        assert "age" not in shown
        assert ("color" in shown) == bool(change[2:5].any())
        assert ("sold" in shown) == bool(change[5])


WRONG = {
    "images": ({"inputs": torch.zeros(2, 1, 2, 3)}, BoundaryValueError, r"one table of shape \(N, D\)"),
    "other rows": ({"inputs": INPUTS[:1]}, BoundaryValueError, "boundary must hold one point for each input"),
    "no boundary": ({"boundary": POINTS}, BoundaryTypeError, "boundary must be BoundaryPoints"),
    "too few names": ({"feature_names": ["a"]}, BoundaryValueError, "all 6 columns of inputs, but it has 1 names"),
    "a string": ({"feature_names": "abcdef"}, BoundaryTypeError, "feature_names must be a sequence of names"),
    "columns beyond": ({"categories": [[6, 7]]}, BoundaryValueError, "have 6, but they hold 7"),
    "no groups": ({"categories": 5}, BoundaryTypeError, "categories must be a list of groups of columns"),
    "other values": (
        {"unscale": lambda table: table[:, :2]},
        BoundaryValueError,
        r"unscale must return a table of the shape of inputs, \(2, 6\), but it returned \(2, 2\)",
    ),
    "no features": ({"n_features": 0}, BoundaryValueError, "n_features must be a positive integer"),
    "too few classes": ({"class_names": ["one"]}, BoundaryValueError, "class_names must name every class"),
}


@pytest.mark.parametrize(("options", "error", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("show", [describe_feature_changes, plot_feature_changes])
def test_what_does_not_fit_is_refused(show, options, error, message):
    settings = {"inputs": INPUTS, "boundary": points_at(POINTS), **options}
    with pytest.raises(error, match=message):
        show(settings.pop("inputs"), settings.pop("boundary"), **settings)


@pytest.mark.parametrize("example", [2, -3, 0.5])
def test_an_example_must_be_a_row(example):
    with pytest.raises(BoundaryValueError, match="example must be a row of the 2 inputs"):
        plot_feature_changes(INPUTS, points_at(POINTS), example=example)
