"""Arithmetic of flat points against what torch computes."""

from __future__ import annotations

import pytest
import torch

from captum_boundary._core.geometry import next_towards


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_next_number_is_that_of_torch(dtype) -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 1.5, -0.3, 3e-5, -6e-8, 60000.0], dtype=dtype)
    for goal in (-65000.0, 0.2, 65000.0):
        goals = torch.full_like(values, goal)
        assert torch.equal(next_towards(values, goals), torch.nextafter(values, goals))
