"""Boundary points of tables: rows that could exist, next to the best one that trying everything finds."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryIntegratedGradients,
    BoundaryNotFoundWarning,
    BoundaryPoints,
    NearestBoundary,
    PGDBoundary,
)
from captum_boundary.errors import BoundaryNotFoundError, BoundaryTypeError, BoundaryValueError
from captum_boundary.search import CategoricalBoundary, ClosestBoundary

GROUPS = [[2, 3, 4], [5], [6, 7, 8, 9], [10, 11, 12]]
FIXED = [0]
D = 13
FREE = torch.tensor([column == 1 for column in range(D)])  # neither fixed nor a category
OPTIONS = [torch.eye(len(group)) if len(group) > 1 else torch.tensor([[0.0], [1.0]]) for group in GROUPS]
COMBINATIONS = list(itertools.product(*OPTIONS))


def table(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, D, generator=generator)
    for group, options in zip(GROUPS, OPTIONS, strict=True):
        rows[:, group] = options[torch.randint(len(options), (n,), generator=generator)]
    return rows


def with_every_combination(row: Tensor) -> Tensor:
    rows = row.repeat(len(COMBINATIONS), 1)
    for place, combination in enumerate(COMBINATIONS):
        for group, values in zip(GROUPS, combination, strict=True):
            rows[place, group] = values
    return rows


def linear(n_outputs: int, seed: int = 0) -> nn.Linear:
    model = nn.Linear(D, n_outputs)
    generator = torch.Generator().manual_seed(seed)
    model.weight.data = torch.randn(n_outputs, D, generator=generator)
    model.bias.data = torch.randn(n_outputs, generator=generator)
    return model


def network(seed: int, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Linear(D, 16), activation(), nn.Linear(16, 3)).eval()
    for parameter in model.parameters():
        parameter.data *= 3
    return model


def rows_of(inputs: Tensor, boundary: BoundaryPoints) -> zip[tuple[Tensor, Tensor]]:
    return zip(inputs, boundary.target, strict=True)


def least_distance(model: nn.Linear, row: Tensor, target: int, norm: float) -> float:
    """The closed form for a linear model, over all combinations and all rivals."""
    dual = {2: 2, 1: math.inf, math.inf: 1}[norm]
    rows = with_every_combination(row)
    scores = model(rows).detach()
    rivals = [index for index in range(len(model.weight)) if index != target]
    slopes = ((model.weight[target] - model.weight[rivals]).detach() * FREE).norm(dual, dim=1)
    moves = ((scores[:, [target]] - scores[:, rivals]).clamp_min(0) / slopes).amin(dim=1)
    jumps = (rows - row).norm(norm, dim=1)
    return float(torch.stack([jumps, moves], dim=1).norm(norm, dim=1).min())


def assert_valid(boundary: BoundaryPoints, inputs: Tensor, model: nn.Module) -> None:
    """Rows that could exist, decided otherwise, and described as they are."""
    points, found = boundary.points, boundary.found
    assert torch.equal(points[:, FIXED], inputs[:, FIXED])
    for group in GROUPS:
        assert ((points[:, group] == 0) | (points[:, group] == 1)).all()
        if len(group) > 1:
            assert (points[:, group].sum(dim=1) == 1).all()
    before, after = (model(rows).detach().argmax(dim=1) for rows in (inputs, points))
    is_inside = before == boundary.target
    assert torch.equal((after != boundary.target)[found & is_inside], is_inside[found & is_inside])
    assert (after == boundary.target)[found & ~is_inside].all()
    distance = (points - inputs).norm(boundary.norm, dim=1)
    torch.testing.assert_close(boundary.distance[found], distance[found], rtol=1e-5, atol=1e-6)
    assert torch.equal(points[~found], inputs[~found])


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("norm", [2, 1, math.inf])
def test_linear_models_have_the_closed_form_over_all_combinations(norm, n_classes):
    inputs, n_alone = table(12), 0
    for seed in range(3):
        model = linear(n_classes, seed)
        boundary = CategoricalBoundary(NearestBoundary(model, norm=norm), GROUPS, fixed=FIXED).find(inputs)
        assert boundary.found.all()
        assert_valid(boundary, inputs, model)
        expected = [least_distance(model, row, int(target), norm) for row, target in rows_of(inputs, boundary)]
        torch.testing.assert_close(boundary.distance, torch.tensor(expected), rtol=1e-3, atol=1e-5)
        changes_categories = (boundary.points != inputs)[:, ~FREE].any(dim=1)
        n_alone += int(changes_categories.sum())
    assert n_alone > 0


def by_trying_everything(model: nn.Module, inputs: Tensor, target: Tensor, norm: float) -> Tensor:
    """The least distance over a search within every combination of categories."""
    n = len(COMBINATIONS)
    rows = torch.cat([with_every_combination(row) for row in inputs])
    owners, target = inputs.repeat_interleave(n, 0), target.repeat_interleave(n)
    low, high = (torch.where(FREE, side, rows) for side in (-math.inf, math.inf))
    jumped = model(rows).argmax(dim=1) != target
    ends = rows.clone()
    staying = NearestBoundary(model, norm=norm, bounds=(low[~jumped], high[~jumped])).find(
        rows[~jumped], target[~jumped]
    )
    ends[~jumped] = staying.points
    distance = (ends - owners).norm(norm, dim=1)
    distance[(~jumped).nonzero().flatten()[~staying.found]] = math.inf
    return distance.view(len(inputs), n).amin(dim=1)


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
@pytest.mark.parametrize("norm", [2, 1])
def test_networks_are_searched_nearly_as_well_as_by_trying_everything_for_a_tenth(norm):
    ratios = []
    for seed, activation in enumerate((nn.Tanh, nn.ReLU)):
        model, inputs = network(seed, activation), table(12, seed)
        boundary = CategoricalBoundary(NearestBoundary(model, norm=norm), GROUPS, fixed=FIXED).find(inputs)
        assert_valid(boundary, inputs, model)
        best = by_trying_everything(model, inputs, boundary.target, norm)
        assert torch.equal(boundary.found, torch.isfinite(best))
        ratios.append((boundary.distance / best)[boundary.found])
        assert boundary.n_gradient.float().mean() < 0.1 * 40 * len(COMBINATIONS)
    ratios = torch.cat(ratios)
    assert (ratios < 1.01).float().mean() > 0.9
    assert ratios.max() < 1.3


def test_evaluations_are_counted():
    model, inputs = network(0), table(5)
    passed: list[int] = []
    model.register_forward_hook(lambda module, rows, output: passed.append(len(output)))
    boundary = CategoricalBoundary(NearestBoundary(model), GROUPS, fixed=FIXED).find(inputs)
    assert int(boundary.n_forward.sum()) == sum(passed)
    assert (boundary.n_gradient > 0).all()
    assert (boundary.n_forward >= boundary.n_gradient).all()


def test_a_category_that_is_near_enough_ends_the_search_of_the_others():
    """A jump is never nearer than its own length: examples with a nearer boundary cost nothing more."""
    model, inputs = linear(2), table(6)
    model.weight.data[:, 1] *= 1000
    boundary = CategoricalBoundary(NearestBoundary(model), GROUPS).find(inputs)
    assert torch.equal(boundary.points[:, 2:], inputs[:, 2:])
    alone = CategoricalBoundary(NearestBoundary(model), [], fixed=range(2, D)).find(inputs)
    assert torch.equal(boundary.points, alone.points)


def test_points_are_just_beyond_the_boundary_unless_categories_alone_have_changed_the_decision():
    model, inputs = network(1), table(20)
    boundary = CategoricalBoundary(NearestBoundary(model), GROUPS, fixed=FIXED).find(inputs)
    moved = (boundary.points != inputs)[:, FREE].any(dim=1)
    assert 0 < moved.sum() < 20
    start = boundary.points.clone()
    start[:, FREE] = inputs[:, FREE]
    rows, others = model(start).detach(), boundary.target[:, None]
    depth = rows.gather(1, others)[:, 0] - rows.scatter(1, others, -math.inf).amax(dim=1)
    assert (boundary.margin.abs() <= 1e-3 * depth.abs())[moved].all()
    assert (boundary.margin.abs() > 1e-3)[~moved].any()


@pytest.mark.parametrize("norm", [2, 1])
def test_nothing_depends_on_the_batch(norm):
    model, inputs = network(2), table(8)
    search = CategoricalBoundary(NearestBoundary(model, norm=norm), GROUPS, fixed=FIXED)
    together = search.find(inputs)
    for row in range(8):
        alone = search.find(inputs[[row]])
        torch.testing.assert_close(alone.points, together.points[[row]], rtol=1e-4, atol=1e-4)
        assert alone.adversarial == together.adversarial[row]
    parts = NearestBoundary(model, norm=norm, internal_batch_size=3)
    in_parts = CategoricalBoundary(parts, GROUPS, fixed=FIXED).find(inputs)
    torch.testing.assert_close(in_parts.points, together.points, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    model, inputs = network(0).to(dtype), table(6).to(dtype)
    boundary = CategoricalBoundary(NearestBoundary(model), GROUPS, fixed=FIXED).find(inputs)
    assert boundary.points.dtype == dtype
    assert boundary.found.all()
    if dtype == torch.float64:
        assert_valid(boundary, inputs, model)
    assert (model(boundary.points).argmax(dim=1) != boundary.target).all()


def test_regions_are_entered_too():
    model, inputs = network(3), table(10)
    target = model(inputs).argmin(dim=1)
    boundary = CategoricalBoundary(NearestBoundary(model), GROUPS, fixed=FIXED).find(inputs, target)
    assert torch.equal(boundary.target, target)
    assert boundary.found.any()
    assert_valid(boundary, inputs, model)
    assert (boundary.margin > 0)[boundary.found].all()


@pytest.mark.parametrize("shape", ["column", "vector"])
def test_models_with_one_output(shape):
    two = linear(2)

    def one(rows: Tensor) -> Tensor:
        logit = two(rows)[:, 1] - two(rows)[:, 0]
        return logit if shape == "vector" else logit[:, None]

    inputs = table(10)
    expected = CategoricalBoundary(NearestBoundary(two), GROUPS).find(inputs)
    boundary = CategoricalBoundary(NearestBoundary(one), GROUPS).find(inputs)
    assert torch.equal(boundary.target, expected.target)
    torch.testing.assert_close(boundary.distance, expected.distance, rtol=1e-4, atol=1e-5)
    again = CategoricalBoundary(NearestBoundary(one), GROUPS).find(inputs, boundary.target)
    assert torch.equal(again.points, boundary.points)


@pytest.mark.parametrize("length", [4, 24])
def test_arguments_follow_their_rows_and_all_else_stays_as_it_is(length):
    """Also an argument whose length happens to be that of many combinations."""
    model, inputs = linear(3), table(4)
    scale, extra = torch.tensor([1.0, -1.0, 2.0, -0.5]), torch.ones(length) if length != 4 else "nothing"

    def scaled(rows: Tensor, scale: Tensor, extra: object) -> Tensor:
        assert len(rows) == len(scale)
        assert not isinstance(extra, Tensor) or len(extra) == length
        return model(rows) * scale[:, None]

    boundary = CategoricalBoundary(NearestBoundary(scaled), GROUPS).find(inputs, additional_forward_args=(scale, extra))
    for row in range(4):
        alone = CategoricalBoundary(NearestBoundary(lambda rows, row=row: model(rows) * scale[row]), GROUPS)
        expected = alone.find(inputs[[row]])
        torch.testing.assert_close(boundary.distance[[row]], expected.distance, rtol=1e-4, atol=1e-4)


def test_limits_forbid_categories_and_hold_columns():
    model, inputs = network(1), table(15)
    free = CategoricalBoundary(NearestBoundary(model), GROUPS).find(inputs)
    entered = (free.points - inputs)[:, 6:10] == 1
    assert entered.any()
    lower, upper = torch.full((15, D), -3.0), torch.full((15, D), 3.0)
    upper[:, 6:10] = torch.where(entered, 0.0, 3.0)  # what was entered is forbidden
    upper[:, 1] = lower[:, 1] = inputs[:, 1]
    boundary = CategoricalBoundary(NearestBoundary(model, bounds=(lower, upper)), GROUPS).find(inputs)
    assert not ((boundary.points - inputs)[:, 6:10][entered] == 1).any()
    assert torch.equal(boundary.points[:, 1], inputs[:, 1])
    assert ((boundary.points >= lower) & (boundary.points <= upper)).all()
    assert boundary.bounds[0] is lower


def test_tables_of_nothing_but_categories():
    model = nn.Linear(5, 2, bias=False)
    model.weight.data = torch.tensor([[1.0, 0.0, -3.0, 0.0, 1.5], [0.0, 0.0, 0.0, 0.0, 0.0]])
    inputs = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0, 0.0]])
    search = CategoricalBoundary(NearestBoundary(model), {"color": [0, 1, 2], "kind": [3, 4]})
    boundary = search.find(inputs)
    assert boundary.points.tolist() == [[0, 0, 1, 0, 1], [0, 0, 1, 1, 0]]
    torch.testing.assert_close(boundary.distance, torch.tensor([2.0, 2.0]).sqrt())
    torch.testing.assert_close(boundary.margin, torch.tensor([-1.5, -3.0]))
    assert (boundary.n_gradient == 0).all()


def test_two_groups_change_where_one_is_not_enough():
    model = nn.Linear(4, 2, bias=False)
    model.weight.data = torch.tensor([[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    inputs = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    boundary = CategoricalBoundary(NearestBoundary(lambda x: model(x) + torch.tensor([0.5, 0])), [[0, 1], [2, 3]]).find(
        inputs
    )
    assert boundary.points.tolist() == [[0, 1, 0, 1]]
    assert boundary.distance.item() == pytest.approx(2.0)


def test_what_is_not_found_is_said():
    model = nn.Linear(3, 2)
    model.weight.data.zero_()
    model.bias.data = torch.tensor([1.0, 0.0])
    inputs = torch.tensor([[0.3, 1.0, 0.0], [0.1, 0.0, 1.0]])
    with pytest.warns(BoundaryNotFoundWarning, match=r"2 of 2 examples, row\(s\) 0, 1"):
        boundary = CategoricalBoundary(NearestBoundary(model), [[1, 2]]).find(inputs)
    assert not boundary.found.any()
    assert torch.equal(boundary.points, inputs)
    assert boundary.distance.isinf().all()
    with pytest.raises(BoundaryNotFoundError):
        CategoricalBoundary(NearestBoundary(model, strict=True), [[1, 2]]).find(inputs)
    far, inputs = linear(2), table(6)
    with pytest.warns(BoundaryNotFoundWarning, match="within max_distance=0.001"):
        near = CategoricalBoundary(NearestBoundary(far, max_distance=0.001), GROUPS, fixed=[0, 1]).find(inputs)
    assert not near.found.any()


def test_categories_for_which_the_model_has_no_answer_are_left_out():
    model = linear(2)

    def undefined(rows: Tensor) -> Tensor:
        return torch.where(rows[:, [3]] == 1, math.nan, model(rows))

    inputs = table(8)
    inputs[:, 2:5] = torch.tensor([1.0, 0.0, 0.0])
    boundary = CategoricalBoundary(NearestBoundary(undefined), GROUPS, fixed=FIXED, n_combinations=30).find(inputs)
    assert boundary.found.all()
    assert (boundary.points[:, 3] == 0).all()
    assert torch.isfinite(boundary.margin).all()


def test_another_search_within_categories():
    model, inputs = linear(3), table(6)
    search = PGDBoundary(model, epsilons=(0.5, 1.0, 2.0, 4.0, 8.0))
    boundary = CategoricalBoundary(search, GROUPS, fixed=FIXED).find(inputs)
    assert_valid(boundary, inputs, model)
    expected = [least_distance(model, row, int(target), 2) for row, target in rows_of(inputs, boundary)]
    ratio = boundary.distance / torch.tensor(expected)
    assert ratio.min() > 0.999
    assert ratio.median() < 1.01


def test_attributions_from_a_row_that_could_exist():
    model, inputs = network(0), table(4)
    search = CategoricalBoundary(NearestBoundary(model), GROUPS, fixed=FIXED)
    maps, delta, boundary = BoundaryIntegratedGradients(model, search).attribute(
        inputs, return_boundary=True, return_convergence_delta=True, n_steps=200
    )
    assert (maps[boundary.points == inputs] == 0).all()
    assert delta.abs().max() < 0.05
    normals = AggregatedBoundaryNormals(model, search).attribute(inputs, n_boundaries=2)
    assert torch.isfinite(normals).all()


def test_nothing_of_the_callers_is_changed():
    model, inputs = network(0), table(3).requires_grad_()
    before = torch.get_rng_state()
    CategoricalBoundary(NearestBoundary(model), GROUPS).find(inputs)
    assert inputs.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    search = NearestBoundary(model, bounds=(-5, 5))
    CategoricalBoundary(search, GROUPS).find(table(3))
    assert search.bounds == (-5, 5)


BAD_SETTINGS = {
    "no search": ({"search": network(0)}, BoundaryTypeError, r"limits of every column.*but it is Sequential"),
    "closest": (
        {"search": ClosestBoundary([NearestBoundary(network(0))])},
        BoundaryTypeError,
        "but it is ClosestBoundary",
    ),
    "no groups": ({"categories": 3}, BoundaryTypeError, r"such as \[\[3, 4, 5\], \[6\]\].*but it is int"),
    "columns alone": ({"categories": [3, 4]}, BoundaryTypeError, r"categories\[0\] must be a list of columns"),
    "names of columns": ({"categories": [["a", "b"]]}, BoundaryTypeError, r"categories\[0\] must hold the indices"),
    "text": ({"categories": {"kind": "ab"}}, BoundaryTypeError, r"categories\['kind'\] must be a list of columns"),
    "empty group": ({"categories": [[1, 2], []]}, BoundaryValueError, r"categories\[1\] must hold at least one column"),
    "twice in a group": ({"categories": [[1, 1]]}, BoundaryValueError, r"each column once, counted from 0"),
    "from the end": ({"fixed": [-1]}, BoundaryValueError, r"fixed must hold each column once, counted from 0"),
    "in two groups": ({"categories": [[1, 2], [2, 3]]}, BoundaryValueError, r"\[2\] belong to several"),
    "fixed and category": ({"fixed": [0, 3]}, BoundaryValueError, r"fixed must hold no columns of cat.* holds \[3\]"),
    "a number fixed": ({"fixed": 3}, BoundaryTypeError, "fixed must be a list of columns, but it is int"),
    "no combination": ({"n_combinations": 0}, BoundaryValueError, "n_combinations must be a positive integer"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings_say_how_to_mend_them(options, error, message):
    settings = {"search": NearestBoundary(network(0)), "categories": GROUPS, **options}
    with pytest.raises(error, match=message):
        CategoricalBoundary(settings.pop("search"), settings.pop("categories"), **settings)


BAD_TABLES = {
    "images": (torch.zeros(2, 1, 4, 4), r"one table of shape \(N, D\).*shapes are \[\(2, 1, 4, 4\)\]"),
    "several inputs": ((table(2), table(2)), r"one table .*additional_forward_args"),
    "too narrow": (table(2)[:, :11], r"must have a column 12, .*but they have 11 columns"),
    "half a category": (
        table(3).index_fill(1, torch.tensor([3]), 0.5),
        r"categories\[0\], columns \[2, 3, 4\], must be 1 in one column and 0 in all others, but row\(s\) \[0, 1, 2\]",
    ),
    "neither yes nor no": (
        table(2).index_fill(1, torch.tensor([5]), 2.0),
        r"categories\[1\], columns \[5\], must be 0 or 1, .*row 0 has \[2\.0\]\. Put a scaling .* into the model",
    ),
}


@pytest.mark.parametrize(("inputs", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_tables_say_what_is_wrong(inputs, message):
    with pytest.raises(BoundaryValueError, match=message):
        CategoricalBoundary(NearestBoundary(network(0)), GROUPS).find(inputs)


def test_groups_may_have_names():
    inputs = table(2)
    inputs[1, 2:5] = 0
    search = CategoricalBoundary(NearestBoundary(network(0)), {"color": [2, 3, 4]})
    with pytest.raises(BoundaryValueError, match=r"categories\['color'\], columns \[2, 3, 4\].*row\(s\) \[1\]"):
        search.find(inputs)


def test_columns_are_held_by_name_and_not_by_a_mask():
    inputs = table(2)
    with pytest.raises(BoundaryValueError, match="takes no mask: name the columns that are held in fixed"):
        CategoricalBoundary(NearestBoundary(network(0)), GROUPS).find(inputs, mask=torch.ones_like(inputs))
