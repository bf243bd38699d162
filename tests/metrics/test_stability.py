"""Measures of agreement: numbers worked out by hand, what must not matter, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.metrics.stability import (
    center_shift,
    cosine_similarity,
    kendall_tau,
    spearman_rho,
    topk_intersection,
)

thorough = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def top3(first, second):
    return topk_intersection(first, second, 3)


ON_MAPS = (top3, kendall_tau, spearman_rho, center_shift)
MEASURES = (*ON_MAPS, cosine_similarity)
every_measure = pytest.mark.parametrize("measure", MEASURES)
every_measure_on_maps = pytest.mark.parametrize("measure", ON_MAPS)

FIRST = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
SECOND = torch.tensor([[4.0, 5.0, 1.0, 3.0, 2.0]])


def images(seed: int, dtype=torch.float64, shape=(3, 2, 4, 5)):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).unbind()


def test_intersection_by_hand():
    # The tops are {0, 1, 2} and {1, 0, 3}.
    assert topk_intersection(FIRST, SECOND, 3).tolist() == [pytest.approx(2 / 3)]
    assert topk_intersection(FIRST, SECOND, 1).tolist() == [0.0]
    assert topk_intersection(FIRST, SECOND, 5).tolist() == [1.0]


def test_tau_by_hand():
    # In opposite orders: (0, 1), (2, 3) and (2, 4), of ten pairs.
    assert kendall_tau(FIRST, SECOND).tolist() == [pytest.approx((7 - 3) / 10)]


def test_tau_with_equal_values_by_hand():
    # Of six pairs, one is tied in the first map and three in the second; two agree and none disagrees.
    first, second = torch.tensor([[0.0, 0.0, 1.0, 2.0]]), torch.tensor([[1.0, 1.0, 1.0, 2.0]])
    assert kendall_tau(first, second).tolist() == [pytest.approx(3 / math.sqrt(5 * 3))]


def test_rho_by_hand():
    # Differences of ranks 1, 1, 2, 1, 1.
    assert spearman_rho(FIRST, SECOND).tolist() == [pytest.approx(1 - 6 * 8 / (5 * 24))]


def test_shift_by_hand():
    first, second = torch.zeros(2, 1, 1, 4, 4).unbind()
    first[0, 0, 0, 0] = 2.0
    second[0, 0, 0, 2], second[0, 0, 3, 2] = -1.0, 2.0
    assert center_shift(first, second).tolist() == [pytest.approx(math.hypot(2, 2))]


def test_cosine_by_hand():
    first, second = torch.tensor([[1.0, -2.0, 2.0]]), torch.tensor([[2.0, 2.0, 1.0]])
    assert cosine_similarity(first, second).tolist() == [0.0]
    assert cosine_similarity(first, -first).tolist() == [-1.0]


@every_measure
def test_one_number_for_each_example(measure):
    first, second = images(0)
    values = measure(first, second)
    assert values.shape == (3,)
    for row in range(3):
        torch.testing.assert_close(measure(first[[row]], second[[row]]), values[[row]])


@every_measure
def test_a_map_agrees_with_itself(measure):
    first, _ = images(1)
    best = 0.0 if measure is center_shift else 1.0
    assert measure(first, first).tolist() == pytest.approx([best] * 3)


@every_measure
@thorough
@given(seed=st.integers(0, 99), exponents=st.tuples(st.integers(-20, 20), st.integers(-20, 20)))
def test_neither_scale_nor_order_matters(measure, seed, exponents):
    first, second = images(seed)
    agreement = measure(first, second)
    torch.testing.assert_close(measure(first * 2.0 ** exponents[0], second * 2.0 ** exponents[1]), agreement)
    torch.testing.assert_close(measure(second, first), agreement)


@every_measure_on_maps
def test_channels_are_summed(measure):
    first, second = images(2)
    sums = measure(first.sum(dim=1, keepdim=True), second.sum(dim=1, keepdim=True))
    assert torch.equal(measure(first, second), sums)
    magnitudes = measure(first.abs(), second.abs())
    assert torch.equal(measure(first.abs().sum(dim=1)[:, None], second.abs().sum(dim=1)[:, None]), magnitudes)


@pytest.mark.parametrize("measure", [top3, kendall_tau, spearman_rho])
def test_the_order_of_features_does_not_matter(measure):
    first, second = images(3, shape=(3, 20))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(measure(first[:, order], second[:, order]), measure(first, second))


def test_all_channels_count_for_the_cosine():
    first, second = images(4)
    expected = torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1))
    torch.testing.assert_close(cosine_similarity(first, second), expected)


def test_maps_without_channels_have_a_center():
    first, second = images(5, shape=(3, 4, 5))
    assert torch.equal(center_shift(first, second), center_shift(first[:, None], second[:, None]))


@pytest.mark.parametrize("measure", [top3, kendall_tau, spearman_rho, cosine_similarity])
def test_several_inputs_are_one_map(measure):
    first, second = images(6, shape=(3, 12))
    parts = ((maps[:, :8].reshape(3, 4, 2), maps[:, 8:]) for maps in (first, second))
    assert torch.equal(measure(*parts), measure(first, second))


@every_measure
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_precision(measure, dtype):
    first, second = images(7, dtype)
    values = measure(first, second)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(values.double(), measure(first.double(), second.double()), rtol=1e-5, atol=1e-5)


@every_measure
def test_graphs_are_left_behind(measure):
    first, second = (maps.requires_grad_() for maps in images(8))
    assert not measure(first, second).requires_grad
    assert first.requires_grad
    assert first.grad is None


@every_measure
def test_nan_in_a_map_is_nan_in_its_row(measure):
    first, second = images(9)
    first[1, 0, 2, 2] = torch.nan
    assert measure(first, second).isnan().tolist() == [False, True, False]
    assert measure(second, first).isnan().tolist() == [False, True, False]


def test_what_constant_maps_give():
    varied, ones, zeros = images(10, shape=(1, 1, 3, 3))[0], torch.ones(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    for measure in (kendall_tau, spearman_rho):
        assert measure(varied, ones.double()).isnan().all()
        assert measure(ones, ones).isnan().all()
    for measure in (cosine_similarity, center_shift):
        assert measure(ones, zeros).isnan().all()
        assert not measure(ones, ones).isnan().any()
    assert topk_intersection(zeros, ones, 4).isnan().all()
    assert topk_intersection(zeros, varied, 4).isnan().all()
    assert topk_intersection(varied, zeros, 4).isnan().all()
    assert topk_intersection(zeros, varied, 9).tolist() == [1.0]  # all features are the top of any map


BAD_PAIRS = {
    "list": ([1.0], FIRST, BoundaryTypeError, "first must be a Tensor, but it is list"),
    "integers": (
        FIRST,
        SECOND.long(),
        BoundaryTypeError,
        "second must be floating point",
    ),
    "empty": (FIRST[:0], SECOND[:0], BoundaryValueError, r"first must not be empty, but its shape is \(0, 5\)"),
    "nothing": ((), (), BoundaryValueError, "the same examples and shapes"),
    "shapes": (FIRST, SECOND[:, :4], BoundaryValueError, r"their shapes are \(1, 5\) and \(1, 4\)"),
    "structures": (FIRST, (SECOND, SECOND), BoundaryValueError, r"\(1, 5\) and \[\(1, 5\), \(1, 5\)\]"),
    "examples": ((FIRST, FIRST.expand(2, 5)), (FIRST, FIRST.expand(2, 5)), BoundaryValueError, "the same examples"),
    "infinite": (FIRST, SECOND / 0, BoundaryValueError, r"second contains infinity in row\(s\) \[0\]"),
}


@pytest.mark.parametrize("measure", [top3, kendall_tau, spearman_rho, cosine_similarity])
@pytest.mark.parametrize(("first", "second", "error", "message"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_bad_pairs_are_refused(measure, first, second, error, message):
    with pytest.raises(error, match=message):
        measure(first, second)


def test_a_center_needs_an_image():
    with pytest.raises(BoundaryValueError, match=r"\(N, C, H, W\) or \(N, H, W\), but their shape is \(1, 5\)"):
        center_shift(FIRST, SECOND)
    with pytest.raises(BoundaryTypeError, match="first must be a Tensor, but it is tuple"):
        center_shift((FIRST,), (SECOND,))


@pytest.mark.parametrize(
    ("k", "message"), [(0, "positive integer, but it is 0"), (2.0, r"but it is 2\.0"), (6, "5 features of a map")]
)
def test_bad_counts_are_refused(k, message):
    with pytest.raises(BoundaryValueError, match=message):
        topk_intersection(FIRST, SECOND, k)
