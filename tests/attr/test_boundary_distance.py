"""Distances of features alone: closed forms, brute force, and what every Captum attribution promises."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from captum.attr import GradientAttribution, NoiseTunnel
from captum.metrics import sensitivity_max
from torch import Tensor, nn

from captum_boundary import BoundaryDistance, BoundaryNotFoundWarning, NearestBoundary
from captum_boundary.errors import BoundaryNotFoundError, BoundaryTypeError, BoundaryValueError

N, D = 5, 6


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def linear(weight: Tensor) -> nn.Linear:
    model = nn.Linear(len(weight), 1).double()
    model.weight.data, model.bias.data = weight[None].clone(), torch.tensor([0.3]).double()
    return model


def network(n_inputs: int = D) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(n_inputs, 12), nn.Tanh(), nn.Linear(12, 3)).double().eval()


@pytest.mark.parametrize(("norm", "dual"), [(2, 2), (math.inf, 1), (1, math.inf)])
def test_groups_of_a_linear_model_have_the_distance_of_their_weights(norm, dual):
    weight, x = numbers(D), numbers(N, D, seed=1)
    model, groups = linear(weight), torch.tensor([7, 7, 2, 2, 2, 9])
    search = NearestBoundary(model, norm=norm)
    maps, boundary = BoundaryDistance(model, search).attribute(x, feature_mask=groups, return_boundary=True)
    length = torch.stack([torch.linalg.vector_norm(weight[groups == g], dual) for g in (2, 7, 9)])
    expected = model(x).abs() / length
    torch.testing.assert_close(boundary.distance.view(N, 3), expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(maps, (1 / expected)[:, [1, 1, 0, 0, 0, 2]].detach(), rtol=1e-6, atol=0)


def test_values_outside_of_the_group_stay_to_the_last_bit():
    x, groups = numbers(N, D), torch.tensor([0, 0, 1, 1, 2, 2])
    _, boundary = BoundaryDistance(network()).attribute(x, feature_mask=groups, return_boundary=True)
    moved = boundary.points.view(N, 3, D) != x[:, None]
    for group in range(3):
        assert not moved[:, group, groups != group].any()
    assert boundary.found.any()


def test_single_features_of_a_network_agree_with_a_fine_grid():
    """Brute force: 40,001 values of each feature."""
    model, x = network(), numbers(3, D)
    steps = torch.linspace(-20, 20, 40_001).double()
    inverse = BoundaryDistance(model, NearestBoundary(model, bounds=(-30, 30))).attribute(x)
    for row in range(3):
        for column in range(D):
            points = x[row].repeat(len(steps), 1)
            points[:, column] += steps
            flips = model(points).argmax(1) != model(x[[row]]).argmax(1)
            nearest = steps[flips].abs().min() if flips.any() else torch.tensor(math.inf).double()
            if nearest < 8:  # beyond, a step of a saturated network says little
                assert (1 / inverse[row, column] - nearest).abs() <= 1e-3 + 1e-4 * nearest
            else:
                assert 1 / inverse[row, column] > 7.9


def test_what_cannot_flip_the_decision_has_zero_and_no_warning():
    model = linear(torch.tensor([2.0, 0.0]).double())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps, boundary = BoundaryDistance(model).attribute(numbers(N, 2), return_boundary=True)
    assert (maps[:, 1] == 0).all()
    assert (maps[:, 0] > 0).all()
    assert boundary.distance.view(N, 2)[:, 1].isinf().all()
    search = NearestBoundary(model, strict=True)
    with pytest.raises(BoundaryNotFoundError):
        BoundaryDistance(model, search).attribute(numbers(N, 2))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, first: Tensor, second: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(first) * scale.sum() + self.second(second) + shift))


@pytest.mark.parametrize("size", [None, 3, 5])
def test_groups_span_inputs_and_arguments_follow_their_examples(size):
    """``scale`` has 5 entries for all examples, and must not be taken for one entry of each of 5 rows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TwoInputs().double()
    inputs, shift, scale = (numbers(3, 4), numbers(3, 2, seed=1)), numbers(3, 8, seed=2), torch.full((5,), 0.2).double()
    groups = torch.tensor([[0, 0, 1, 2]]), torch.tensor([1, 4])
    method = BoundaryDistance(model, NearestBoundary(model, budget=10, internal_batch_size=size))
    target = [0, 1, 2]
    maps, boundary = method.attribute(inputs, target, (shift, scale), feature_mask=groups, return_boundary=True)
    assert isinstance(maps, tuple)
    assert len(boundary) == 12
    torch.testing.assert_close(maps[0][:, 2], maps[1][:, 0])
    for row in range(3):
        alone = method.attribute(
            tuple(part[[row]] for part in inputs), target[row], (shift[[row]], scale), feature_mask=groups
        )
        torch.testing.assert_close(tuple(part[[row]] for part in maps), alone, rtol=1e-6, atol=1e-8)


