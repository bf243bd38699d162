"""Deletion and insertion against closed forms of linear models, a slow replica, and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.metrics import deletion, insertion

thorough = settings(max_examples=40, deadline=None, derandomize=True, database=None)
both = pytest.mark.parametrize("measure", [deletion, insertion])

N, D = 4, 6


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small_network(channels: int = 3, size: int = 6) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * (size - 2) ** 2, 5))
    return layers.double().eval()


def test_by_hand():
    # Scores 4 and 0; features worth 3 and 1. Deleting the larger one first leaves 1, the smaller one first leaves 3.
    model = lambda x: torch.stack([3 * x[:, 0] + x[:, 1], 0 * x[:, 0]], dim=1)  # noqa: E731
    inputs = torch.ones(2, 2)
    attributions = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    area, curves = deletion(model, inputs, attributions, score="output", return_curves=True)
    assert curves.tolist() == [[4, 1, 0], [4, 3, 0]]
    assert area.tolist() == [1.5, 2.5]
    area, curves = insertion(model, inputs, attributions, baselines=0.0, score="output", return_curves=True)
    assert curves.tolist() == [[0, 3, 4], [0, 1, 4]]
    assert area.tolist() == [2.5, 1.5]


def test_unequal_steps_by_hand():
    # Three features in two steps: after one feature, and after all three.
    model = lambda x: torch.stack([x.sum(dim=1), 0 * x[:, 0]], dim=1)  # noqa: E731
    inputs = torch.tensor([[4.0, 2.0, 2.0]])
    area, curves = deletion(model, inputs, inputs, score="output", n_steps=2, return_curves=True)
    assert curves.tolist() == [[8, 4, 0]]
    assert area.item() == pytest.approx((8 + 4) / 2 / 3 + (4 + 0) / 2 * 2 / 3)


def linear_model(n_classes: int = 3) -> nn.Module:
    model = nn.Linear(D, n_classes).double()
    model.weight.data, model.bias.data = randn(n_classes, D, seed=1), randn(n_classes, seed=2)
    return model


def test_linear_models_have_a_closed_form():
    """A feature of rank r and value a counts (r + 1/2) / D times its value in deletion, the rest in insertion."""
    model, inputs, baseline = linear_model(), randn(N, D), randn(D, seed=3)
    attributions = model.weight[1] * (inputs - baseline)
    ordered = attributions.detach().sort(dim=1, descending=True).values
    start, end = (model(x)[:, 1].detach() for x in (inputs, baseline[None].expand_as(inputs)))
    position = (torch.arange(D) + 0.5) / D
    options = {"target": 1, "baselines": baseline, "score": "output"}
    area = deletion(model, inputs, attributions, **options)
    torch.testing.assert_close(area, end + (ordered * position).sum(dim=1))
    area = insertion(model, inputs, attributions, **options)
    torch.testing.assert_close(area, start - (ordered * position).sum(dim=1))


@both
def test_several_inputs_are_one_input_together(measure):
    model, inputs, attributions, baseline = linear_model(), randn(N, D), randn(N, D, seed=5), randn(D, seed=3)
    left, right = slice(0, 2), slice(2, D)
    options = {"target": 1, "return_curves": True, "perturbations_per_eval": 3}
    expected = measure(model, inputs, attributions, baselines=baseline, **options)
    actual = measure(
        lambda x, y: model(torch.cat([x, y], dim=1)),
        (inputs[:, left], inputs[:, right]),
        (attributions[:, left], attributions[:, right]),
        baselines=(baseline[left], baseline[right]),
        **options,
    )
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


@both
def test_pixels_and_columns_are_features_alike(measure):
    images, table = randn(N, 3, 2, 2), randn(N, 2, seed=1)
    model = lambda x, y: torch.stack([x.sum(dim=(1, 2, 3)) + y.sum(dim=1), 0 * y[:, 0]], dim=1)  # noqa: E731
    _, curves = measure(
        model, (images, table), (images, table), target=0, baselines=0.0, score="output", return_curves=True
    )
    values = torch.cat([images.sum(dim=1).flatten(1), table], dim=1).sort(dim=1, descending=True).values
    moved = torch.cat([torch.zeros(N, 1), values.cumsum(dim=1)], dim=1)
    expected = model(images, table)[:, :1] - moved if measure is deletion else moved
    torch.testing.assert_close(curves, expected)


def test_no_order_beats_that_of_a_linear_model_s_own_attributions():
    model, inputs = linear_model(), randn(N, D)
    attributions = model.weight[1].detach() * inputs
    options = {"target": 1, "baselines": 0.0, "score": "output"}
    best, highest = (measure(model, inputs, attributions, **options) for measure in (deletion, insertion))
    for seed in range(20):
        other = randn(N, D, seed=seed + 10)
        assert (deletion(model, inputs, other, **options) >= best - 1e-12).all()
        assert (insertion(model, inputs, other, **options) <= highest + 1e-12).all()


def slow_curve(model, start, end, scores, target, n_steps, probability):
    """One example ``(C, H, W)``: pixels of all channels exchanged one by one, in plain loops."""
    channels, height, width = start.shape
    order = sorted(range(height * width), key=lambda pixel: (-scores.flatten()[pixel], pixel))
    counts = [step * len(order) // n_steps for step in range(n_steps + 1)]
    values = []
    for count in counts:
        mixed = start.copy()
        for pixel in order[:count]:
            for channel in range(channels):
                mixed[channel, pixel // width, pixel % width] = end[channel, pixel // width, pixel % width]
        logits = model(torch.from_numpy(mixed)[None]).detach().numpy()[0]
        exponentials = np.exp(logits - logits.max())
        values.append(exponentials[target] / exponentials.sum() if probability else logits[target])
    pairs = zip(zip(counts, values, strict=True), zip(counts[1:], values[1:], strict=True), strict=False)
    area = sum((after - before) * (one + other) / 2 for (before, one), (after, other) in pairs)
    return area / len(order), values


@both
@pytest.mark.parametrize("n_steps", [1, 7, 36])
@pytest.mark.parametrize("score", ["probability", "output"])
def test_a_slow_replica_agrees(measure, n_steps, score):
    model, images, baseline = small_network(), randn(N, 3, 6, 6), randn(3, 1, 1, seed=1)
    attributions = randn(N, 3, 6, 6, seed=2).round(decimals=1)  # with ties
    target = [0, 4, 2, 2]
    area, curves = measure(
        model, images, attributions, target, baselines=baseline, n_steps=n_steps, score=score, return_curves=True
    )
    for i in range(N):
        pair = (images[i].numpy(), baseline.expand(3, 6, 6).numpy())
        start, end = pair if measure is deletion else pair[::-1]
        scores = attributions[i].sum(dim=0).numpy()
        expected, values = slow_curve(model, start, end, scores, target[i], n_steps, score == "probability")
        assert curves[i].tolist() == pytest.approx(values)
        assert area[i].item() == pytest.approx(expected)


def test_the_default_target_is_the_predicted_class_of_the_input():
    model, images, attributions = small_network(), randn(N, 3, 6, 6), randn(N, 3, 6, 6, seed=2)
    predicted = model(images).argmax(dim=1)
    for measure in (deletion, insertion):
        expected = measure(model, images, attributions, predicted)
        assert torch.equal(measure(model, images, attributions), expected)
        assert torch.equal(measure(model, images, attributions, predicted.tolist()), expected)


@thorough
@given(st.integers(0, 2**20), st.floats(-30, 30), st.integers(1, 9), st.integers(1, 12))
def test_neither_scale_nor_batch_nor_chunks_matter(seed, exponent, n_steps, per_eval):
    model, inputs, attributions = linear_model(), randn(N, D, seed=seed), randn(N, D, seed=seed + 1)
    options = {"target": 1, "baselines": 0.0, "n_steps": n_steps}
    for measure in (deletion, insertion):
        expected = measure(model, inputs, attributions, **options)
        scaled = measure(model, inputs, attributions * 2**exponent, **options)
        assert torch.equal(scaled, expected)
        chunked = measure(model, inputs, attributions, perturbations_per_eval=per_eval, **options)
        torch.testing.assert_close(chunked, expected)
        alone = [measure(model, inputs[i : i + 1], attributions[i : i + 1], **options) for i in range(N)]
        torch.testing.assert_close(torch.cat(alone), expected)


@thorough
@given(st.integers(0, 2**20), st.integers(1, 9))
def test_inserting_the_least_important_first_is_deletion_backwards(seed, n_steps):
    if D % n_steps:  # steps of unequal size fall elsewhere in reverse
        n_steps = D
    model, inputs, attributions = linear_model(), randn(N, D, seed=seed), randn(N, D, seed=seed + 1)
    options = {"target": 1, "baselines": 0.3, "n_steps": n_steps, "return_curves": True}
    area, curves = deletion(model, inputs, attributions, **options)
    back_area, back_curves = insertion(model, inputs, -attributions, **options)
    torch.testing.assert_close(back_curves.flip(1), curves)
    torch.testing.assert_close(back_area, area)


@both
def test_equals_go_in_order_of_memory(measure):
    model, inputs = linear_model(), randn(N, D)
    mixed_zeros = torch.tensor([0.0, -0.0, 0.0, -0.0, -0.0, 0.0], dtype=torch.float64).expand(N, D)
    falling = torch.arange(D, 0, -1, dtype=torch.float64).expand(N, D)
    options = {"baselines": 0.0}
    assert torch.equal(measure(model, inputs, mixed_zeros, **options), measure(model, inputs, falling, **options))


@both
def test_maps_stand_for_attributions_of_all_channels(measure):
    model, images, attributions = small_network(), randn(N, 3, 6, 6), randn(N, 3, 6, 6, seed=2)
    expected = measure(model, images, attributions)
    assert torch.equal(measure(model, images, attributions.sum(dim=1)), expected)
    assert torch.equal(measure(model, images, attributions.sum(dim=1, keepdim=True)), expected)


def test_inputs_of_other_shapes_have_a_feature_for_each_number():
    model = lambda x: torch.stack([x.sum(dim=(1, 2)), 0 * x[:, 0, 0]], dim=1)  # noqa: E731
    inputs = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    _, curves = deletion(model, inputs, inputs, score="output", return_curves=True)
    assert curves.tolist() == [[10, 6, 3, 1, 0]]
    scalars = torch.tensor([5.0, 6.0])
    _, curves = deletion(lambda x: torch.stack([x, 0 * x], dim=1), scalars, scalars, score="output", return_curves=True)
    assert curves.tolist() == [[5, 0], [6, 0]]


def test_the_blur_is_scipy_s():
    images = randn(2, 3, 9, 14)
    seen = []
    insertion(lambda x: seen.append(x) or x.flatten(1), images, images, 0, n_steps=2)
    expected = gaussian_filter(images.numpy(), sigma=(0, 0, 5, 5), truncate=1, mode="nearest")
    torch.testing.assert_close(seen[1], torch.from_numpy(expected))  # the first call asks for the predicted class


@both
@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_models_with_one_output_are_watched_on_the_input_s_side(measure, shape):
    weight = torch.arange(1.0, D + 1)
    model = lambda x: (x @ weight).reshape(-1, *shape[1:])  # noqa: E731
    inputs = torch.ones(N, D) * torch.tensor([1.0, -1.0, 2.0, -2.0])[:, None]
    options = {"baselines": 0.0, "return_curves": True}
    _, curves = measure(model, inputs, weight.expand(N, D), score="output", **options)
    side = inputs[:, :1].sign()
    two = lambda x: torch.stack([-x @ weight, x @ weight], dim=1)  # noqa: E731
    _, expected = measure(two, inputs, weight.expand(N, D), (side[:, 0] > 0).long(), score="output", **options)
    torch.testing.assert_close(curves, expected)
    for target in (None, 0):
        _, probabilities = measure(model, inputs, weight.expand(N, D), target, **options)
        torch.testing.assert_close(probabilities, torch.sigmoid(curves))


@both
def test_additional_arguments_follow_their_examples(measure):
    shift, scale = randn(N, seed=5), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    model = lambda x, per_example, weights, factor: (x[:, :3] + per_example[:, None]) * weights * factor  # noqa: E731
    inputs, attributions = randn(N, D), randn(N, D, seed=2)
    options = {"target": 2, "baselines": 0.0}
    together = measure(model, inputs, attributions, additional_forward_args=(shift, scale, 2.0), **options)
    chunked = measure(
        model, inputs, attributions, additional_forward_args=(shift, scale, 2.0), perturbations_per_eval=3, **options
    )
    alone = [
        measure(
            model,
            inputs[i : i + 1],
            attributions[i : i + 1],
            additional_forward_args=(shift[i : i + 1], scale, 2.0),
            **options,
        )
        for i in range(N)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(chunked, together)


@both
@pytest.mark.parametrize("shape", [(), (1, 3, 1, 1), (3, 1, 1), (N, 1, 1, 1), (3, 6, 6), (N, 3, 6, 6)])
def test_forms_of_baselines_agree(measure, shape):
    model, images, attributions = small_network(), randn(N, 3, 6, 6), randn(N, 3, 6, 6, seed=2)
    expected = measure(model, images, attributions, baselines=0.25)
    given = torch.full(shape, 0.25, dtype=torch.float32)
    assert torch.equal(measure(model, images, attributions, baselines=given), expected)


@both
def test_rows_with_nan_attributions_are_nan_and_alone(measure):
    model, images, attributions = small_network(), randn(N, 3, 6, 6), randn(N, 3, 6, 6, seed=2)
    expected = measure(model, images, attributions)
    attributions[1, 2, 3, 4] = torch.nan
    area, curves = measure(model, images, attributions, return_curves=True)
    assert area.isnan().tolist() == [False, True, False, False]
    assert curves.isnan().all(dim=1).tolist() == [False, True, False, False]
    assert torch.equal(area[[0, 2, 3]], expected[[0, 2, 3]])


@both
def test_low_precision_is_near(measure):
    model, images, attributions = small_network().float(), randn(N, 3, 6, 6).float(), randn(N, 3, 6, 6, seed=2).float()
    attributions = attributions.bfloat16()  # the same ranks in both
    expected = measure(model, images.bfloat16().float(), attributions, target=1)
    area = measure(lambda x: model.bfloat16()(x), images.bfloat16(), attributions, target=1)
    assert area.dtype == torch.float32
    torch.testing.assert_close(area, expected, rtol=0.02, atol=0.02)


@both
def test_everything_stays_as_it_was(measure):
    model, images = small_network().train(), randn(N, 3, 6, 6).requires_grad_()
    attributions = randn(N, 3, 6, 6, seed=2).requires_grad_()
    before = images.detach().clone(), attributions.detach().clone(), torch.get_rng_state()
    area, curves = measure(model, images, attributions, return_curves=True)
    assert not area.requires_grad
    assert not curves.requires_grad
    assert images.requires_grad
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    for tensor, copy in zip((images.detach(), attributions.detach(), torch.get_rng_state()), before, strict=True):
        assert torch.equal(tensor, copy)
    assert torch.is_grad_enabled()
    with pytest.raises(BoundaryValueError):
        measure(model, images, attributions, 7)
    assert torch.is_grad_enabled()
    with torch.inference_mode():
        inside = measure(model, images.detach().clone(), attributions)
    torch.testing.assert_close(inside, area)


@both
def test_progress_is_shown_on_demand(measure, capsys):
    model, images, attributions = small_network(), randn(N, 3, 6, 6), randn(N, 3, 6, 6, seed=2)
    measure(model, images, attributions, n_steps=4)
    assert capsys.readouterr().err == ""
    measure(model, images, attributions, n_steps=4, show_progress=True)
    shown = capsys.readouterr().err
    assert measure.__name__.capitalize() in shown
    assert "5/5" in shown


def test_integrated_gradients_of_a_real_network_beat_their_own_opposite(zoo):
    model = zoo.cifar_resnet20()
    images, labels = zoo.first_correct(model, *zoo.load_images("cifar10_test500"), 8)
    attributions = IntegratedGradients(model).attribute(images, target=labels, n_steps=20)
    options = {"target": labels, "n_steps": 16, "perturbations_per_eval": 8}
    sound, opposite = (deletion(model, images, maps, **options) for maps in (attributions, -attributions))
    assert sound.mean() < opposite.mean()
    sound, opposite = (insertion(model, images, maps, **options) for maps in (attributions, -attributions))
    assert sound.mean() > opposite.mean()


X = torch.ones(2, 3, 6, 6)
TABLE = torch.ones(2, 4)


@both
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"inputs": (X, X)}, BoundaryValueError, r"attributions must be 2 Tensor\(s\), as inputs are, but they are 1"),
        (
            {"baselines": (0.0, 0.0)},
            BoundaryValueError,
            "baselines must be one, or one for each of 1 inputs, but are 2",
        ),
        ({"inputs": X.numpy()}, BoundaryTypeError, "inputs must be a Tensor or a tuple of Tensors, but it is ndarray"),
        ({"inputs": X / 0}, BoundaryValueError, r"inputs contains NaN or infinity in row\(s\) \[0, 1\]"),
        ({"inputs": X.long()}, BoundaryTypeError, "inputs must be floating point"),
        ({"inputs": X[:0]}, BoundaryValueError, "inputs must hold at least one example"),
        ({"inputs": X[:, :0]}, BoundaryValueError, r"inputs must have at least one feature, .* \(2, 0, 6, 6\)"),
        ({"attributions": X.numpy()}, BoundaryTypeError, "attributions must be a Tensor, but it is ndarray"),
        ({"attributions": X.int()}, BoundaryTypeError, "attributions must be floating point, but its dtype is"),
        ({"attributions": X / 0}, BoundaryValueError, "attributions contains infinity"),
        (
            {"attributions": X[:, :2]},
            BoundaryValueError,
            r"shape of inputs, \(2, 3, 6, 6\), or one value for each pixel, \(2, 1, 6, 6\), but .* \(2, 2, 6, 6\)",
        ),
        ({"attributions": X[:1]}, BoundaryValueError, r"their shape is \(1, 3, 6, 6\)"),
        (
            {"inputs": TABLE, "attributions": TABLE[:, :3]},
            BoundaryValueError,
            r"shape of inputs, \(2, 4\), but their shape is \(2, 3\)",
        ),
        (
            {"inputs": TABLE, "attributions": TABLE, "baselines": "blur"},
            BoundaryValueError,
            r'baselines="blur" needs images \(N, C, H, W\), but inputs have shape \(2, 4\)',
        ),
        (
            {"baselines": "mean"},
            BoundaryTypeError,
            "baselines must be a number, a Tensor or \"blur\", but it is 'mean'",
        ),
        ({"baselines": None}, BoundaryTypeError, "baselines must be a number, a Tensor or .* but it is None"),
        ({"baselines": torch.inf}, BoundaryValueError, "baselines must be finite"),
        (
            {"baselines": torch.ones(6)},
            BoundaryValueError,
            r"inputs have shape \(2, 3, 6, 6\), baselines \(6,\)\. One value for each channel .* \(C, 1, 1\)",
        ),
        ({"baselines": torch.ones(3, 5, 6)}, BoundaryValueError, r"baselines \(3, 5, 6\)"),
        ({"score": "logit"}, BoundaryValueError, "score must be 'probability' or 'output', but it is 'logit'"),
        ({"n_steps": 0}, BoundaryValueError, "n_steps must be a positive integer, but it is 0"),
        ({"perturbations_per_eval": 1.5}, BoundaryValueError, "perturbations_per_eval must be a positive integer"),
        ({"target": 200}, BoundaryValueError, "target must be between 0 and 107"),
        ({"forward_func": lambda x: (x, x)}, BoundaryTypeError, "must return one Tensor of class scores"),
        ({"forward_func": lambda x: x}, BoundaryValueError, r"must return scores of shape \(N, C\)"),
    ],
)
def test_errors_say_what_is_wrong(measure, changes, error, message):
    arguments = {"forward_func": lambda x: x.flatten(1), "inputs": X, "attributions": X} | changes
    with pytest.raises(error, match=message):
        measure(**arguments)


def test_insertion_asks_for_baselines_where_it_cannot_blur():
    with pytest.raises(BoundaryValueError, match="Give a number or a Tensor"):
        insertion(lambda x: x, TABLE, TABLE)
