"""The rescale rule for elementwise functions, by completeness, and the names of what has no rule."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import DeepLift, DeepLiftShap, GuidedBackprop, LayerDeepLift
from torch import Tensor, nn

from captum_boundary import BoundaryAttribution, LayerBoundaryAttribution, NearestBoundary
from captum_boundary.attr import separate_activations
from captum_boundary.attr._rewrite.rescale import ELEMENTWISE
from captum_boundary.errors import BoundaryValueError


class Elementwise(nn.Module):
    """Two calls of one function, the second of a value that is used elsewhere too, and not traceable if asked for."""

    def __init__(self, function: Callable[[Tensor], Tensor], is_traceable: bool = True) -> None:
        super().__init__()
        self.function, self.is_traceable = function, is_traceable
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_traceable and x.sum() > 1e9:
            return x
        hidden = self.first(x)
        hidden = hidden + self.function(self.second(self.function(hidden)))
        return self.last(hidden)


MODULES = [
    nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.SELU(), nn.CELU(0.7), nn.ReLU6(), nn.Hardswish(),
    nn.Hardsigmoid(), nn.Hardtanh(-0.3, 0.4), nn.LogSigmoid(), nn.Softsign(), nn.Tanhshrink(), nn.Softshrink(0.1),
    nn.Hardshrink(0.1), nn.Threshold(0.1, 0.2), nn.SiLU(inplace=True),
]  # fmt: skip
FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    F.gelu, F.silu, F.mish, F.hardswish, F.relu6, F.logsigmoid, torch.erf, torch.sin, torch.exp, torch.Tensor.square,
    lambda x: x**2, lambda x: x.clamp(-0.2, 0.3), lambda x: (x.abs() + 1).log(), lambda x: (1 + x * 0.1).rsqrt().pow(3),
]  # fmt: skip


def model_of(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double().eval()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(1))


def delta_of(model: nn.Module, inputs: Tensor, method: Any = DeepLift, **options: Any) -> tuple[Tensor, Tensor]:
    """The convergence delta, and the difference of scores that it is small beside."""
    explainer = BoundaryAttribution(model, method, NearestBoundary(model, budget=10), **options)
    maps, delta, boundary = explainer.attribute(inputs, return_convergence_delta=True, return_boundary=True)
    assert boundary.found.all()
    return delta, maps.sum(1).abs()


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules_complete(module: nn.Module, inputs: Tensor) -> None:
    delta, change = delta_of(model_of(lambda: Elementwise(module)), inputs)
    assert (delta.abs() < 1e-9).all()
    assert (change > 1e-3).any()


@pytest.mark.parametrize("is_traceable", [True, False])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_complete(function: Callable[[Tensor], Tensor], is_traceable: bool, inputs: Tensor) -> None:
    delta, _ = delta_of(model_of(lambda: Elementwise(function, is_traceable)), inputs)
    assert (delta.abs() < 1e-9).all()


def test_the_gradient_alone_does_not_complete(inputs: Tensor) -> None:
    model = model_of(lambda: Elementwise(nn.GELU()))
    points = NearestBoundary(model, budget=10).find(inputs)
    plain = DeepLift(separate_activations(model, inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, delta = plain.attribute(inputs, points.points, target=points.target, return_convergence_delta=True)
    assert delta.abs().max() > 1e-3


def test_multipliers_are_mean_slopes(inputs: Tensor) -> None:
    layer = nn.Linear(4, 2, bias=False)
    model = nn.Sequential(nn.GELU(), layer).double()
    search = NearestBoundary(model, budget=10)
    maps, boundary = BoundaryAttribution(model, DeepLift, search).attribute(inputs, return_boundary=True)
    gain = F.gelu(inputs) - F.gelu(boundary.points)
    expected = gain * layer.weight[boundary.target]
    torch.testing.assert_close(maps, expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("score", ["output", "margin"])
@pytest.mark.parametrize("method", [DeepLift, DeepLiftShap])
def test_every_score_and_batch(method: Any, score: str, inputs: Tensor) -> None:
    model = model_of(lambda: nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.ReLU(), nn.Linear(8, 3)))
    delta, _ = delta_of(model, inputs, method, score=score)
    assert (delta.abs() < 1e-9).all()
    alone, _ = delta_of(model, inputs[:1], method, score=score)
    assert (alone.abs() < 1e-9).all()


@pytest.mark.parametrize("at_input", [True, False])
def test_in_a_layer(at_input: bool, inputs: Tensor) -> None:
    model = model_of(lambda: nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3)))
    explainer = LayerBoundaryAttribution(model, model[1], LayerDeepLift, NearestBoundary(model, budget=10))
    _, delta = explainer.attribute(inputs, attribute_to_layer_input=at_input, return_convergence_delta=True)
    assert (delta.abs() < 1e-9).all()


def test_other_methods_keep_their_gradients(inputs: Tensor) -> None:
    model = model_of(lambda: nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 3)))
    search = NearestBoundary(model, budget=10)
    maps, boundary = BoundaryAttribution(model, GuidedBackprop, search).attribute(inputs, return_boundary=True)
    points = boundary.points.clone().requires_grad_()
    score = model(points).gather(1, boundary.target[:, None]).sum()
    torch.testing.assert_close(maps, torch.autograd.grad(score, points)[0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (4, 1)) * torch.ones(4).to(x)
        mixed = F.scaled_dot_product_attention(self.queries(x), self.keys(x), x)
        return self.last(mixed.flatten(1))


class WrittenOut(Attention):
    """The same attention in functions, in code that cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (4, 1)) * torch.ones(4).to(x)
        weights = (self.queries(x) @ self.keys(x).transpose(1, 2) / 2).softmax(dim=-1)
        return self.last((weights @ x).flatten(1)) if x.sum() < 1e9 else x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(x[:, :, None])[0][:, -1])


