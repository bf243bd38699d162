"""Integrated Gradients of a loss: completeness, exact gradients, and the same numbers however the work is divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerConductance
from scipy import stats
from torch import Tensor, nn

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust._path_integral import Quadrature, path_attribution
from captum_boundary.robust._pointwise_loss import PointwiseLoss, cross_entropy

# Order at which the error of each rule falls with the number of steps, for smooth integrands.
ORDERS = {"riemann_right": 1, "riemann_left": 1, "riemann_middle": 2, "riemann_trapezoid": 2}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Softplus(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.fixture
def points() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    end = start + 2 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    return start, end, torch.tensor([0, 1, 2, 1])


def loss_of(model: nn.Module, start: Tensor, target: Tensor, layer: nn.Module | None = None) -> PointwiseLoss:
    return PointwiseLoss.of(model, cross_entropy, start, target, None, layer)


@pytest.mark.parametrize("method", [*ORDERS, "gausslegendre"])
@pytest.mark.parametrize("n_steps", [2, 3, 7, 20])
def test_quadrature_integrates_constants_and_stays_in_the_unit_interval(method: str, n_steps: int) -> None:
    rule = Quadrature.of(method, n_steps)
    assert len(rule.nodes) == len(rule.weights) == n_steps
    assert sum(rule.weights) == pytest.approx(1)
    assert min(rule.nodes) >= 0
    assert max(rule.nodes) <= 1


def test_quadrature_refuses_what_it_does_not_know() -> None:
    with pytest.raises(BoundaryValueError, match=r"quadrature must be .* but it is 'simpson'"):
        Quadrature.of("simpson", 5)
    with pytest.raises(BoundaryValueError, match="n_steps must be >= 2"):
        Quadrature.of("riemann_trapezoid", 1)


@pytest.mark.parametrize("method", ORDERS)
def test_completeness_at_the_order_of_the_rule(method, model, points) -> None:
    start, end, target = points
    loss = loss_of(model, start, target)
    difference = (loss(end) - loss(start)).detach()
    steps = np.array([16, 32, 64, 128])
    errors = [
        (path_attribution(loss, start, end, Quadrature.of(method, n)).sum(dim=1) - difference).abs().max().item()
        for n in steps
    ]
    intervals = steps - 1 if method == "riemann_trapezoid" else steps
    slope = stats.linregress(np.log(intervals), np.log(errors)).slope
    assert -slope == pytest.approx(ORDERS[method], abs=0.15)


def test_completeness_of_gauss_legendre_to_rounding(model, points) -> None:
    start, end, target = points
    loss = loss_of(model, start, target)
    attribution = path_attribution(loss, start, end, Quadrature.of("gausslegendre", 50))
    torch.testing.assert_close(attribution.sum(dim=1), loss(end) - loss(start), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["riemann_right", "riemann_left", "riemann_middle", "gausslegendre"])
def test_equals_captum_on_the_loss(method, model, points) -> None:
    start, end, target = points

    def losses(x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x), y, reduction="none")

    expected = IntegratedGradients(losses).attribute(
        end, start, additional_forward_args=target, n_steps=11, method=method
    )
    actual = path_attribution(loss_of(model, start, target), start, end, Quadrature.of(method, 11))
    torch.testing.assert_close(actual.detach(), expected)


@pytest.mark.parametrize("method", ["riemann_right", "riemann_left"])
def test_layer_attributions_are_complete(method, model, points) -> None:
    start, end, target = points
    loss = loss_of(model, start, target, layer=model[1])
    difference = (loss(end) - loss(start)).detach()
    coarse, fine = (path_attribution(loss, start, end, Quadrature.of(method, n)).detach() for n in (100, 200))
    assert coarse.shape == (4, 8)
    coarse_error, fine_error = ((part.sum(dim=1) - difference).abs().max() for part in (coarse, fine))
    assert fine_error < 0.02
    assert fine_error < 0.6 * coarse_error


def test_layer_attributions_equal_captum_in_the_limit(model, points) -> None:
    start, end, target = points

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self.model(x), y, reduction="none")

    with_loss = WithLoss()
    expected = LayerConductance(with_loss, with_loss.model[1]).attribute(
        end, start, additional_forward_args=target, n_steps=2000, method="riemann_middle"
    )
    loss = loss_of(model, start, target, layer=model[1])
    ours = [path_attribution(loss, start, end, Quadrature.of(m, 2000)) for m in ("riemann_left", "riemann_right")]
    torch.testing.assert_close((ours[0] + ours[1]).detach() / 2, expected, rtol=1e-3, atol=1e-3)


def test_attributing_to_the_input_layer_equals_attributing_to_the_input(points) -> None:
    start, end, target = points
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    rule = Quadrature.of("riemann_right", 7)
    at_input = path_attribution(loss_of(model, start, target), start, end, rule)
    at_layer = path_attribution(loss_of(model, start, target, layer=model[0]), start, end, rule)
    torch.testing.assert_close(at_layer, at_input)


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("internal_batch_size", [None, 1, 3, 4, 9, 1000])
def test_gradients_of_parameters_and_end_equal_finite_differences(internal_batch_size, layer, model, points) -> None:
    start, end, target = points
    cotangent = torch.randn(4, 8 if layer else 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rule = Quadrature.of("riemann_right", 6)

    def value(end: Tensor) -> Tensor:
        loss = loss_of(model, start, target, None if layer is None else model[layer])
        return (path_attribution(loss, start, end, rule, internal_batch_size) * cotangent).sum()

    tensors = [end.clone().requires_grad_(), *model.parameters()]
    gradients = torch.autograd.grad(value(tensors[0]), tensors, materialize_grads=True)
    generator = torch.Generator().manual_seed(3)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        values = []
        with torch.no_grad():
            for step in (-1e-5, 1e-5):
                tensor.add_(direction, alpha=step)
                values.append(value(tensors[0]).item())
                tensor.sub_(direction, alpha=step)
        expected = (values[1] - values[0]) / 2e-5
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("internal_batch_size", [1, 4, 6, 1000])
def test_chunks_change_nothing(internal_batch_size, model, points) -> None:
    start, end, target = points
    rule = Quadrature.of("riemann_right", 10)

    def outcome(size: int | None) -> list[Tensor]:
        attribution = path_attribution(loss_of(model, start, target), start, end, rule, size)
        return [attribution.detach(), *torch.autograd.grad(attribution.abs().sum(), list(model.parameters()))]

    torch.testing.assert_close(outcome(internal_batch_size), outcome(None), rtol=1e-12, atol=1e-12)


def test_parameters_changed_before_the_backward_pass_are_noticed(model, points) -> None:
    start, end, target = points
    size = path_attribution(loss_of(model, start, target), start, end, Quadrature.of("riemann_right", 3), 4).sum()
    with torch.no_grad():
        model[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        size.backward()


def test_no_graph_where_none_is_asked_for(model, points) -> None:
    start, end, target = points
    for size in (None, 4):
        with torch.no_grad():
            attribution = path_attribution(
                loss_of(model, start, target), start, end, Quadrature.of("riemann_right", 3), size
            )
        assert not attribution.requires_grad


def test_an_activation_in_place_changes_nothing_of_the_layer_before_it(points) -> None:
    start, end, target = points
    torch.manual_seed(0)
    first, last = nn.Linear(5, 7).double(), nn.Linear(7, 3).double()
    with_copy, in_place = (
        path_attribution(
            loss_of(nn.Sequential(first, activation, last), start, target, first),
            start,
            end,
            Quadrature.of("riemann_right", 4),
        )
        for activation in (nn.ReLU(), nn.ReLU(inplace=True))
    )
    torch.testing.assert_close(in_place, with_copy)


def test_layers_that_are_used_twice_are_refused(points) -> None:
    start, end, target = points

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(x)))

    model = Twice()
    with pytest.raises(BoundaryTypeError, match=r"called 2 time\(s\) and returned Tensor"):
        path_attribution(loss_of(model, start, target, model.layer), start, end, Quadrature.of("riemann_right", 3))
    assert not model.layer._forward_hooks


class _ThroughThePath:
    """Examples, as one forward pass takes them."""

    def __init__(self, model: nn.Module) -> None:
        self.batch_sizes: list[int] = []
        model.register_forward_pre_hook(lambda module, inputs: self.batch_sizes.append(len(inputs[0])))


@pytest.mark.parametrize(
    ("internal_batch_size", "largest", "n_passed"),
    # All of the path's 40 points twice, unless they fit at once, and one to see how many suit the machine, if any do.
    [(1, 1, 80), (3, 3, 81), (4, 4, 80), (7, 4, 80), (8, 8, 81), (30, 20, 81), (1000, 40, 41)],
)
def test_internal_batch_size_is_kept(internal_batch_size, largest, n_passed, model, points) -> None:
    start, end, target = points
    counter = _ThroughThePath(model)
    rule = Quadrature.of("riemann_right", 10)
    path_attribution(loss_of(model, start, target), start, end, rule, internal_batch_size).sum().backward()
    assert max(counter.batch_sizes) == largest
    assert sum(counter.batch_sizes) == n_passed


@pytest.mark.parametrize("internal_batch_size", [1, 2, 4, 7, 8, 20, 1000])
def test_internal_batch_size_is_kept_in_a_layer(internal_batch_size, model, points) -> None:
    start, end, target = points
    counter = _ThroughThePath(model)
    loss = loss_of(model, start, target, layer=model[1])
    path_attribution(loss, start, end, Quadrature.of("riemann_right", 10), internal_batch_size).sum().backward()
    assert max(counter.batch_sizes) <= max(2, internal_batch_size)  # a step along the curve takes both its ends


def test_the_default_puts_small_models_in_one_batch_and_large_ones_in_several(points) -> None:
    start, end, target = points
    small, large = (nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).double() for width in (8, 10**6))
    counters = [_ThroughThePath(model) for model in (small, large)]
    with torch.no_grad():
        for model in (small, large):
            path_attribution(loss_of(model, start, target), start, end, Quadrature.of("riemann_right", 6))
    assert counters[0].batch_sizes == [1, 24]
    assert counters[1].batch_sizes == [1] + [4] * 6
