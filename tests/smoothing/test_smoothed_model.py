"""The mean over noisy copies: one fixed function, that of a slow replica, for all that takes a model."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from captum.attr import DeepLift, IntegratedGradients, LayerActivation
from torch import nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryIntegratedGradients,
    NearestBoundary,
    SmoothedModel,
    largest_stdev,
)
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

STDEV = 0.4


def network(n_inputs=5, n_outputs=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(n_inputs, 16), nn.ReLU(), nn.Linear(16, n_outputs)).double().eval()


def points(n=6, n_features=5):
    return torch.randn(n, n_features, generator=torch.Generator().manual_seed(1)).double()


def noise(n_samples, inputs):
    """What is added to the copies of an example, ``(n_samples, ...)``, as a model sees it."""
    seen = []
    SmoothedModel(lambda given: seen.append(given) or given, STDEV, n_samples=n_samples)(inputs[:1])
    return seen[0] - inputs[:1]


def is_same(first, second):
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    return True


def test_scores_are_the_mean_over_copies():
    model, x = network(), points()
    smoothed = SmoothedModel(model, STDEV, n_samples=8)
    assert is_same(smoothed(x), torch.stack([model(x + e) for e in noise(8, x)]).mean(dim=0))


def test_noise_has_the_standard_deviation_that_was_asked_for():
    x = torch.zeros(1, 20, dtype=torch.float64)
    vectors = noise(4000, x)
    assert abs(vectors.std().item() / STDEV - 1) < 0.01
    assert torch.equal(vectors[::2], -vectors[1::2]), "antithetic"


def test_a_linear_model_stays_as_it_is():
    model, x = nn.Linear(5, 3).double(), points()
    assert is_same(SmoothedModel(model, STDEV, n_samples=2)(x), model(x))


def test_a_paraboloid_is_lifted_by_the_variance():
    x = points(n_features=50)
    smoothed = SmoothedModel(lambda inputs: inputs.square().sum(dim=1), STDEV, n_samples=2000)
    torch.testing.assert_close(smoothed(x), x.square().sum(dim=1) + 50 * STDEV**2, rtol=0.01, atol=0)


def test_probabilities_are_averaged_and_returned_as_logarithms():
    model, x = network(), points()
    smoothed = SmoothedModel(model, STDEV, n_samples=8, average="probabilities")
    mean = torch.stack([model(x + e).softmax(dim=1) for e in noise(8, x)]).mean(dim=0)
    assert is_same(smoothed(x), mean.log())
    assert is_same(smoothed(x).exp().sum(dim=1), torch.ones(6).double())


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)], ids=str)
def test_one_output_keeps_its_shape(shape):
    model, x = network(n_outputs=1), points()
    smoothed = SmoothedModel(lambda inputs: model(inputs).reshape(shape), STDEV, n_samples=8, average="probabilities")
    mean = torch.stack([model(x + e).sigmoid() for e in noise(8, x)]).mean(dim=0)
    assert is_same(smoothed(x), mean.logit().reshape(shape))
    scores = SmoothedModel(lambda inputs: model(inputs).reshape(shape), STDEV, n_samples=8)
    assert is_same(scores(x), torch.stack([model(x + e) for e in noise(8, x)]).mean(dim=0).reshape(shape))


def test_certain_models_keep_a_slope():
    x = torch.full((1, 1), 300.0, requires_grad=True)
    model = SmoothedModel(lambda inputs: torch.cat([inputs, -inputs], dim=1), 1.0, n_samples=4, average="probabilities")
    (slope,) = torch.autograd.grad(model(x)[0, 1], x)
    assert slope.item() == pytest.approx(-2, rel=1e-4)


def test_an_example_has_the_same_scores_in_any_batch():
    smoothed, x = SmoothedModel(network(), STDEV), points()
    rows = torch.tensor([4, 4, 0, 2])
    assert is_same(smoothed(x[rows]), smoothed(x)[rows])
    assert is_same(torch.cat([smoothed(row) for row in x.split(1)]), smoothed(x))


def test_inputs_of_another_kind_in_another_thread_leave_no_trace():
    class Shared(SmoothedModel):
        """Whenever the noise is read again, another thread has called the model with inputs of another shape."""

        reads = 0

        @property
        def _last_noise(self):
            self.reads += 1
            return self.__dict__.get("own") if self.reads % 2 else ("another", (torch.zeros(8, 1),))

        @_last_noise.setter
        def _last_noise(self, noise):
            self.__dict__["own"] = noise

    model, x = network(), points()
    shared = Shared(model, STDEV, n_samples=8)
    for _ in range(2):
        shared.reads = 0
        assert is_same(shared(x), SmoothedModel(model, STDEV, n_samples=8)(x))


def test_earlier_inputs_of_another_kind_leave_no_trace():
    smoothed, x = SmoothedModel(lambda inputs: inputs.flatten(1).cos(), STDEV), points()
    before = smoothed(x)
    smoothed(points(n_features=3))
    smoothed(x.float())
    smoothed(x.reshape(6, 5, 1))
    assert torch.equal(smoothed(x), before)


@pytest.mark.parametrize("size", [1, 3, 8, 12, 17, 1000])
@pytest.mark.parametrize("average", ["scores", "probabilities"])
def test_parts_give_the_same_scores_and_gradients(size, average):
    model, x = network(), points().requires_grad_()
    scale = torch.rand(6, 1, generator=torch.Generator().manual_seed(0)).double()
    rows = []

    def scaled(inputs, scale):
        rows.append(len(inputs))
        return model(inputs) * scale

    whole, parts = (
        SmoothedModel(scaled, STDEV, n_samples=8, average=average, internal_batch_size=b) for b in (None, size)
    )
    expected = whole(x, scale)
    (slope,) = torch.autograd.grad(expected[:, 0].sum(), x)
    assert rows == [48]
    scores = parts(x, scale)
    assert is_same(scores, expected)
    assert is_same(torch.autograd.grad(scores[:, 0].sum(), x)[0], slope)
    assert max(rows[1:]) <= size
    with torch.no_grad():
        assert is_same(parts(x, scale), expected.detach())


def test_parts_do_not_keep_their_graphs():
    saved = []

    def of_large_graph(inputs):
        for _ in range(20):
            inputs = inputs.sin()
        return inputs

    def bytes_of(**options):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
            SmoothedModel(of_large_graph, STDEV, n_samples=16, **options)(points().requires_grad_())
        return sum(saved)

    assert bytes_of(internal_batch_size=6) < bytes_of() / 10


def test_gradients_are_the_mean_of_those_at_the_copies():
    model, x = network(), points()
    smoothed = SmoothedModel(model, STDEV, n_samples=8)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(smoothed(leaf)[:, 1].sum(), leaf)
    total = 0
    for e in noise(8, x):
        leaf = (x + e).requires_grad_()
        total = total + torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]
    assert is_same(slope, total / 8)


def test_every_input_has_its_own_noise_and_arguments_have_none():
    x, y, mask = points(), points(n_features=2), torch.arange(6)
    seen = []

    def model(*given):
        seen.append(given)
        return given[0]

    SmoothedModel(model, (0.1, 0.0), n_samples=4)(x, y, mask, 7)
    ((noisy, quiet, argument, number),) = seen
    assert number == 7
    assert torch.equal(argument, mask.repeat_interleave(4))
    assert torch.equal(quiet, y.repeat_interleave(4, dim=0))
    assert (noisy != x.repeat_interleave(4, dim=0)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes_are_kept_and_noise_is_the_same_in_all(dtype):
    x = torch.zeros(1, 5, dtype=dtype)
    smoothed = SmoothedModel(lambda inputs: inputs, STDEV, n_samples=4)
    assert smoothed(x).dtype == dtype
    expected = noise(4, x.double()).to(dtype)
    assert torch.equal(noise(4, x), expected)


def test_autocast_reaches_the_model():
    smoothed = SmoothedModel(network().float(), STDEV)
    with torch.autocast("cpu", torch.bfloat16):
        assert smoothed(points().float()).dtype == torch.bfloat16


def test_inference_mode_leaves_nothing_that_gradients_cannot_pass():
    smoothed, x = SmoothedModel(lambda inputs: inputs * inputs, STDEV), points()
    with torch.inference_mode():
        smoothed(x)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(smoothed(leaf).sum(), leaf)
    assert is_same(slope, 2 * x)


def test_a_default_device_does_not_matter():
    smoothed, x = SmoothedModel(network(), STDEV), points()
    with torch.device("meta"):
        assert smoothed(x).device.type == "cpu"


def test_random_states_and_modes_stay_as_they_were():
    model = network()
    model[1].train()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    SmoothedModel(model, STDEV)(points())
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes


def test_a_generator_chooses_the_noise_at_construction():
    x, generator = points(), torch.Generator().manual_seed(5)
    first, second = (SmoothedModel(network(), STDEV, generator=generator) for _ in range(2))
    again = SmoothedModel(network(), STDEV, generator=torch.Generator().manual_seed(5))
    state = generator.get_state()
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), second(x))
    assert not torch.equal(first(x), SmoothedModel(network(), STDEV)(x))
    assert torch.equal(generator.get_state(), state)


def test_copies_decide_alike_and_carry_no_noise():
    x, smoothed = points(), SmoothedModel(network(), STDEV)
    scores = smoothed(x)
    for twin in (copy.deepcopy(smoothed), pickle.loads(pickle.dumps(smoothed))):
        assert twin._last_noise is None
        assert torch.equal(twin(x), scores)
    assert [name for name, _ in smoothed.named_parameters()] == [
        f"forward_func.{name}" for name, _ in smoothed.forward_func.named_parameters()
    ]
    assert "stdev=0.4, n_samples=16, average='scores'" in repr(smoothed)


def test_searches_and_attributions_take_it_for_a_model():
    smoothed, x = SmoothedModel(network(), STDEV), points()
    boundary = NearestBoundary(smoothed).find(x)
    assert boundary.found.all()
    with torch.no_grad():
        assert (smoothed(boundary.points).argmax(dim=1) != smoothed(x).argmax(dim=1)).all()
    _, delta = BoundaryIntegratedGradients(smoothed).attribute(
        x, boundary=boundary, n_steps=500, return_convergence_delta=True
    )
    assert delta.abs().max() < 1e-2
    assert AggregatedBoundaryNormals(smoothed).attribute(x, n_boundaries=2).isfinite().all()
    assert IntegratedGradients(smoothed).attribute(x, target=0).shape == x.shape


def test_the_boundary_of_a_linear_model_is_where_it_was():
    model, x = nn.Linear(5, 3).double(), points()
    expected = NearestBoundary(model).find(x).distance
    torch.testing.assert_close(NearestBoundary(SmoothedModel(model, STDEV)).find(x).distance, expected)


def test_deep_lift_adds_up():
    smoothed, x = SmoothedModel(network(), STDEV), points()
    attributions, delta = BoundaryAttribution(smoothed, DeepLift).attribute(x, return_convergence_delta=True)
    assert attributions.abs().sum() > 0
    assert delta.abs().max() < 1e-9


def test_layers_see_the_copies_of_an_example_after_each_other():
    model, x = network(), points()
    smoothed = SmoothedModel(model, STDEV, n_samples=4)
    activations = LayerActivation(smoothed, model[0]).attribute(x)
    noisy = x[:, None] + noise(4, x)
    assert is_same(activations.unflatten(0, (6, 4)), model[0](noisy))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"forward_func": 3}, BoundaryTypeError, "forward_func must be callable, but it is int"),
        ({"stdev": -0.1}, BoundaryValueError, "stdev must be positive and finite .* it is -0.1"),
        ({"stdev": 0}, BoundaryValueError, "stdev must be positive"),
        ({"stdev": ()}, BoundaryValueError, "stdev must be positive"),
        ({"stdev": (0.0, 0.0)}, BoundaryValueError, "stdev must be positive"),
        ({"stdev": float("nan")}, BoundaryValueError, "stdev must be positive and finite"),
        ({"stdev": [0.1]}, BoundaryTypeError, "stdev must be a number, or a tuple .* contains list"),
        ({"stdev": True}, BoundaryTypeError, "contains bool"),
        ({"n_samples": 0}, BoundaryValueError, "n_samples must be a positive integer"),
        ({"n_samples": 5}, BoundaryValueError, "n_samples must be even, .* but it is 5"),
        ({"average": "votes"}, BoundaryValueError, "average must be 'scores' or 'probabilities', but it is 'votes'"),
        ({"generator": 0}, BoundaryTypeError, "generator must be a torch.Generator"),
        ({"internal_batch_size": 0}, BoundaryValueError, "internal_batch_size must be a positive integer"),
    ],
)
def test_impossible_settings_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        SmoothedModel(**{"forward_func": network(), "stdev": STDEV, **options})


@pytest.mark.parametrize(
    ("stdev", "arguments", "error", "message"),
    [
        (0.1, (torch.zeros(2, 5, dtype=torch.long),), BoundaryTypeError, "Input 0 must be .* but it is torch.int64"),
        (0.1, ([1.0],), BoundaryTypeError, "Input 0 must be .* but it is list"),
        ((0.1, 0.1), (torch.zeros(2, 5),), BoundaryValueError, "stdev is for 2 inputs, .* was given 1 argument"),
        ((0.1, 0.1), (torch.zeros(2, 5), torch.zeros(3, 5)), BoundaryValueError, r"\(2, 5\), \(3, 5\)"),
        (0.1, (torch.zeros(0, 5),), BoundaryValueError, "at least one"),
        (0.1, (torch.tensor(1.0),), BoundaryValueError, "at least one"),
    ],
)
def test_impossible_inputs_are_refused(stdev, arguments, error, message):
    with pytest.raises(error, match=message):
        SmoothedModel(lambda *inputs: inputs[0], stdev)(*arguments)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda x: (x, x), BoundaryTypeError, "returned tuple"),
        (lambda x: x.argmax(dim=1), BoundaryTypeError, "returned torch.int64"),
        (lambda x: x[:, :, None], BoundaryValueError, r"returned shape \(32, 5, 1\)"),
        (lambda x: x[:2], BoundaryValueError, r"for the N = 32 noisy copies .* returned shape \(2, 5\)"),
    ],
)
def test_impossible_outputs_are_refused(output, error, message):
    with pytest.raises(error, match=message):
        SmoothedModel(output, STDEV)(torch.zeros(2, 5))


@pytest.mark.parametrize("wrap", [lambda scores: {"logits": scores}, lambda scores: (scores, None)])
def test_scores_may_come_inside_of_something_else(wrap):
    model, inputs = network(), points()
    wrapped = SmoothedModel(lambda given: wrap(model(given)), STDEV)
    torch.testing.assert_close(wrapped(inputs), SmoothedModel(model, STDEV)(inputs), rtol=0, atol=0)
    stands = largest_stdev(lambda given: wrap(model(given)), inputs)
    assert torch.equal(stands, largest_stdev(model, inputs))
