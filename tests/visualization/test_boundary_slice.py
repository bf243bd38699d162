"""Slices of decision regions: colors, lines, arrow and path against the model at the same points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from torch import Tensor, nn

from captum_boundary import NearestBoundary
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.visualization import plot_boundary_slice

CORNERS = [(0.05, 0.05), (0.95, 0.1), (0.9, 0.95), (0.1, 0.9), (0.5, 0.5), (0.3, 0.7)]  # shares of width and height


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(n_features: int, n_classes: int = 4) -> nn.Linear:
    model = nn.Linear(n_features, n_classes).double()
    model.weight.data, model.bias.data = randn(n_classes, n_features, seed=1), randn(n_classes, seed=2) / 4
    return model


def find(model, inputs):
    return NearestBoundary(model, budget=20).find(inputs)


def frame(axis) -> np.ndarray:
    return np.array(axis.images[0].get_extent())


def color_at(axis, x: float, y: float) -> tuple:
    """Of the pixel over which ``(x, y)`` lies."""
    image = axis.images[0]
    left, right, bottom, top = frame(axis)
    values = np.asarray(image.get_array())
    column = int((x - left) / (right - left) * (values.shape[1] - 1) + 0.5)
    row = int((y - bottom) / (top - bottom) * (values.shape[0] - 1) + 0.5)
    assert image.origin == "lower"
    return tuple(image.to_rgba(values[row : row + 1, column : column + 1])[0, 0])


def legend(axis) -> dict[str, tuple]:
    entries = axis.get_legend()
    return {
        text.get_text(): to_rgba(handle.get_facecolor())
        for text, handle in zip(entries.get_texts(), entries.legend_handles, strict=True)
        if hasattr(handle, "get_facecolor")
    }


def line(axis, label: str) -> np.ndarray:
    (found,) = [each for each in axis.lines if each.get_label() == label]
    return found.get_xydata()


def zero_line(axis) -> np.ndarray:
    (boundary,) = [each for each in axis.collections if list(getattr(each, "levels", ())) == [0.0]]
    return np.concatenate([path.vertices for path in boundary.get_paths()])


def arrow(axis) -> tuple[np.ndarray, np.ndarray]:
    (found,) = [text for text in axis.texts if getattr(text, "arrow_patch", None) is not None]
    return np.array(found.xyann), np.array(found.xy)


def plane_of(boundary, inputs, row: int, second: Tensor) -> Tensor:
    first = nn.functional.normalize((boundary.points[row] - inputs[row]).flatten(), dim=0)
    second = second.flatten() - second.flatten() @ first * first
    return torch.stack([first, nn.functional.normalize(second, dim=0)])


def test_in_two_dimensions_the_picture_is_the_input_space():
    model, inputs = linear(2), randn(3, 2)
    boundary = find(model, inputs)
    _, axis = plot_boundary_slice(model, inputs, boundary, example=1, extent=2.0)
    left, right, bottom, top = frame(axis)
    middle = (inputs[1] + boundary.points[1]) / 2
    np.testing.assert_allclose([left + 2, right - 2, bottom + 2, top - 2], middle[[0, 0, 1, 1]].numpy())
    shown = legend(axis)
    for x, y in np.stack([left, bottom] + np.array(CORNERS) * 4):
        label = int(model(torch.tensor([x, y])).argmax())
        assert color_at(axis, x, y) == shown[f"class {label}"]
    np.testing.assert_allclose(line(axis, "input"), inputs[1:2].numpy())
    np.testing.assert_allclose(line(axis, "boundary point"), boundary.points[1:2].numpy())
    path = torch.stack([boundary.points[1], inputs[1]]).numpy()
    np.testing.assert_allclose(line(axis, "path of BIG"), path)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("feature 0", "feature 1")


def test_the_boundary_lies_at_margin_zero():
    model, inputs = linear(2), randn(3, 2)
    boundary = find(model, inputs)
    _, axis = plot_boundary_slice(model, inputs, boundary, example=2)
    drawn = torch.from_numpy(zero_line(axis))
    scores = model(drawn).detach()
    others = scores.clone()
    others[:, boundary.target[2]] = -torch.inf
    margin = scores[:, boundary.target[2]] - others.max(dim=1).values
    assert margin.abs().max() < 0.02 * (model(inputs[2]).max() - model(inputs[2]).min())
    nearest = (drawn - boundary.points[2]).norm(dim=1).min()
    assert nearest < 0.02 * boundary.distance[2]


def test_the_arrow_is_the_normal():
    model, inputs = linear(2), randn(3, 2)
    boundary = find(model, inputs)
    for row in range(3):
        _, axis = plot_boundary_slice(model, inputs, boundary, example=row, resolution=8)
        tail, head = arrow(axis)
        np.testing.assert_allclose(tail, boundary.points[row].numpy())
        normal = (model.weight[boundary.target[row]] - model.weight[boundary.adversarial[row]]).detach().numpy()
        np.testing.assert_allclose((head - tail) / np.linalg.norm(head - tail), normal / np.linalg.norm(normal))
        assert "unit normal" in [text.get_text() for text in axis.get_legend().get_texts()]


@pytest.mark.parametrize("shape", [(5,), (1, 3, 4), (3, 2, 2)])
def test_in_many_dimensions_the_plane_holds_input_point_and_direction(shape):
    inputs, direction = randn(2, *shape), randn(*shape, seed=5)
    model = nn.Sequential(nn.Flatten(), linear(inputs[0].numel()))
    boundary = find(model, inputs)
    _, axis = plot_boundary_slice(model, inputs, boundary, example=1, direction=direction, extent=3.0)
    distance = (boundary.points[1] - inputs[1]).norm().item()
    np.testing.assert_allclose(line(axis, "input"), [[0, 0]], atol=1e-12)
    np.testing.assert_allclose(line(axis, "boundary point"), [[distance, 0]], atol=1e-12)
    axes = plane_of(boundary, inputs, 1, direction)
    left, _, bottom, _ = frame(axis)
    shown = legend(axis)
    for x, y in np.stack([left, bottom] + np.array(CORNERS) * 6):
        point = inputs[1] + (torch.tensor([x, y]) @ axes).view(shape)
        assert color_at(axis, x, y) == shown[f"class {int(model(point[None]).argmax())}"]
    tail, head = arrow(axis)
    weight = model[1].weight.detach()
    normal = nn.functional.normalize(weight[boundary.target[1]] - weight[boundary.adversarial[1]], dim=0)
    np.testing.assert_allclose(head - tail, 0.5 * 3.0 * (axes @ normal).numpy(), atol=1e-9)


def test_by_default_the_plane_leads_towards_a_third_class():
    inputs = randn(1, 6)
    model = linear(6)
    boundary = find(model, inputs)
    scores = model(boundary.points)[0].detach()
    scores[[int(boundary.target), int(boundary.adversarial)]] = -torch.inf
    third = int(scores.argmax())
    direction = (model.weight[third] - model.weight[boundary.target[0]]).detach()
    _, default = plot_boundary_slice(model, inputs, boundary, extent=30.0)
    _, explicit = plot_boundary_slice(model, inputs, boundary, extent=30.0, direction=direction)
    np.testing.assert_array_equal(default.images[0].get_array(), explicit.images[0].get_array())
    assert f"class {third}" in legend(default)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_binary_models_get_a_random_direction_always_the_same(shape):
    weight, inputs = randn(5), randn(2, 5)
    model = lambda x: torch.tanh(x @ weight).reshape(shape) + (x**2).sum(dim=1).reshape(shape) / 50  # noqa: E731
    boundary = find(model, inputs)
    state = torch.get_rng_state()
    _, first = plot_boundary_slice(model, inputs, boundary)
    _, again = plot_boundary_slice(model, inputs, boundary)
    _, other = plot_boundary_slice(model, inputs, boundary, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(zero_line(first), zero_line(again))
    assert set(legend(first)) >= {"class 0", "class 1"}
    assert zero_line(first).shape != zero_line(other).shape or not np.array_equal(zero_line(first), zero_line(other))


def test_tuples_and_further_arguments():
    first, second, scale = randn(3, 2), randn(3, 4, seed=3), torch.tensor([1.0, 2.0, 3.0]).double()
    layer = linear(6)
    model = lambda a, b, s: layer(torch.cat([a, b], dim=1)) * s[:, None]  # noqa: E731
    boundary = NearestBoundary(model, budget=10).find((first, second), None, scale)
    direction = (randn(2, seed=8), randn(4, seed=9))
    _, axis = plot_boundary_slice(model, (first, second), boundary, scale, example=2, direction=direction)
    joint = torch.cat([first, second], dim=1)
    whole = type(boundary)(**{**vars(boundary), "points": torch.cat(boundary.points, dim=1)})
    single = lambda x: layer(x) * 3  # noqa: E731
    _, expected = plot_boundary_slice(single, joint, whole, example=2, direction=torch.cat(direction))
    np.testing.assert_array_equal(axis.images[0].get_array(), expected.images[0].get_array())
    np.testing.assert_allclose(zero_line(axis), zero_line(expected))


def test_title_and_names():
    inputs = randn(2, 2)
    boundary = find(linear(2), inputs)
    names = ["a", "b", "c", "d"]
    _, axis = plot_boundary_slice(linear(2), inputs, boundary, example=1, class_names=names)
    target, adversarial = names[boundary.target[1]], names[boundary.adversarial[1]]
    assert axis.get_title() == f"{target} | {adversarial}, distance {boundary.distance[1]:.3g}"
    assert {target, adversarial} <= set(legend(axis))


def test_classes_beyond_the_palette_share_a_gray():
    angles = torch.arange(12) * torch.pi / 6
    model = nn.Linear(2, 12).double()
    model.weight.data = torch.stack([angles.cos(), angles.sin()], dim=1).double()
    model.bias.data.zero_()
    inputs = torch.tensor([[0.1, 0.01]], dtype=torch.float64)
    boundary = find(model, inputs)
    _, axis = plot_boundary_slice(model, inputs, boundary, extent=1.0)
    shown = legend(axis)
    assert "5 other classes" in shown
    middle = (inputs[0] + boundary.points[0]) / 2
    colors = [
        (label, color_at(axis, *(middle + 0.9 * torch.tensor([angle.cos(), angle.sin()])).tolist()))
        for label, angle in enumerate(angles)
    ]
    gray = [label for label, color in colors if color == shown["5 other classes"]]
    assert len(gray) == 5
    assert all(color == shown[f"class {label}"] for label, color in colors if label not in gray)


def test_no_more_points_than_allowed_pass_at_once_and_none_too_many():
    sizes, inputs = [], randn(4, 5).float()
    layer = linear(5).float()

    def model(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return layer(x)

    boundary = find(model, inputs)
    sizes.clear()
    _, small = plot_boundary_slice(model, inputs, boundary, resolution=10, internal_batch_size=3)
    assert max(sizes) <= 3
    assert sum(sizes) < 10 * 10 + 4 + 5
    _, large = plot_boundary_slice(model, inputs, boundary, resolution=10, internal_batch_size=1000)
    np.testing.assert_array_equal(small.images[0].get_array(), large.images[0].get_array())


def test_everything_of_the_caller_s_stays_as_it_was():
    model, inputs = linear(3), randn(2, 3).requires_grad_()
    boundary = find(model, inputs)
    figure, axis = plt.subplots()
    with torch.no_grad():
        returned = plot_boundary_slice(model, inputs, boundary, plt_fig_axis=(figure, axis))
    assert returned == (figure, axis)
    assert plt.get_fignums() == [figure.number]
    assert inputs.grad is None
    assert inputs.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    figure.draw_without_rendering()


def test_a_boundary_approached_from_outside():
    model, inputs = linear(2), randn(1, 2)
    target = model(inputs).argmin(dim=1)
    boundary = NearestBoundary(model).find(inputs, target)
    _, axis = plot_boundary_slice(model, inputs, boundary)
    tail, head = arrow(axis)
    into_target = boundary.points[0].numpy() - inputs[0].numpy()
    assert (head - tail) @ into_target > 0
    assert axis.get_title().startswith(f"not class {int(target)} | class {int(target)}, ")


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (BoundaryValueError, "resolution must be at least 2", {"resolution": 1}),
        (BoundaryValueError, "resolution must be a positive integer", {"resolution": 2.5}),
        (BoundaryValueError, "internal_batch_size must be a positive integer", {"internal_batch_size": 0}),
        (BoundaryValueError, "extent must be a positive number", {"extent": 0}),
        (BoundaryValueError, "example must be a row of the 2 inputs, but it is 2", {"example": 2}),
        (BoundaryValueError, "direction must be shaped like one example", {"direction": torch.ones(1, 3)}),
        (BoundaryTypeError, "direction must be a Tensor", {"direction": 1}),
        (BoundaryValueError, "direction contains NaN", {"direction": torch.full((3,), torch.nan)}),
        (BoundaryValueError, "zero or parallel", {"direction": torch.zeros(3)}),
    ],
)
def test_errors(error, message, options):
    inputs = randn(2, 3)
    boundary = find(linear(3), inputs)
    with pytest.raises(error, match=message):
        plot_boundary_slice(linear(3), inputs, boundary, **options)
    assert not plt.get_fignums()


def test_errors_of_boundaries_and_dimensions(missing):
    inputs = randn(2, 3)
    boundary = find(linear(3), inputs)
    with pytest.raises(BoundaryValueError, match="zero or parallel"):
        plot_boundary_slice(linear(3), inputs, boundary, direction=2 * (boundary.points - inputs)[0])
    with pytest.raises(BoundaryValueError, match=r"example 1 has no boundary point. Choose one where"):
        plot_boundary_slice(linear(3), inputs, missing(boundary, inputs, [1]), example=1)
    with pytest.raises(BoundaryTypeError, match="boundary must be BoundaryPoints"):
        plot_boundary_slice(linear(3), inputs, inputs)
    flat = randn(2, 2)
    with pytest.raises(BoundaryValueError, match="two features already lie in one plane"):
        plot_boundary_slice(linear(2), flat, find(linear(2), flat), direction=torch.ones(2))
    narrow = randn(2, 1)
    with pytest.raises(BoundaryValueError, match="at least two features"):
        plot_boundary_slice(linear(1), narrow, find(linear(1), narrow))
