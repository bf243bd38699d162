"""Alignment and optimality against closed forms of linear models, plain autograd, and the conditions of optimality."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_boundary import BoundaryNotFoundWarning, BoundaryPoints, NearestBoundary
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.metrics import attribution_gap, first_order_optimality, normal_alignment

thorough = settings(max_examples=40, deadline=None, derandomize=True, database=None)

N, D, C = 6, 5, 4


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(n_classes: int = C) -> nn.Linear:
    model = nn.Linear(D, n_classes).double()
    model.weight.data, model.bias.data = randn(n_classes, D, seed=1), randn(n_classes, seed=2)
    return model


def curved() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, C)).double()


def at(points, inputs, target, adversarial, margin=-1e-6) -> BoundaryPoints:
    """Boundary points of these inputs as a search would return them, made by hand."""
    pairs = zip(*(parts if isinstance(parts, tuple) else (parts,) for parts in (points, inputs)), strict=True)
    moves = torch.cat([(point - x).flatten(1) for point, x in pairs], dim=1)
    first = points[0] if isinstance(points, tuple) else points
    n_examples = len(first)
    return BoundaryPoints(
        points=points,
        target=torch.as_tensor(target).expand(n_examples),
        adversarial=torch.as_tensor(adversarial).expand(n_examples),
        distance=moves.norm(dim=1),
        margin=torch.full((n_examples,), margin, dtype=first.dtype),
        found=torch.ones(n_examples, dtype=torch.bool),
        n_forward=torch.ones(n_examples, dtype=torch.long),
        n_gradient=torch.ones(n_examples, dtype=torch.long),
    )


def gradient(model, x: Tensor, weights: Tensor) -> Tensor:
    """Of ``sum_j weights_j f_j`` at one point."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x[None])[0] @ weights, x)
    return slope


def cosine(first: Tensor, second: Tensor) -> float:
    return (first.flatten() @ second.flatten() / first.norm() / second.norm()).item()


def test_linear_models_align():
    model, inputs = linear(), randn(N, D)
    boundary = NearestBoundary(model).find(inputs)
    margin = normal_alignment(model, inputs, boundary, score="margin")
    torch.testing.assert_close(margin, torch.ones_like(margin))
    own = model.weight[boundary.target]
    normal = own - model.weight[boundary.adversarial]
    expected = torch.cosine_similarity(own, normal, dim=1).detach()
    torch.testing.assert_close(normal_alignment(model, inputs, boundary), expected)


@pytest.mark.parametrize("score", ["output", "margin"])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("target", [None, 0])
def test_linear_models_with_one_output_align_on_either_side(score, shape, target):
    weight, inputs = randn(D), randn(N, D)
    model = lambda x: (x @ weight).reshape(shape)  # noqa: E731
    boundary = NearestBoundary(model).find(inputs)
    assert set(boundary.target.tolist()) == {0, 1}
    alignment = normal_alignment(model, inputs, boundary, target, score=score)
    torch.testing.assert_close(alignment, torch.ones_like(alignment))


@pytest.mark.parametrize("score", ["output", "margin"])
def test_alignment_is_the_cosine_of_two_gradients(score):
    model, inputs = curved(), randn(N, D)
    target = model(inputs).argmin(dim=1)  # boundaries of other regions, approached from outside
    boundary = NearestBoundary(model).find(inputs, target)
    actual = normal_alignment(model, inputs, boundary, target.tolist(), score=score)
    one_hot = torch.eye(C, dtype=torch.float64)
    for i in range(N):
        own, other = one_hot[boundary.target[i]], one_hot[boundary.adversarial[i]]
        normal = gradient(model, boundary.points[i], own - other)
        slope = gradient(model, inputs[i], own if score == "output" else own - other)
        assert actual[i].item() == pytest.approx(cosine(slope, normal))


@thorough
@given(st.integers(0, 2**20), st.floats(-20, 20))
def test_neither_scale_nor_batch_matter(seed, exponent):
    model, inputs, points = curved(), randn(N, D, seed=seed), randn(N, D, seed=seed + 1)
    boundary = at(points, inputs, 1, 2)
    scaled = lambda x: model(x) * 2**exponent  # noqa: E731
    for measure in (normal_alignment, first_order_optimality):
        target = (1,) if measure is normal_alignment else ()
        expected = measure(model, inputs, boundary, *target)
        assert (expected.abs() <= 1 + 1e-9).all()
        torch.testing.assert_close(measure(scaled, inputs, boundary, *target), expected)
        alone = [measure(model, inputs[i : i + 1], boundary[i : i + 1], *target) for i in range(N)]
        torch.testing.assert_close(torch.cat(alone), expected)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**60])
