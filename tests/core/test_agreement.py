"""Numerics of agreement against slow replicas of the definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from captum_boundary._core.agreement import (
    center_of_mass,
    center_shift,
    cosine_similarity,
    flat_maps,
    kendall_tau,
    spearman_rho,
    top_features,
    topk_intersection,
)

thorough = settings(max_examples=60, deadline=None, derandomize=True, database=None)

RANKED = (kendall_tau, spearman_rho)
# Few different values, so that ties are the rule.
values = st.integers(-3, 3).map(float)


@st.composite
def pairs_of_maps(draw, n_maps=3, max_features=9):
    n_features = draw(st.integers(2, max_features))
    size = n_maps * n_features
    numbers = draw(st.lists(values, min_size=2 * size, max_size=2 * size))
    return torch.tensor(numbers, dtype=torch.float64).view(2, n_maps, n_features).unbind()


def slow_tau(first: list[float], second: list[float]) -> float:
    """Tau-b, pair by pair."""
    concordant = discordant = first_ties = second_ties = n_pairs = 0
    for i, j in itertools.combinations(range(len(first)), 2):
        left, right = np.sign(first[i] - first[j]), np.sign(second[i] - second[j])
        concordant += left * right > 0
        discordant += left * right < 0
        first_ties += left == 0
        second_ties += right == 0
        n_pairs += 1
    scale = math.sqrt((n_pairs - first_ties) * (n_pairs - second_ties))
    return (concordant - discordant) / scale if scale else math.nan


@thorough
@given(pairs_of_maps())
def test_tau_counts_pairs(maps):
    expected = [slow_tau(*rows) for rows in zip(*(part.tolist() for part in maps), strict=True)]
    torch.testing.assert_close(kendall_tau(*maps), torch.tensor(expected, dtype=torch.float64), equal_nan=True)


@thorough
@given(pairs_of_maps())
def test_rho_is_scipys_with_nan_for_constant_maps(maps):
    expected = []
    for first, second in zip(*(part.numpy() for part in maps), strict=True):
        is_constant = np.ptp(first) == 0 or np.ptp(second) == 0
        expected.append(math.nan if is_constant else spearmanr(first, second)[0])
    torch.testing.assert_close(
        spearman_rho(*maps), torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=1e-9, atol=1e-12
    )


@thorough
@given(pairs_of_maps(), st.data())
def test_the_top_is_the_head_of_a_stable_sort(maps, data):
    first, second = maps
    k = data.draw(st.integers(1, first.shape[1]))
    shared = []
    for rows in zip(first.tolist(), second.tolist(), strict=True):
        tops = [set(sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))[:k]) for row in rows]
        has_no_top = k < len(rows[0]) and any(len(set(row)) == 1 for row in rows)
        shared.append(math.nan if has_no_top else len(tops[0] & tops[1]) / k)
    assert topk_intersection(first, second, k).tolist() == pytest.approx(shared, nan_ok=True)
    assert (top_features(first, k).sum(dim=1) == k).all()


def test_equal_values_are_ranked_by_their_place():
    assert top_features(torch.tensor([[1.0, 2.0, 1.0, 2.0, 2.0]]), 2).tolist() == [[False, True, False, True, False]]
    assert top_features(torch.zeros(1, 1000), 3)[0].nonzero().flatten().tolist() == [0, 1, 2]


def test_the_cosine_is_numpys():
    first, second = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).unbind()
    for row, cosine in enumerate(cosine_similarity(first, second).tolist()):
        a, b = first[row].double().numpy(), second[row].double().numpy()
        assert cosine == pytest.approx(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_cosine_of_tiny_and_huge_maps_does_not_vanish(scale):
    maps = scale * torch.tensor([[3.0, 4.0]])
    assert cosine_similarity(maps, torch.tensor([[4.0, 3.0]])).item() == pytest.approx(0.96)


def test_the_center_of_mass_pixel_by_pixel():
    maps = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for center, pixels in zip(center_of_mass(maps).tolist(), maps.abs().numpy(), strict=True):
        total = sum(pixels.flat)
        for axis in range(2):
            expected = sum(index[axis] * mass for index, mass in np.ndenumerate(pixels)) / total
            assert center[axis] == pytest.approx(expected)


def test_the_shift_is_measured_in_pixels():
    first, second = torch.zeros(2, 1, 9, 9).unbind()
    first[0, 1, 2], second[0, 4, 6] = 1.0, -2.0
    assert center_shift(first, second).tolist() == [5.0]


def test_only_images_are_summed_over_channels():
    image, sequence, flat = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4), torch.randn(2)
    maps = flat_maps((image, sequence, flat))
    expected = torch.cat([image.sum(dim=1).flatten(1), sequence.flatten(1), flat[:, None]], dim=1)
    assert torch.equal(maps, expected)


@pytest.mark.parametrize("measure", RANKED)
def test_constant_maps_have_no_rank_correlation(measure):
    varied = torch.tensor([[1.0, 2.0, 3.0]])
    assert measure(varied, torch.ones(1, 3)).isnan().all()
    assert measure(torch.zeros(1, 3), torch.zeros(1, 3)).isnan().all()
    assert measure(varied[:, :1], varied[:, :1]).isnan().all()


@pytest.mark.parametrize("measure", [*RANKED, cosine_similarity, lambda *maps: topk_intersection(*maps, 2)])
def test_nan_stays_in_its_row(measure):
    first, second = torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(0)).unbind()
    expected = measure(first, second)
    broken = first.clone()
    broken[1, 4] = torch.nan
    for maps in ((broken, second), (second, broken)):
        result = measure(*maps)
        assert result.isnan().tolist() == [False, True, False]
        torch.testing.assert_close(result[[0, 2]], expected[[0, 2]])
