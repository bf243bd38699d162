"""Limits that the dtype of an input cannot represent."""

from __future__ import annotations

import math

import pytest
import torch

from captum_boundary._core.bounds import box_of


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("limit", [0.1, 0.7, 1 / 3, 3e-6, 1e6, math.inf])
def test_limits_are_the_numbers_next_to_them_inside_and_infinite_ones_stay(dtype, limit, monkeypatch) -> None:
    exact = torch.tensor([-limit, limit])
    nearest = exact.to(dtype)
    inwards = torch.nextafter(nearest, torch.zeros_like(nearest)).float()
    expected = torch.where(nearest.float().abs() > exact.abs(), inwards, nearest.float())
    # Not every device has it in half precision.
    monkeypatch.setattr(torch, "nextafter", None)
    box = box_of((-limit, limit), (torch.zeros(1, 3, dtype=dtype),))
    assert torch.equal(torch.cat([box.lower, box.upper])[:, 0], expected)
