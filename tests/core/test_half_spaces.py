"""Nearest points beyond several half-spaces in a box, against an exact solver."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact_distances import least_distance

from captum_boundary._core.geometry import Box
from captum_boundary._core.half_spaces import project_onto_half_spaces

LIMIT = 0.7


def random_problems(n_inputs: int, n_planes: int, is_limited: bool, n: int = 60):
    generator = torch.Generator().manual_seed(100 * n_inputs + n_planes)
    options = {"generator": generator, "dtype": torch.float64}
    x = torch.rand(n, n_inputs, **options) - 0.5
    slopes = torch.randn(n, n_planes, n_inputs, **options) + 1.5 * torch.randn(n, 1, n_inputs, **options)
    required = torch.rand(n, n_planes, **options) * (0.5 if is_limited else 2.0)
    limit = LIMIT if is_limited else math.inf
    sides = torch.full((1, n_inputs), limit, dtype=torch.float64)
    exact = []
    for row in range(n):
        system, limits = slopes[row].numpy(), required[row].numpy()
        if is_limited:
            sides_of_box = np.vstack([np.eye(n_inputs), -np.eye(n_inputs)])
            room = np.concatenate([(x[row] - LIMIT).numpy(), (-LIMIT - x[row]).numpy()])
            system, limits = np.vstack([system, sides_of_box]), np.concatenate([limits, room])
        move = least_distance(system, limits)
        exact.append(math.nan if move is None else np.linalg.norm(move))
    return x, slopes, required, Box(-sides, sides, is_limited), torch.tensor(np.array(exact))


@pytest.mark.parametrize("is_limited", [False, True])
@pytest.mark.parametrize("n_planes", [1, 2, 4, 8])
@pytest.mark.parametrize("n_inputs", [2, 6, 20])
def test_the_method_ends_on_the_nearest_point(n_inputs, n_planes, is_limited):
    x, slopes, required, box, exact = random_problems(n_inputs, n_planes, is_limited)
    is_possible = ~exact.isnan()
    assert is_possible.sum() > 20
    nearest, multipliers = project_onto_half_spaces(
        x, slopes, required, box, torch.zeros_like(required), 3 * n_planes + 3
    )
    distance = (x - nearest).norm(dim=1)
    torch.testing.assert_close(distance[is_possible], exact[is_possible], rtol=1e-6, atol=0)
    residual = required - (slopes @ (x - nearest)[:, :, None]).squeeze(2)
    assert residual[is_possible].max() < 1e-6
    assert (multipliers >= 0).all()
    assert (box.clamp(nearest) == nearest).all()


def met_one_by_one(x, slopes, required, box, **options):
    """The nearest points when half-spaces come one after the other, each search going on from the one before."""
    multipliers = torch.zeros_like(required)
    for n_planes in range(1, required.shape[1] + 1):
        here = torch.arange(required.shape[1]) < n_planes
        nearest, multipliers = project_onto_half_spaces(
            x, slopes * here[:, None], required * here, box, multipliers, **options
        )
    return nearest


def test_a_final_step_meets_the_limits_that_came_in():
    is_exact = {False: [], True: []}
    for n_inputs, n_planes in ((6, 4), (6, 8), (20, 4), (20, 8)):
        x, slopes, required, box, exact = random_problems(n_inputs, n_planes, is_limited=True)
        for takes_final_step in (False, True):
            nearest = met_one_by_one(x, slopes, required, box, n_steps=1, takes_final_step=takes_final_step)
            error = ((x - nearest).norm(dim=1) / exact - 1).abs()[~exact.isnan()]
            is_exact[takes_final_step].append(error < 1e-6)
            assert error.mean() < 0.02
    missed = {takes_final_step: 1 - torch.cat(parts).double().mean() for takes_final_step, parts in is_exact.items()}
    assert missed[True] < 0.6 * missed[False]


@pytest.mark.parametrize("is_limited", [False, True])
def test_planes_that_come_one_by_one_are_met_in_two_steps_each(is_limited):
    x, slopes, required, box, exact = random_problems(6, 4, is_limited)
    nearest = met_one_by_one(x, slopes, required, box, n_steps=2)
    error = ((x - nearest).norm(dim=1) / exact - 1).abs()[~exact.isnan()]
    assert (error < 1e-6).double().mean() > 0.85
    assert error.median() < 1e-9


def test_the_same_plane_twice_is_one():
    x, slopes, required, box, exact = random_problems(6, 1, is_limited=False)
    twice = [values.repeat(1, 2, *[1] * (values.ndim - 2)) for values in (slopes, required)]
    nearest, _ = project_onto_half_spaces(x, *twice, box, torch.zeros_like(twice[1]), n_steps=5)
    torch.testing.assert_close((x - nearest).norm(dim=1), exact, rtol=1e-6, atol=0)


def test_a_half_space_that_the_box_does_not_reach_is_approached():
    x = torch.full((1, 2), 0.5, dtype=torch.float64)
    box = Box(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    slopes, required = torch.eye(2, dtype=torch.float64)[None], torch.tensor([[2.0, 0.25]], dtype=torch.float64)
    for n_steps in (2, 3, 4, 9):
        nearest, multipliers = project_onto_half_spaces(x, slopes, required, box, torch.zeros_like(required), n_steps)
        torch.testing.assert_close(nearest, torch.tensor([[0.0, 0.25]], dtype=torch.float64))
        assert multipliers.isfinite().all()


def test_a_half_space_met_twice_but_for_rounding_is_met_once():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(500, 100, generator=generator)
    slopes = 0.1 * torch.randn(500, 1, 100, generator=generator)
    again = slopes * (1 + 6e-8 * torch.randn(slopes.shape, generator=generator))
    required = 2 * torch.rand(500, 1, generator=generator)
    box = Box(torch.zeros(1, 100), torch.ones(1, 100))
    once, multipliers = project_onto_half_spaces(
        x,
        torch.cat([slopes, 0 * slopes], dim=1),
        torch.cat([required, 0 * required], dim=1),
        box,
        torch.zeros(500, 2),
        9,
    )
    twice, _ = project_onto_half_spaces(
        x, torch.cat([slopes, again], dim=1), torch.cat([required, required], dim=1), box, multipliers, 2
    )
    assert torch.allclose(twice, once, atol=1e-5)
