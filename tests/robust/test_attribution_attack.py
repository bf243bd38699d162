"""The attack on explanations: exact optima of linear models, what it promises on any model, and what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from captum.robust import Perturbation
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_boundary._core.agreement import center_shift, kendall_tau, topk_intersection
from captum_boundary._core.flat import pack
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust import AttributionAttack
from captum_boundary.robust._attribution_maps import AttributionMaps

MEASURES = {"kendall": kendall_tau, "topk": lambda clean, shares: topk_intersection(clean, shares, 4)}
METHODS = ("topk", "mass_center", "target", "random")
EPSILON = 0.2


def attack(forward_func, method="topk", **options):
    if method == "target" and "target_map" not in options:
        options["target_map"] = torch.eye(4)
    return AttributionAttack(forward_func, method, **{"epsilon": EPSILON, "n_steps": 8, "attack_steps": 8, **options})


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def network():
    """Takes images ``(N, 2, 4, 4)``."""
    layers = nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(96, 12), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(12, 3)).double().eval()


@pytest.fixture
def images():
    values = torch.rand(5, 2, 4, 4, dtype=torch.float64)
    return values * (values > 0.3)  # with a black background, where attributions have a kink


def shares_of(attacker, inputs, points, target=None):
    maps = attacker._maps((inputs,), target, None)
    return maps.at(maps.x).shares, maps.at(pack((points,))).shares


def equal_up_to_rounding(first, second):
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


# Linear models, whose maps |x w| are known, and with them the best of all perturbations -------------------------------


def linear_model(weight):
    """Class 0 wins everywhere, so that the label is no constraint."""
    return lambda x: torch.stack([x.flatten(1) @ weight + 1e3, torch.zeros(len(x)), torch.zeros(len(x))], dim=1)


def random_linear(n_features, shape):
    weight = torch.randn(n_features, dtype=torch.float64)
    inputs = torch.rand(4, *shape, dtype=torch.float64) + EPSILON + 0.01
    return weight, inputs * torch.randn(4, *shape).sign()


def scaled(maps):
    return maps / maps.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_top_of_a_linear_model_loses_all_it_can(k):
    weight, inputs = random_linear(10, (10,))
    top = (inputs * weight).abs().argsort(dim=1, descending=True)[:, :k]
    sign = torch.ones_like(inputs).scatter_(1, top, -1.0)
    best = inputs + EPSILON * sign * inputs.sign()

    def mass_on_top(clean, shares):
        torch.testing.assert_close(clean, scaled((inputs * weight).abs()))
        return shares.gather(1, top).sum(dim=1)

    perturbed = attack(linear_model(weight), k=k, measure=mass_on_top).perturb(inputs)
    torch.testing.assert_close(perturbed, best)


def test_the_target_of_a_linear_model_gains_all_it_can():
    weight, inputs = random_linear(16, (1, 4, 4))
    best = inputs + EPSILON * (2 * torch.eye(4) - 1) * inputs.sign()
    torch.testing.assert_close(attack(linear_model(weight), "target").perturb(inputs), best)


def test_the_center_of_a_linear_model_moves_as_far_as_it_can():
    weight, inputs = random_linear(9, (1, 1, 9))
    perturbed = attack(linear_model(weight), "mass_center", attack_steps=20).perturb(inputs)
    position = torch.arange(9.0, dtype=torch.float64)

    def center(images):
        return (scaled((images.flatten(1) * weight).abs()) * position).sum(dim=1)

    # The pixels beyond the new center gain what they can, those before it lose what they can.
    start = center(inputs)
    towards = torch.where(start < 4, 1.0, -1.0)
    furthest = torch.zeros_like(start)
    for threshold in range(10):
        sides = torch.where(position >= threshold, 1.0, -1.0) * towards[:, None]
        ends = inputs + EPSILON * sides[:, None, None] * inputs.sign()
        furthest = torch.maximum(furthest, towards * (center(ends) - start))
    torch.testing.assert_close(towards * (center(perturbed) - start), furthest)


def test_random_moves_are_the_same_for_every_example():
    weight, inputs = random_linear(10, (10,))
    moves = (attack(linear_model(weight), "random").perturb(inputs) - inputs) / EPSILON
    torch.testing.assert_close(moves.abs(), torch.ones_like(moves))
    torch.testing.assert_close(moves, moves[:1].expand_as(moves))
    assert 0 < (moves[0] > 0).sum() < 10


def test_random_moves_are_drawn_until_the_label_is_kept():
    """One feature decides: half of all draws lose the label of the first example, none that of the second."""

    def model(x):
        return torch.stack([x[:, 0], torch.zeros(len(x))], dim=1)

    inputs = torch.tensor([[0.1, 0.5], [0.5, 0.5]], dtype=torch.float64)
    for seed in range(8):
        perturbed = attack(model, "random", generator=torch.Generator().manual_seed(seed)).perturb(inputs)
        assert perturbed[0, 0].item() == pytest.approx(0.3)
        assert (perturbed[1] - 0.5).abs().tolist() == pytest.approx([EPSILON, EPSILON])
    lost = attack(model, "random", bounds=(-1, (0.1 + 1e-12) * torch.ones(2)), attack_steps=1)
    starts = torch.tensor([[0.1, 0.0]], dtype=torch.float64)
    found = {tuple(lost.perturb(starts)[0].tolist()) for lost.generator in map(_generator, range(8))}
    assert (0.1, 0.0) in found  # without a draw that keeps the label, the input itself comes back


def _generator(seed):
    return torch.Generator().manual_seed(seed)


# What the attack promises on any model --------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10**6),
    epsilon=st.floats(0, 1),
    method=st.sampled_from(("topk", "target", "random")),
    attribution=st.sampled_from(("ig", "gradient")),
    measure=st.sampled_from((None, "kendall", "topk")),
    dtype=st.sampled_from((torch.float64, torch.float32, torch.bfloat16)),
)
def test_promises(seed, epsilon, method, attribution, measure, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
        inputs = torch.rand(3, 6).to(dtype)
    inputs[:, :2] = 0.0
    options = {"target_map": torch.eye(6)[:3]} if method == "target" else {}
    attacker = attack(
        model,
        method,
        epsilon=epsilon,
        bounds=(0, 1),
        attribution=attribution,
        measure=measure,
        attack_steps=4,
        **options,
    )
    perturbed = attacker.perturb(inputs)
    assert perturbed.shape == inputs.shape
    assert perturbed.dtype == dtype
    assert not perturbed.requires_grad
    assert ((perturbed.double() - inputs.double()).abs() <= epsilon).all()
    assert ((perturbed >= 0) & (perturbed <= 1)).all()
    assert torch.equal(model(perturbed).argmax(dim=1), model(inputs).argmax(dim=1))
    assert torch.equal(attacker.perturb(inputs), perturbed)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_gives_the_same_as_one_by_one(network, images, method):
    attacker = attack(network, method, bounds=(0, 1))
    together = attacker.perturb(images)
    alone = torch.cat([attacker.perturb(image) for image in images.split(1)])
    equal_up_to_rounding(together, alone)
    assert (together != images).any()


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_internal_batches_does_not_matter(network, images, method):
    expected = attack(network, method, bounds=(0, 1)).perturb(images)
    for size in (3, 16, 1000):
        equal_up_to_rounding(attack(network, method, bounds=(0, 1), internal_batch_size=size).perturb(images), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epsilon", [0, 0.0, 1e-30])
def test_nothing_changes_without_epsilon(network, images, method, epsilon):
    images = images + 0.5  # numbers that 1e-30 is lost on
    perturbed = attack(network, method, epsilon=epsilon).perturb(images)
    assert torch.equal(perturbed, images)
    assert perturbed is not images


@pytest.mark.parametrize("method", ["topk", "mass_center", "target"])
@pytest.mark.parametrize("measure", MEASURES)
def test_the_measure_falls(network, images, method, measure):
    attacker = attack(network, method, bounds=(0, 1), measure=measure, k=4)
    perturbed = attacker.perturb(images)
    moved = (perturbed != images).flatten(1).any(dim=1)
    assert moved.sum() >= 3
    agreement = MEASURES[measure](*shares_of(attacker, images, perturbed))
    assert (agreement[moved] < 1).all()
    assert torch.equal(agreement[~moved], torch.ones_like(agreement[~moved]))


def test_by_default_each_method_is_judged_by_its_aim(network, images):
    for method, measure in {
        "topk": kendall_tau,
        "mass_center": lambda clean, shares: -center_shift(clean.view(-1, 4, 4), shares.view(-1, 4, 4)),
        "target": lambda clean, shares: -(shares.view(-1, 4, 4) * torch.eye(4)).sum(dim=(1, 2)),
    }.items():
        expected = attack(network, method, measure=measure).perturb(images)
        equal_up_to_rounding(attack(network, method).perturb(images), expected)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_iterate_with_the_lowest_measure_is_kept(network, images, monkeypatch, measure):
    visited = []
    monkeypatch.setattr(
        AttributionMaps, "at", lambda self, points, at=AttributionMaps.at: _note(visited, at(self, points))
    )
    perturbed = attack(network, bounds=(0, 1), measure=measure, k=4).perturb(images)
    label = network(images).argmax(dim=1)
    for row in range(len(images)):
        agreement = []
        for state in visited:
            pair = visited[0].shares[[row]], state.shares[[row]]
            value = MEASURES[measure](*pair)
            keeps = network(state.points[[row]].view(1, 2, 4, 4)).argmax() == label[row]
            agreement.append(value.item() if keeps else math.inf)
        lowest = agreement.index(min(agreement))
        equal_up_to_rounding(perturbed[row].flatten(), visited[lowest].points[row])


def _note(visited, state):
    visited.append(state)
    return state


def test_the_input_comes_back_where_nothing_is_gained(network, images):
    perturbed = attack(network, measure=lambda clean, shares: (clean - shares).abs().sum(dim=1)).perturb(images)
    assert torch.equal(perturbed, images)


def test_a_black_image_has_no_map_to_attack(network):
    black = torch.zeros(2, 2, 4, 4, dtype=torch.float64)
    for method in ("topk", "mass_center"):
        assert torch.equal(attack(network, method).perturb(black), black)


def test_labels_are_those_predicted_whatever_the_target(network, images):
    label = network(images).argmax(dim=1)
    for target in (1, [0, 1, 2, 0, 1], (label + 1) % 3):
        perturbed = attack(network, epsilon=1.0, bounds=(0, 1)).perturb(images, target)
        assert torch.equal(network(perturbed).argmax(dim=1), label)
        assert (perturbed != images).any()


def test_no_target_is_the_predicted_class(network, images):
    label = network(images).argmax(dim=1)
    assert torch.equal(attack(network).perturb(images), attack(network).perturb(images, label))


@pytest.mark.parametrize("as_column", [True, False])
def test_binary_models(as_column):
    layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)).double()
    model = layers if as_column else lambda x: layers(x).squeeze(1)
    inputs = torch.randn(12, 6, dtype=torch.float64)
    layers[2].bias.data -= layers(inputs).median()
    side = layers(inputs) > 0
    assert side.any()
    assert not side.all()
    perturbed = attack(model, k=2).perturb(inputs, 0)
    assert torch.equal(layers(perturbed) > 0, side)
    assert (perturbed != inputs).any(dim=1).sum() > 6
    assert torch.equal(perturbed, attack(model, k=2).perturb(inputs))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
        self.scores = nn.Linear(8, 3)

    def forward(self, sequences):
        return self.scores(self.encoder(sequences).mean(dim=1))


def test_models_with_attention():
    model = Attentive().double().eval()
    sequences = torch.randn(3, 5, 8, dtype=torch.float64)
    perturbed = attack(model).perturb(sequences)
    assert torch.equal(model(perturbed).argmax(dim=1), model(sequences).argmax(dim=1))
    assert (perturbed != sequences).flatten(1).any(dim=1).all()


def test_it_is_a_perturbation_of_captum(network, images):
    attacker = attack(network)
    assert isinstance(attacker, Perturbation)
    assert torch.equal(attacker(images), attacker.perturb(images))


# Several inputs, further arguments ------------------------------------------------------------------------------------


def test_several_inputs_have_one_map():
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    whole = torch.rand(4, 10, dtype=torch.float64)

    def split_model(first, second):
        return model(torch.cat([first.flatten(1), second], dim=1))

    parts = (whole[:, :6].reshape(4, 3, 2), whole[:, 6:])
    expected = attack(model, bounds=(0, 1), k=3).perturb(whole)
    perturbed = attack(split_model, bounds=((0, 1), (0, 1)), k=3).perturb(parts)
    assert [part.shape for part in perturbed] == [part.shape for part in parts]
    equal_up_to_rounding(torch.cat([part.flatten(1) for part in perturbed], dim=1), expected)
    target_map = torch.arange(10) % 2
    expected = attack(model, "target", target_map=target_map).perturb(whole)
    perturbed = attack(split_model, "target", target_map=target_map).perturb(parts)
    equal_up_to_rounding(torch.cat([part.flatten(1) for part in perturbed], dim=1), expected)


def test_a_tuple_of_one_comes_back_as_a_tuple_of_one(network, images):
    perturbed = attack(network, "mass_center").perturb((images,))
    assert isinstance(perturbed, tuple)
    assert torch.equal(perturbed[0], attack(network, "mass_center").perturb(images))


def test_further_arguments_reach_their_examples(network, images):
    shift = torch.rand(5, 1, 4, 4, dtype=torch.float64)

    def model(x, own, factor):
        return network(factor * (x + own))

    together = attack(model).perturb(images, None, (shift, 0.9))
    for row in range(5):
        alone = attack(model).perturb(images[[row]], None, (shift[[row]], 0.9))
        equal_up_to_rounding(together[[row]], alone)


def test_target_maps_may_differ_between_examples(network, images):
    target_maps = (torch.rand(5, 4, 4) > 0.6).float()
    together = attack(network, "target", target_map=target_maps).perturb(images)
    for row in range(5):
        alone = attack(network, "target", target_map=target_maps[row]).perturb(images[[row]])
        equal_up_to_rounding(together[[row]], alone)


# Nothing of the user's is disturbed -----------------------------------------------------------------------------------


def everything_of(model, inputs):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), "inputs": inputs}
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    flags = {name: (tensor.requires_grad, tensor.grad) for name, tensor in tensors.items()}
    modules = [(module.training, dict(module._forward_hooks), module.__dict__.keys()) for module in model.modules()]
    return values, flags, copy.deepcopy([(training, hooks, set(keys)) for training, hooks, keys in modules])


def assert_untouched(model, inputs, before, random_state):
    values, flags, modules = everything_of(model, inputs)
    assert all(torch.equal(value, before[0][name]) for name, value in values.items())
    assert flags == before[1]
    assert modules == before[2]
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("requires_grad", [True, False])
def test_nothing_is_disturbed(network, images, method, requires_grad):
    images.requires_grad_(requires_grad)
    before, random_state = everything_of(network, images), torch.get_rng_state()
    attack(network, method).perturb(images)
    assert_untouched(network, images, before, random_state)


def test_nothing_is_disturbed_by_an_exception(network, images):
    before, random_state = everything_of(network, images), torch.get_rng_state()
    calls = []

    def model(x):
        calls.append(x)
        if len(calls) == 20:
            raise KeyError("inside")
        return network(x)

    with pytest.raises(KeyError, match="inside"):
        attack(model).perturb(images)
    assert_untouched(network, images, before, random_state)
    assert torch.equal(torch.relu(-images), torch.zeros_like(images))  # activations are their own again


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_without_gradients(network, images, mode):
    expected = attack(network).perturb(images)
    with mode():
        assert torch.equal(attack(network).perturb(images.clone()), expected)


def test_frozen_models_are_attacked_all_the_same(network, images):
    expected = attack(network).perturb(images)
    assert torch.equal(attack(network.requires_grad_(False)).perturb(images), expected)


def test_the_generator_is_what_is_random(network, images):
    first, second = (attack(network, "random", generator=_generator(1)).perturb(images) for _ in range(2))
    assert torch.equal(first, second)
    attacker = attack(network, "random", generator=_generator(1))
    assert torch.equal(attacker.perturb(images), first)
    assert not torch.equal(attacker.perturb(images), first)
    assert not torch.equal(attack(network, "random").perturb(images), first)


def test_progress_is_shown_on_demand(network, images, capsys):
    attack(network).perturb(images)
    assert capsys.readouterr().err == ""
    attack(network, show_progress=True).perturb(images)
    assert "Attribution attack" in capsys.readouterr().err


# What is refused ------------------------------------------------------------------------------------------------------

BAD_ARGUMENTS = {
    "forward_func": ({"forward_func": 1}, BoundaryTypeError, "forward_func must be callable, but it is int"),
    "method": (
        {"method": "top"},
        BoundaryValueError,
        "method must be 'topk' or .* or 'random', but it is 'top'",
    ),
    "attribution": ({"attribution": "lrp"}, BoundaryValueError, "attribution must be 'ig' or 'gradient'"),
    "measure": ({"measure": "cosine"}, BoundaryValueError, "measure must be 'kendall' or 'topk'"),
    "negative epsilon": ({"epsilon": -0.1}, BoundaryValueError, r"at least 0, but it is -0\.1"),
    "infinite epsilon": ({"epsilon": math.inf}, BoundaryValueError, "at least 0, but it is inf"),
    "NaN epsilon": ({"epsilon": math.nan}, BoundaryValueError, "at least 0, but it is nan"),
    "text epsilon": ({"epsilon": "8/255"}, BoundaryValueError, "at least 0, but it is '8/255'"),
    "n_steps": ({"n_steps": 0}, BoundaryValueError, "n_steps must be a positive integer, but it is 0"),
    "attack_steps": ({"attack_steps": 1.5}, BoundaryValueError, "attack_steps must be a positive integer"),
    "attack_step_size": ({"attack_step_size": 0}, BoundaryValueError, "attack_step_size must be a positive number"),
    "softplus_beta": ({"softplus_beta": -1.0}, BoundaryValueError, "softplus_beta must be a positive number"),
    "k": ({"k": 0}, BoundaryValueError, "k must be a positive integer"),
    "internal_batch_size": ({"internal_batch_size": 0}, BoundaryValueError, "internal_batch_size must be a positive"),
    "generator": ({"generator": 7}, BoundaryTypeError, r"generator must be a torch\.Generator, but it is int"),
    "no target_map": ({"method": "target", "target_map": None}, BoundaryValueError, "'target' it is None"),
    "idle target_map": ({"target_map": torch.eye(4)}, BoundaryValueError, "method='topk' it is given"),
    "idle baselines": ({"attribution": "gradient", "baselines": 0.5}, BoundaryValueError, "leave them out"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments_are_refused(network, arguments, error, message):
    with pytest.raises(error, match=message):
        attack(**{"forward_func": network, **arguments})


BAD_CALLS = {
    "integers": (lambda x: x.long(), {}, {}, BoundaryTypeError, "must be floating point"),
    "list": (lambda x: [x], {}, {}, BoundaryTypeError, "it is list"),
    "empty": (lambda x: x[:0], {}, {}, BoundaryValueError, "at least one example"),
    "no features": (lambda x: x[:, :, :0], {}, {}, BoundaryValueError, r"at least one feature, .* \(5, 2, 0, 4\)"),
    "NaN": (lambda x: x * torch.nan, {}, {}, BoundaryValueError, r"NaN or infinity in row\(s\)"),
    "outside": (lambda x: x + 1, {"bounds": (0, 1)}, {}, BoundaryValueError, "must lie inside bounds"),
    "target": (lambda x: x, {}, {"target": 3}, BoundaryValueError, "between 0 and 2, but it contains 3"),
    "targets": (lambda x: x, {}, {"target": [0, 1]}, BoundaryValueError, "each of the 5 examples"),
    "k": (lambda x: x, {"k": 17}, {}, BoundaryValueError, "at most the 16 features of a map, but it is 17"),
    "baselines": (lambda x: x, {"baselines": torch.zeros(3)}, {}, BoundaryValueError, "A baseline must be a number"),
    "target_map shape": (
        lambda x: x,
        {"method": "target", "target_map": torch.ones(2, 4, 4)},
        {},
        BoundaryValueError,
        r"\(4, 4\), or of one for each example, \(5, 4, 4\), but its shape is \(2, 4, 4\)",
    ),
    "target_map type": (
        lambda x: x,
        {"method": "target", "target_map": [[1.0]]},
        {},
        BoundaryTypeError,
        "target_map must be a Tensor",
    ),
    "target_map sign": (
        lambda x: x,
        {"method": "target", "target_map": -torch.eye(4)},
        {},
        BoundaryValueError,
        "holds values from -1 to",
    ),
    "target_map empty": (
        lambda x: x,
        {"method": "target", "target_map": torch.zeros(4, 4)},
        {},
        BoundaryValueError,
        "0 elsewhere, in every example",
    ),
    "measure": (
        lambda x: x,
        {"measure": lambda clean, shares: 0.5},
        {},
        BoundaryValueError,
        r"must return a Tensor of shape \(5,\), but it returned float",
    ),
}


@pytest.mark.parametrize(("change", "options", "call", "error", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_are_refused(network, images, change, options, call, error, message):
    with pytest.raises(error, match=message):
        attack(network, **options).perturb(change(images), **call)


@pytest.mark.parametrize("method", ["topk", "random"])
def test_numbers_are_inputs_of_one_feature(method):
    model = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.rand(5, dtype=torch.float64)
    perturbed = attack(model, method, n_steps=4).perturb(x)
    assert perturbed.shape == (5,)
    assert torch.equal(model(perturbed).argmax(dim=1), model(x).argmax(dim=1))


def test_a_center_needs_images():
    model = nn.Linear(4, 3)
    with pytest.raises(BoundaryValueError, match="needs one input of images"):
        attack(model, "mass_center").perturb(torch.rand(2, 4))


@pytest.mark.parametrize(
    ("broken", "error"), [(lambda s: s / 0, "NaN or infinite scores"), (lambda s: (s, s), "tuple")]
)
def test_bad_outputs_are_refused(network, images, broken, error):
    with pytest.raises((BoundaryValueError, BoundaryTypeError), match=error):
        attack(lambda x: broken(network(x))).perturb(images)
