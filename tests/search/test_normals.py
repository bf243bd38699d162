"""The normal at a kink is the same on every side of it, however small the piece of the boundary there."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary._core.bounds import box_of
from captum_boundary._core.oracle import MarginOracle
from captum_boundary.search._normals import unit_normals
from captum_boundary.search._problem import Problem

# Two kinks that cross at a small angle: the pieces between them are thin.
KINKS = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.9988, 0.0500]], dtype=torch.float64)
BENDS = torch.tensor([1.0, -1.0], dtype=torch.float64)


def scores(x: Tensor) -> Tensor:
    margin = x[:, 0] + (x @ KINKS.T).relu() @ BENDS
    return torch.stack([margin, torch.zeros_like(margin)], dim=1)


def test_normals_are_the_same_on_all_sides_of_kinks() -> None:
    sides = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    points = 1e-9 * sides @ torch.linalg.pinv(KINKS).T
    assert torch.equal((points @ KINKS.T).sign(), sides)
    inputs = torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64).expand(4, 3)
    problem = Problem(MarginOracle(scores, (inputs,)), box_of(None, (inputs,)), 2, torch.tensor(1e-12))
    slopes = problem.linearize(points).slope
    assert (slopes - slopes[:1]).abs().amax() > 0.5
    normals = unit_normals(problem, points)
    torch.testing.assert_close(normals, normals[:1].expand(4, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(4, dtype=torch.float64))
