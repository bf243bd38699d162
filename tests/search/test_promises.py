"""Promises that the nearest boundary keeps in every combination of norm, bounds, dtype, budget, target and wrapping."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_boundary import BoundaryNotFoundWarning, NearestBoundary

EPSILON = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def network(n_inputs: int, n_classes: int, dtype: torch.dtype, seed: int, width: int = 16) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(n_inputs, width), nn.ReLU(), nn.Linear(width, n_classes))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    return model.to(dtype).requires_grad_(False)


def margins(scores: Tensor, target: Tensor) -> Tensor:
    others = scores.scatter(1, target[:, None], -math.inf)
    return scores.gather(1, target[:, None]).squeeze(1) - others.amax(dim=1)


def wrapped(model: nn.Module, how: str):
    if how == "lambda":
        return lambda x: model(x)
    return torch.compile(model, backend="eager") if how == "compiled" else model


COMBINATIONS = {
    "norm": st.sampled_from([2, math.inf, 1]),
    "bounds": st.sampled_from([None, (-2.0, 2.0), (-1.1, 1.3)]),
    "dtype": st.sampled_from(list(EPSILON)),
    "budget": st.sampled_from([1, 3, 10, 40]),
    "asks": st.sampled_from(["nothing", "a class", "classes"]),
    "how": st.sampled_from(["module", "lambda"]),
    "chunk": st.sampled_from([None, 1, 3]),
    "n_inputs": st.integers(1, 8),
    "n_classes": st.integers(2, 5),
    "seed": st.integers(0, 1000),
}
ALWAYS = {"deadline": None, "derandomize": True, "database": None}


@settings(max_examples=20, **ALWAYS)
@given(**COMBINATIONS)
def test_promises_hold(**combination):
    check_promises(**combination)


@pytest.mark.exhaustive
@settings(max_examples=100, **ALWAYS)
@given(**COMBINATIONS)
def test_promises_hold_in_many_combinations(**combination):
    check_promises(**combination)


def check_promises(norm, bounds, dtype, budget, asks, how, chunk, n_inputs, n_classes, seed):
    model = network(n_inputs, n_classes, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(6, n_inputs, generator=generator).clamp(-1, 1).to(dtype)
    target = {
        "nothing": None,
        "a class": seed % n_classes,
        "classes": torch.randint(n_classes, (6,), generator=generator),
    }[asks]
    search = NearestBoundary(wrapped(model, how), norm=norm, bounds=bounds, budget=budget, internal_batch_size=chunk)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        boundary = search.find(inputs, target)
        alone = [
            search.find(row, None if target is None else boundary.target[i : i + 1].tolist())
            for i, row in enumerate(inputs.split(1))
        ]

    start, end = (margins(model(points).double(), boundary.target) for points in (inputs, boundary.points))
    end_alone = torch.cat(
        [margins(model(p).double(), t) for p, t in zip(boundary.points.split(1), boundary.target.split(1), strict=True)]
    )
    found = boundary.found
    leaves = start >= 0
    assert torch.equal(boundary.points[~found], inputs[~found])
    assert boundary.distance[~found].isinf().all()
    for margin in (end, end_alone):  # strictly on the other side, in the batch and alone
        assert torch.equal((margin < 0)[found & leaves], torch.ones_like((found & leaves)[found & leaves]))
        assert torch.equal((margin > 0)[found & ~leaves], torch.ones_like((found & ~leaves)[found & ~leaves]))
    if bounds is not None:
        assert (boundary.points >= bounds[0]).all()
        assert (boundary.points <= bounds[1]).all()
    assert (boundary.n_gradient <= budget).all()
    assert (boundary.n_forward <= 4 * max(budget, 40)).all()
    moves = boundary.points.double() - inputs.double()
    distance = torch.linalg.vector_norm(moves, ord=norm, dim=1)
    torch.testing.assert_close(boundary.distance[found].double(), distance[found], rtol=1e-5, atol=1e-6)
    if dtype in (torch.float64, torch.float32):
        clear = found & (start.abs() > 0.05 * model(inputs).abs().amax(dim=1))
        assert (end.abs()[clear] <= 1e-3 * start.abs()[clear]).all()
        # Rounding may lead two searches of one row to different places, but not the one to nothing.
        assert [bool(one.found) for one in alone] == found.tolist()
    if dtype == torch.float64:
        apart = torch.cat([one.distance for one in alone])
        torch.testing.assert_close(apart, boundary.distance, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [2, math.inf, 1])
def test_limits_that_a_dtype_cannot_hold_are_kept(dtype, norm):
    """0.1 and 0.7 are no numbers of these dtypes: the nearest ones lie beyond them."""
    model = network(8, 3, dtype, 0)
    low, high = 0.1, 0.7
    generator = torch.Generator().manual_seed(0)
    inputs = (low + 0.02 + (high - low - 0.04) * torch.rand(256, 8, generator=generator)).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        points = NearestBoundary(model, bounds=(low, high), norm=norm, budget=10).find(inputs).points.double()
    assert points.min() >= low
    assert points.max() <= high
    assert (points.min() < low + 0.01) | (points.max() > high - 0.01)


@pytest.mark.parametrize("n_rows", [500, pytest.param(2000, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("kind", ["wide", "convolutional"])
def test_labels_hold_for_every_point_alone(kind, n_rows):
    """Wide layers add up in another order when the batch is of another size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "wide":
            model, shape = nn.Sequential(nn.Linear(32, 1024), nn.ReLU(), nn.Linear(1024, 10)), (32,)
        else:
            layers = [nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)]
            model, shape = nn.Sequential(*layers), (3, 8, 8)
            model(torch.zeros(1, *shape))
        inputs = torch.randn(n_rows, *shape)
    model.requires_grad_(False)
    boundary = NearestBoundary(model, budget=6).find(inputs)
    assert boundary.found.all()
    labels = torch.cat([model(point).argmax(dim=1) for point in boundary.points.split(1)])
    assert int((labels == boundary.target).sum()) == 0


