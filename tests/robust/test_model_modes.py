"""Wrapped, compiled and noisy models, as attacks and paths meet them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from captum_boundary.errors import BoundaryValueError
from captum_boundary.robust import AttributionAttack, RARLoss, evaluate_attribution_robustness


class Recurrent(nn.Module):
    """Sequences ``(N, 4, 3)`` to logits ``(N, 3)``."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = layer(3, 5, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


@pytest.fixture(params=[nn.LSTM, nn.GRU, nn.RNN])
def recurrent(request) -> nn.Module:
    torch.manual_seed(0)
    return Recurrent(request.param).double()


@pytest.fixture
def sequences() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(6, 4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])


def test_dropout_between_recurrent_layers_is_no_part_of_regularizer_and_attack(recurrent, sequences) -> None:
    x, y = sequences
    state = torch.get_rng_state()
    outcomes = []
    for internal_batch_size in (None, None, 4, 24):
        rar = RARLoss(recurrent, epsilon=0.1, n_steps=6, internal_batch_size=internal_batch_size, warmup=0)
        perturbed = rar.perturb(x, y)
        sizes = rar.regularizer(x, perturbed, y)
        outcomes.append([perturbed, sizes, *torch.autograd.grad(sizes.sum(), list(recurrent.parameters()))])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in recurrent.modules())
    assert recurrent.layer.dropout == 0.5
    recurrent.eval()
    rar = RARLoss(recurrent, epsilon=0.1, n_steps=6, warmup=0)
    perturbed = rar.perturb(x, y)
    sizes = rar.regularizer(x, perturbed, y)
    expected = [perturbed, sizes, *torch.autograd.grad(sizes.sum(), list(recurrent.parameters()))]
    for outcome in outcomes:
        torch.testing.assert_close(outcome, expected, rtol=1e-9, atol=1e-11)


def test_recurrent_dropout_is_drawn_once_by_the_loss_alone(recurrent, sequences) -> None:
    x, y = sequences
    alike = copy.deepcopy(recurrent)
    torch.manual_seed(3)
    rar = RARLoss(recurrent, epsilon=0.1, warmup=0)
    rar(x, y).backward()
    state = torch.get_rng_state()
    torch.manual_seed(3)
    losses = nn.functional.cross_entropy(alike(x), y, reduction="none")
    assert torch.equal(rar.parts.loss, losses.detach())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fails", [False, True])
def test_recurrent_layers_are_looked_at_without_cudnn_and_left_as_they_were(recurrent, sequences, fails) -> None:
    x, y = sequences
    seen: set[tuple[bool, float]] = set()

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.add((torch.backends.cudnn.enabled, module.dropout))
        if fails:
            raise ArithmeticError

    recurrent.layer.register_forward_pre_hook(look)
    rar = RARLoss(recurrent, epsilon=0.1, warmup=0)
    attack = AttributionAttack(recurrent, epsilon=0.1, attack_steps=2)
    for call in (lambda: rar.perturb(x, y), lambda: attack.perturb(x), lambda: rar.regularizer(x, x + 0.1, y)):
        if fails:
            with pytest.raises(ArithmeticError):
                call()
        else:
            call()
        assert torch.backends.cudnn.enabled
        assert recurrent.layer.dropout == 0.5
        assert recurrent.layer.training
    assert {enabled for enabled, _ in seen} == {False}
    assert (False, 0.0) in seen


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(6, 12, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])


def compiled_inside(model: nn.Module) -> nn.Module:
    """The last layers of the model are compiled, and the model itself in place."""
    whole = nn.Sequential(model[0], torch.compile(nn.Sequential(*model[1:]), backend="aot_eager"))
    whole.compile(backend="aot_eager")
    return whole


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="aot_eager"),
    "compiled in parts": compiled_inside,
    "compiled DataParallel": lambda model: torch.compile(nn.DataParallel(model), backend="aot_eager"),
}
wrappers = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def test_parts_that_are_compiled_need_no_setting_of_the_process(network, batch, monkeypatch) -> None:
    x, y = batch
    expected = RARLoss(network, epsilon=0.1, warmup=0, random_start=False)(x, y)
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)  # as before PyTorch 2.6
    for model in (compiled_inside(network), nn.Sequential(torch.compile(network, backend="aot_eager"))):
        loss = RARLoss(model, epsilon=0.1, warmup=0, random_start=False)(x, y)
        loss.backward()
        torch.testing.assert_close(loss, expected)
        AttributionAttack(model, epsilon=0.1, n_steps=6).perturb(x)


class CallsCompiledFunction(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.square = torch.compile(lambda x: x * x, backend="aot_eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.square(self.model(x))


def test_compiled_functions_run_eagerly_or_are_refused(network, batch, monkeypatch) -> None:
    x, y = batch
    model = CallsCompiledFunction(network)
    if hasattr(torch.compiler, "set_stance"):
        RARLoss(model, epsilon=0.1, warmup=0)(x, y).backward()
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)
    with pytest.raises(BoundaryValueError, match=r"functions that are compiled.*torch 2\.6"):
        RARLoss(model, epsilon=0.1, warmup=0)(x, y)
    with pytest.raises(BoundaryValueError, match="compile the whole"):
        AttributionAttack(model, epsilon=0.1, n_steps=6).perturb(x)


@wrappers
@pytest.mark.parametrize("size", ["ig_norm", "ig_sum_norm", "sum"])
@pytest.mark.parametrize("internal_batch_size", [None, 8])
def test_wrapped_models_train_as_the_model_itself(wrap, size, internal_batch_size, network, batch) -> None:
    outcomes = []
    for model in (network, wrap(copy.deepcopy(network))):
        rar = RARLoss(model, size, epsilon=0.1, n_steps=5, internal_batch_size=internal_batch_size, warmup=0)
        loss = rar(*batch)
        loss.backward()
        outcomes.append([loss.detach(), rar.parts.perturbed, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*outcomes, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("wrap", [WRAPPERS["DataParallel"], WRAPPERS["compiled"]], ids=["DataParallel", "compiled"])
def test_layers_of_wrapped_models_are_found(wrap, network, batch) -> None:
    sizes = [
        RARLoss(model, epsilon=0.1, layer=network[1], warmup=0).regularizer(batch[0], batch[0] + 0.1, batch[1])
        for model in (network, wrap(network))
    ]
    torch.testing.assert_close(*sizes)


@wrappers
def test_explanations_of_wrapped_models_are_attacked_as_those_of_the_model_itself(wrap, network, batch) -> None:
    x, _ = batch
    points = [AttributionAttack(model, epsilon=0.1, n_steps=6).perturb(x) for model in (network, wrap(network))]
    assert not torch.equal(points[0], x)
    torch.testing.assert_close(*points)
    model = wrap(network)
    robustness = evaluate_attribution_robustness(model, x, None, AttributionAttack(model, epsilon=0.1, n_steps=6))
    torch.testing.assert_close(robustness.perturbed, points[0])