class Product(nn.Module):
    """A product of two values that depend on the input, and one with a further argument, which does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        gate, value = self.first(x * scale).chunk(2, dim=1)
        return self.last(gate * value)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)), r"layer_norm in '1' \(LayerNorm\)"),
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.GLU(), nn.Linear(4, 3)), r"glu in '1' \(GLU\)"),
        (Attention, "scaled_dot_product_attention"),
        (WrittenOut, r"matmul, softmax"),
        (Recurrent, r"lstm in 'lstm' \(LSTM\)"),
        (
            lambda: nn.Sequential(nn.Linear(4, 16), nn.Unflatten(1, (4, 4)),
                                  nn.TransformerEncoderLayer(4, 1, 8, batch_first=True),
                                  nn.Flatten(), nn.Linear(16, 3)),
            "multi_head_attention_forward|_transformer_encoder_layer_fwd",
        ),
    ],
    ids=["layer_norm", "glu", "attention", "written_out", "lstm", "encoder"],
)  # fmt: skip
def test_what_has_no_rule_is_named(build: Callable[[], nn.Module], name: str, inputs: Tensor) -> None:
    model = model_of(build)
    boundary = NearestBoundary(model, budget=20).find(inputs)
    with pytest.warns(UserWarning, match=f"DeepLift has no rule for .*({name})"):
        BoundaryAttribution(model, DeepLift).attribute(inputs, boundary=boundary)
    BoundaryAttribution(model, GuidedBackprop).attribute(inputs, boundary=boundary)  # which needs none


def test_products_of_inputs_are_named_and_others_not(inputs: Tensor) -> None:
    model, scale = model_of(Product), torch.rand(4, 4).double()
    explainer = BoundaryAttribution(model, DeepLift, NearestBoundary(model, budget=20))
    with pytest.warns(UserWarning, match=r"has no rule for mul\. It") as caught:
        explainer.attribute(inputs, additional_forward_args=scale)
    assert caught[0].filename == __file__


def test_attention_is_explained_alike_however_it_is_written(inputs: Tensor) -> None:
    models = model_of(Attention), model_of(WrittenOut)
    boundary = NearestBoundary(models[0], budget=20).find(inputs)
    with pytest.warns(UserWarning, match="has no rule"):
        fused, written = (BoundaryAttribution(model, DeepLift).attribute(inputs, boundary=boundary) for model in models)
    torch.testing.assert_close(written, fused)


def test_what_lies_before_the_layer_needs_no_rule(inputs: Tensor) -> None:
    model = model_of(lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 3)))
    search = NearestBoundary(model, budget=10)
    LayerBoundaryAttribution(model, model[2], LayerDeepLift, search).attribute(inputs)
    with pytest.warns(UserWarning, match="LayerDeepLift|DeepLift has no rule for layer_norm"):
        LayerBoundaryAttribution(model, model[0], LayerDeepLift, search).attribute(inputs)


class Rounded(nn.Module):
    """Computes by ``offset`` more at every other call, as a copy does whose operations run in another order."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.relu, self.last, self.offset, self.calls = nn.ReLU(), nn.Linear(4, 3), offset, [0]

    def __deepcopy__(self, memo: dict[int, Any]) -> Rounded:
        copied = Rounded(self.offset)
        copied.relu, copied.last, copied.calls = self.relu, self.last, self.calls
        return copied

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        if x.sum() > 1e9:
            return x
        return 0.3 * self.last(self.relu(x)) + self.offset * (self.calls[0] % 2)


@pytest.mark.parametrize(
    ("dtype", "rounding", "difference"),
    [(torch.float32, 1.5e-5, 1e-3), (torch.bfloat16, 2e-3, 0.3), (torch.float16, 2e-3, 0.3)],
)
def test_rounding_of_deep_networks_is_no_difference(dtype, rounding, difference) -> None:
    """A GoogLeNet's scores of 0.3 differ by 1.5e-5."""
    inputs = torch.rand(2, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    separate_activations(Rounded(rounding).to(dtype), inputs)
    with pytest.raises(BoundaryValueError, match="does not compute what the model computes"):
        separate_activations(Rounded(difference).to(dtype), inputs)


def test_no_function_has_two_rules() -> None:
    from captum_boundary.attr._rewrite.table import FUNCTIONAL_FORMS

    assert ELEMENTWISE.isdisjoint(FUNCTIONAL_FORMS)
