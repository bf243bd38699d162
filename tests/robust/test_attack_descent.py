"""The steps of the attack on explanations, one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from captum_boundary._core.geometry import Box
from captum_boundary.robust import AttributionAttack
from captum_boundary.robust._attack_descent import Objective, minimize
from captum_boundary.robust._attribution_maps import MapState


class Scripted:
    """Maps whose slopes are given step by step, and whose points all have the label, with the given margins."""

    def __init__(self, slopes: list[list[float]], margins: list[float], margin_slope: list[float]) -> None:
        self.slopes = [torch.tensor([slope]) for slope in slopes]
        self.margins = [torch.tensor([margin]) for margin in margins]
        self.margin_slope = torch.tensor([margin_slope])
        self.start_margin = torch.ones(1)
        self.visited: list[Tensor] = []

    def at(self, points: Tensor) -> MapState:
        margin = self.margins[len(self.visited)]
        self.visited.append(points)
        return MapState(points, points, torch.ones_like(points), margin, self.margin_slope)

    def descent(self, state: MapState, weights: Tensor, box: Box, tolerance: float) -> Tensor:
        return self.slopes[len(self.visited) - 1]

    def rounded(self, points: Tensor) -> Tensor:
        return points

    def keeps_label(self, margin: Tensor) -> Tensor:
        return margin > 0


SUM = Objective(value=lambda shares: shares.sum(dim=1), coefficients=torch.ones_like)


def run(maps: Scripted, n_steps: int) -> list[list[float]]:
    everywhere = Box(torch.full((1, 2), -9.0), torch.full((1, 2), 9.0))
    start = maps.at(torch.zeros(1, 2))
    options = {"first_step": 1.0, "tolerance": 0.0, "show_progress": False}
    minimize(maps, start, everywhere, SUM, lambda shares: shares.sum(dim=1), n_steps=n_steps, **options)
    return [points[0].tolist() for points in maps.visited]


def test_steps_go_on_against_a_weaker_slope_and_turn_at_a_stronger_one() -> None:
    # Slopes are scaled to a mean magnitude of one, and the last ones count three quarters of the next.
    visited = run(Scripted([[1.5, 0.5], [-0.5, -1.5]], [1.0] * 3, [0.0, 0.0]), 2)
    assert visited == [[0.0, 0.0], [-1.0, -1.0], [-1.5, -0.5]]


@pytest.mark.parametrize(("margin", "end"), [(0.11, [-1.0, -1.0]), (0.09, [1.0, -1.0])])
def test_below_a_tenth_of_the_margin_steps_head_back_into_the_region(margin, end) -> None:
    maps = Scripted([[1.0, 1.0]], [margin, 1.0], [5.0, 0.0])
    assert run(maps, 1) == [[0.0, 0.0], end]


@pytest.mark.parametrize(("margin", "is_moved"), [(1.0, True), (0.1, False)])
def test_labels_must_survive_the_rounding_of_scores(margin, is_moved) -> None:
    class Large(nn.Module):
        """Scores of a million, which float32 resolves to a sixteenth. Everywhere but at the input they nearly agree."""

        def forward(self, x: Tensor) -> Tensor:
            is_input = (x == 0.5).all(dim=1)
            lead = torch.where(is_input, 4.0, margin) + 0 * x.sum(dim=1)
            return torch.stack([1e6 + lead, torch.full_like(lead, 1e6)], dim=1)

    x = torch.full((3, 4), 0.5)
    model = Large()
    points = AttributionAttack(model, "random", epsilon=0.25).perturb(x)
    assert (model(x + 0.25).argmax(dim=1) == 0).all()
    assert torch.equal(points, x) != is_moved
