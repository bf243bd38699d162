"""The radius grows over the first training calls, and goes on where a state dict left it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from captum_boundary import RARLoss, paper_settings
from captum_boundary.errors import BoundaryValueError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Softplus(), nn.Linear(8, 3)).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 5, generator=generator, dtype=torch.float64), torch.randint(3, (6,), generator=generator)


def largest_change(rar: RARLoss, x: Tensor) -> float:
    return float((rar.parts.perturbed - x).abs().max())


@pytest.mark.parametrize("size", ["ig_norm", "ig_sum_norm", "sum"])
def test_the_radius_grows_with_each_training_call(size) -> None:
    (x, y), rar = batch(), RARLoss(network(), size, epsilon=0.2, warmup=4)
    for share in (0.25, 0.5, 0.75, 1.0, 1.0):
        rar(x, y)
        assert rar.parts.epsilon == pytest.approx(share * 0.2)
        assert largest_change(rar, x) == pytest.approx(share * 0.2)
    assert rar.epsilon == 0.2
    assert rar.training_calls == 5


def test_steps_of_the_attack_grow_with_the_radius() -> None:
    """One step of the full length would leave the ball at once, and end on its surface."""
    (x, y), model = batch(), network()
    settings = {"attack_steps": 1, "random_start": False}
    rar = RARLoss(model, "sum", epsilon=0.2, attack_step_size=0.1, warmup=2, **settings)
    rar(x, y)
    assert largest_change(rar, x) == pytest.approx(0.05)


def test_evaluation_has_the_whole_radius_and_does_not_count() -> None:
    (x, y), rar = batch(), RARLoss(network(), epsilon=0.2, warmup=4)
    assert float((rar.perturb(x, y) - x).abs().max()) == pytest.approx(0.2)
    with torch.no_grad():
        rar(x, y)
    assert largest_change(rar, x) == pytest.approx(0.2)
    with torch.inference_mode():
        rar(x, y)
    assert rar.training_calls == 0
    rar(x, y)
    assert largest_change(rar, x) == pytest.approx(0.05)


def test_calls_that_fail_do_not_count() -> None:
    (x, y), rar = batch(), RARLoss(network(), epsilon=0.2, warmup=4)
    with pytest.raises(BoundaryValueError, match="classes between"):
        rar(x, y + 5)
    assert rar.training_calls == 0


def test_a_resumed_run_goes_on_where_it_was(tmp_path) -> None:
    x, y = batch()
    runs = []
    for is_resumed in (False, True):
        model = network()
        rar, optimizer = RARLoss(model, epsilon=0.2, warmup=6, random_start=False), torch.optim.Adam(model.parameters())
        for step in range(5):
            if is_resumed and step == 2:
                torch.save({"loss": rar.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
                model = network()
                rar = RARLoss(model, epsilon=0.2, warmup=6, random_start=False)
                optimizer = torch.optim.Adam(model.parameters())
                state = torch.load(tmp_path / "state.pt", weights_only=True)
                rar.load_state_dict(state["loss"])
                optimizer.load_state_dict(state["optimizer"])
            optimizer.zero_grad()
            rar(x, y).backward()
            optimizer.step()
        runs.append([rar.parts.epsilon, *(parameter.detach() for parameter in model.parameters())])
    assert runs[0][0] == pytest.approx(5 / 6 * 0.2)
    for value, same in zip(*runs, strict=True):
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(same))
    assert copy.deepcopy(rar).training_calls == 5


def test_radius_of_a_schedule_of_ones_own() -> None:
    (x, y), rar = batch(), RARLoss(network(), epsilon=0.2, warmup=0)
    for epsilon in (0.05, 0.1):
        rar.epsilon = epsilon
        rar(x, y)
        assert largest_change(rar, x) == pytest.approx(epsilon)


def test_the_paper_has_no_warm_up() -> None:
    (x, y), rar = batch(), RARLoss(network(), **{**paper_settings("mnist"), "attack_steps": 2, "n_steps": 3})
    rar(x, y)
    assert rar.parts.epsilon == 0.3


@pytest.mark.parametrize("warmup", [-1, 2.5, True, None, "10"])
def test_warm_ups_that_make_no_sense(warmup) -> None:
    with pytest.raises(BoundaryValueError, match="warmup must be a number of training calls, 0 or more, but it is"):
        RARLoss(network(), epsilon=0.2, warmup=warmup)


def test_seconds_of_a_call_are_those_of_its_parts() -> None:
    (x, y), rar = batch(), RARLoss(network(), epsilon=0.2)
    rar(x, y)
    assert set(rar.parts.seconds) == {"attack", "loss", "regularizer"}
    assert all(seconds > 0 for seconds in rar.parts.seconds.values())
    assert rar.parts.seconds["attack"] > rar.parts.seconds["loss"]  # seven steps of two nodes, and one pass
