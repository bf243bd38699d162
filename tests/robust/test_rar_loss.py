"""The training loss: closed forms, special cases, exact gradients, and nothing of the user's disturbed."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_boundary import RARLoss, paper_settings
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust import _pointwise_loss


def softplus_network(n_inputs: int = 5, n_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n_inputs, 8), nn.Softplus(), nn.Linear(8, n_classes)).double()


def batch(n_examples: int = 6, n_inputs: int = 5, n_classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n_examples, n_inputs, generator=generator, dtype=torch.float64)
    return x, torch.randint(n_classes, (n_examples,), generator=generator)


class OneLayer(nn.Module):
    """The margin <w, x>; its losses are g(-y <w, x>) with labels y of -1 and 1."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


ONE_LAYER_LOSSES = {
    "logistic": F.softplus,
    "squared softplus": lambda z: F.softplus(z) ** 2,
    "exponential": torch.exp,
}


@pytest.mark.parametrize("g", ONE_LAYER_LOSSES.values(), ids=ONE_LAYER_LOSSES)
@pytest.mark.parametrize("size", ["ig_norm", "sum"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), epsilon=st.floats(0.01, 1.0))
def test_one_layer_models_have_the_soft_margin_loss(size, g, seed, epsilon) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = OneLayer(torch.randn(7, generator=generator, dtype=torch.float64))
    x = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    y = 2 * torch.randint(2, (5,), generator=generator).double() - 1
    weight = model.weight.detach()
    closed_form = g(-y * (x @ weight) + epsilon * weight.abs().sum())

    def loss_func(margin: Tensor, y: Tensor) -> Tensor:
        return g(-y * margin)

    rar = RARLoss(model, size, epsilon=epsilon, loss_func=loss_func, n_steps=60, quadrature="gausslegendre", warmup=0)
    maximizer = x - epsilon * y[:, None] * weight.sign()
    at_maximizer = loss_func(model(x), y) + rar.regularizer(x, maximizer, y)
    torch.testing.assert_close(at_maximizer.detach(), closed_form, rtol=1e-8, atol=1e-8)

    for start in (True, False):
        rar = RARLoss(model, size, epsilon=epsilon, loss_func=loss_func, random_start=start, warmup=0)
        reached = rar.regularizer(x, rar.perturb(x, y), y)
        assert (reached >= 0.99 * rar.regularizer(x, maximizer, y) - 1e-12).all()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 2.5])
def test_sum_is_adversarial_training(weight) -> None:
    model, (x, y) = softplus_network(), batch()
    rar = RARLoss(model, "sum", epsilon=0.2, weight=weight, bounds=(0, 1), warmup=0)
    loss = rar(x, y)
    at_input, at_perturbed = (F.cross_entropy(model(points), y) for points in (x, rar.parts.perturbed))
    expected = at_input + weight * (at_perturbed - at_input)
    assert (at_perturbed > at_input).all()
    torch.testing.assert_close(loss, expected)
    gradients, expected_gradients = (torch.autograd.grad(value, list(model.parameters())) for value in (loss, expected))
    torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("norm", [math.inf, 2])
def test_sum_finds_what_plain_projected_gradient_ascent_finds(norm) -> None:
    model, (x, y) = softplus_network(), batch()
    rar = RARLoss(model, "sum", epsilon=0.1, norm=norm, attack_steps=50, random_start=False, warmup=0)
    move = torch.zeros_like(x)
    for _ in range(500):
        points = (x + move).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(points), y, reduction="sum"), points)
        if norm == 2:
            move = move + 0.01 * gradient / gradient.norm(dim=1, keepdim=True)
            move = move * (0.1 / move.norm(dim=1, keepdim=True)).clamp_max(1)
        else:
            move = (move + 0.01 * gradient.sign()).clamp(-0.1, 0.1)
    expected = F.cross_entropy(model(x + move), y)
    assert rar(x, y).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_norm_power_with_one_step_is_input_gradient_regularization(power) -> None:
    model, (x, y) = softplus_network(), batch()
    rar = RARLoss(model, "norm_power", epsilon=0.2, weight=3.0, n_steps=1, power=power, warmup=0)
    loss = rar(x, y)
    leaves = x.clone().requires_grad_()
    losses = F.cross_entropy(model(leaves), y, reduction="none")
    (slope,) = torch.autograd.grad(losses.sum(), leaves, create_graph=True)
    expected = (losses + 3.0 * (0.2 * slope.abs().sum(dim=1)) ** power).mean()
    torch.testing.assert_close(loss, expected)
    gradients, expected_gradients = (torch.autograd.grad(value, list(model.parameters())) for value in (loss, expected))
    torch.testing.assert_close(gradients, expected_gradients)