def test_gradients_whose_squares_leave_float32_have_directions(scale):
    model, inputs = linear().float(), randn(N, D).float()
    boundary = NearestBoundary(model).find(inputs)
    scaled = lambda x: model(x) * scale  # noqa: E731
    aligned = normal_alignment(scaled, inputs, boundary, score="margin")
    torch.testing.assert_close(aligned, torch.ones(N))
    optimality = first_order_optimality(scaled, inputs, boundary)
    torch.testing.assert_close(optimality, torch.ones(N), rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", [2, math.inf, 1])
@pytest.mark.parametrize("from_outside", [False, True])
def test_closest_points_of_linear_models_are_optimal(norm, from_outside):
    model, inputs = linear(2), randn(N, D)
    target = model(inputs).argmin(dim=1) if from_outside else None
    boundary = NearestBoundary(model, norm=norm).find(inputs, target)
    optimality = first_order_optimality(model, inputs, boundary, norm=norm)
    torch.testing.assert_close(optimality, torch.ones_like(optimality), rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", [2, math.inf, 1])
def test_closest_points_in_a_box_are_optimal_in_it(norm):
    model, inputs = linear(2), randn(40, D).clamp(-0.6, 0.6)
    boundary = NearestBoundary(model, norm=norm, bounds=(-0.6, 0.6)).find(inputs)
    assert boundary.found.all()
    held_back = (boundary.points.abs() == 0.6).any(dim=1)
    assert held_back.sum() > 10
    inside = first_order_optimality(model, inputs, boundary, bounds=(-0.6, 0.6), norm=norm)
    torch.testing.assert_close(inside, torch.ones_like(inside), rtol=1e-4, atol=0)
    without = first_order_optimality(model, inputs, boundary, bounds=(-math.inf, math.inf), norm=norm)
    assert (without[held_back] < 0.999).any()
    assert torch.equal(first_order_optimality(model, inputs, boundary), inside)
    assert torch.equal(first_order_optimality(model, inputs[5:9], boundary[5:9]), inside[5:9])


@pytest.mark.parametrize("degrees", [0, 30, 60, 120, 180])
def test_optimality_is_the_cosine_of_move_and_normal(degrees):
    """The boundary is the line x_0 = 0, the input lies at a given angle above a point of it."""
    model = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)  # noqa: E731
    angle = math.radians(degrees)
    points = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    inputs = points + 3 * torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    optimality = first_order_optimality(model, inputs, at(points, inputs, 0, 1))
    assert optimality.item() == pytest.approx(math.cos(angle), abs=1e-12)
    entered = first_order_optimality(model, inputs, at(points, inputs, 0, 1, margin=1e-6))
    assert entered.item() == pytest.approx(-math.cos(angle), abs=1e-12)


def test_a_point_needlessly_at_a_limit_is_not_optimal():
    """The normal is (1, 1); the closest point of the boundary is (0.5, 0.5), the corner (0, 1) is further away."""
    model = lambda x: torch.stack([x.sum(dim=1) - 1, torch.zeros_like(x[:, 0])], dim=1)  # noqa: E731
    inputs = torch.ones(2, 2, dtype=torch.float64)
    points = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    optimality = first_order_optimality(model, inputs, at(points, inputs, 0, 1), bounds=(0, 1))
    assert optimality.tolist() == pytest.approx([1, math.sqrt(0.5)])


def test_a_limit_in_the_way_is_not_counted():
    """With x_0 >= 0.8 the closest point is (0.8, 0.2), though its move is not along the normal (1, 1)."""
    model = lambda x: torch.stack([x.sum(dim=1) - 1, torch.zeros_like(x[:, 0])], dim=1)  # noqa: E731
    inputs = torch.ones(1, 2, dtype=torch.float64)
    boundary = at(torch.tensor([[0.8, 0.2]], dtype=torch.float64), inputs, 0, 1)
    bounds = (torch.tensor([0.8, 0.0]), torch.tensor([1.0, 1.0]))
    assert first_order_optimality(model, inputs, boundary, bounds=bounds).item() == pytest.approx(1)
    expected = cosine(torch.tensor([0.2, 0.8]), torch.ones(2))
    assert first_order_optimality(model, inputs, boundary).item() == pytest.approx(expected)


def test_optimality_of_a_curved_boundary_by_autograd():
    model, inputs = curved(), randn(N, D)
    boundary = NearestBoundary(model, budget=4).find(inputs)
    optimality = first_order_optimality(model, inputs, boundary)
    one_hot = torch.eye(C, dtype=torch.float64)
    for i in range(N):
        weights = one_hot[boundary.target[i]] - one_hot[boundary.adversarial[i]]
        expected = cosine(inputs[i] - boundary.points[i], gradient(model, boundary.points[i], weights))
        assert optimality[i].item() == pytest.approx(expected)


def two_inputs(first: Tensor, second: Tensor, shift: Tensor, scale: float) -> Tensor:
    flat = torch.cat([first.flatten(1), second.flatten(1)], dim=1) + shift[:, None]
    return torch.tanh(flat @ randn(7, C, seed=1)) * scale


def test_tuples_and_additional_arguments():
    inputs, shift = (randn(N, 2, 2), randn(N, 3, seed=1)), randn(N, seed=2)
    arguments = (shift, 2.0)
    boundary = NearestBoundary(two_inputs).find(inputs, None, arguments)
    flat, flat_points = (torch.cat([part.flatten(1) for part in parts], dim=1) for parts in (inputs, boundary.points))
    flat_boundary = dataclasses.replace(boundary, points=flat_points)

    def flat_model(x: Tensor) -> Tensor:
        return two_inputs(x[:, :4], x[:, 4:], *arguments)

    torch.testing.assert_close(
        normal_alignment(two_inputs, inputs, boundary, None, arguments),
        normal_alignment(flat_model, flat, flat_boundary),
    )
    torch.testing.assert_close(
        first_order_optimality(two_inputs, inputs, boundary, arguments),
        first_order_optimality(flat_model, flat, flat_boundary),
    )


def test_what_is_not_known_is_nan():
    model = lambda x: torch.stack([x[:, 0].clamp_min(0), 0.5 + 0 * x[:, 0]], dim=1)  # noqa: E731
    inputs = torch.tensor([[1.0], [0.2], [2.0]])
    with pytest.warns(BoundaryNotFoundWarning):
        boundary = NearestBoundary(model, max_distance=0.6).find(inputs)
    assert boundary.found.tolist() == [True, True, False]
    assert normal_alignment(model, inputs, boundary, score="margin").tolist() == pytest.approx(
        [1, 1, math.nan], nan_ok=True
    )
    # the score of class 1, the target of the second input, has no gradient
    assert normal_alignment(model, inputs, boundary).tolist() == pytest.approx([1, math.nan, math.nan], nan_ok=True)
    assert first_order_optimality(model, inputs, boundary).tolist() == pytest.approx([1, 1, math.nan], nan_ok=True)
    flat = first_order_optimality(lambda x: 0 * model(x), inputs, boundary)
    assert flat.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near(dtype):
    model, inputs = linear().float(), randn(N, D).to(dtype)
    score = lambda x: model(x.float())  # noqa: E731
    boundary = NearestBoundary(score).find(inputs)
    for value in (
        normal_alignment(score, inputs, boundary, score="margin"),
        first_order_optimality(score, inputs, boundary),
    ):
        assert value.dtype == torch.float32
    alignment = normal_alignment(score, inputs, boundary, score="margin")
    torch.testing.assert_close(alignment, torch.ones(N), rtol=0, atol=1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_gap_by_hand():
    first = torch.tensor([[[3.0, 0.0]], [[1.0, 1.0]]])
    second = torch.tensor([[[0.0, 4.0]], [[1.0, 1.0]]])
    assert attribution_gap(first, second).tolist() == [5, 0]
    pair = attribution_gap((first, torch.tensor([12.0, 2.0])), (second, torch.tensor([0.0, 0.0])))
    assert pair.tolist() == [13, 2]


@thorough
@given(st.integers(0, 2**20))
def test_gap_is_a_metric(seed):
    a, b, c = (randn(N, 2, 3, seed=seed + i) for i in range(3))
    torch.testing.assert_close(attribution_gap(a, b), attribution_gap(b, a))
    torch.testing.assert_close(attribution_gap(3 * a, 3 * b), 3 * attribution_gap(a, b))
    assert (attribution_gap(a, c) <= attribution_gap(a, b) + attribution_gap(b, c) + 1e-12).all()
    assert attribution_gap(a, a).tolist() == [0] * N


def test_gap_of_nan_is_nan_and_alone():
    first = torch.ones(2, 3)
    first[0, 1] = torch.nan
    assert attribution_gap(first, torch.zeros(2, 3)).isnan().tolist() == [True, False]


def test_everything_stays_as_it_was():
    model, inputs = curved().train(), randn(N, D).requires_grad_()
    boundary = NearestBoundary(model).find(inputs)
    before = inputs.detach().clone(), boundary.points.clone(), torch.get_rng_state()
    for value in (
        normal_alignment(model, inputs, boundary),
        first_order_optimality(model, inputs, boundary),
        attribution_gap(inputs, boundary.points),
    ):
        assert not value.requires_grad
    for tensor, copy in zip((inputs.detach(), boundary.points, torch.get_rng_state()), before, strict=True):
        assert torch.equal(tensor, copy)
    assert inputs.requires_grad
    assert inputs.grad is None
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    with torch.inference_mode():
        inside = normal_alignment(model, inputs.detach().clone(), boundary)
    torch.testing.assert_close(inside, normal_alignment(model, inputs, boundary))


INPUTS = randn(2, D)
BOUNDARY = at(randn(2, D, seed=1), INPUTS, 1, 2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"inputs": INPUTS.long()}, BoundaryTypeError, "inputs must be floating point"),
        ({"inputs": INPUTS * torch.nan}, BoundaryValueError, "inputs contains NaN or infinity"),
        ({"boundary": BOUNDARY.points}, BoundaryTypeError, "boundary must be BoundaryPoints, .* but it is Tensor"),
        ({"boundary": BOUNDARY[:1]}, BoundaryValueError, r"one point for each input, of shapes, .*\(2, 5\).*\(1, 5\)"),
        (
            {"inputs": INPUTS.float()},
            BoundaryValueError,
            r"float32.*but it holds.*float64.*Search the boundary of these",
        ),
        ({"forward_func": lambda x: (x, x)}, BoundaryTypeError, "must return one Tensor of class scores"),
    ],
)
def test_errors_say_what_is_wrong(changes, error, message):
    arguments = {"forward_func": linear(), "inputs": INPUTS, "boundary": BOUNDARY} | changes
    with pytest.raises(error, match=message):
        first_order_optimality(**arguments)
    with pytest.raises(error, match=message):
        normal_alignment(**arguments, target=1)


