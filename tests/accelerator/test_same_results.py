"""All that the package offers gives the same on an accelerator as on the CPU, and gives it there."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_boundary import attr, layers, metrics, robust, search, smoothing, visualization

pytest.importorskip("foolbox")
from public_calls import CALLS

# Calls that draw random numbers, or might.
RANDOM = [
    ("FoolboxBoundary", "DDN"),
    ("BoundaryAttribution", "DeepLift"),
    ("BoundaryAttribution", "NoiseTunnel"),
    ("separate_activations", ""),
    ("AggregatedBoundaryNormals", "random"),
    ("RARLoss", "ig_norm"),
    ("AttributionAttack", "random"),
    ("visualization.plot_boundary_slice", ""),
]
# Those that put back the random states of the CPU and of CUDA alone: Foolbox and Captum draw from them.
CARELESS = [RANDOM[0], RANDOM[2]]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: " ".join(call).strip())
@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_same_results(call: tuple[str, str], device: str) -> None:
    check_same(CALLS[call](device), CALLS[call]("cpu"), device)


def check_same(result: Any, expected: Any, device: str) -> None:
    if isinstance(expected, Tensor):
        assert str(result.device) == device
        torch.testing.assert_close(result.cpu(), expected, rtol=1e-3, atol=1e-4, equal_nan=True)
    elif isinstance(expected, np.ndarray):
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)
    elif dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            if field.name in ("bounds", "seconds"):  # which stay where the caller has them; which no two runs share
                continue
            check_same(getattr(result, field.name), getattr(expected, field.name), device)
    elif isinstance(expected, list | tuple):
        for part, expected_part in zip(result, expected, strict=True):
            check_same(part, expected_part, device)
    else:
        assert result == expected


@pytest.mark.parametrize("call", RANDOM, ids=lambda call: " ".join(call).strip())
def test_random_states_stay_as_they_were(call: tuple[str, str], device: str, request: pytest.FixtureRequest) -> None:
    if call in CARELESS and not device.startswith("cuda"):
        reason = "random states of accelerators other than CUDA are disturbed"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    module = torch.get_device_module(device)
    states = torch.get_rng_state(), module.get_rng_state(device)
    CALLS[call](device)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(module.get_rng_state(device), states[1])


def test_all_of_the_package_is_called() -> None:
    def calls(module: types.ModuleType, prefix: str = "") -> set[str]:
        return {f"{prefix}{name}" for name in module.__all__ if callable(getattr(module, name))}

    results = {
        "AttributionRobustness",
        "BoundaryNormals",
        "BoundaryPoints",
        "CertifiedRadius",
        "MapAgreement",
        "RARParts",
    }
    of_searches = {
        "BoundarySearch",
        "BoundaryStatus",
        "NearestBoundarySettings",
        "Proposal",
        "SearchProblem",
        "Solution",
    }
    others = {"Norm", "WeightedL2", "StabilityTerm", "paper_settings"}
    offered = set().union(*map(calls, (attr, layers, robust, search, smoothing)))
    offered |= calls(metrics, "metrics.") | calls(visualization, "visualization.")
    assert {name for name, _ in CALLS} == offered - results - of_searches - others
