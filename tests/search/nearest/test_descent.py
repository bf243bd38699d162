"""Descents along a boundary, from points near and far."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from captum_boundary import NearestBoundary
from captum_boundary._core.bounds import box_of
from captum_boundary._core.norms import norm_of
from captum_boundary._core.oracle import Linearization, MarginOracle
from captum_boundary.search import NearestBoundarySettings
from captum_boundary.search._problem import Incumbent, Phase, Problem
from captum_boundary.search.nearest import descent
from captum_boundary.search.nearest.descent import _follow, descend, descend_with_restarts
from captum_boundary.search.nearest.first_contact import newton_phase
from captum_boundary.search.nearest.solver import _Run
from captum_boundary.search.nearest.step_rules import DDNStep, Iterate

SETTINGS = NearestBoundarySettings()
PERIOD = SETTINGS.restart_period


def incumbent_at(problem: Problem, points: torch.Tensor) -> Incumbent:
    none = Incumbent.none(problem)
    return none.improved_by(points, problem.distance(points), problem.signed_margin(points), Phase.NEWTON)


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("times_as_far", [1.5, 10, 50])
def test_descents_hurry_while_they_are_far_away(norm, times_as_far) -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(600, 2)
    model.weight.data = torch.randn(2, 600, generator=generator)
    model.bias.data.zero_()
    inputs = torch.randn(8, 600, generator=generator)
    problem = Problem(MarginOracle(model, (inputs,)), box_of(None, (inputs,)), norm, torch.tensor(1e-6))
    slope = model.weight.detach().diff(dim=0)
    margins = (inputs @ slope.T).abs().squeeze(1)
    nearest = margins / norm_of(norm).dual.length(slope)
    # Beyond the boundary, but a long way to the side.
    aside = torch.randn(8, 600, generator=generator)
    aside = aside - (aside @ slope.T) / slope.square().sum() * slope
    across = -(inputs @ slope.T) / slope.square().sum() * slope
    starts = inputs + 1.01 * across + (times_as_far * nearest / norm_of(norm).length(aside))[:, None] * aside
    known = incumbent_at(problem, starts)
    assert (known.distance > 0.9 * times_as_far * nearest).all()

    found = descend(problem, SETTINGS, known, torch.full((8,), 36), seed=0)

    assert (found.distance < 1.1 * nearest).all()


@pytest.mark.parametrize("norm", [2, math.inf])
def test_radii_stay_with_the_nearest_point_known(norm) -> None:
    """Also where slopes say, again and again, that the boundary is far beyond it."""
    inputs = torch.zeros(2, 600)
    problem = Problem(
        MarginOracle(lambda x: x @ torch.ones(600) + 1, (inputs,)), box_of(None, (inputs,)), norm, torch.tensor(1e-6)
    )
    known = Incumbent(torch.full((2, 600), -1.0), torch.tensor([1.0, 3.0]), torch.zeros(2, dtype=torch.long))
    rule = DDNStep(SETTINGS, known.distance, torch.linspace(0, 0.9, 20)[:, None].expand(-1, 2), SETTINGS.first_rate)
    depth, slope = torch.full((2,), 9.0), torch.full((2, 600), 1e-3)
    points = known.points
    for step in range(20):
        move, plane = points - problem.x, Linearization(depth, depth, slope)
        points = rule.step(problem, Iterate(points, move, problem.distance(points), plane, problem.box), known, step)
        assert (problem.distance(points) < (1.001 + SETTINGS.first_rate) * known.distance).all()


@pytest.mark.parametrize("norm", [2, math.inf])
def test_one_of_many_boundaries_costs_a_share_of_the_budget(norm) -> None:
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(1, 600, generator=generator)
    inputs = torch.randn(8, 600, generator=generator)
    problem = Problem(
        MarginOracle(lambda x: (x @ slope.T).squeeze(1), (inputs,)), box_of(None, (inputs,)), norm, torch.tensor(1e-6)
    )
    nearest = (inputs @ slope.T).abs().squeeze(1) / norm_of(norm).dual.length(slope)
    run = _Run(problem, SETTINGS, 30, False, 0)
    run.search_one_of_many(None)
    assert (run.incumbent.distance < 1.01 * nearest).all()
    assert (problem.oracle.gradients_spent == 30 * SETTINGS.pair_share).all()


def test_steps_in_linf_depend_on_signs_alone() -> None:
    """Coordinates of small slope count as much as others, where the largest change is the distance."""
    slope = torch.logspace(-3, 0, 600)
    inputs = torch.ones(1, 600)
    problem = Problem(
        MarginOracle(lambda x: torch.stack([x @ slope, 0 * x[:, 0]], dim=1), (inputs,)),
        box_of(None, (inputs,)),
        math.inf,
        torch.tensor(1e-6),
    )
    nearest = (inputs @ slope / slope.sum()).item()
    start = inputs - 1.001 * (inputs @ slope) / slope.square().sum() * slope
    known = incumbent_at(problem, start)
    assert known.distance > 1.9 * nearest
    assert descend(problem, SETTINGS, known, torch.full((1,), 12), seed=0).distance < 1.02 * nearest


def test_a_descent_shrinks_as_fast_as_the_linearized_boundary_is_far() -> None:
    """The straight way to the input crosses the boundary far to the side, where a descent that lags behind ends."""
    slope = torch.zeros(1, 600).index_fill(1, torch.tensor([0]), 1.0)
    inputs = torch.zeros(1, 600)
    problem = Problem(
        MarginOracle(lambda x: 1 - x @ slope[0], (inputs,)), box_of(None, (inputs,)), 2, torch.tensor(1e-6)
    )
    start = 9 * slope + 9 * slope.roll(1, dims=1)
    known = incumbent_at(problem, start)
    rule = DDNStep(SETTINGS, known.distance, torch.linspace(0, 1, 6)[:, None], SETTINGS.first_rate)
    found = _follow(problem, SETTINGS, known, rule, [6])
    assert found.distance < 2


def test_normals_nearby_show_what_is_flat_at_first() -> None:
    """Half of the inputs move the decision steeply, but only those that are larger than a threshold."""
    slope = torch.full((300,), 0.05)
    model = lambda x: 1 - x[:, :300] @ slope - (x[:, 300:] - 0.05).clamp_min(0).sum(dim=1)  # noqa: E731
    inputs = torch.zeros(2, 600)
    problem = Problem(MarginOracle(model, (inputs,)), box_of(None, (inputs,)), 2, torch.tensor(1e-6))
    known, _ = newton_phase(problem, SETTINGS, 10)
    found = descend(problem, SETTINGS, known, torch.full((2,), 36), seed=0)
    assert (found.distance < 0.8 * known.distance).all()


def test_no_example_depends_on_how_many_steps_others_have() -> None:
    weights = torch.randn(600, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = torch.randn(3, 600, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    box = box_of(None, (inputs,))
    problem = Problem(MarginOracle(lambda x: (x.tanh() @ weights).sin(), (inputs,)), box, 2, torch.tensor(1e-12))
    known, _ = newton_phase(problem, SETTINGS, 10)
    together = descend(problem, SETTINGS, known, torch.tensor([5, 30, 12]), seed=0)
    for row, n_steps in enumerate((5, 30, 12)):
        rows = torch.tensor([row])
        alone = descend(problem.select(rows), SETTINGS, known.select(rows), torch.tensor([n_steps]), seed=0)
        torch.testing.assert_close(alone.distance, together.distance[rows], rtol=1e-9, atol=0)


def distances_by_budget(norm, settings) -> list[torch.Tensor]:
    first, last = (torch.randn(600, n, generator=torch.Generator().manual_seed(n)) for n in (200, 4))
    inputs = torch.randn(12, 600, generator=torch.Generator().manual_seed(0))
    model = lambda x: (x @ first).relu() @ last[:200]  # noqa: E731
    return [
        NearestBoundary(model, norm=norm, budget=budget, settings=settings).find(inputs).distance
        for budget in (40, 80, 160)
    ]


@pytest.mark.parametrize("norm", [2, math.inf, 1])
def test_a_larger_budget_begins_with_what_a_smaller_one_does(norm) -> None:
    """Where no classes compete."""
    distances = distances_by_budget(norm, NearestBoundarySettings(race_rows=0))
    for smaller, larger in itertools.pairwise(distances):
        assert (larger <= (1 + 1e-5) * smaller).all()
    assert distances[-1].mean() < distances[0].mean()


@pytest.mark.parametrize("norm", [2, math.inf, 1])
def test_a_larger_budget_is_never_much_worse_where_classes_share_it(norm) -> None:
    distances = distances_by_budget(norm, None)
    for smaller, larger in itertools.pairwise(distances):
        assert (larger <= 1.03 * smaller).all()
    assert distances[-1].mean() < distances[0].mean()


@pytest.mark.parametrize("is_far", [False, True])
def test_from_afar_rates_are_larger_at_first_and_no_step_is_spent_on_sampled_normals(is_far, monkeypatch) -> None:
    seen = []

    def spied(*arguments):
        seen.append(arguments)
        return _follow(*arguments)

    monkeypatch.setattr(descent, "_follow", spied)
    inputs = torch.zeros(2, 600)
    problem = Problem(
        MarginOracle(lambda x: 1 - x.sum(dim=1), (inputs,)), box_of(None, (inputs,)), 2, torch.tensor(1e-6)
    )
    known = incumbent_at(problem, torch.ones(2, 600))
    descend(problem, SETTINGS, known, torch.tensor([20, 12]), seed=0, is_far=is_far)
    ((_, _, _, rule, _, _, sampling_radius, _),) = seen
    assert (sampling_radius is None) == is_far
    rate = rule._schedule[0]
    first = SETTINGS.max_rate if is_far else SETTINGS.first_rate
    torch.testing.assert_close(rate[0], torch.full((2,), first))
    assert (rate.diff(dim=0) < 0).all()
    assert (SETTINGS.first_rate / 10 < rate[19, 0] < SETTINGS.first_rate / 5).all()


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("is_far", [False, True])
def test_no_normals_are_sampled_in_few_dimensions(norm, is_far, monkeypatch) -> None:
    seen = []

    def spied(*arguments):
        seen.append(arguments[6])
        return _follow(*arguments)

    monkeypatch.setattr(descent, "_follow", spied)
    inputs = torch.zeros(2, 6)
    problem = Problem(
        MarginOracle(lambda x: 1 - x.sum(dim=1), (inputs,)), box_of(None, (inputs,)), norm, torch.tensor(1e-6)
    )
    descend(problem, SETTINGS, incumbent_at(problem, torch.ones(2, 6)), torch.tensor([9, 5]), seed=0, is_far=is_far)
    assert seen == [None]


@pytest.mark.parametrize(("norm", "widths"), [(2, [1, 1, 1, 1, 1]), (math.inf, [1, 1, 1, 1, 1]), (1, [1, 1, 2, 1, 4])])
def test_how_far_away_normals_are_sampled(norm, widths, monkeypatch) -> None:
    """During the first half of a descent; in l1 to the end, nearer and nearer, and wider with every new start."""
    seen = []

    def spied(*arguments):
        seen.append(arguments[6])
        return _follow(*arguments)

    monkeypatch.setattr(descent, "_follow", spied)
    slope = torch.randn(600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = torch.randn(2, 600, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    oracle = MarginOracle(lambda x: 30 + (x @ slope).sin(), (inputs,))
    problem = Problem(oracle, box_of((-9.0, 9.0), (inputs,)), norm, torch.tensor(1e-12))
    first = incumbent_at(problem, inputs)
    first.points, first.distance = inputs + 1, problem.distance(inputs + 1)
    descend_with_restarts(problem, SETTINGS, first, first, 5 * PERIOD, 0, torch.zeros(2, dtype=torch.bool))
    for radius, width in zip(seen, widths, strict=True):
        assert len(radius) == (PERIOD if norm == 1 else PERIOD // 2)
        progress = torch.arange(len(radius), dtype=torch.float64) / PERIOD
        shape = 1 - progress if norm == 1 else torch.ones_like(progress)
        torch.testing.assert_close((radius[:, 0] / seen[0][0, 0]).double(), width * shape, rtol=1e-6, atol=0)