def test_errors_of_alignment():
    with pytest.raises(BoundaryValueError, match="score must be 'output' or 'margin', but it is 'logit'"):
        normal_alignment(linear(), INPUTS, BOUNDARY, 1, score="logit")
    with pytest.raises(
        BoundaryValueError, match=r"asks for the classes \[0, 1\], but .* is that of the classes \[1, 1\]"
    ):
        normal_alignment(linear(), INPUTS, BOUNDARY, [0, 1])
    with pytest.raises(BoundaryValueError, match="target must be between 0 and 3"):
        normal_alignment(linear(), INPUTS, BOUNDARY, 4)


def test_errors_of_optimality():
    with pytest.raises(
        BoundaryValueError, match=r"norm must be 2, math\.inf, 1 or a Norm such as WeightedL2, but it is 3"
    ):
        first_order_optimality(linear(), INPUTS, BOUNDARY, norm=3)
    with pytest.raises(BoundaryValueError, match="inputs must lie inside bounds"):
        first_order_optimality(linear(), INPUTS, BOUNDARY, bounds=(0, 0.01))
    limit = INPUTS.abs().max().item()
    far = at(INPUTS * 2, INPUTS, 1, 2)
    with pytest.raises(BoundaryValueError, match=r"boundary has points outside bounds\. Give the bounds of the search"):
        first_order_optimality(linear(), INPUTS, far, bounds=(-limit, limit))


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (INPUTS.numpy(), INPUTS, BoundaryTypeError, "first must be a Tensor, but it is ndarray"),
        (INPUTS, INPUTS.long(), BoundaryTypeError, "second must be floating point, but its dtype is torch.int64"),
        (INPUTS, INPUTS / 0, BoundaryValueError, "second contains infinity"),
        (INPUTS[:0], INPUTS[:0], BoundaryValueError, "first must not be empty"),
        (INPUTS, INPUTS[:1], BoundaryValueError, r"their shapes are \(2, 5\) and \(1, 5\)"),
        (INPUTS, (INPUTS, INPUTS), BoundaryValueError, "must be attributions of the same inputs"),
        ((INPUTS, INPUTS[:1]), (INPUTS, INPUTS[:1]), BoundaryValueError, "must be attributions of the same inputs"),
    ],
)
def test_errors_of_the_gap(first, second, error, message):
    with pytest.raises(error, match=message):
        attribution_gap(first, second)


def test_points_of_a_real_network_are_nearly_optimal(zoo):
    model = zoo.cifar_resnet20()
    images, labels = zoo.first_correct(model, *zoo.load_images("cifar10_test500"), 3)
    boundary = NearestBoundary(model, bounds=(0, 1)).find(images)
    optimality = first_order_optimality(model, images, boundary, bounds=(0, 1))
    assert optimality.min() > 0.9
    assert (optimality >= first_order_optimality(model, images, boundary) - 1e-6).all()
    assert (normal_alignment(model, images, boundary, labels, score="margin") > 0.4).all()
