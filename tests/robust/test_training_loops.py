"""The loops that people train with: each gives what the plain loop gives, on the digits of scikit-learn."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from captum_boundary import AttributionAttack, RARLoss, evaluate_attribution_robustness

datasets = pytest.importorskip("sklearn.datasets")

N_TRAINED = 256
SETTINGS = {
    "epsilon": 0.1,
    "bounds": (0, 1),
    "n_steps": 5,
    "attack_steps": 3,
    "attack_n_steps": 2,
    "random_start": False,
    "warmup": 0,
    "smooth": "softplus",
}


def digits(rows: slice, dtype: torch.dtype = torch.float32) -> TensorDataset:
    data = datasets.load_digits()
    images = torch.tensor(data.images[rows] / 16, dtype=dtype).flatten(1)
    return TensorDataset(images, torch.tensor(data.target[rows]))


def loader(batch_size: int = 64, dtype: torch.dtype = torch.float32) -> DataLoader:
    """Without shuffling, so that all loops see the same batches."""
    return DataLoader(digits(slice(0, N_TRAINED), dtype), batch_size)


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).to(dtype)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def plain(n_epochs: int = 2, batch_size: int = 64, dtype: torch.dtype = torch.float32, **settings: Any) -> nn.Module:
    """The loop that all others are compared with."""
    model = network(dtype)
    rar, optimizer = RARLoss(model, **{**SETTINGS, **settings}), optimizer_of(model)
    for _ in range(n_epochs):
        for x, y in loader(batch_size, dtype):
            optimizer.zero_grad()
            rar(x, y).backward()
            optimizer.step()
    return model


def assert_same(model: nn.Module, other: nn.Module, **tolerance: float) -> None:
    for parameter, same in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, same, **tolerance)


def assert_near(model: nn.Module, other: nn.Module) -> None:
    """Rounding to half precision changes the displacement from the first weights by little."""
    first, *ends = (nn.utils.parameters_to_vector(net.parameters()).detach() for net in (network(), model, other))
    assert (ends[0] - ends[1]).norm() < 0.15 * (ends[1] - first).norm()


def accuracy(model: nn.Module) -> float:
    x, y = digits(slice(1000, 1500)).tensors
    return (model(x).argmax(dim=1) == y).float().mean().item()


def largest_size(model: nn.Module) -> float:
    x, y = digits(slice(1000, 1100)).tensors
    stronger = RARLoss(model, **{**SETTINGS, "attack_steps": 20, "attack_n_steps": 20, "n_steps": 20, "smooth": None})
    return stronger.regularizer(x, stronger.perturb(x, y), y).mean().item()


def test_a_plain_loop_makes_attributions_stable() -> None:
    natural, robust = plain(n_epochs=20, weight=0.0), plain(n_epochs=20)
    assert accuracy(natural) > 0.85
    assert accuracy(robust) > 0.83
    assert largest_size(robust) < 0.85 * largest_size(natural)


def test_bfloat16_autocast_follows_float32() -> None:
    model = network()
    rar, optimizer = RARLoss(model, **SETTINGS), optimizer_of(model)
    for _ in range(2):
        for x, y in loader():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = rar(x, y)
            assert loss.dtype == torch.float32
            loss.backward()
            optimizer.step()
    assert_near(model, plain())


def test_accumulated_gradients_are_those_of_larger_batches() -> None:
    model = network(torch.float64)
    rar, optimizer = RARLoss(model, **SETTINGS), optimizer_of(model)
    for _ in range(2):
        for index, (x, y) in enumerate(loader(32, torch.float64)):
            (rar(x, y) / 2).backward()
            if index % 2:
                optimizer.step()
                optimizer.zero_grad()
    assert_same(model, plain(dtype=torch.float64))


def test_epsilon_that_grows_ends_where_it_should() -> None:
    model = network()
    rar, optimizer = RARLoss(model, **SETTINGS), optimizer_of(model)
    largest, n_warm_up, moves = SETTINGS["epsilon"], 4, []
    for step, (x, y) in enumerate([*loader(), *loader()]):
        rar.epsilon = largest * min(1, (step + 1) / n_warm_up)
        optimizer.zero_grad()
        rar(x, y).backward()
        optimizer.step()
        moves.append((rar.parts.perturbed - x).abs().max().item())
    assert moves == pytest.approx([largest * share for share in (0.25, 0.5, 0.75, 1, 1, 1, 1, 1)], rel=1e-4)


def test_parts_add_up_to_the_loss() -> None:
    rar = RARLoss(network(), **SETTINGS, weight=0.7)
    for x, y in loader():
        loss = rar(x, y)
        parts = rar.parts
        assert not parts.loss.requires_grad
        torch.testing.assert_close(loss.detach(), (parts.loss + 0.7 * parts.regularizer).mean())


def kept(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The share of the top features that stay among them under attack, which is what stops the training."""
    attack = AttributionAttack(model, epsilon=0.1, bounds=(0, 1), n_steps=5, attack_steps=5, k=8)
    return evaluate_attribution_robustness(model, x, y, attack).topk_intersection.mean()