def test_ig_sum_norm_takes_the_loss_at_the_perturbed_inputs() -> None:
    model, (x, y) = softplus_network(), batch()
    rar = RARLoss(model, "ig_sum_norm", epsilon=0.2, weight=0.7, warmup=0)
    loss = rar(x, y)
    expected = F.cross_entropy(model(rar.parts.perturbed), y) + 0.7 * rar.regularizer(x, rar.parts.perturbed, y).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(rar.parts.natural_loss, F.cross_entropy(model(x), y, reduction="none").detach())


def l2_size(attribution: Tensor) -> Tensor:
    return attribution.flatten(1).norm(dim=1)


@pytest.mark.parametrize("size", ["ig_norm", "ig_sum_norm", "norm_power", l2_size])
@pytest.mark.parametrize("norm", [math.inf, 2])
@pytest.mark.parametrize("bounds", [None, (0, 1)])
def test_the_attack_stays_in_the_ball_and_beats_random_points(size, norm, bounds) -> None:
    model, (x, y) = softplus_network(), batch()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    rar = RARLoss(model, size, epsilon=0.3, norm=norm, bounds=bounds, attack_steps=10, warmup=0)
    perturbed = rar.perturb(x, y)
    move = (perturbed - x).norm(p=norm, dim=1)
    assert (move <= 0.3 + 1e-12).all()
    assert bounds is None or (perturbed.min() >= 0 and perturbed.max() <= 1)

    def objective(points: Tensor) -> Tensor:
        loss = F.cross_entropy(model(points), y, reduction="none") if size == "ig_sum_norm" else 0
        return (loss + rar.weight * rar.regularizer(x, points, y)).detach()

    def noise(generator: torch.Generator) -> Tensor:
        normal = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return 0.3 * (normal.sign() if norm == math.inf else normal / normal.norm(dim=1, keepdim=True))

    generator = torch.Generator().manual_seed(5)
    at_random = torch.stack(
        [objective((x + noise(generator)).clamp(*(bounds or (-math.inf, math.inf)))) for _ in range(20)]
    )
    assert objective(perturbed).mean() > 1.2 * at_random.mean()
    assert objective(perturbed).mean() > at_random.mean(dim=1).max()


@pytest.mark.parametrize("norm", [math.inf, 2])
def test_epsilon_may_grow_between_steps(norm) -> None:
    model, (x, y) = softplus_network(), batch()
    rar = RARLoss(model, "ig_norm", epsilon=0.02, norm=norm, attack_step_size=0.01, warmup=0)
    rar.epsilon = 0.2
    grown = RARLoss(model, "ig_norm", epsilon=0.2, norm=norm, attack_step_size=0.1, warmup=0)
    torch.testing.assert_close(rar.perturb(x, y), grown.perturb(x, y))
    assert rar.epsilon == 0.2
    with pytest.raises(BoundaryValueError, match="epsilon must be"):
        rar.epsilon = 0


@pytest.mark.parametrize("norm", [math.inf, 2])
@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("attack_step_size", [None, 0.5])
def test_the_attack_turns_round_where_bounds_leave_no_room(norm, random_start, attack_step_size) -> None:
    weight = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    model = OneLayer(weight)
    x = (weight < 0).double().expand(3, -1)  # the corner of the bounds where the loss is highest
    y = torch.ones(3)
    options = {"epsilon": 0.2, "norm": norm, "bounds": (0, 1), "random_start": random_start}
    rar = RARLoss(
        model, loss_func=lambda margin, y: F.softplus(-margin), attack_step_size=attack_step_size, **options, warmup=0
    )
    perturbed = rar.perturb(x, y)
    assert ((perturbed - x).norm(norm, dim=1) > 0.99 * 0.2).all()
    torch.testing.assert_close(perturbed, x + (perturbed - x).abs() * weight.sign())


@pytest.mark.parametrize("norm", [math.inf, 2])
@pytest.mark.parametrize("attack_step_size", [None, 0.5])
def test_the_attack_starts_where_the_loss_rises(norm, attack_step_size) -> None:
    """The norm of attributions has a maximum on either side, and the larger one where the loss rises."""
    weight = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    model, x, y = OneLayer(weight), torch.full((3, 4), 0.5, dtype=torch.float64), torch.ones(3)
    for random_start in (True, False):
        options = {"epsilon": 0.2, "norm": norm, "bounds": (0, 1), "random_start": random_start}
        rar = RARLoss(
            model,
            loss_func=lambda margin, y: torch.exp(-margin),
            attack_step_size=attack_step_size,
            **options,
            warmup=0,
        )
        torch.testing.assert_close((rar.perturb(x, y) - x).sign(), -weight.sign().expand(3, -1))


def test_the_penalized_form_ends_where_its_optimum_is() -> None:
    weight = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    model = OneLayer(weight[0])
    x, y = torch.zeros(2, 3, dtype=torch.float64), torch.ones(2)

    def loss_func(margin: Tensor, y: Tensor) -> Tensor:
        return -y * margin

    # max_d <-w, d> - 4 |d|^2 is at d = -w / 8, where the l1 norm of the attribution, sum |w_i d_i|, has a maximum too.
    for size in ("sum", "ig_norm"):
        rar = RARLoss(model, size, epsilon=0.01, penalty=4.0, loss_func=loss_func, warmup=0)
        torch.testing.assert_close(rar.perturb(x, y), (-weight / 8).expand(2, -1))


