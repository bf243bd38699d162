"""Copies of models for methods that hook them: what cannot be copied is shared, and the model stays as it is."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from captum.attr import LRP, DeepLift, GuidedBackprop
from torch import Tensor, nn

from captum_boundary import BoundaryAttribution, NearestBoundary
from captum_boundary.attr import separate_activations
from captum_boundary.attr._rewrite import copy_model


class Recorder:
    """An object of the user's, with a lock two levels down and a module that it watches."""

    def __init__(self, watched: nn.Module) -> None:
        self.state = {"lock": threading.Lock(), "count": 0}
        self.watched = watched


class Net(nn.Module):
    """A network on whose modules things hang that ``copy.deepcopy`` refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)
        self.lock = threading.Lock()
        self.steps: Iterator[int] = (step for step in range(3))
        self.first.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.recorder = Recorder(self.last)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.kept = self.relu(self.first(x))  # not a leaf where gradients are on
            return self.last(self.relu(self.kept))


@pytest.fixture
def model() -> Iterator[Net]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net().eval()
    net(torch.ones(1, 4))
    yield net
    net.first.log.close()


@pytest.mark.parametrize("share_tensors", [True, False])
def test_what_cannot_be_copied_is_shared(share_tensors: bool, model: Net) -> None:
    copied: Any = copy_model(model, share_tensors)
    assert copied.lock is model.lock
    assert copied.steps is model.steps
    assert copied.first.log is model.first.log
    assert copied.recorder.state["lock"] is model.recorder.state["lock"]
    assert (copied.first.weight is model.first.weight) == share_tensors
    # All else is the copy's own, and refers to the copy's modules.
    assert copied.recorder is not model.recorder
    assert copied.recorder.state is not model.recorder.state
    assert copied.recorder.watched is copied.last
    assert copied.kept is not model.kept


@pytest.mark.parametrize("method", [DeepLift, GuidedBackprop, LRP])
def test_methods_that_hook_modules_explain_such_models(method: Any, model: Net) -> None:
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.ReLU(), model.last)
    plain[0].load_state_dict(model.first.state_dict())
    boundary = NearestBoundary(plain, budget=6).find(inputs)
    expected = BoundaryAttribution(plain, method).attribute(inputs, boundary=boundary)
    torch.testing.assert_close(BoundaryAttribution(model, method).attribute(inputs, boundary=boundary), expected)
    assert not model.lock.locked()


def test_separation_shares_it_too(model: Net) -> None:
    inputs = torch.randn(2, 4)
    assert torch.equal(separate_activations(model, inputs)(inputs), model(inputs))
