"""Examples that a search may lose: without a first point, and where its forward passes are at their limit."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from captum_boundary import NearestBoundary


def waves(n_inputs: int, seed: int, offset: float = 5.0):
    """Saturated probabilities of random waves, minus 0.5: slopes lead to corners of a box, seldom across a boundary."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n_inputs, 60, generator=generator) * 4 / n_inputs**0.5
    phase = 6 * torch.rand(60, generator=generator)
    last = torch.randn(60, generator=generator) / 60**0.5
    return lambda x: torch.sigmoid(3 * (torch.sin(x @ first + phase) @ last) + offset) - 0.5


def in_box(n: int, n_inputs: int, seed: int) -> Tensor:
    return 2 * torch.rand(n, n_inputs, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_bounds_hide_no_points():
    """Of 30 examples, a search that stays at corners and gives up just short of the boundary finds 20."""
    n_found = 0
    for seed in (0, 1, 5):
        boundary = NearestBoundary(waves(64, seed), bounds=(-1, 1), budget=20).find(in_box(10, 64, 100 + seed))
        assert (boundary.n_forward <= 160).all()
        assert (boundary.n_gradient <= 20).all()
        n_found += int(boundary.found.sum())
    assert n_found >= 24


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_no_gradient_is_spent_at_a_corner_twice():
    seen = []

    def model(x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(lambda _: seen.append(x.detach().clone()))
        return torch.tanh(x).sum(dim=1) + 100  # nowhere negative

    assert not NearestBoundary(model, bounds=(-1, 1)).find(in_box(1, 20, 0)).found
    points = torch.cat(seen)
    is_corner = (points == -1).all(dim=1)
    assert len(points) > 15
    assert is_corner.sum() <= 0.6 * len(points)


def silero() -> Path:
    spec = importlib.util.find_spec("silero_vad")
    if spec is None:
        pytest.skip("needs the package silero-vad")
    return Path(spec.origin).parent / "data" / "silero_vad.jit"


@pytest.fixture
def audio() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(512) / 16_000
    base = 90 + 190 * torch.rand(6, 1, generator=generator)
    voices = sum(0.2 / k**0.5 * torch.sin(2 * math.pi * base * k * time + k) for k in range(1, 14))
    return torch.cat([voices, 0.03 * torch.randn(6, 512, generator=generator)]).clamp(-1, 1)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_network_that_detects_speech(audio):
    network = torch.jit.load(silero()).eval()

    def model(x: Tensor) -> Tensor:
        network.reset_states()
        return torch.logit(network(x, 16_000))

    for bounds in (None, (-1, 1)):
        boundary = NearestBoundary(model, bounds=bounds, budget=60).find(audio)
        assert boundary.found.all()
    assert boundary.points.abs().amax() <= 1


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_a_network_that_remembers_the_calls_before(audio, n):
    network = torch.jit.load(silero()).eval()
    with pytest.warns(UserWarning, match="keeps a state between calls"):
        NearestBoundary(lambda x: torch.logit(network(x, 16_000)), budget=10).find(audio[:n])


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("n_features", [2, 20])
def test_forward_passes_stay_within_their_limit_where_scores_are_steps(n_features: int, norm: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(n_features, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)
        smooth = nn.Sequential(*layers)
    for parameter in smooth.parameters():
        parameter.data *= 6

    def model(x: Tensor) -> Tensor:
        scores = smooth(x)
        return scores.round() + 1e-3 * scores

    inputs = torch.rand(12, n_features, generator=torch.Generator().manual_seed(1))
    for target, budget in itertools.product((None, 1), (20, 39)):
        boundary = NearestBoundary(model, norm=norm, budget=budget).find(inputs, target)
        assert (boundary.n_forward <= 160).all()