def test_early_stopping_on_the_robustness_of_attributions() -> None:
    model = network()
    rar, optimizer = RARLoss(model, **SETTINGS), optimizer_of(model)
    held_out = digits(slice(300, 340)).tensors
    best, best_state, scores, patience = -1.0, model.state_dict(), [], 2
    while len(scores) < 30 and max(scores[-patience:], default=1.0) >= best:
        for x, y in loader():
            optimizer.zero_grad()
            rar(x, y).backward()
            optimizer.step()
        scores.append(kept(model, *held_out).item())
        if scores[-1] > best:
            best, best_state = scores[-1], copy.deepcopy(model.state_dict())
    assert len(scores) < 30
    model.load_state_dict(best_state)
    assert kept(model, *held_out).item() == pytest.approx(max(scores))


@pytest.fixture
def accelerate() -> Iterator[Any]:
    """Accelerate, whose state outlives its objects."""
    module = pytest.importorskip("accelerate")
    module.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield module
    module.state.AcceleratorState._reset_state(reset_partial_state=True)


def accelerated(accelerator: Any, batch_size: int = 64) -> nn.Module:
    model = network()
    model, optimizer, batches = accelerator.prepare(model, optimizer_of(model), loader(batch_size))
    rar = RARLoss(model, **SETTINGS)
    for _ in range(2):
        for x, y in batches:
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    loss = rar(x, y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    return accelerator.unwrap_model(model)


def test_accelerate_trains_as_the_plain_loop(accelerate) -> None:
    assert_same(accelerated(accelerate.Accelerator(cpu=True)), plain())


def test_accelerate_accumulates_gradients(accelerate) -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    assert_same(accelerated(accelerator, batch_size=32), plain(), rtol=1e-3, atol=1e-5)


def test_accelerate_trains_in_bfloat16(accelerate) -> None:
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    assert_near(accelerated(accelerator), plain())


@pytest.fixture
def lightning() -> Any:
    return pytest.importorskip("lightning.pytorch")


def module_of(lightning: Any) -> Any:
    """The loss is the only one to hold the network, so that no parameter is in a checkpoint twice."""

    class Robust(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.rar = RARLoss(network(), **SETTINGS)
            self.logged: list[float] = []

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss = self.rar(*batch)
            parts = self.rar.parts
            self.log_dict({"loss": parts.loss.mean(), "regularizer": parts.regularizer.mean()})
            return loss

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.log("size", self.rar(*batch))
            self.log("kept", kept(self.rar.model, *batch))
            self.logged.append(self.trainer.current_epoch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.rar.model)

    return Robust()


def trainer_of(lightning: Any, **options: Any) -> Any:
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return lightning.Trainer(accelerator="cpu", **dict.fromkeys(silent, False), num_sanity_val_steps=0, **options)


# What Lightning says of itself, of loaders without workers and of few batches.
quiet = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@quiet
def test_lightning_trains_as_the_plain_loop_and_logs_the_parts(lightning) -> None:
    module, trainer = module_of(lightning), trainer_of(lightning, max_epochs=2)
    trainer.fit(module, loader())
    assert_same(module.rar.model, plain())
    assert {name: value.item() for name, value in trainer.callback_metrics.items()} == {
        "loss": pytest.approx(module.rar.parts.loss.mean().item()),
        "regularizer": pytest.approx(module.rar.parts.regularizer.mean().item()),
    }
    assert len(module.state_dict()) == len(network().state_dict()) + 1  # the number of training calls


@quiet
def test_lightning_accumulates_gradients(lightning) -> None:
    module = module_of(lightning)
    trainer_of(lightning, max_epochs=2, accumulate_grad_batches=2).fit(module, loader(32))
    assert_same(module.rar.model, plain(), rtol=1e-3, atol=1e-5)


@quiet
def test_lightning_trains_in_bfloat16(lightning) -> None:
    module = module_of(lightning)
    trainer_of(lightning, max_epochs=2, precision="bf16-mixed").fit(module, loader())
    assert_near(module.rar.model, plain())


@quiet
def test_lightning_stops_early_by_what_it_validates_in_inference_mode(lightning) -> None:
    stopping = lightning.callbacks.EarlyStopping("kept", mode="max", patience=1, min_delta=1.0)  # which nothing gains
    module, trainer = module_of(lightning), trainer_of(lightning, max_epochs=9, callbacks=[stopping])
    trainer.fit(module, loader(), DataLoader(digits(slice(300, 320)), 20))
    assert module.logged == [0, 1]
    assert 0 <= trainer.callback_metrics["kept"] <= 1
    assert trainer.callback_metrics["size"] > 0