def test_each_example_may_have_groups_of_its_own():
    model, x = network(), numbers(2, D)
    groups = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 2, 2, 3, 3]])
    together, boundary = BoundaryDistance(model).attribute(x, feature_mask=groups, return_boundary=True)
    assert not boundary.found.view(2, 4)[0, 2:].any()
    assert not boundary.found.view(2, 4)[1, 1].any()
    for row in range(2):
        alone = BoundaryDistance(model).attribute(x[[row]], feature_mask=groups[row])
        torch.testing.assert_close(together[[row]], alone, rtol=1e-6, atol=1e-8)


def test_the_methods_of_captum_take_it():
    model, x = network(), numbers(N, D)
    method = BoundaryDistance(model, NearestBoundary(model, budget=10))
    assert isinstance(method, GradientAttribution)
    assert not method.multiplies_by_inputs
    assert not method.has_convergence_delta()
    groups, target = torch.tensor([[0, 0, 1, 1, 2, 2]]).expand(N, D), model(x).argmax(1)
    expected = method.attribute(x, target, feature_mask=groups)
    tunnel = NoiseTunnel(method)
    smooth = tunnel.attribute(x, nt_samples=2, stdevs=0.0, target=target, feature_mask=groups)
    torch.testing.assert_close(smooth, expected)
    assert isinstance(tunnel.attribute((x,), nt_samples=2, target=target), tuple)
    assert sensitivity_max(method.attribute, x, n_perturb_samples=2, target=target).shape == (N,)
    with pytest.raises(NotImplementedError, match="attribute_future"):
        method.attribute_future()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_state_is_as_before(mode):
    model, x = network(), numbers(N, D).requires_grad_()
    expected = BoundaryDistance(model).attribute(x)
    state = torch.get_rng_state()
    with mode():
        torch.testing.assert_close(BoundaryDistance(model).attribute(x), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert x.grad is None
    assert x.requires_grad
    assert not expected.requires_grad


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(D), BoundaryTypeError, "integer number of each value's group, but it is torch.float32"),
        ("words", BoundaryTypeError, "but it is str"),
        (torch.arange(4), BoundaryValueError, r"shape \(4,\) does not broadcast to inputs of shape \(5, 6\)"),
        ((torch.arange(D), torch.arange(D)), BoundaryValueError, r"2 tensor\(s\) for 1 input"),
    ],
)
def test_bad_masks_say_how_to_mend_them(mask, error, message):
    with pytest.raises(error, match=message):
        BoundaryDistance(network()).attribute(numbers(N, D), feature_mask=mask)


def test_bad_arguments_say_how_to_mend_them():
    model = network()
    with pytest.raises(BoundaryTypeError, match="must be a BoundarySearch"):
        BoundaryDistance(model, search=model)
    with pytest.raises(BoundaryValueError, match="5 examples, but it has 3"):
        BoundaryDistance(model).attribute(numbers(N, D), target=[0, 1, 2])
    with pytest.raises(BoundaryTypeError, match="floating point"):
        BoundaryDistance(model).attribute(torch.ones(2, D, dtype=torch.long))
    with pytest.warns(BoundaryNotFoundWarning):  # the search itself is as before
        NearestBoundary(lambda x: x[:, :1] * 0 + 1 + 0 * x.sum()).find(numbers(1, 2))
