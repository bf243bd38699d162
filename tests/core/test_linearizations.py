"""The three ways to linearize a decision, and margins over one rival, against closed forms of a linear model."""

from __future__ import annotations

import torch

from captum_boundary._core.oracle import MarginOracle

WEIGHT = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, -3.0]], dtype=torch.float64)
X = torch.tensor([[1.0, 0.5], [0.3, 0.2]], dtype=torch.float64)  # scores (2, .5, 1.5, -2.5) and (.6, .2, .5, -.9)


def oracle(chunk: int | None = None) -> MarginOracle:
    return MarginOracle(lambda x: x @ WEIGHT.T, (X,), internal_batch_size=chunk)


def test_the_margin_is_that_over_the_strongest_rival() -> None:
    plane = oracle(chunk=1).linearize(X)
    torch.testing.assert_close(plane.depth, torch.tensor([0.5, 0.1], dtype=torch.float64))
    torch.testing.assert_close(plane.value, plane.depth)
    torch.testing.assert_close(plane.slope, (WEIGHT[0] - WEIGHT[2]).expand(2, -1))


def test_the_runner_up_is_the_second_strongest_rival() -> None:
    plane = oracle().linearize_runner_up(X)
    torch.testing.assert_close(plane.depth, torch.tensor([0.5, 0.1], dtype=torch.float64))
    torch.testing.assert_close(plane.value, torch.tensor([1.5, 0.4], dtype=torch.float64))
    torch.testing.assert_close(plane.slope, (WEIGHT[0] - WEIGHT[1]).expand(2, -1))


def test_the_smoothed_slope_is_that_of_the_log_sum_exp_over_rivals() -> None:
    temperature = torch.tensor([0.5, 0.2], dtype=torch.float64)
    plane = oracle(chunk=1).linearize_smoothed(X, temperature)
    x = X.clone().requires_grad_()
    scores = x @ WEIGHT.T
    smoothed = scores[:, 0] - temperature * torch.logsumexp(scores[:, 1:] / temperature[:, None], dim=1)
    torch.testing.assert_close(plane.slope, torch.autograd.grad(smoothed.sum(), x)[0])
    torch.testing.assert_close(plane.value, torch.tensor([0.5, 0.1], dtype=torch.float64))


def test_margins_over_one_rival_know_no_other_and_count_for_the_example() -> None:
    every = oracle()
    pairs = every.select(torch.tensor([0, 0, 1])).against(torch.tensor([1, 3, -1]))
    torch.testing.assert_close(pairs.start_depth, torch.tensor([1.5, 4.5, 0.1], dtype=torch.float64))
    plane = pairs.linearize(pairs.x)
    torch.testing.assert_close(plane.depth, pairs.start_depth)
    torch.testing.assert_close(plane.slope, WEIGHT[[0, 0, 0]] - WEIGHT[[1, 3, 2]])
    smoothed = pairs.linearize_smoothed(pairs.x, torch.full((3,), 1e-6, dtype=torch.float64))
    torch.testing.assert_close(smoothed.slope, plane.slope)
    depth, rival = pairs.depth(pairs.x)
    torch.testing.assert_close(depth, pairs.start_depth)
    assert rival.tolist() == [1, 3, 2]
    assert every.n_gradient.tolist() == [4, 2]
    torch.testing.assert_close(every.start_depth, torch.tensor([0.5, 0.1], dtype=torch.float64))


def test_a_linearization_over_one_rival_tells_the_margin_over_all_as_well() -> None:
    plane = oracle(chunk=1).linearize_over(X, torch.tensor([3, 1]))
    torch.testing.assert_close(plane.depth, torch.tensor([0.5, 0.1], dtype=torch.float64))
    torch.testing.assert_close(plane.value, torch.tensor([4.5, 0.4], dtype=torch.float64))
    torch.testing.assert_close(plane.slope, WEIGHT[[0, 0]] - WEIGHT[[3, 1]])