def numerical_gradient(function, parameter: Tensor, direction: Tensor) -> float:
    values = []
    with torch.no_grad():
        for step in (-1e-5, 1e-5):
            parameter.add_(direction, alpha=step)
            values.append(function().item())
            parameter.sub_(direction, alpha=step)
    return (values[1] - values[0]) / 2e-5


@pytest.mark.parametrize("size", ["ig_norm", "norm_power", l2_size])
@pytest.mark.parametrize("internal_batch_size", [None, 4])
@pytest.mark.parametrize("with_layer", [False, True])
def test_parameter_gradients_at_fixed_points(size, internal_batch_size, with_layer) -> None:
    model, (x, y) = softplus_network(), batch()
    layer, quadrature = (model[1], "riemann_right") if with_layer else (None, None)
    rar = RARLoss(
        model,
        size,
        epsilon=0.3,
        n_steps=9,
        internal_batch_size=internal_batch_size,
        layer=layer,
        quadrature=quadrature,
        warmup=0,
    )
    perturbed = rar.perturb(x, y)
    row_weights = torch.rand(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def value() -> Tensor:
        return (rar.regularizer(x, perturbed, y) * row_weights).sum()

    gradients = torch.autograd.grad(value(), list(model.parameters()), materialize_grads=True)
    generator = torch.Generator().manual_seed(4)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        expected = numerical_gradient(value, parameter, direction)
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("size", ["ig_norm", "ig_sum_norm", "sum", "norm_power"])
def test_internal_batch_size_changes_nothing(size) -> None:
    x, y = batch()
    outcomes = []
    for internal_batch_size in (None, 1, 6, 13, 50, 130, 10_000):
        model = softplus_network()
        loss = RARLoss(model, size, epsilon=0.3, internal_batch_size=internal_batch_size, warmup=0)(x, y)
        loss.backward()
        outcomes.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", ["ig_norm", "ig_sum_norm"])
def test_the_default_divides_large_batches_and_changes_nothing(size, monkeypatch) -> None:
    x, y = batch(24)
    outcomes, largest = [], []
    for saved_at_once in (2**40, 2**12, 1):
        monkeypatch.setattr(_pointwise_loss, "_CPU_BYTES", saved_at_once)
        model = softplus_network()
        passed: list[int] = []
        model.register_forward_pre_hook(lambda _, inputs, of=passed: of.append(len(inputs[0])))
        loss = RARLoss(model, size, epsilon=0.3, n_steps=9, attack_n_steps=4, warmup=0)(x, y)
        loss.backward()
        outcomes.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
        largest.append(max(passed))
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0], rtol=1e-9, atol=1e-11)
    assert largest[0] == 24 * 9
    assert largest[2] == 24  # as many as an ordinary forward pass takes
    assert largest[2] <= largest[1] < largest[0]


@pytest.mark.parametrize("with_layer", [False, True])
@pytest.mark.parametrize("internal_batch_size", [12, 25, 60])
def test_internal_batch_size_costs_nothing_where_whole_paths_fit(internal_batch_size, with_layer) -> None:
    model, (x, y) = softplus_network(), batch()
    layer = model[1] if with_layer else None
    settings = {"epsilon": 0.3, "n_steps": 11, "attack_n_steps": 5, "attack_steps": 2, "layer": layer}
    passed: dict[int | None, list[int]] = {}
    for size in (None, internal_batch_size):
        rar = RARLoss(model, "ig_norm", internal_batch_size=size, **settings, warmup=0)
        passed[size] = []
        handle = model.register_forward_pre_hook(lambda _, inputs, of=passed[size]: of.append(len(inputs[0])))
        rar(x, y).backward()
        handle.remove()
    examples_alone = len(x) + 1  # of checks and measurements, at most one for each group of one example
    assert sum(passed[internal_batch_size]) <= sum(passed[None]) + 2 * examples_alone
    assert max(passed[internal_batch_size]) <= max(len(x), internal_batch_size)


class Conditioned(nn.Module):
    """Logits that depend on a scale for each example, and on a table that all of them share."""

    def __init__(self) -> None:
        super().__init__()
        self.body = softplus_network()

    def forward(self, x: Tensor, scales: Tensor, table: Tensor) -> Tensor:
        assert len(scales) == len(x)
        return self.body(x * scales[:, None]) + table.sum(dim=0)