@pytest.mark.parametrize("budget", [40, 200])
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_forward_passes_are_bounded_and_a_linear_model_is_soon_done(budget, n_classes):
    generator = torch.Generator().manual_seed(n_classes)
    weight = torch.randn(n_classes, 2, generator=generator)
    largest = 0

    def linear(x: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(x))
        return x @ weight.T

    boundary = NearestBoundary(linear, budget=budget).find(torch.randn(50, 2, generator=generator))
    is_soon_done = (boundary.n_gradient <= 6 + 2 * (n_classes - 1)) & (boundary.n_forward <= 50 + 2 * n_classes)
    assert is_soon_done.double().mean() >= 0.9
    assert boundary.n_forward.max() <= 4 * budget
    assert largest <= 50 * 12

    jagged = network(2, n_classes, torch.float32, n_classes, width=64)
    boundary = NearestBoundary(jagged, bounds=(-3, 3), budget=budget).find(torch.rand(50, 2, generator=generator))
    assert boundary.n_forward.max() <= 4 * budget
    assert boundary.n_gradient.max() <= budget


@pytest.mark.parametrize("hide", [False, True], ids=["module", "lambda"])
def test_running_statistics_stay_as_they_were(hide):
    model = nn.Sequential(nn.Conv1d(2, 8, 2), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    forward = (lambda x: model(x)) if hide else model
    inputs = torch.randn(16, 2, 4, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        with pytest.warns(UserWarning, match=r"Call model\.eval\(\)"):
            NearestBoundary(forward, budget=5).find(inputs)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert not nn.modules.module._global_forward_pre_hooks


def test_recurrent_dropout_is_pointed_out():
    class Last(nn.LSTM):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[0][:, -1]

    model = Last(3, 4, num_layers=2, dropout=0.3, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        with pytest.warns(UserWarning, match=r"Call model\.eval\(\)"):
            NearestBoundary(lambda x: model(x), budget=2).find(torch.ones(2, 5, 3))


@pytest.mark.parametrize("sampling", [None, "classes", "random"])
def test_a_default_device_changes_nothing(sampling):
    from captum_boundary import AggregatedBoundaryNormals, PGDBoundary

    model = network(5, 4, torch.float32, 3)
    inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))

    def run():
        if sampling is not None:
            search = NearestBoundary(model, bounds=(-4.0, 4.0), budget=10)
            normals = AggregatedBoundaryNormals(model, search)
            return normals.attribute(inputs, [0, 1, 2, 3], n_boundaries=2, sampling=sampling)
        return torch.cat(
            [make(model, bounds=(-4.0, 4.0)).find(inputs, 1).points for make in (NearestBoundary, PGDBoundary)]
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        expected = run()
        with torch.device("meta"):
            actual = run()
    torch.testing.assert_close(actual, expected, equal_nan=True)


def test_channels_last_stays():
    formats = []

    class Seen(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            formats.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
            return super().forward(x).mean(dim=(2, 3))

    images = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Seen(2, 4, 3)
    points = NearestBoundary(model, budget=5).find(images).points
    assert all(formats)
    assert points.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        points, NearestBoundary(model, budget=5).find(images.contiguous()).points, rtol=0, atol=1e-4
    )
