"""Projected gradient descent in balls of growing radii."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from captum_boundary import BoundaryNotFoundWarning, PGDBoundary
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

DUAL = {1: math.inf, 2: 2, math.inf: 1}
EXAMPLES = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(5, 4).double()


def distances(model, inputs, norm):
    """Distance from the region of the predicted class, in closed form: the least margin over dual norm of a slope."""
    scores = model(inputs).detach()
    target = scores.argmax(dim=1)
    slopes = torch.linalg.vector_norm(model.weight[target, None] - model.weight, ord=DUAL[norm], dim=2).detach()
    ratios = (scores.amax(dim=1, keepdim=True) - scores) / slopes
    return ratios.scatter(1, target[:, None], math.inf).amin(dim=1)


class Path:
    """A half-space ``slope . x < edge`` that remembers where gradients were taken."""

    def __init__(self, edge, slope=(1.0, 0.0)):
        self.edge, self.slope, self.points = edge, torch.tensor(slope), []

    def __call__(self, x):
        point = x.detach().clone()
        if x.requires_grad:
            x.register_hook(lambda gradient: self.points.append(point))
        return self.edge - x[:, : len(self.slope)] @ self.slope.to(x)


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_two_classes_of_a_linear_model_are_exact(norm):
    torch.manual_seed(0)
    model = nn.Linear(5, 2).double()
    exact = distances(model, EXAMPLES, norm)
    search = PGDBoundary(model, epsilons=(1.0, 4.0, 16.0), norm=norm, random_start=False)
    torch.testing.assert_close(search.find(EXAMPLES).distance, exact, rtol=1e-6, atol=0)
    search = PGDBoundary(model, epsilons=(1.0, 4.0, 16.0), norm=norm)
    assert (search.find(EXAMPLES).distance <= 1.2 * exact).all()


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_several_classes_of_a_linear_model_are_never_too_near(linear, norm):
    boundary = PGDBoundary(linear, epsilons=(0.1, 0.2, 0.5, 1.0, 2.0), norm=norm).find(EXAMPLES)
    assert boundary.found.all()
    assert (boundary.distance >= distances(linear, EXAMPLES, norm) * (1 - 1e-6)).all()


def test_steps_are_absolute_lengths():
    model = Path(edge=100.0)
    with pytest.warns(BoundaryNotFoundWarning):
        PGDBoundary(model, epsilons=(0.3,), attack_steps=4, attack_step_size=0.05, random_start=False).find(
            torch.zeros(1, 2)
        )
    path = [points[0, 0].item() for points in model.points]
    assert path == pytest.approx([0.0, 0.05, 0.1, 0.15])


def test_default_steps_cross_the_ball_twice():
    model = Path(edge=100.0)
    with pytest.warns(BoundaryNotFoundWarning):
        PGDBoundary(model, epsilons=(0.1, 0.8), attack_steps=8, random_start=False).find(torch.zeros(1, 2))
    path = [points[0, 0].item() for points in model.points]
    assert path[:8] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1])
    assert path[8:] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8])


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_iterates_stay_in_ball_and_bounds(linear, norm):
    visited = []

    def model(x):
        visited.append(x.detach().clone())
        return linear(x)

    inputs = torch.full((1, 5), 0.9, dtype=torch.float64)
    search = PGDBoundary(model, epsilons=(0.3,), attack_steps=6, attack_step_size=0.2, norm=norm, bounds=(0, 1))
    search._find(inputs, None, None)
    points = torch.cat(visited)
    assert (points >= 0).all()
    assert (points <= 1).all()
    assert (torch.linalg.vector_norm(points - inputs, ord=norm, dim=1) <= 0.3 + 1e-12).all()


@pytest.mark.parametrize(
    ("norm", "step"), [(2, (-0.6, -0.8, 0.0)), (math.inf, (-1.0, -1.0, 0.0)), (1, (0.0, -1.0, 0.0))]
)
def test_the_step_of_each_norm(norm, step):
    model = Path(edge=100.0, slope=(-3.0, -4.0, 0.0))
    with pytest.warns(BoundaryNotFoundWarning):
        PGDBoundary(model, epsilons=(1.0,), attack_steps=2, attack_step_size=0.5, norm=norm, random_start=False).find(
            torch.zeros(1, 3)
        )
    torch.testing.assert_close(model.points[1], 0.5 * torch.tensor([step]))


def test_l1_steps_pass_by_coordinates_at_their_bounds():
    def model(x):
        return 2 * x[:, 0] + x[:, 1] - 1.5

    inputs = torch.tensor([[0.5, 1.0]])
    boundary = PGDBoundary(model, epsilons=(1.0,), norm=1, random_start=False, bounds=(0.4, 2.0)).find(inputs)
    # The steeper coordinate has room for 0.1. Alone it would not do, and the other alone would need 0.5.
    assert 0.4 <= boundary.distance.item() < 0.5


def test_the_first_radius_that_succeeds_ends_the_search():
    model = Path(edge=torch.tensor([0.05, 0.25, 0.9, 5.0]))

    def by_row(x, edge):
        return edge - x[:, 0]

    search = PGDBoundary(by_row, epsilons=(0.1, 0.3, 1.0), attack_steps=7)
    with pytest.warns(BoundaryNotFoundWarning, match=r"1 of 4 examples, row\(s\) 3"):
        boundary = search.find(torch.zeros(4, 2), additional_forward_args=model.edge)
    assert boundary.n_gradient.tolist() == [7, 14, 21, 21]


def test_forward_passes_are_counted():
    calls = 0

    def model(x):
        nonlocal calls
        calls += len(x)
        return x

    boundary = PGDBoundary(model, epsilons=(2.0,), attack_steps=5).find(torch.ones(1, 1))
    assert boundary.n_forward.tolist() == [calls]
    assert boundary.n_gradient.tolist() == [5]


def test_a_confident_model_still_has_a_slope():
    weight = torch.tensor([[1e4, 0.0], [0.0, 0.0]])
    boundary = PGDBoundary(lambda x: x @ weight.T, epsilons=(2.0,)).find(torch.tensor([[1.0, 1.0]]))
    assert boundary.found.all()
    assert boundary.distance.item() == pytest.approx(1.0, abs=0.05)


def test_random_starts_come_from_the_generator(linear):
    def points(seed=None, **options):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return PGDBoundary(linear, epsilons=(4.0,), attack_steps=5, generator=generator, **options).perturb(EXAMPLES)

    assert torch.equal(points(3), points(3))
    assert not torch.equal(points(3), points(4))
    assert not torch.equal(points(3), points(random_start=False))
    generator = torch.Generator().manual_seed(3)
    search = PGDBoundary(linear, epsilons=(4.0,), attack_steps=5, generator=generator)
    assert not torch.equal(search.perturb(EXAMPLES), search.perturb(EXAMPLES))


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_one_random_start_serves_all_examples(norm):
    model = Path(edge=50.0)
    with pytest.warns(BoundaryNotFoundWarning):
        PGDBoundary(model, epsilons=(0.5,), attack_steps=1, norm=norm).find(EXAMPLES)
    assert len(model.points) == 1
    start = model.points[0] - EXAMPLES
    assert (torch.linalg.vector_norm(start, ord=norm, dim=1) <= 0.5).all()
    for first, second in itertools.pairwise(start):
        torch.testing.assert_close(first, second)
    assert start.abs().max() > 0


BAD_OPTIONS = {
    "no radius": ({"epsilons": ()}, BoundaryValueError, "epsilons must hold positive, finite radii"),
    "zero radius": ({"epsilons": (0.0, 1.0)}, BoundaryValueError, "positive, finite radii"),
    "infinite radius": ({"epsilons": (1.0, math.inf)}, BoundaryValueError, "positive, finite radii"),
    "NaN radius": ({"epsilons": (math.nan,)}, BoundaryValueError, "positive, finite radii"),
    "falling radii": ({"epsilons": (1.0, 0.5)}, BoundaryValueError, "each larger than the one before"),
    "equal radii": ({"epsilons": (1.0, 1.0)}, BoundaryValueError, "each larger than the one before"),
    "one number": ({"epsilons": 0.5}, BoundaryTypeError, "a sequence of numbers, but it is float"),
    "text": ({"epsilons": "12"}, BoundaryTypeError, "a sequence of numbers, but it is str"),
    "list of text": ({"epsilons": ["1"]}, BoundaryTypeError, r"a sequence of numbers, but it is \['1'\]"),
    "attack_steps": ({"attack_steps": 0}, BoundaryValueError, "attack_steps must be a positive integer, but it is 0"),
    "attack_step_size": ({"attack_step_size": 0.0}, BoundaryValueError, r"must be positive and finite.* 0\.0"),
    "infinite step": ({"attack_step_size": math.inf}, BoundaryValueError, "attack_step_size must be positive and"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_are_refused(linear, options, error, message):
    with pytest.raises(error, match=message):
        PGDBoundary(linear, **options)
