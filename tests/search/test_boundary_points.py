"""What a search returns: chosen by rows, joined, moved, stored and shown."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_boundary import BoundaryPoints, NearestBoundary, PGDBoundary
from captum_boundary._core.bounds import box_of
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

WEIGHT = torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.0, 1.0, 1.0, -1.0], [-1.0, 0.0, 2.0, 1.0]])
INPUTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def model(x):
    return x.flatten(1) @ WEIGHT.T


def two(first, second):
    return model(torch.cat([first, second.flatten(1)], dim=1))


def some(**options):
    return NearestBoundary(model, budget=5, **options).find(INPUTS)


def some_of_two(**options):
    return NearestBoundary(two, budget=5, **options).find((INPUTS[:, :2], INPUTS[:, 2:, None]))


def assert_same(one, other):
    assert one.norm == other.norm
    for field in dataclasses.fields(BoundaryPoints):
        if field.name in ("norm", "bounds"):
            continue
        first, second = getattr(one, field.name), getattr(other, field.name)
        assert isinstance(first, tuple) == isinstance(second, tuple)
        for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (first, second)), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b), field.name


# Shown ----------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_it_is_shown_in_one_line():
    images = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    flat = torch.arange(12.0) - 5
    logit = lambda x: x.flatten(1) @ flat  # noqa: E731
    exact = ((images.flatten(1) @ flat).abs() / flat.norm()).tolist()
    found = NearestBoundary(logit).find(images)
    expected = f"l2 distance {min(exact):.3g} to {max(exact):.3g}"
    assert repr(found) == f"BoundaryPoints(4 x (3, 2, 2), found 4/4, {expected})"
    one = NearestBoundary(logit, norm=math.inf).find(images[:1])
    assert repr(one) == f"BoundaryPoints(1 x (3, 2, 2), found 1/1, linf distance {one.distance.item():.3g})"
    half = PGDBoundary(logit, norm=1, epsilons=(1e-9,), max_distance=1e-9).find(images)
    assert repr(half) == "BoundaryPoints(4 x (3, 2, 2), found 0/4)"
    assert repr(some_of_two()).startswith("BoundaryPoints(5 x ((2,), (2, 1)), found 5/5, l2 distance ")
    assert repr(found[:0]) == "BoundaryPoints(0 x (3, 2, 2), found 0/0)"


# Rows -----------------------------------------------------------------------------------------------------------------

ROWS = {
    "slice": (slice(1, 4, 2), [1, 3]),
    "list": ([3, 0], [3, 0]),
    "negative": ([-1, 0], [4, 0]),
    "nothing": ([], []),
    "mask": (torch.tensor([True, False, False, True, False]), [0, 3]),
    "list of booleans": ([True, False, False, True, False], [0, 3]),
    "array": (np.array([2, 2]), [2, 2]),
    "array of booleans": (np.array([False, True, False, False, True]), [1, 4]),
    "range": (range(1, 3), [1, 2]),
    **{
        str(dtype): (torch.tensor([4, 1], dtype=dtype), [4, 1])
        for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
    },
    "scalar": (torch.tensor(2), [2]),
    "integer": (2, [2]),
    "from the end": (-2, [3]),
    "numpy integer": (np.int32(2), [2]),
}


@pytest.mark.parametrize(("rows", "expected"), ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("make", [some, some_of_two])
def test_rows_are_chosen_in_every_way(make, rows, expected):
    boundary = make()
    part = boundary[rows]
    assert len(part) == len(expected)
    index = torch.tensor(expected, dtype=torch.long)
    for field in dataclasses.fields(BoundaryPoints):
        whole, chosen = getattr(boundary, field.name), getattr(part, field.name)
        if field.name not in ("norm", "bounds"):
            pairs = zip(whole, chosen, strict=True) if isinstance(whole, tuple) else [(whole, chosen)]
            assert all(torch.equal(one[index], other) for one, other in pairs)


BAD_ROWS = {
    "short mask": (torch.tensor([True, False]), BoundaryValueError, r"shape \(5,\).*its shape is \(2,\)"),
    "floats": (torch.tensor([1.0]), BoundaryTypeError, r"integers, but they are torch\.float32"),
    "table": (torch.zeros(2, 2, dtype=torch.long), BoundaryTypeError, r"of shape \(2, 2\)"),
    "too far": ([5], BoundaryValueError, "5 boundary points, but row 5"),
    "too far back": ([-6], BoundaryValueError, "row -6"),
    "text": ("points", BoundaryTypeError, "not by 'points'"),
    "two dimensions": ((0, 1), BoundaryTypeError, r"not by \(0, 1\)"),
    "None": (None, BoundaryTypeError, "not by None"),
    "truth": (True, BoundaryValueError, r"its shape is \(\)"),
    "index": (5, IndexError, "5 boundary points, but row 5"),
}


@pytest.mark.parametrize(("rows", "error", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_rows_that_are_none_are_refused(rows, error, message):
    with pytest.raises(error, match=message):
        some()[rows]


def test_one_row_after_another():
    rows = list(some())
    assert [len(row) for row in rows] == [1] * 5
    assert_same(BoundaryPoints.cat(rows), some())


# Joined ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.booleans())
def test_cat_undoes_what_slices_do(cuts, is_tuple):
    boundary = some_of_two() if is_tuple else some()
    places = [0, *sorted(cuts), 5]
    parts = [boundary[begin:end] for begin, end in itertools.pairwise(places)]
    assert_same(BoundaryPoints.cat(parts), boundary)


def test_bounds_that_are_shared_stay_as_they_are():
    bounds = (-4.0, torch.tensor([4.0, 5.0, 6.0, 7.0]))
    boundary = some(bounds=bounds)
    assert BoundaryPoints.cat([boundary[:2], boundary[2:]]).bounds == bounds
    assert BoundaryPoints.cat([boundary]).bounds is bounds
    assert BoundaryPoints.cat([some()[:2], some()[2:]]).bounds is None


@pytest.mark.parametrize("is_tuple", [False, True])
def test_bounds_that_differ_get_a_row_for_each_example(is_tuple):
    make, inputs = (some_of_two, (INPUTS[:, :2], INPUTS[:, 2:, None])) if is_tuple else (some, (INPUTS,))
    boundary = BoundaryPoints.cat([make(bounds=(-4, 4))[:2], make(bounds=(-6, 9))[2:4], make()[4:]])
    box = box_of(boundary.bounds, inputs)
    assert torch.equal(box.lower, torch.tensor([-4.0, -4, -6, -6, -math.inf])[:, None].expand(5, 4))
    assert torch.equal(box.upper, torch.tensor([4.0, 4, 9, 9, math.inf])[:, None].expand(5, 4))


def test_bounds_of_single_examples_are_joined():
    upper = torch.arange(5.0, 10.0)[:, None].expand(5, 4)
    boundary = some(bounds=(-9, upper))
    for parts in ([boundary[:2], boundary[2:]], [boundary[[0, 1]], boundary[[2, 3, 4]]]):
        joined = BoundaryPoints.cat(parts)
        assert torch.equal(box_of(joined.bounds, (INPUTS,)).upper, upper)
    twice = BoundaryPoints.cat([boundary, boundary])
    assert torch.equal(box_of(twice.bounds, (torch.cat([INPUTS, INPUTS]),)).upper, torch.cat([upper, upper]))


BAD_PARTS = {
    "nothing": (lambda: [], BoundaryValueError, "at least one BoundaryPoints, but it is empty"),
    "one": (some, BoundaryTypeError, "a list of BoundaryPoints, but it is BoundaryPoints"),
    "tensor": (lambda: [some(), INPUTS], BoundaryTypeError, r"parts\[1\] must be BoundaryPoints, but it is Tensor"),
    "norms": (lambda: [some(), some(norm=1)], BoundaryValueError, "share their norm"),
    "structure": (lambda: [some(), some_of_two()], BoundaryValueError, r"parts\[1\] has"),
    "dtype": (
        lambda: [some(), NearestBoundary(lambda x: model(x.float())).find(INPUTS.double())],
        BoundaryValueError,
        "dtypes",
    ),
}


@pytest.mark.parametrize(("parts", "error", "message"), BAD_PARTS.values(), ids=BAD_PARTS)
def test_what_does_not_belong_together_is_not_joined(parts, error, message):
    with pytest.raises(error, match=message):
        BoundaryPoints.cat(parts())


# Moved and stored -----------------------------------------------------------------------------------------------------


def test_everything_moves_to_another_device():
    bounds = ((-4, torch.tensor(9.0)), None)
    there = some_of_two(bounds=bounds).to("meta")
    tensors = [*there.points, *(getattr(there, field.name) for field in dataclasses.fields(there)[1:8]), there.status]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert there.bounds[0][0] == -4
    assert there.bounds[0][1].device.type == "meta"
    assert there.bounds[1] is None
    assert there.norm == 2
    assert_same(some().to("cpu"), some())


BOUNDS = {
    "none": None,
    "numbers": (-4, 4.5),
    "numpy numbers": (np.float32(-4), np.int64(5)),
    "tensors": (torch.full((4,), -4.0), torch.full((5, 4), 5.0)),
    "lists": [-4, 4],
}


@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_it_is_stored_and_loaded_by_default(bounds):
    boundary = some(bounds=bounds, norm=np.float64(2))
    file = io.BytesIO()
    torch.save({"boundary": boundary, "epoch": 3}, file)
    for weights_only in (True, False):
        file.seek(0)
        loaded = torch.load(file, weights_only=weights_only)["boundary"]
        assert isinstance(loaded, BoundaryPoints)
        assert_same(loaded, boundary)
        assert torch.equal(box_of(loaded.bounds, (INPUTS,)).upper, box_of(bounds, (INPUTS,)).upper)
    assert_same(pickle.loads(pickle.dumps(boundary)), boundary)


def test_a_tuple_of_points_is_stored_too():
    file = io.BytesIO()
    torch.save(some_of_two(), file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=True), some_of_two())
