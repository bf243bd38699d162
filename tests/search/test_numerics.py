"""Inputs of any size, of any number type, and on the boundary itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_boundary import AggregatedBoundaryNormals, NearestBoundary, PGDBoundary, RARLoss
from captum_boundary._core.geometry import Box, power_of_two
from captum_boundary._core.norms import L1, norm_of
from captum_boundary.search import NearestBoundarySettings

NORMS = [1, 2, math.inf]
every_norm = pytest.mark.parametrize("norm", NORMS)


def network(n_features: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(n_features, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


def inputs_of(n_features: int) -> Tensor:
    return torch.randn(3, n_features, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)


@every_norm
@pytest.mark.parametrize("bounds", [None, (-2.0, 2.0)])
@pytest.mark.parametrize("n_features", [4, 600])
@given(exponent=st.one_of(st.sampled_from([-66, 60]), st.integers(-66, 60)))
@settings(max_examples=5, deadline=None, derandomize=True, database=None)
def test_distances_are_as_large_as_the_inputs(norm, bounds, n_features, exponent) -> None:
    model, inputs, scale = network(n_features), inputs_of(n_features), 2.0**exponent  # 1e-20 to 1e18
    expected = NearestBoundary(model, norm=norm, bounds=bounds, budget=12).find(inputs)
    scaled_bounds = None if bounds is None else (scale * bounds[0], scale * bounds[1])
    search = NearestBoundary(lambda x: model(x / scale), norm=norm, bounds=scaled_bounds, budget=12)
    boundary = search.find(scale * inputs)
    assert boundary.found.all()
    torch.testing.assert_close(boundary.distance / scale, expected.distance, rtol=1e-3, atol=0)
    assert bounds is None or boundary.points.abs().max() <= scale * 2


@every_norm
@pytest.mark.parametrize("exponent", [-66, 60])
def test_balls_and_normals_are_right_at_any_size(norm, exponent) -> None:
    model, inputs, scale = network(4), inputs_of(4), 2.0**exponent
    scaled = lambda x: model(x / scale)  # noqa: E731
    radii = (0.5, 1.0, 2.0, 4.0)
    expected = PGDBoundary(model, norm=norm, epsilons=radii, attack_steps=5).find(inputs)
    search = PGDBoundary(scaled, norm=norm, epsilons=[scale * radius for radius in radii], attack_steps=5)
    found = search.find(scale * inputs)
    torch.testing.assert_close(found.distance / scale, expected.distance, rtol=1e-3, atol=0)

    options = {"n_boundaries": 2, "return_boundary": True}
    plain = AggregatedBoundaryNormals(model, NearestBoundary(model, norm=norm)).attribute(inputs, **options)[1]
    search = NearestBoundary(scaled, norm=norm)
    there = AggregatedBoundaryNormals(scaled, search).attribute(scale * inputs, **options)[1]
    torch.testing.assert_close(there.normals, plain.normals, rtol=1e-3, atol=1e-4)


@every_norm
def test_lengths_of_any_size(norm) -> None:
    vectors = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = 10.0 ** torch.tensor([[-30.0], [-20.0], [0.0], [18.0], [30.0]], dtype=torch.float64)
    expected = torch.linalg.vector_norm(vectors * sizes, ord=norm, dim=1)
    found = norm_of(norm).safe_length((vectors * sizes).float()).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    units = power_of_two((vectors * sizes).float())
    assert (torch.log2(units.double()) % 1 == 0).all()
    ratio = (vectors * sizes).abs().amax(dim=1) / units.squeeze(1)
    assert ((ratio >= 0.999) & (ratio < 2.001)).all()
    zero = torch.zeros(2, 3)
    assert norm_of(norm).safe_length(zero).tolist() == [0.0, 0.0]
    assert torch.equal(norm_of(norm).steepest(zero), zero)


@pytest.mark.parametrize("n_features", [600, 3072])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
@pytest.mark.parametrize("budget", [5, 10])
def test_the_l1_distance_of_a_linear_model_is_exact_for_few_gradients(n_features, bounds, budget) -> None:
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(n_features, generator=generator, dtype=torch.float64)
    inputs = torch.rand(8, n_features, generator=generator, dtype=torch.float64)
    offset = (inputs @ slope).mean()
    boundary = NearestBoundary(lambda x: x @ slope - offset, norm=1, bounds=bounds, budget=budget).find(inputs)
    margin = inputs @ slope - offset
    lower, upper = bounds or (-math.inf, math.inf)
    box = Box(torch.full((1, 1), lower, dtype=torch.float64), torch.full((1, 1), upper, dtype=torch.float64))
    nearest = L1.project_onto_half_space(inputs, margin.sign()[:, None] * slope, margin.abs(), box)
    torch.testing.assert_close(boundary.distance, (inputs - nearest).abs().sum(dim=1), rtol=1e-6, atol=0)


@every_norm
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_default_dtype_changes_nothing(norm, dtype) -> None:
    model, inputs = network(4), inputs_of(4)
    expected = NearestBoundary(model, norm=norm, bounds=(-2, 2)).find(inputs)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        boundary = NearestBoundary(model, norm=norm, bounds=(-2, 2)).find(inputs)
    finally:
        torch.set_default_dtype(before)
    assert boundary.points.dtype == torch.float32
    torch.testing.assert_close(boundary.distance, expected.distance)


@every_norm
def test_an_input_on_the_boundary_keeps_that_boundary_among_its_neighbors(norm) -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    model = lambda x: x @ weight.T  # noqa: E731
    inputs = torch.tensor([[1.0, 1.0], [2.0, 1.0]])  # on the boundary of the classes 0 and 1, and beside it
    nearest = NearestBoundary(model, norm=norm).find(inputs)
    assert nearest.found.all()
    assert nearest.distance[0] < 1e-3
    explainer = AggregatedBoundaryNormals(model, NearestBoundary(model, norm=norm))
    boundaries = explainer.attribute(inputs, n_boundaries=2, return_boundary=True)[1]
    assert boundaries.found.all()
    assert boundaries.distance[0].min() < 1e-3
    assert {0, 1} == set(boundaries.adversarial[0].tolist()) - {2} | {int(nearest.target[0])}


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("whole", [np.int32, np.int64])
def test_numbers_of_numpy_are_numbers_in_every_option(real, whole) -> None:
    model, inputs = network(4), inputs_of(4)

    def results(real, whole):
        constants = NearestBoundarySettings(race_rows=whole(6), planes=whole(4), smoothing=real(0.125))
        search = NearestBoundary(
            model,
            norm=real(2),
            bounds=(real(-2), whole(2)),
            budget=whole(30),
            max_distance=real(8),
            internal_batch_size=whole(2),
            settings=constants,
        )
        epsilons = [real(0.5), real(2)]
        pgd = PGDBoundary(model, epsilons=epsilons, attack_steps=whole(3), attack_step_size=real(0.5), norm=whole(1))
        rar = RARLoss(
            model, epsilon=real(0.25), norm=whole(2), warmup=whole(2), attack_steps=whole(2), penalty=real(0.5)
        )
        found = search.find(inputs), pgd.find(inputs)
        assert all(type(getattr(constants, name)) in (int, float) for name in vars(constants))
        return [*(boundary.distance for boundary in found), rar(inputs, torch.tensor([0, 1, 2]))]

    for one, other in zip(results(real, whole), results(float, int), strict=True):
        torch.testing.assert_close(one, other)


def test_many_dimensions_race_with_numbers_of_numpy() -> None:
    model, inputs = network(600), inputs_of(600)
    expected = NearestBoundary(model, settings=NearestBoundarySettings(race_rows=6)).find(inputs)
    found = NearestBoundary(model, settings=NearestBoundarySettings(race_rows=np.int64(6))).find(inputs)
    assert torch.equal(found.distance, expected.distance)