@pytest.mark.parametrize("n_entries", range(1, 6))
def test_further_arguments_follow_their_examples_into_every_group(n_entries) -> None:
    x, y = batch()
    generator = torch.Generator().manual_seed(2)
    scales = 0.5 + torch.rand(len(x), generator=generator, dtype=torch.float64)
    table = torch.rand(n_entries, 3, generator=generator, dtype=torch.float64)  # as long as some group of examples
    outcomes = []
    for internal_batch_size in (None, 1, 3, 4, 8, 12, 16, 20, 1000):
        model = Conditioned()
        settings = {"epsilon": 0.3, "n_steps": 4, "internal_batch_size": internal_batch_size}
        loss = RARLoss(model, "ig_sum_norm", **settings, warmup=0)(x, y, (scales, table))
        loss.backward()
        outcomes.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("internal_batch_size", [None, 6, 120])
def test_gradients_of_added_and_scaled_losses_equal_those_of_an_ordinary_graph(internal_batch_size) -> None:
    model, (x, y) = softplus_network(), batch()
    parameters = list(model.parameters())
    rar = RARLoss(model, epsilon=0.3, weight=0.7, internal_batch_size=internal_batch_size, warmup=0)
    total = torch.zeros((), dtype=torch.float64)
    expected = torch.zeros((), dtype=torch.float64)
    for scale in (0.5, 2.0):
        total = total + scale * rar(x, y)
        regularizer = RARLoss(model, epsilon=0.3, warmup=0).regularizer(x, rar.parts.perturbed, y)
        expected = expected + scale * (F.cross_entropy(model(x), y) + 0.7 * regularizer.mean())
    actual, correct = (torch.autograd.grad(value, parameters) for value in (total, expected))
    torch.testing.assert_close(actual, correct, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("internal_batch_size", [None, 4, 60])
def test_parameters_that_do_not_matter_get_no_gradient(internal_batch_size) -> None:
    model, (x, y) = softplus_network(), batch()
    model.unused = nn.Identity()
    model.unused.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    RARLoss(model, epsilon=0.3, internal_batch_size=internal_batch_size, warmup=0)(x, y).backward()
    assert model.unused.weight.grad is None
    assert all(parameter.grad is not None for parameter in (*model[0].parameters(), *model[2].parameters()))


@pytest.mark.parametrize("internal_batch_size", [None, 60])
def test_sizes_that_no_parameter_changes(internal_batch_size) -> None:
    model = nn.Linear(5, 1).double()
    model.weight.requires_grad_(False)
    x, y = batch()
    rar = RARLoss(
        model, epsilon=0.3, loss_func=lambda out, y: out.squeeze(1), internal_batch_size=internal_batch_size, warmup=0
    )
    rar(x, y).backward()
    torch.testing.assert_close(model.bias.grad, torch.ones(1, dtype=torch.float64))


def test_frozen_parameters_get_no_gradient_in_groups_either() -> None:
    model, (x, y) = softplus_network(), batch()
    frozen = next(model.parameters()).requires_grad_(False)
    RARLoss(model, epsilon=0.3, internal_batch_size=60, warmup=0)(x, y).backward()
    assert frozen.grad is None
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter is not frozen)


