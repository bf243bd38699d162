"""What every search promises, whatever goes on inside it."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import math
import re
import warnings

import numpy as np
import pytest
import torch
from captum.robust import Perturbation
from torch import nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryError,
    BoundaryNotFoundWarning,
    BoundaryPoints,
    NearestBoundary,
    PGDBoundary,
)
from captum_boundary._core.bounds import box_of
from captum_boundary.errors import (
    BoundaryNotFoundError,
    BoundaryPrecisionWarning,
    BoundaryTypeError,
    BoundaryValueError,
)
from captum_boundary.search import BoundarySearch, ClosestBoundary, FoolboxBoundary

RADII = (0.5, 1.0, 2.0, 4.0)


def nearest(model, **options):
    return NearestBoundary(model, budget=15, **options)


def pgd(model, **options):
    return PGDBoundary(model, epsilons=RADII, attack_steps=10, **options)


def ddn(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox imports a deprecated name of scipy
        from foolbox.attacks import DDNAttack
    return FoolboxBoundary(model, DDNAttack(steps=50), **{"bounds": (-8.0, 8.0), **options})


def closest(model, strict=False, **options):
    return ClosestBoundary([nearest(model, **options), pgd(model, **options)], strict=strict)


needs_foolbox = pytest.mark.skipif(importlib.util.find_spec("foolbox") is None, reason="needs foolbox")
OWN = [pytest.param(search, id=search.__name__) for search in (nearest, pgd, closest)]
ALL = [*OWN, pytest.param(ddn, id="ddn", marks=needs_foolbox)]
every_search = pytest.mark.parametrize("make", ALL)
every_own_search = pytest.mark.parametrize("make", OWN)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def linear():
    return nn.Linear(4, 3).double()


@pytest.fixture
def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double().eval()


def assert_on_boundary(model, inputs, boundary, band=1e-3):
    """The points carry another class, just beyond the boundary, and the result describes them."""
    rows = torch.arange(len(boundary))
    before, after = (model(points).detach() for points in (inputs, boundary.points))

    def margin(scores):
        others = scores.scatter(1, boundary.target[:, None], -math.inf)
        return scores[rows, boundary.target] - others.amax(dim=1)

    assert boundary.found.all()
    assert (margin(before) * margin(after) < 0).all()
    assert (margin(after).abs() <= band * margin(before).abs()).all()
    torch.testing.assert_close(boundary.margin.to(after.dtype), margin(after))
    assert torch.equal(boundary.adversarial, after.scatter(1, boundary.target[:, None], -math.inf).argmax(dim=1))
    distance = (boundary.points - inputs).flatten(1).norm(dim=1)
    torch.testing.assert_close(boundary.distance.to(distance.dtype), distance, rtol=1e-5, atol=1e-7)


# The result -----------------------------------------------------------------------------------------------------------


@every_search
def test_points_lie_just_beyond_the_boundary(make, mlp):
    inputs = torch.randn(5, 6, dtype=torch.float64)
    assert_on_boundary(mlp, inputs, make(mlp).find(inputs), band=1e-6)


@every_search
def test_the_result_describes_every_example(make, linear):
    inputs = torch.randn(5, 4, dtype=torch.float64)
    boundary = make(linear).find(inputs)
    assert len(boundary) == 5
    assert boundary.points.shape == inputs.shape
    for field in dataclasses.fields(BoundaryPoints):
        if field.name not in ("points", "norm", "bounds"):
            assert getattr(boundary, field.name).shape == (5,)
    for name in ("target", "adversarial", "n_forward", "n_gradient"):
        assert getattr(boundary, name).dtype == torch.long
    assert boundary.found.dtype == torch.bool
    assert torch.equal(boundary.target, linear(inputs).argmax(dim=1))
    assert (boundary.n_forward >= boundary.n_gradient).all()
    assert (boundary.n_gradient > 0).all()


def test_the_result_is_frozen(linear):
    boundary = nearest(linear).find(torch.randn(1, 4, dtype=torch.float64))
    with pytest.raises(dataclasses.FrozenInstanceError):
        boundary.found = None


BOUNDS = {
    "numbers": (-9, 9),
    "tensors": (torch.full((4,), -9.0), torch.full((1, 4), 9.0)),
    "examples": (-9, torch.arange(9.0, 12.0)[:, None].expand(3, 4)),
}


@every_search
@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_result_carries_the_norm_and_bounds_of_its_search(make, norm, linear):
    boundary = make(linear, bounds=(-9, 9), norm=norm).find(torch.randn(3, 4, dtype=torch.float64))
    assert boundary.norm == norm
    assert boundary.bounds == (-9, 9)
    assert boundary[1:].norm == norm
    assert nearest(linear).find(torch.randn(3, 4, dtype=torch.float64)).bounds is None


@every_own_search
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_bounds_of_examples_are_chosen_with_their_rows(make, bounds, linear):
    inputs = torch.randn(3, 4, dtype=torch.float64)
    boundary = make(linear, bounds=bounds).find(inputs)
    assert boundary.bounds is bounds
    rows = torch.tensor([2, 0])
    for part in (boundary[rows], boundary[[2, 0]], boundary[torch.tensor([True, False, True])][[1, 0]]):
        given = box_of(bounds, (inputs,)).of(rows)
        kept = box_of(part.bounds, (inputs[rows],))
        torch.testing.assert_close(kept.upper.expand(2, 4), given.upper.expand(2, 4))
        torch.testing.assert_close(kept.lower.expand(2, 4), given.lower.expand(2, 4))


def test_bounds_of_several_inputs_are_chosen_with_their_rows():
    inputs = torch.zeros(2, 3), torch.zeros(2, 2, 2), torch.zeros(2, 1)
    limits = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([[1.0], [2.0]])
    bounds = ((-1, limits[0]), (-1, limits[1]), None)
    search = nearest(lambda x, y, z: x.sum(dim=1) + y.sum(dim=(1, 2)) + z[:, 0] - 1, bounds=bounds)
    part = search.find(inputs)[1]
    assert torch.equal(part.bounds[0][1], limits[0][1:])
    assert part.bounds[1] == bounds[1]  # a limit for each row of the image, not for each example
    assert part.bounds[2] is None


def test_rows_can_be_taken_from_a_result(linear):
    inputs = torch.randn(4, 4, dtype=torch.float64)
    for structure in (inputs, (inputs,)):
        boundary = nearest(linear).find(structure)
        points = boundary.points[0] if isinstance(structure, tuple) else boundary.points
        for rows in (slice(1, 3), [1, 2], torch.tensor([False, True, True, False])):
            part = boundary[rows]
            assert len(part) == 2
            assert torch.equal(part.points[0] if isinstance(structure, tuple) else part.points, points[1:3])
            assert torch.equal(part.distance, boundary.distance[1:3])
        assert torch.equal(boundary[2].distance, boundary.distance[2:3])


def test_a_single_row_is_a_batch_of_one(linear):
    boundary = nearest(linear).find(torch.randn(4, 4, dtype=torch.float64))
    for row in (2, np.int64(2), torch.tensor(2)):
        one = boundary[row]
        assert len(one) == 1
        assert torch.equal(one.points, boundary.points[2:3])
        assert torch.equal(one.distance, boundary.distance[2:3])


def test_results_can_be_compared_and_their_targets_written_to(linear):
    inputs = torch.randn(3, 4, dtype=torch.float64)
    boundary = nearest(linear).find(inputs, torch.tensor([1]))
    assert boundary == boundary
    assert boundary != nearest(linear).find(inputs, 1)
    boundary.target[0] = 2
    assert boundary.target.tolist() == [2, 1, 1]


@every_search
def test_perturb_returns_the_points_alone(make, linear):
    inputs = torch.randn(3, 4, dtype=torch.float64)
    search = make(linear)
    assert isinstance(search, BoundarySearch)
    assert isinstance(search, Perturbation)
    points = search.find(inputs, 1).points
    assert torch.equal(search.perturb(inputs, 1), points)
    assert torch.equal(search(inputs, 1), points)


# Inputs, tuples, further arguments ------------------------------------------------------------------------------------


@every_search
def test_a_tuple_of_inputs_is_one_long_input(make, mlp):
    inputs = torch.randn(4, 6, dtype=torch.float64)

    def split_model(first, second):
        return mlp(torch.cat([first.flatten(1), second], dim=1))

    whole = make(mlp).find(inputs)
    parts = make(split_model).find((inputs[:, :4].reshape(4, 2, 2), inputs[:, 4:]))
    assert [tuple(part.shape) for part in parts.points] == [(4, 2, 2), (4, 2)]
    assert torch.equal(torch.cat([part.flatten(1) for part in parts.points], dim=1), whole.points)
    assert torch.equal(parts.distance, whole.distance)


@every_search
def test_a_tuple_of_one_comes_back_as_a_tuple_of_one(make, linear):
    inputs = torch.randn(2, 4, dtype=torch.float64)
    points = make(linear).perturb((inputs,))
    assert isinstance(points, tuple)
    assert len(points) == 1
    assert torch.equal(points[0], make(linear).perturb(inputs))


@every_search
def test_further_arguments_reach_their_examples(make, mlp):
    inputs = torch.randn(4, 6, dtype=torch.float64)
    inputs.requires_grad_()  # a constant model for rows at scale 0 is told apart from one that lost its rows
    shift = torch.randn(4, 6, dtype=torch.float64)
    common = torch.randn(1, 6, dtype=torch.float64)

    def model(x, own, shared, factor):
        return mlp(factor * (x + own + shared))

    together = make(model).find(inputs, additional_forward_args=(shift, common, 0.9))
    for row in range(4):
        alone = make(model).find(inputs[row : row + 1], additional_forward_args=(shift[row : row + 1], common, 0.9))
        torch.testing.assert_close(together.points[row], alone.points[0], rtol=1e-6, atol=1e-6)


def test_a_single_further_argument_needs_no_tuple(linear):
    inputs = torch.randn(3, 4, dtype=torch.float64)
    shift = torch.randn(3, 4, dtype=torch.float64)
    boundary = nearest(lambda x, own: linear(x + own)).find(inputs, additional_forward_args=shift)
    torch.testing.assert_close(boundary.distance, nearest(linear).find(inputs + shift).distance)


@every_search
def test_images_and_scalars_keep_their_shape(make):
    convolution = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3)).double()
    images = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    assert_on_boundary(convolution, images, make(convolution).find(images), band=1e-6)
    numbers = torch.tensor([0.5, -1.5], dtype=torch.float64)
    points = make(lambda x: x).find(numbers).points
    torch.testing.assert_close(points, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-6)


@every_search
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_points_have_the_dtype_of_the_inputs(make, dtype):
    model = nn.Linear(16, 3).to(dtype)
    inputs = torch.randn(4, 16).to(dtype)
    boundary = make(model).find(inputs)
    assert boundary.points.dtype == dtype
    assert boundary.found.all()
    assert torch.equal(model(boundary.points).argmax(dim=1), boundary.adversarial)
    assert (boundary.adversarial != boundary.target).all()


def test_float32_margins_lie_in_the_promised_band():
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 5))
    inputs = torch.randn(30, 6)
    boundary = nearest(model).find(inputs)
    scores = model(inputs).detach().sort(dim=1).values
    ratio = boundary.margin.abs() / (scores[:, -1] - scores[:, -2])
    assert (ratio >= 1e-5).all()
    assert (ratio <= 1e-3).all()


@pytest.mark.parametrize("is_autocast", [False, True])
def test_points_that_half_precision_leaves_beyond_the_boundary_are_named(is_autocast):
    """bfloat16 has 8 bits: small margins are known to a few of their parts."""
    model = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 5))
    inputs = torch.randn(30, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = nearest(model).find(inputs)
    half = model if is_autocast else copy.deepcopy(model).bfloat16()
    inputs = inputs if is_autocast else inputs.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        with pytest.warns(
            BoundaryPrecisionWarning, match=r"relative resolution of 0\.0078.*row\(s\).*float32"
        ) as caught:
            boundary = nearest(half).find(inputs)
        scores = half(inputs).detach().float().sort(dim=1).values
    share = boundary.margin.abs().float() / (scores[:, -1] - scores[:, -2])
    named = (share > 0.05).nonzero().flatten().tolist()
    assert 0 < len(named) < 30
    assert f"{len(named)} of 30 examples" in str(caught[0].message)
    assert f"{float(share.max()):.0%}" in str(caught[0].message)
    error = (boundary.distance.float() / exact.distance - 1).abs()
    assert error[named].mean() > error[[row for row in range(30) if row not in named]].mean()
    assert "tests" in caught[0].filename


def test_normals_of_several_boundaries_are_warned_of_half_precision():
    """An example is named once, whichever of its points lie beyond their boundaries."""
    model = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 5)).bfloat16()
    inputs = torch.randn(30, 6).bfloat16()
    with pytest.warns(BoundaryPrecisionWarning, match=r"relative resolution of 0\.0078.*of 30 examples") as caught:
        AggregatedBoundaryNormals(model, nearest(model)).attribute(inputs, n_boundaries=3)
    numbers = re.search(r"points of (\d+) of 30 examples, row\(s\) ([\d, ]+)", str(caught[0].message))
    rows = [int(row) for row in numbers[2].strip(", ").split(", ")]
    assert 0 < len(set(rows)) == len(rows) == min(20, int(numbers[1]))
    assert max(rows) < 30


# Target ---------------------------------------------------------------------------------------------------------------


@every_own_search
def test_all_forms_of_target_mean_the_same(make, linear):
    inputs = torch.randn(3, 4, dtype=torch.float64)
    search = make(linear)
    expected = search.find(inputs, 1)
    forms = [torch.tensor(1), torch.tensor([1]), torch.tensor([1, 1, 1]), [1, 1, 1], (1,), [(1,)] * 3, np.int64(1)]
    for target in forms:
        boundary = search.find(inputs, target)
        assert torch.equal(boundary.points, expected.points), target
        assert boundary.target.tolist() == [1, 1, 1]


@every_search
def test_no_target_means_the_predicted_class(make, linear):
    inputs = torch.randn(6, 4, dtype=torch.float64)
    predicted = linear(inputs).argmax(dim=1)
    search = make(linear)
    assert torch.equal(search.find(inputs).points, search.find(inputs, predicted).points)


@every_search
def test_a_region_is_entered_from_outside(make, mlp):
    inputs = torch.randn(8, 6, dtype=torch.float64)
    target = (mlp(inputs).argmax(dim=1) + 1) % 4
    boundary = make(mlp).find(inputs, target)
    assert_on_boundary(mlp, inputs, boundary, band=1e-6)
    assert torch.equal(mlp(boundary.points).argmax(dim=1), target)
    assert (boundary.margin > 0).all()


@every_search
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)], ids=["(N,)", "(N, 1)"])
@pytest.mark.parametrize("target", [None, 0], ids=["no target", "target 0"])
def test_a_single_output_has_a_positive_and_a_negative_side(make, shape, target):
    weight = torch.tensor([3.0, 4.0], dtype=torch.float64)
    inputs = torch.tensor([[1.0, 1.0], [-1.0, -0.5]], dtype=torch.float64)
    boundary = make(lambda x: (x @ weight).reshape(shape)).find(inputs, target)
    assert boundary.target.tolist() == [1, 0]
    assert boundary.adversarial.tolist() == [0, 1]
    # A side's margin is positive on that side, for both sides.
    assert (boundary.margin < 0).all()
    torch.testing.assert_close(boundary.distance, (inputs @ weight).abs() / 5, rtol=0.05, atol=0)
    assert ((boundary.points @ weight).abs() < 1e-6).all()


@every_search
def test_probabilities_will_do(make, mlp):
    model = nn.Sequential(mlp, nn.Softmax(dim=1))
    inputs = torch.randn(4, 6, dtype=torch.float64)
    assert_on_boundary(model, inputs, make(model).find(inputs), band=1e-6)


# Bounds and limits ----------------------------------------------------------------------------------------------------


@every_search
def test_points_stay_within_bounds_from_inputs_on_their_edge(make):
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    inputs = torch.rand(8, 6, dtype=torch.float64).round()
    boundary = make(model, bounds=(0, 1)).find(inputs)
    assert boundary.found.all()
    assert (boundary.points >= 0).all()
    assert (boundary.points <= 1).all()
    assert_on_boundary(model, inputs, boundary, band=1e-6)


@every_own_search
def test_bounds_per_channel_and_per_input(make):
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).double()
    images = torch.zeros(3, 2, 2, 2, dtype=torch.float64)
    upper = torch.tensor([0.1, 5.0], dtype=torch.float64).view(2, 1, 1)
    points = make(model, bounds=(-upper, upper)).find(images).points
    assert (points.abs() <= upper).all()

    def pair(first, second):
        return model(torch.cat([first, second], dim=1))

    first, second = make(pair, bounds=((-0.1, 0.1), None)).find((images[:, :1], images[:, 1:])).points
    assert (first.abs() <= 0.1).all()
    torch.testing.assert_close(torch.cat([first, second], dim=1), points, rtol=1e-6, atol=1e-6)


def test_an_input_off_the_bounds_by_rounding_is_accepted(linear):
    inputs = torch.full((1, 4), 0.5, dtype=torch.float64)
    inputs[0, 0] = -3e-8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        points = nearest(linear, bounds=(0, 1)).find(inputs).points
    assert (points >= -3e-8).all()


@every_search
def test_points_further_than_max_distance_are_not_found(make):
    inputs = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    with pytest.warns(BoundaryNotFoundWarning, match=r"for 1 of 2 examples, row\(s\) 1") as caught:
        boundary = make(lambda x: x, max_distance=2.0).find(inputs)
    assert caught[0].filename == __file__
    assert boundary.found.tolist() == [True, False]
    assert boundary.distance[1] == math.inf
    assert torch.equal(boundary.points[1], inputs[1])


def test_a_point_at_max_distance_is_found(linear):
    inputs = torch.randn(1, 4, dtype=torch.float64)
    distance = nearest(linear).find(inputs).distance.item()
    assert nearest(linear, max_distance=distance).find(inputs).found.all()


class Fickle:
    """A model whose last answer, when its points are looked at once more, is another one."""

    def __init__(self, model, last_answer):
        self.model, self.last_answer = model, last_answer
        self.n_calls, self.last_call = 0, None

    def __call__(self, x):
        self.n_calls += 1
        scores = self.model(x)
        return self.last_answer(scores) if self.n_calls == self.last_call else scores


@every_search
@pytest.mark.parametrize(
    "last_answer", [lambda scores: scores.flip(1), lambda scores: 0 * scores], ids=["the old class", "a tie"]
)
def test_points_that_do_not_keep_their_label_are_not_found(make, last_answer):
    model = nn.Linear(4, 2).double()
    inputs = torch.randn(1, 4, dtype=torch.float64)
    fickle = Fickle(model, last_answer)
    assert make(fickle).find(inputs).found.all()
    if make is closest:
        return  # each of its searches has a last call
    fickle.n_calls, fickle.last_call = 0, fickle.n_calls
    with pytest.warns(BoundaryNotFoundWarning):
        boundary = make(fickle).find(inputs)
    assert not boundary.found.any()
    assert torch.equal(boundary.points, inputs)


def test_the_warning_names_the_limit():
    with pytest.warns(BoundaryNotFoundWarning, match=r"found within max_distance=0\.5 for 1 of 1 examples"):
        nearest(lambda x: x, max_distance=0.5).find(torch.ones(1, 1))


# Nothing silent -------------------------------------------------------------------------------------------------------


def constant(x):
    return 0 * x[:, :2] + x.new_tensor([2.0, 1.0])


def half_constant(x):
    """No boundary for the examples whose first coordinate exceeds 5."""
    return torch.stack([x[:, 1].where(x[:, 0] < 5, torch.ones_like(x[:, 1])), torch.zeros_like(x[:, 0])], dim=1)


@every_search
def test_a_constant_model_has_no_boundary(make):
    inputs = torch.randn(3, 4)
    with pytest.warns(BoundaryNotFoundWarning, match=r"3 of 3 examples, row\(s\) 0, 1, 2"):
        boundary = make(constant).find(inputs)
    assert not boundary.found.any()
    assert (boundary.distance == math.inf).all()
    assert (boundary.adversarial == -1).all()
    assert torch.equal(boundary.points, inputs)
    assert torch.equal(boundary.margin, torch.ones(3))


class Diverging(nn.Module):
    """A boundary at 0 for the first two rows, NaN all around the third."""

    def forward(self, x, is_good):
        scores = torch.stack([x[:, 0], -x[:, 0]], dim=1)
        return torch.where(is_good[:, None] | (x[:, :1] == 1.5), scores, torch.full_like(scores, math.nan))


@every_search
def test_a_row_that_diverges_stops_no_other(make):
    inputs = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.5, 0.0]])
    is_good = torch.tensor([True, True, False])
    with pytest.warns(BoundaryNotFoundWarning, match=r"1 of 3 examples, row\(s\) 2"):
        boundary = make(Diverging()).find(inputs, additional_forward_args=is_good)
    assert boundary.found.tolist() == [True, True, False]
    torch.testing.assert_close(boundary.distance[:2], torch.ones(2), rtol=1e-2, atol=0)


def test_a_model_that_overflows_far_away_is_searched_row_by_row():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5), nn.Softmax(dim=1)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 6
    inputs = torch.randn(40, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        together = NearestBoundary(model, budget=10).find(inputs)
        alone = [NearestBoundary(model, budget=10).find(row) for row in inputs.split(1)]
    assert together.found.tolist() == [bool(one.found) for one in alone]
    assert together.found.any()


@every_search
def test_strict_refuses_to_go_on(make):
    with pytest.raises(BoundaryNotFoundError, match=r"row\(s\) 0, 1, 2"):
        make(constant, strict=True).find(torch.randn(3, 4))


@pytest.mark.parametrize("make", [pytest.param(pgd, id="pgd"), pytest.param(ddn, id="ddn", marks=needs_foolbox)])
def test_the_warning_names_the_rows(make):
    inputs = torch.tensor([[0.0, 1.0], [7.9, 1.0], [0.0, 2.0]], dtype=torch.float64)
    with pytest.warns(BoundaryNotFoundWarning, match=r"1 of 3 examples, row\(s\) 1:"):
        boundary = make(half_constant, bounds=(-8, 8), max_distance=2.5).find(inputs)
    assert boundary.found.tolist() == [True, False, True]


def test_a_long_list_of_rows_is_cut():
    with pytest.warns(BoundaryNotFoundWarning, match=r"25 of 25 examples, row\(s\) 0, 1, .*, 19, \.\.\.:"):
        pgd(constant).find(torch.randn(25, 4))


@every_search
def test_an_input_on_the_boundary_is_almost_its_own_point(make, linear):
    model = nn.Linear(2, 2, bias=False).double()
    model.weight.data = torch.eye(2, dtype=torch.float64)
    inputs = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    boundary = make(model).find(inputs)
    assert boundary.found.all()
    assert boundary.margin[0] < 0
    assert boundary.distance[0] < 1e-6


@pytest.mark.parametrize("layer", [lambda: nn.BatchNorm1d(2), lambda: nn.Dropout(0.5)], ids=["BatchNorm", "Dropout"])
@every_own_search
@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_training_mode_is_pointed_out(make, layer):
    model = nn.Sequential(layer(), nn.Flatten(), nn.Linear(8, 2))
    with pytest.warns(UserWarning, match=r"Call model\.eval\(\) before"):
        make(model).find(torch.randn(3, 2, 4))
    make(model.eval()).find(torch.randn(3, 2, 4))


# Reproducible ---------------------------------------------------------------------------------------------------------


@every_search
def test_a_result_does_not_depend_on_the_rest_of_the_batch(make, mlp):
    inputs = torch.randn(6, 6, dtype=torch.float64)
    together = make(mlp).find(inputs)
    for row in range(6):
        alone = make(mlp).find(inputs[row : row + 1])
        torch.testing.assert_close(together.points[row], alone.points[0], rtol=1e-6, atol=1e-6)
        assert together.adversarial[row] == alone.adversarial[0]


@every_search
def test_internal_batch_size_changes_nothing(make, mlp):
    inputs = torch.randn(5, 6, dtype=torch.float64)
    largest = 0

    def model(x):
        nonlocal largest
        largest = max(largest, len(x))
        return mlp(x)

    whole = make(mlp).find(inputs)
    chunked = make(model, internal_batch_size=2).find(inputs)
    torch.testing.assert_close(chunked.points, whole.points, rtol=1e-6, atol=1e-6)
    if make is not ddn:
        assert largest == 2


@every_search
def test_the_same_seed_gives_the_same_points(make, mlp):
    inputs = torch.randn(4, 6, dtype=torch.float64)
    first = make(mlp).find(inputs)
    assert torch.equal(first.points, make(mlp).find(inputs).points)

    def seeded():
        return make(mlp, generator=torch.Generator().manual_seed(7)).find(inputs)

    assert torch.equal(seeded().points, seeded().points)


# The user's state -----------------------------------------------------------------------------------------------------


class State:
    """Everything that a search must leave as it was."""

    def __init__(self, model, inputs):
        self.model, self.inputs = model, inputs
        self.values = inputs.detach().clone()
        self.version = inputs._version
        self.parameters = [parameter.detach().clone() for parameter in model.parameters()]
        self.gradients = [parameter.grad.clone() for parameter in model.parameters()]
        self.flags = [parameter.requires_grad for parameter in model.parameters()]
        self.training = [module.training for module in model.modules()]
        self.buffers = [buffer.clone() for buffer in model.buffers()]
        self.torch_state, self.numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        self.grad_mode = torch.is_grad_enabled()

    def check(self):
        inputs, model = self.inputs, self.model
        assert torch.equal(inputs.detach(), self.values)
        assert inputs._version == self.version
        assert inputs.requires_grad
        assert inputs.grad is None
        for parameter, value, gradient in zip(model.parameters(), self.parameters, self.gradients, strict=True):
            assert torch.equal(parameter, value)
            assert torch.equal(parameter.grad, gradient)
        assert [parameter.requires_grad for parameter in model.parameters()] == self.flags
        assert [module.training for module in model.modules()] == self.training
        assert all(torch.equal(*pair) for pair in zip(model.buffers(), self.buffers, strict=True))
        assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
        assert torch.equal(torch.get_rng_state(), self.torch_state)
        assert np.array_equal(np.random.get_state()[1], self.numpy_state)  # noqa: NPY002
        assert torch.is_grad_enabled() == self.grad_mode


@pytest.fixture
def used_model():
    """A model in use: gradients already there, one frozen parameter, one module in training mode."""
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4)).double().eval()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    model[0].weight.requires_grad_(False)
    model[2].train()
    return model


@every_search
def test_the_state_of_the_user_is_left_alone(make, used_model):
    inputs = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    state = State(used_model, inputs)
    boundary = make(used_model).find(inputs)
    state.check()
    assert not boundary.points.requires_grad


@every_search
def test_the_state_of_the_user_survives_an_exception(make, used_model):
    inputs = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    state = State(used_model, inputs)
    calls = 0

    def model(x):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("the model gave up")
        return used_model(x)

    with pytest.raises(RuntimeError, match="the model gave up"):
        make(model).find(inputs)
    state.check()


@every_search
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_searches_run_where_gradients_are_off(make, mode, mlp):
    inputs = torch.randn(3, 6, dtype=torch.float64)
    expected = make(mlp).find(inputs)
    with mode():
        boundary = make(lambda x, factor: mlp(x * factor)).find(inputs.clone(), None, torch.ones(3, 1))
        assert not torch.is_grad_enabled()
    assert not boundary.points.requires_grad
    assert not boundary.points.is_inference()
    torch.testing.assert_close(boundary.points, expected.points, rtol=1e-6, atol=1e-6)


# Bad input ------------------------------------------------------------------------------------------------------------

INPUTS = torch.zeros(3, 4)
NAN, INFINITE = INPUTS.clone(), INPUTS.clone()
NAN[1, 2], INFINITE[2, 0] = math.nan, -math.inf

BAD_INPUTS = {
    "NaN": (NAN, BoundaryValueError, r"inputs contains NaN or infinity in row\(s\) \[1\]"),
    "infinite": (INFINITE, BoundaryValueError, r"inputs contains NaN or infinity in row\(s\) \[2\]"),
    "NaN in a vector": (torch.tensor([0.0, math.nan]), BoundaryValueError, r"row\(s\) \[1\]"),
    "empty batch": (INPUTS[:0], BoundaryValueError, r"at least one example, but its shape is \(0, 4\)"),
    "no dimension": (torch.tensor(1.0), BoundaryValueError, r"at least one example, but its shape is \(\)"),
    "empty tuple": ((), BoundaryValueError, "at least one Tensor, but it is an empty tuple"),
    "integers": (INPUTS.long(), BoundaryTypeError, r"dtype is torch\.int64\. Convert .*LayerBoundaryAttribution"),
    "list": ([INPUTS], BoundaryTypeError, "a Tensor or a tuple of Tensors, but it is list"),
    "array": (INPUTS.numpy(), BoundaryTypeError, "a Tensor or a tuple of Tensors, but it is ndarray"),
    "list in a tuple": ((INPUTS, [1]), BoundaryTypeError, r"inputs\[1\] must be a Tensor"),
    "unequal batches": ((INPUTS, INPUTS[:2]), BoundaryValueError, r"inputs\[0\] has 3 and inputs\[1\] has 2"),
}


@every_search
@pytest.mark.parametrize(("inputs", "error", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs_are_refused(make, inputs, error, message):
    with pytest.raises(error, match=message) as caught:
        make(nn.Linear(4, 3)).find(inputs)
    assert isinstance(caught.value, BoundaryError)


BAD_TARGETS = {
    "too large": (3, BoundaryValueError, r"between 0 and 2, but it contains 3 for a model with 3 output\(s\)"),
    "negative": (-1, BoundaryValueError, "between 0 and 2, but it contains -1"),
    "short list": ([0, 1], BoundaryValueError, "one entry for each of the 3 examples, but it has 2"),
    "short tensor": (torch.tensor([0, 1]), BoundaryValueError, r"shape \(3,\).*but it has shape \(2,\)"),
    "two dimensions": (torch.zeros(3, 1).long(), BoundaryValueError, r"but it has shape \(3, 1\)"),
    "float tensor": (torch.zeros(3), BoundaryTypeError, r"integer class indices, but its dtype is torch\.float32"),
    "bool tensor": (torch.ones(3).bool(), BoundaryTypeError, r"its dtype is torch\.bool"),
    "float": (1.0, BoundaryTypeError, r"contains 1\.0 of type float"),
    "bool": (True, BoundaryTypeError, "contains True of type bool"),
    "text": ("cat", BoundaryTypeError, "contains 'cat' of type str"),
    "long tuple": ((0, 1), BoundaryTypeError, r"contains \(0, 1\) of type tuple"),
    "list of floats": ([0, 1, 2.0], BoundaryTypeError, r"contains 2\.0 of type float"),
}


@every_search
@pytest.mark.parametrize(("target", "error", "message"), BAD_TARGETS.values(), ids=BAD_TARGETS)
def test_bad_targets_are_refused(make, target, error, message):
    with pytest.raises(error, match=message):
        make(nn.Linear(4, 3)).find(INPUTS, target)


@every_search
def test_a_single_output_has_two_sides(make):
    with pytest.raises(BoundaryValueError, match=r"None, 0 or 1, as the model has one output, but it contains 2"):
        make(nn.Linear(4, 1)).find(INPUTS, 2)


BAD_MODELS = {
    "tuple": (lambda x: (x, x), BoundaryTypeError, r"returned tuple.*lambda x: model\(x\)\[0\]"),
    "None": (lambda x: None, BoundaryTypeError, "returned NoneType"),
    "integers": (lambda x: x.long(), BoundaryTypeError, r"returned torch\.int64.*Return logits"),
    "three dimensions": (lambda x: x[:, :, None], BoundaryValueError, r"N = 3 examples, .*shape \(3, 4, 1\)"),
    "no dimension": (lambda x: x.sum(), BoundaryValueError, r"returned shape \(\)"),
    "other batch": (lambda x: x[:1], BoundaryValueError, r"returned shape \(1, 4\)"),
    "no columns": (lambda x: x[:, :0], BoundaryValueError, r"returned shape \(3, 0\)"),
    "NaN": (lambda x: x * math.nan, BoundaryValueError, "returned NaN or infinite scores"),
    "infinite": (lambda x: x + math.inf, BoundaryValueError, "returned NaN or infinite scores"),
    "no gradient": (torch.no_grad()(lambda x: x[:, :2]), BoundaryValueError, r"no gradient .*under torch\.no_grad"),
    "detached": (lambda x: x[:, :2].detach(), BoundaryValueError, "detaches"),
    "numpy": (lambda x: torch.from_numpy(x.detach().numpy()[:, :2]), BoundaryValueError, r"outside of torch \(numpy"),
}


@every_search
@pytest.mark.parametrize(("model", "error", "message"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_bad_models_are_refused(make, model, error, message):
    with pytest.raises(error, match=message):
        make(model).find(INPUTS)


BAD_BOUNDS = {
    "a number": (1.0, BoundaryTypeError, "a pair .lower, upper., or a tuple of such pairs, but it is float"),
    "three numbers": ((0, 1, 2), BoundaryValueError, r"two numbers or two Tensors, but one is \(0, 1, 2\)"),
    "text": (("0", "1"), BoundaryValueError, r"two numbers or two Tensors, but one is \('0', '1'\)"),
    "one None": ((None, 1.0), BoundaryValueError, r"two numbers or two Tensors, but one is \(None, 1\.0\)"),
    "reversed": ((1, 0), BoundaryValueError, "lower <= upper everywhere"),
    "NaN": ((math.nan, 1.0), BoundaryValueError, "lower <= upper everywhere"),
    "shape": ((torch.zeros(5), torch.ones(5)), BoundaryValueError, r"shape \(5,\) does not broadcast.*\(3, 4\)"),
    "too many pairs": (((0, 1), (0, 1)), BoundaryValueError, r"2 pair\(s\) for 1 input\(s\)"),
    "a column outside": (
        (-9.0, torch.tensor([9.0, 9.0, 9.0, -1.0])),
        BoundaryValueError,
        r"row 0 has values from 0 to 0 where bounds allow -9 to -1",
    ),
    "inputs outside": ((0.5, 1.0), BoundaryValueError, r"row 0 has values from 0 to 0 where bounds allow 0\.5 to 1"),
}


@every_own_search
@pytest.mark.parametrize(("bounds", "error", "message"), BAD_BOUNDS.values(), ids=BAD_BOUNDS)
def test_bad_bounds_are_refused(make, bounds, error, message):
    with pytest.raises(error, match=message):
        make(nn.Linear(4, 3), bounds=bounds).find(INPUTS)


BAD_FOR_ALL_INPUTS = {
    **{name: BAD_BOUNDS[name] for name in ("a number", "three numbers", "text", "one None", "reversed", "NaN")},
    "reversed in the second pair": (((0, 1), (1, 0)), BoundaryValueError, r"everywhere, but they are \(1, 0\)"),
    "one reversed limit": (
        (torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, 1.0])),
        BoundaryValueError,
        "lower <= upper everywhere",
    ),
    "sides of other shapes": ((torch.zeros(4), torch.ones(3)), BoundaryValueError, r"shapes are \(4,\) and \(3,\)"),
}


@every_own_search
@pytest.mark.parametrize(("bounds", "error", "message"), BAD_FOR_ALL_INPUTS.values(), ids=BAD_FOR_ALL_INPUTS)
def test_bounds_that_suit_no_inputs_are_refused_at_once(make, bounds, error, message):
    with pytest.raises(error, match=message):
        make(nn.Linear(4, 3), bounds=bounds)


@every_search
def test_numbers_of_numpy_are_numbers(make, linear):
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    target = [0, 1, 2, 0, 1]
    for norm in (2, math.inf, 1):
        expected = make(linear, norm=norm, bounds=(-8, 8), max_distance=50, internal_batch_size=2).find(inputs, target)
        search = make(
            linear,
            norm=np.float32(norm),
            bounds=(np.int64(-8), np.float32(8)),
            max_distance=np.float32(50),
            internal_batch_size=np.int64(2),
        )
        boundary = search.find(inputs, [np.int64(label) for label in target])
        assert torch.equal(boundary.points, expected.points)
        assert boundary.bounds == (-8, 8)
        assert {type(value) for value in (boundary.norm, *boundary.bounds)} <= {int, float}


def test_settings_of_numpy_are_numbers(linear):
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pairs = [
        (NearestBoundary(linear, budget=np.int64(7)), NearestBoundary(linear, budget=7)),
        (
            PGDBoundary(
                linear,
                epsilons=[np.float32(2), np.int64(9)],
                attack_steps=np.int32(5),
                attack_step_size=np.float32(0.5),
            ),
            PGDBoundary(linear, epsilons=[2, 9], attack_steps=5, attack_step_size=0.5),
        ),
    ]
    for numpys, own in pairs:
        assert torch.equal(numpys.find(inputs).points, own.find(inputs).points)


@every_search
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_labels_of_every_integer_type(make, dtype, linear):
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = make(linear).find(inputs, [2, 0, 1])
    boundary = make(linear).find(inputs, torch.tensor([2, 0, 1], dtype=dtype))
    assert torch.equal(boundary.points, expected.points)
    assert boundary.target.dtype == torch.long


@needs_foolbox
def test_inputs_outside_the_bounds_of_foolbox_are_refused():
    with pytest.raises(BoundaryValueError, match=r"row 0 has values from 0 to 0 where bounds allow 0\.5 to 1"):
        ddn(nn.Linear(4, 3), bounds=(0.5, 1.0)).find(INPUTS)


BAD_OPTIONS = {
    "norm": (
        {"norm": 3},
        BoundaryValueError,
        r"norm must be 2, math\.inf, 1 or a Norm such as WeightedL2, but it is 3",
    ),
    "norm in words": ({"norm": "l2"}, BoundaryValueError, "but it is 'l2'"),
    "negative max_distance": ({"max_distance": -1.0}, BoundaryValueError, r"must be positive, but it is -1\.0"),
    "NaN max_distance": ({"max_distance": math.nan}, BoundaryValueError, "must be positive, but it is nan"),
    "max_distance in words": ({"max_distance": "far"}, BoundaryTypeError, "must be a number or None, but it is 'far'"),
    "internal_batch_size": ({"internal_batch_size": 0}, BoundaryValueError, "positive integer, but it is 0"),
    "generator": ({"generator": 7}, BoundaryTypeError, r"must be a torch\.Generator, but it is int"),
}


@every_search
@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_are_refused(make, options, error, message):
    with pytest.raises(error, match=message):
        make(nn.Linear(4, 3), **options)


@pytest.mark.parametrize("budget", [0, -1, 2.5, True, None])
def test_a_budget_is_a_positive_integer(budget):
    with pytest.raises(BoundaryValueError, match="budget must be a positive integer, but it is"):
        NearestBoundary(nn.Linear(4, 3), budget=budget)


@every_search
def test_a_model_must_be_callable(make):
    with pytest.raises(BoundaryTypeError, match="forward_func must be callable, but it is str"):
        make("resnet")
