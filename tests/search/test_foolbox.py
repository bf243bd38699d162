"""Attacks of Foolbox as searches."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from captum_boundary import BoundaryNotFoundWarning
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search import FoolboxBoundary

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # foolbox imports a deprecated name of scipy
    pytest.importorskip("foolbox")
    from foolbox import attacks
    from foolbox.attacks.base import MinimizationAttack
    from foolbox.distances import l2

INPUTS = torch.rand(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(6, 2).double()


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def distances(model, inputs):
    """Distance to the only boundary of a linear model with two classes, in closed form."""
    scores = model(inputs).detach()
    return (scores[:, 0] - scores[:, 1]).abs() / (model.weight[0] - model.weight[1]).norm().detach()


class Probe(MinimizationAttack):
    """An attack that draws from every global source of randomness and keeps what it saw."""

    distance = None

    def __init__(self, error=None):
        self.error, self.drawn, self.criteria, self.shapes = error, [], [], []

    def run(self, model, inputs, criterion, *, early_stop=None, **kwargs):
        self.drawn.append((torch.rand(1).item(), np.random.rand()))  # noqa: NPY002
        self.criteria.append(type(criterion).__name__)
        self.shapes.append(tuple(inputs.shape))
        if self.error is not None:
            raise self.error
        return inputs


@pytest.mark.parametrize("attack", [attacks.DDNAttack(), attacks.L2DeepFoolAttack(loss="logits")])
def test_distances_of_linear_models(linear, attack):
    boundary = FoolboxBoundary(linear, attack, bounds=(-5, 5)).find(INPUTS)
    assert boundary.found.all()
    torch.testing.assert_close(boundary.distance, distances(linear, INPUTS), rtol=0.02, atol=0)


def test_fixed_radii_keep_the_smallest_success():
    inputs = torch.tensor([[0.5, 0.05], [0.5, 0.25], [0.5, 0.9]], dtype=torch.float64)
    attack = attacks.L2PGD(rel_stepsize=0.5, steps=5, random_start=False)
    search = FoolboxBoundary(lambda x: 2 * x[:, 1], attack, bounds=(-5, 5), epsilons=(0.1, 0.3, 1.0))
    boundary = search.find(inputs)
    torch.testing.assert_close(boundary.distance, inputs[:, 1], rtol=1e-6, atol=0)
    # Five gradients for each radius that was tried: finished examples do not take part in the next.
    assert boundary.n_gradient.tolist() == [5, 10, 15]


def test_evaluations_are_counted(linear):
    calls = 0

    def model(x):
        nonlocal calls
        calls += len(x)
        return linear(x)

    boundary = FoolboxBoundary(model, attacks.DDNAttack(steps=20), bounds=(-5, 5)).find(INPUTS[:1])
    assert boundary.n_gradient.tolist() == [20]
    assert boundary.n_forward.tolist() == [calls]


def test_examples_outside_their_region_are_attacked_with_a_target(mlp):
    predicted = mlp(INPUTS).argmax(dim=1)
    target = torch.where(torch.arange(5) % 2 == 0, predicted, (predicted + 1) % 4)
    probe = Probe()
    with pytest.warns(BoundaryNotFoundWarning):
        FoolboxBoundary(mlp, probe).find(INPUTS, target)
    assert probe.criteria == ["Misclassification", "TargetedMisclassification"]
    assert probe.shapes == [(3, 6), (2, 6)]
    boundary = FoolboxBoundary(mlp, attacks.DDNAttack(), bounds=(-9, 9)).find(INPUTS, target)
    after = mlp(boundary.points).argmax(dim=1)
    assert torch.equal(after == target, target != predicted)


def test_attacks_that_know_no_target_say_so(mlp):
    other = (mlp(INPUTS).argmax(dim=1) + 1) % 4
    with pytest.raises(
        BoundaryValueError, match=r"NewtonFoolAttack cannot be used for examples outside .* rows \[0, 1"
    ):
        FoolboxBoundary(mlp, attacks.NewtonFoolAttack()).find(INPUTS, other)


def test_images_keep_their_shape_and_tuples_are_flat():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = torch.rand(2, 3, 2, 2)
    probe = Probe()
    with pytest.warns(BoundaryNotFoundWarning):
        FoolboxBoundary(model, probe).find(images)
    with pytest.warns(BoundaryNotFoundWarning):
        FoolboxBoundary(lambda a, b: model(torch.cat([a, b], dim=1)), probe).find((images[:, :1], images[:, 1:]))
    with pytest.warns(BoundaryNotFoundWarning):
        FoolboxBoundary(lambda x: x - 2, probe).find(torch.rand(4))
    assert probe.shapes == [(2, 3, 2, 2), (2, 12), (4, 1)]


def test_gradients_of_the_parameters_are_left_alone(mlp):
    assert all(parameter.grad is None for parameter in mlp.parameters())
    FoolboxBoundary(mlp, attacks.DDNAttack(steps=10), bounds=(-9, 9)).find(INPUTS)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in mlp.parameters())


@pytest.mark.parametrize("error", [None, RuntimeError("gave up")], ids=["success", "exception"])
def test_global_randomness_is_put_back(mlp, error):
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002
    search = FoolboxBoundary(mlp, Probe(error))
    if error is None:
        with pytest.warns(BoundaryNotFoundWarning):
            search.find(INPUTS)
    else:
        with pytest.raises(RuntimeError, match="gave up"):
            search.find(INPUTS)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])  # noqa: NPY002


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_attacks_draw_from_the_generator(mlp):
    def drawn(seed=None):
        probe = Probe()
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        FoolboxBoundary(mlp, probe, generator=generator).find(INPUTS)
        return probe.drawn

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn() == drawn()


def test_one_at_a_time_makes_random_attacks_independent_of_the_batch(mlp):
    attack = attacks.L2PGD(steps=5)
    search = FoolboxBoundary(mlp, attack, bounds=(-9, 9), epsilons=(1.0, 4.0), internal_batch_size=1)
    together = search.find(INPUTS)
    assert together.found.all()
    for row in range(5):
        assert torch.equal(search.find(INPUTS[row : row + 1]).points[0], together.points[row])


def test_a_vanishing_gradient_is_no_disaster():
    def model(x):  # DDN divides by the length of its step, which is zero for the second example
        return torch.stack([x[:, 0].clamp(max=0.7), torch.full_like(x[:, 0], 0.2)], dim=1)

    inputs = torch.tensor([[0.5, 0.5], [0.9, 0.5]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        boundary = FoolboxBoundary(model, attacks.DDNAttack(steps=50)).find(inputs)
    assert boundary.found[0]
    assert boundary.distance[0].item() == pytest.approx(0.3, rel=0.02)
    assert torch.isfinite(boundary.points).all()


def test_inputs_off_the_bounds_by_rounding_are_accepted(linear):
    inputs = INPUTS.clone()
    inputs[0, 0] = -3e-8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        boundary = FoolboxBoundary(linear, attacks.DDNAttack(steps=20)).find(inputs)
    assert (boundary.points >= -3e-8).all()


def test_repeated_attacks_will_do(linear):
    attack = attacks.L2PGD(steps=20).repeat(2)
    assert FoolboxBoundary(linear, attack, bounds=(-5, 5), epsilons=(0.5, 4.0)).find(INPUTS).found.all()
    with pytest.raises(BoundaryValueError, match="give epsilons"):
        FoolboxBoundary(linear, attack)


def test_a_missing_foolbox_is_named(linear, monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox.attacks", None)
    with pytest.raises(ImportError, match=r"pip install captum-boundary\[foolbox\]"):
        FoolboxBoundary(linear, attacks.DDNAttack())


BAD_OPTIONS = {
    "no bounds": ({"bounds": None}, BoundaryValueError, "two finite numbers, lower < upper, but they are None"),
    "infinite bounds": ({"bounds": (0, float("inf"))}, BoundaryValueError, "two finite numbers"),
    "reversed bounds": ({"bounds": (1, 0)}, BoundaryValueError, r"lower < upper, but they are \(1, 0\)"),
    "tensors": ({"bounds": (torch.zeros(1), torch.ones(1))}, BoundaryValueError, "normalization inside the model"),
    "pairs": ({"bounds": ((0, 1), (0, 1))}, BoundaryValueError, "two finite numbers"),
    "radii": ({"epsilons": (1.0, 0.5)}, BoundaryValueError, "each larger than the one before"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_are_refused(linear, options, error, message):
    with pytest.raises(error, match=message):
        FoolboxBoundary(linear, attacks.DDNAttack(), **options)


@pytest.mark.parametrize("attack", [attacks.DDNAttack, "DDN", None], ids=["class", "text", "None"])
def test_an_attack_must_be_one(linear, attack):
    with pytest.raises(BoundaryTypeError, match=r"must be an attack of Foolbox 3, for example .*, but it is"):
        FoolboxBoundary(linear, attack)


def test_fixed_attacks_need_radii(linear):
    with pytest.raises(BoundaryValueError, match=r"L2ProjectedGradientDescentAttack needs a fixed radius"):
        FoolboxBoundary(linear, attacks.L2PGD())


class Choosy(Probe):
    """An attack that begins with no example whose first value exceeds 0.5, as those that need a first point do."""

    distance = l2

    def run(self, model, inputs, criterion, *, early_stop=None, **kwargs):
        self.shapes.append(tuple(inputs.shape))
        failed = int((inputs[:, 0] > 0.5).sum().item())
        if failed:
            raise ValueError(f"init_attack failed for {failed} of {len(inputs)} inputs")
        return inputs + 10


@pytest.mark.parametrize("hopeless", [[2], [0, 3, 4], [0, 1, 2, 3, 4], []])
@pytest.mark.parametrize("epsilons", [None, (30.0, 60.0)])
def test_examples_that_an_attack_cannot_begin_with_are_not_found(hopeless, epsilons):
    inputs = torch.zeros(5, 6, dtype=torch.float64)
    inputs[hopeless, 0] = 1
    attack = Choosy()
    search = FoolboxBoundary(lambda x: x[:, 1] - 5, attack, bounds=(-50, 50), epsilons=epsilons)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundaryNotFoundWarning)
        boundary = search.find(inputs)
    expected = torch.ones(5, dtype=torch.bool)
    expected[hopeless] = False
    assert torch.equal(boundary.found, expected)
    assert torch.equal(boundary.points[~expected], inputs[~expected])
    assert (boundary.points[expected, 1] >= 5).all()


@pytest.mark.filterwarnings("ignore:LinearSearchBlendedUniformNoiseAttack failed to draw")
def test_a_real_attack_that_needs_a_first_point_leaves_out_what_has_none():
    def model(x, varies):
        return torch.where(varies, x[:, 1] - 0.6, 0 * x[:, 1] - 0.4)

    inputs = torch.tensor([[0.0, 0.2], [0.9, 0.2], [0.1, 0.3]], dtype=torch.float64)
    search = FoolboxBoundary(model, attacks.BoundaryAttack(steps=20))
    with pytest.warns(BoundaryNotFoundWarning, match=r"1 of 3 examples, row\(s\) 1"):
        boundary = search.find(inputs, additional_forward_args=torch.tensor([True, False, True]))
    assert boundary.found.tolist() == [True, False, True]


def test_other_errors_of_an_attack_are_passed_on(mlp):
    with pytest.raises(ValueError, match="something else"):
        FoolboxBoundary(mlp, Probe(ValueError("something else"))).find(INPUTS)