@pytest.mark.parametrize("size", ["ig_norm", "ig_sum_norm", "sum"])
def test_examples_do_not_see_each_other(size) -> None:
    model, (x, y) = softplus_network(), batch()
    rar = RARLoss(model, size, epsilon=0.3, random_start=False, warmup=0)
    together = rar.perturb(x, y)
    alone = torch.cat([rar.perturb(x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(alone, together, rtol=1e-9, atol=1e-9)
    sizes = torch.cat([rar.regularizer(x[i : i + 1], together[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(sizes, rar.regularizer(x, together, y))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.table = nn.Linear(12, 3).double(), nn.Linear(4, 3).double()

    def forward(self, image: Tensor, table: Tensor, scale: Tensor, sign: int) -> Tensor:
        return sign * torch.tanh(self.image(image.flatten(1)) + self.table(table)) * scale[:, None]


def test_several_inputs_and_further_arguments() -> None:
    model = TwoInputs()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(5, 3, 2, 2, generator=generator, dtype=torch.float64)
    table, scale = torch.randn(5, 4, generator=generator).double(), torch.rand(5, generator=generator).double()
    y = torch.tensor([0, 1, 2, 0, 1])
    rar = RARLoss(model, "ig_norm", epsilon=0.1, bounds=((0, 1), None), random_start=False, warmup=0)
    loss = rar((image, table), y, (scale, -1))
    loss.backward()
    assert [part.shape for part in rar.parts.perturbed] == [image.shape, table.shape]
    # The same model with one joined input.
    joined = torch.cat([image.flatten(1), table], dim=1)

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(model)
            self.model.zero_grad()

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.model(x[:, :12].view(-1, 3, 2, 2), x[:, 12:], scale, -1)

    lower = torch.tensor([0.0] * 12 + [-math.inf] * 4, dtype=torch.float64)
    upper = torch.tensor([1.0] * 12 + [math.inf] * 4, dtype=torch.float64)
    alike = Joined()
    expected = RARLoss(alike, "ig_norm", epsilon=0.1, bounds=(lower, upper), random_start=False, warmup=0)(
        joined, y, scale
    )
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for parameter, same in zip(model.parameters(), alike.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, same.grad)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_logit_is_two_classes(shape) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 8), nn.Softplus(), nn.Linear(8, 1)).double()
    (x, _), y = batch(), torch.tensor([0, 1, 1, 0, 1, 0])

    class OneLogit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).view(shape)

    class TwoLogits(OneLogit):
        def forward(self, x: Tensor) -> Tensor:
            score = self.body(x)
            return torch.cat([torch.zeros_like(score), score], dim=1)

    one, two = (RARLoss(model(), "ig_norm", epsilon=0.1, warmup=0)(x, y) for model in (OneLogit, TwoLogits))
    torch.testing.assert_close(one, two)
    with pytest.raises(BoundaryValueError, match=r"classes between 0 and 1, but it holds 0 to 2 .* 1 output"):
        RARLoss(OneLogit(), epsilon=0.1, warmup=0)(x, y + (y == 1))


class Noisy(nn.Module):
    """Batch normalization and dropout, as they are met in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.dropout, self.last = (
            nn.Linear(5, 8),
            nn.BatchNorm1d(8),
            nn.Dropout(0.3),
            nn.Linear(8, 3),
        )
        self.n_forward = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_forward += self.training
        return self.last(self.dropout(F.softplus(self.norm(self.first(x)))))


@pytest.mark.parametrize("size", ["ig_norm", "ig_sum_norm", "sum"])
@pytest.mark.parametrize("internal_batch_size", [None, 6])
def test_noisy_layers_are_disturbed_once_and_by_the_loss_alone(size, internal_batch_size) -> None:
    torch.manual_seed(0)
    model = Noisy().double()
    x, y = batch()
    alike = copy.deepcopy(model)
    natural = F.cross_entropy(copy.deepcopy(model).eval()(x), y, reduction="none")
    rar = RARLoss(model, size, epsilon=0.1, internal_batch_size=internal_batch_size, warmup=0)
    torch.manual_seed(1)
    loss = rar(x, y)
    loss.backward()
    random_state = torch.get_rng_state()

    torch.manual_seed(1)
    losses = F.cross_entropy(alike(x if size == "ig_norm" else rar.parts.perturbed), y, reduction="none")
    assert torch.equal(torch.get_rng_state(), random_state)
    for buffer, same in zip(model.buffers(), alike.buffers(), strict=True):
        assert torch.equal(buffer, same)
    assert torch.equal(rar.parts.loss, losses.detach())
    torch.testing.assert_close(rar.parts.natural_loss, natural.detach())
    assert model.n_forward == 1
    assert all(module.training for module in model.modules())

    if size == "sum":  # which is the loss itself, and needs no path
        torch.testing.assert_close(rar.parts.regularizer, rar.parts.loss - rar.parts.natural_loss)
        losses.mean().backward()
        for parameter, same in zip(model.parameters(), alike.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, same.grad)
        return
    # The regularizer is that of the model in evaluation mode, after the forward pass.
    alike.eval()
    expected = RARLoss(alike, size, epsilon=0.1, warmup=0).regularizer(x, rar.parts.perturbed, y)
    torch.testing.assert_close(rar.parts.regularizer, expected.detach())
    (losses.mean() + rar.weight * expected.mean()).backward()
    for parameter, same in zip(model.parameters(), alike.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, same.grad)


@pytest.mark.parametrize("internal_batch_size", [None, 6])
def test_losses_of_several_batches_share_a_backward_pass(internal_batch_size) -> None:
    torch.manual_seed(0)
    model = Noisy().double()
    model.dropout.p = 0.0
    x, y = batch(12)
    alike = copy.deepcopy(model)

    def losses(of: nn.Module) -> list[RARLoss]:
        return [
            RARLoss(of, epsilon=0.1, random_start=False, internal_batch_size=internal_batch_size, warmup=0)
            for _ in range(2)
        ]

    first, second = losses(model)
    (first.regularizer(x[:6], x[:6] + 0.1, y[:6]).mean() + second(x[6:], y[6:])).backward()
    first, second = losses(alike)
    first.regularizer(x[:6], x[:6] + 0.1, y[:6]).mean().backward()
    second(x[6:], y[6:]).backward()
    for parameter, same in zip(model.parameters(), alike.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, same.grad)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_users_changes(fails) -> None:
    model, (x, y) = softplus_network(), batch()
    model.eval()
    model[0].bias.requires_grad_(False)
    calls = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        calls.append(module.training)
        return output * torch.nan if fails and len(calls) > 8 else None

    handle = model[2].register_forward_hook(hook)
    x.requires_grad_()
    before, state = x.detach().clone(), copy.deepcopy(model.state_dict())
    numbers = torch.get_rng_state()
    rar = RARLoss(model, epsilon=0.1, layer=model[1], warmup=0)
    if fails:
        with pytest.raises(BoundaryValueError, match=r"NaN or infinite for 6 of 6 examples, row\(s\) 0, 1, 2, 3, 4, 5"):
            rar(x, y)
    else:
        rar(x, y).backward()
        assert model[0].weight.grad is not None
    assert model[0].bias.grad is None
    assert x.grad is None
    assert torch.equal(x, before)
    assert x.requires_grad
    assert torch.equal(torch.get_rng_state(), numbers)
    assert list(model[2]._forward_hooks) == [handle.id]
    assert not model[1]._forward_hooks
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_random_starts_are_repeatable_and_differ_between_calls() -> None:
    model, (x, y) = softplus_network(), batch()

    def perturbed(generator: torch.Generator | None) -> list[Tensor]:
        rar = RARLoss(
            model, "ig_norm", epsilon=0.3, attack_steps=1, attack_step_size=1e-9, generator=generator, warmup=0
        )
        return [rar.perturb(x, y) for _ in range(2)]

    first, second = perturbed(None)
    assert not torch.equal(first, second)
    assert torch.equal(first, perturbed(None)[0])
    assert torch.equal(*(perturbed(torch.Generator().manual_seed(7))[0] for _ in range(2)))
    assert not torch.equal(first, perturbed(torch.Generator().manual_seed(7))[0])
    for norm in (math.inf, 2):
        rar = RARLoss(model, epsilon=0.3, norm=norm, attack_steps=1, attack_step_size=1e-9, warmup=0)
        assert ((rar.perturb(x, y) - x).norm(p=norm, dim=1) <= 0.3 + 1e-8).all()


def test_evaluation_without_gradients() -> None:
    model, (x, y) = softplus_network(), batch()
    rar = RARLoss(model, epsilon=0.1, random_start=False, warmup=0)
    expected = rar(x, y)
    with torch.no_grad():
        loss = rar(x, y)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())


@pytest.mark.parametrize("size", ["ig_norm", "ig_sum_norm", "sum"])
@pytest.mark.parametrize("internal_batch_size", [None, 6])
@pytest.mark.parametrize("made_inside", [False, True])
def test_inference_mode_is_evaluation_without_gradients(size, internal_batch_size, made_inside) -> None:
    """Trainers validate in it."""
    (x, y), model = batch(), Conditioned()
    scales, table = torch.full((len(x),), 0.5, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    rar = RARLoss(model, size, epsilon=0.3, internal_batch_size=internal_batch_size, random_start=False, warmup=0)
    with torch.no_grad():
        expected = rar(x, y, (scales, table)), rar.parts.perturbed, rar.parts.regularizer
    with torch.inference_mode():
        if made_inside:
            x, y, scales, table = (tensor.clone() for tensor in (x, y, scales, table))
        loss = rar(x, y, (scales, table))
        perturbed = rar.perturb(x, y, (scales, table))
        sizes = rar.regularizer(x, perturbed.clone(), y, (scales, table))
        assert torch.is_inference_mode_enabled()
    for value, same in zip((loss, perturbed, sizes), expected, strict=True):
        assert not value.requires_grad
        torch.testing.assert_close(value, same)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype) -> None:
    x, y = batch()
    expected = RARLoss(softplus_network(), epsilon=0.1, random_start=False, warmup=0)(x.to(dtype).double(), y)
    model = softplus_network().to(dtype)
    rar = RARLoss(model, epsilon=0.1, random_start=False, warmup=0)
    loss = rar(x.to(dtype), y)
    loss.backward()
    assert rar.parts.perturbed.dtype == dtype
    assert model[0].weight.grad.dtype == dtype
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("internal_batch_size", [None, 6])
def test_autocast_holds_in_the_backward_pass(internal_batch_size) -> None:
    x, y = batch()
    seen = set()
    gradients = []
    for enabled in (False, True):
        model = softplus_network().float()
        model[2].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled):
            loss = RARLoss(model, epsilon=0.1, random_start=False, internal_batch_size=internal_batch_size, warmup=0)(
                x.float(), y
            )
        loss.backward()
        assert seen == ({torch.bfloat16} if enabled else {torch.float32})
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("internal_batch_size", [None, 8, 64])
def test_scaled_losses_keep_small_gradients_in_half_precision(internal_batch_size) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Softplus(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.03)
    x, y = batch()
    gradients = []
    for enabled in (False, True):
        # The weight is in the place of a GradScaler's scale. Without it, some gradients are too small for float16.
        settings = {"epsilon": 1e-3, "n_steps": 8, "weight": 2**14, "random_start": False}
        rar = RARLoss(model, **settings, internal_batch_size=internal_batch_size, warmup=0)
        with torch.autocast("cpu", torch.float16, enabled):
            regularizer = rar(x.float(), y) - F.cross_entropy(model(x.float()), y)
        gradients.append(torch.autograd.grad(regularizer, list(model.parameters())))
    for expected, actual in zip(*gradients, strict=True):
        assert (actual - expected).norm() < 0.2 * expected.norm()


def test_transformers_train() -> None:
    torch.manual_seed(0)

    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x).mean(dim=1))

    model = Attentive()
    x, y = torch.randn(4, 6, 8), torch.tensor([0, 1, 2, 0])
    for internal_batch_size in (None, 4):
        model.zero_grad()
        RARLoss(model, epsilon=0.1, n_steps=3, internal_batch_size=internal_batch_size, warmup=0)(x, y).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_training_makes_attributions_smaller() -> None:
    x, y = batch(64)
    sizes = {}
    for name in ("natural", "ig_norm"):
        model = softplus_network()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        rar = RARLoss(model, epsilon=0.2, bounds=(0, 1), n_steps=10, warmup=0)
        for _ in range(60):
            optimizer.zero_grad()
            (rar(x, y) if name == "ig_norm" else F.cross_entropy(model(x), y)).backward()
            optimizer.step()
        rar(x, y)
        sizes[name] = rar.parts.regularizer.mean()
    assert sizes["ig_norm"] < 0.5 * sizes["natural"]


def test_paper_settings_fit_the_loss() -> None:
    model = softplus_network()
    for dataset in ("mnist", "fashion_mnist", "gtsrb", "flower"):
        for size in ("ig_norm", "ig_sum_norm", "sum"):
            rar = RARLoss(model, size, **paper_settings(dataset, size))
            assert rar.weight == (
                0.1
                if (dataset, size)
                in {
                    ("mnist", "ig_sum_norm"),
                    ("fashion_mnist", "ig_sum_norm"),
                    ("flower", "ig_norm"),
                    ("flower", "ig_sum_norm"),
                }
                else 1
            )
            assert rar.epsilon in (0.3, 0.1, 8 / 255)
    with pytest.raises(BoundaryValueError, match=r"dataset must be one of 'mnist', .* but it is 'svhn'"):
        paper_settings("svhn")
    with pytest.raises(BoundaryValueError, match=r"size must be one of .* but it is 'norm_power'"):
        paper_settings("mnist", "norm_power")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": "ig_nrom"}, BoundaryValueError, "size must be one of 'ig_norm', .* but it is 'ig_nrom'"),
        ({"size": 3}, BoundaryTypeError, "size must be a name or a function of attributions, but it is int"),
        ({"epsilon": 0}, BoundaryValueError, "epsilon must be a positive number, but it is 0"),
        ({"epsilon": -0.1}, BoundaryValueError, "epsilon must be a positive number, but it is -0.1"),
        ({"epsilon": math.nan}, BoundaryValueError, "epsilon must be a positive number, but it is nan"),
        ({"epsilon": "0.1"}, BoundaryValueError, "epsilon must be a positive number, but it is '0.1'"),
        ({"weight": -1}, BoundaryValueError, "weight must be a number of at least 0, but it is -1"),
        ({"norm": 1}, BoundaryValueError, "norm must be math.inf, 2 or a Norm such as WeightedL2, but it is 1"),
        ({"n_steps": 0}, BoundaryValueError, "n_steps must be a positive integer, but it is 0"),
        ({"attack_steps": 2.5}, BoundaryValueError, "attack_steps must be a positive integer, but it is 2.5"),
        ({"attack_step_size": 0.0}, BoundaryValueError, "attack_step_size must be a positive number"),
        ({"penalty": -1.0}, BoundaryValueError, "penalty must be a positive number, but it is -1.0"),
        ({"internal_batch_size": 0}, BoundaryValueError, "internal_batch_size must be a positive integer"),
        ({"generator": 7}, BoundaryTypeError, "generator must be a torch.Generator, but it is int"),
        ({"layer": nn.Linear(2, 2)}, BoundaryValueError, "layer must be a module of the model"),
        ({"quadrature": "simpson"}, BoundaryValueError, "quadrature must be 'riemann_right'"),
    ],
)
def test_options_that_make_no_sense(options, error, message) -> None:
    with pytest.raises(error, match=message):
        RARLoss(softplus_network(), **{"epsilon": 0.1, **options}, warmup=0)


def test_layers_need_rules_with_even_nodes() -> None:
    model = softplus_network()
    with pytest.raises(BoundaryValueError, match=r"With layer, quadrature must be .* but it is 'gausslegendre'"):
        RARLoss(model, epsilon=0.1, layer=model[1], quadrature="gausslegendre", warmup=0)


def test_models_must_be_modules() -> None:
    with pytest.raises(BoundaryTypeError, match=r"model must be a torch.nn.Module, .* but it is function"):
        RARLoss(lambda x: x, epsilon=0.1, warmup=0)


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (torch.rand(4, 5), torch.tensor([0, 1, 2, 3]), BoundaryValueError, "between 0 and 2, but it holds 0 to 3"),
        (torch.rand(4, 5), torch.tensor([0, 1, -1, 2]), BoundaryValueError, "between 0 and 2, but it holds -1 to 2"),
        (
            torch.rand(4, 5),
            torch.tensor([0, 1]),
            BoundaryValueError,
            r"one entry for each of the 4 examples, .* \(2,\)",
        ),
        (torch.rand(4, 5), torch.rand(4), BoundaryTypeError, "must hold integer classes, .* dtype torch.float32"),
        (torch.rand(4, 5), [0, 1, 2, 0], BoundaryTypeError, "target must be a Tensor of classes, but it is list"),
        (torch.rand(4, 5), np.zeros(4, dtype=int), BoundaryTypeError, r"ndarray\. .* torch\.as_tensor\(target\)\.$"),
        (torch.rand(4, 5) + 1.5, torch.tensor([0] * 4), BoundaryValueError, "inputs must lie inside bounds"),
        (torch.full((4, 5), math.nan), torch.tensor([0] * 4), BoundaryValueError, "NaN"),
        (torch.rand(0, 5), torch.tensor([], dtype=torch.long), BoundaryValueError, "at least one example|empty"),
        (torch.rand(4, 0), torch.tensor([0] * 4), BoundaryValueError, r"at least one feature, .* \(4, 0\)"),
        (torch.randint(2, (4, 5)), torch.tensor([0] * 4), BoundaryTypeError, "floating point"),
    ],
)
def test_bad_batches(x, y, error, message) -> None:
    rar = RARLoss(softplus_network().float(), epsilon=0.1, bounds=(0, 1), warmup=0)
    for call in (rar, rar.perturb, lambda x, y: rar.regularizer(x, x, y)):
        with pytest.raises(error, match=message):
            call(x, y)


def test_numbers_are_inputs_of_one_feature() -> None:
    model, (x, y) = nn.Sequential(nn.Unflatten(0, (-1, 1)), softplus_network(1)), batch(n_inputs=1)
    rar = RARLoss(model, epsilon=0.1, random_start=False, warmup=0)
    assert rar(x[:, 0], y).item() == pytest.approx(
        RARLoss(model[1], epsilon=0.1, random_start=False, warmup=0)(x, y).item()
    )
    assert rar.parts.perturbed.shape == (6,)


def test_perturbed_inputs_must_fit() -> None:
    (x, y), rar = batch(), RARLoss(softplus_network(), epsilon=0.1, warmup=0)
    with pytest.raises(BoundaryValueError, match=r"perturbed must have the shapes of inputs, \[\(6, 5\)\]"):
        rar.regularizer(x, x[:3], y)


def test_models_must_return_logits_of_every_example() -> None:
    x, y = batch()
    body = softplus_network()
    probabilities = nn.Sequential(body, nn.Softmax(dim=1))
    with pytest.raises(BoundaryValueError, match="seems to return probabilities"):
        RARLoss(probabilities, epsilon=0.1, warmup=0)(x, y)
    likelihood = RARLoss(
        probabilities, epsilon=0.1, loss_func=lambda p, y: F.nll_loss(p.log(), y, reduction="none"), warmup=0
    )
    torch.testing.assert_close(likelihood(x, y), RARLoss(body, epsilon=0.1, warmup=0)(x, y))
    with pytest.raises(BoundaryValueError, match=r"one loss for each of the 6 examples, .* Use reduction='none'"):
        RARLoss(body, epsilon=0.1, loss_func=nn.CrossEntropyLoss(), warmup=0)(x, y)
    with pytest.raises(BoundaryValueError, match=r"size must map attributions of shape \(6, 5\) to one number"):
        RARLoss(body, lambda attribution: attribution.abs().sum(), epsilon=0.1, warmup=0)(x, y)

    class TwoOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.body(x), x

    with pytest.raises(BoundaryTypeError, match="must return one Tensor of class scores, but it returned tuple"):
        RARLoss(TwoOutputs(), epsilon=0.1, warmup=0)(x, y)


def test_soft_targets_through_a_loss_of_ones_own() -> None:
    model, (x, y) = softplus_network(), batch()
    soft = F.one_hot(y, 3).double()

    def loss_func(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none")

    soft_loss = RARLoss(model, epsilon=0.1, loss_func=loss_func, warmup=0)(x, soft)
    torch.testing.assert_close(soft_loss, RARLoss(model, epsilon=0.1, warmup=0)(x, y))


def test_the_loss_is_a_module() -> None:
    model = softplus_network()
    rar = RARLoss(model, epsilon=0.1, layer=model[1], warmup=0)
    assert len(list(rar.parameters())) == len(list(model.parameters()))
    assert "size='ig_norm', epsilon=0.1, weight=1.0" in repr(rar)
    x, y = batch()
    rar(x, y)
    torch.testing.assert_close(copy.deepcopy(rar).perturb(x, y), rar.perturb(x, y))
