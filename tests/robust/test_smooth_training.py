"""The regularizer of a network of ReLUs, taken as one of softplus: closed forms, exact gradients, the same network."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_boundary import RARLoss
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

BETA = 4.0
SIZES = ("ig_norm", "ig_sum_norm", "norm_power")


def network(activation: type[nn.Module] = nn.ReLU, n_classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), activation(), nn.Linear(16, n_classes)).double()


def batch(n_examples: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n_examples, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (n_examples,), generator=generator)


def ends(x: Tensor) -> Tensor:
    return x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)


def output_itself(output: Tensor, target: Tensor) -> Tensor:
    return output.squeeze(1)


def smooth_loss(model: nn.Module, size: object = "ig_norm", **options: object) -> RARLoss:
    settings = {"epsilon": 0.3, "smooth": "softplus", "softplus_beta": BETA, "random_start": False, **options}
    return RARLoss(model, size, **settings, warmup=0)


def softplus_attribution(model: nn.Sequential, x: Tensor, end: Tensor, beta: float) -> Tensor:
    """Along a line each unit's argument moves evenly, so that the integral of its slope is a difference of softplus."""
    first, _, last = model
    before, after = first(x), first(end)
    mean_slope = (F.softplus(after, beta, 1e9) - F.softplus(before, beta, 1e9)) / (after - before)
    return (end - x) * ((last.weight * mean_slope) @ first.weight)


@pytest.mark.parametrize("beta", [1.0, 4.0, 15.0])
def test_one_hidden_layer_has_a_closed_form(beta) -> None:
    model, (x, y) = network(n_classes=1), batch()
    end = ends(x)
    rar = smooth_loss(
        model,
        softplus_beta=beta,
        loss_func=output_itself,
        n_steps=100,
        quadrature="gausslegendre",
        internal_batch_size=60,
    )
    sizes = rar.regularizer(x, end, y)
    closed_form = softplus_attribution(model, x, end, beta).abs().sum(dim=1)
    torch.testing.assert_close(sizes, closed_form, rtol=1e-7, atol=0)
    gradients, expected = (
        torch.autograd.grad(value.sum(), list(model.parameters()), materialize_grads=True)
        for value in (sizes, closed_form)
    )
    torch.testing.assert_close(gradients, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("size", SIZES)
def test_sharp_softplus_has_the_values_of_relu(size) -> None:
    model, (x, y) = network(), batch()
    sharp, plain = smooth_loss(model, size, softplus_beta=1e7), RARLoss(model, size, epsilon=0.3, warmup=0)
    torch.testing.assert_close(sharp.regularizer(x, ends(x), y), plain.regularizer(x, ends(x), y), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("internal_batch_size", [None, 4, 60])
@pytest.mark.parametrize("with_layer", [False, True])
def test_parameter_gradients_are_exact(size, internal_batch_size, with_layer) -> None:
    model, (x, y) = network(), batch()
    rar = smooth_loss(
        model,
        size,
        n_steps=9,
        internal_batch_size=internal_batch_size,
        layer=model[1] if with_layer else None,
        quadrature="riemann_right" if with_layer else None,
    )
    perturbed = rar.perturb(x, y)

    def value() -> Tensor:
        return rar.regularizer(x, perturbed, y).sum()

    gradients = torch.autograd.grad(value(), list(model.parameters()), materialize_grads=True)
    generator = torch.Generator().manual_seed(4)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-5)
            above = value()
            parameter.sub_(direction, alpha=2e-5)
            below = value()
            parameter.add_(direction, alpha=1e-5)
        expected = ((above - below) / 2e-5).item()
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_what_relu_hides_is_seen() -> None:
    """The size of relu(x - b) from 0 to 1 is 1 - b: its slope in b is -1, and automatic differentiation sees none."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).double()
    model[0].weight.data.fill_(1.0)
    model[0].bias.data.fill_(-0.4)
    x, end, y = torch.zeros(1, 1).double(), torch.ones(1, 1).double(), torch.zeros(1).long()
    slopes = {}
    for smooth in (None, "softplus"):
        rar = smooth_loss(
            model, smooth=smooth, softplus_beta=20.0, loss_func=output_itself, n_steps=100, quadrature="gausslegendre"
        )
        size = rar.regularizer(x, end, y)
        assert size.item() == pytest.approx(0.6, abs=0.01)
        (slope,) = torch.autograd.grad(size.sum(), model[0].bias, materialize_grads=True)
        slopes[smooth] = slope.item()
    assert slopes == {None: 0.0, "softplus": pytest.approx(1.0, abs=1e-3)}


def test_attacks_that_see_kinks_find_more() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)).double()
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(64, 20, generator=generator).double(), torch.zeros(64).long()
    options = {"epsilon": 1.0, "loss_func": output_itself, "attack_steps": 20}
    judge = RARLoss(model, **options, warmup=0)
    found = {
        smooth: judge.regularizer(
            x, RARLoss(model, smooth=smooth, softplus_beta=20.0, **options, warmup=0).perturb(x, y), y
        )
        for smooth in (None, "softplus")
    }
    assert found["softplus"].mean() > 1.02 * found[None].mean()
    assert (found["softplus"] > found[None]).double().mean() > 0.6


@pytest.mark.parametrize("size", [*SIZES, "sum"])
@pytest.mark.parametrize("internal_batch_size", [None, 6])
def test_the_loss_itself_is_that_of_the_network(size, internal_batch_size) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(8, 3)]
    model = nn.Sequential(*layers).double()
    alike = copy.deepcopy(model)
    x, y = batch()
    natural = F.cross_entropy(copy.deepcopy(model).eval()(x), y, reduction="none").detach()
    rar = smooth_loss(model, size, internal_batch_size=internal_batch_size)
    torch.manual_seed(1)
    loss = rar(x, y)
    loss.backward()
    torch.manual_seed(1)
    at_perturbed = size in ("ig_sum_norm", "sum")
    losses = F.cross_entropy(alike(rar.parts.perturbed if at_perturbed else x), y, reduction="none")
    for buffer, same in zip(model.buffers(), alike.buffers(), strict=True):
        assert torch.equal(buffer, same)
    assert torch.equal(rar.parts.loss, losses.detach())
    assert all(module.training for module in model.modules())
    alike.eval()
    expected = smooth_loss(alike, size).regularizer(x, rar.parts.perturbed, y)
    regularizer = losses - natural if size == "sum" else expected
    torch.testing.assert_close(rar.parts.regularizer, regularizer.detach())
    total = losses.mean() + (0 if size == "sum" else rar.weight * expected.mean())
    torch.testing.assert_close(loss, total)
    total.backward()
    for parameter, same in zip(model.parameters(), alike.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, same.grad)
    torch.testing.assert_close(rar.parts.natural_loss, natural)


def test_adversarial_training_has_no_attributions_to_smooth() -> None:
    model, (x, y) = network(), batch()
    for weight in (1.0, 0.3):
        options = {"epsilon": 0.3, "weight": weight, "random_start": False}
        plain, smooth = (RARLoss(model, "sum", smooth=smooth, **options, warmup=0) for smooth in (None, "softplus"))
        assert torch.equal(plain(x, y), smooth(x, y))
        assert torch.equal(plain.parts.perturbed, smooth.parts.perturbed)


class Masked(nn.Module):
    """A network that clamps a constant of its own into memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network(nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(3, dtype=x.dtype)
        return self.body(x) * torch.clamp_min(ones, 0.5, out=torch.empty_like(ones)) * torch.where(ones > 0, 1.0, 0.0)


def test_constants_may_be_clamped() -> None:
    x, y = batch()
    torch.testing.assert_close(smooth_loss(Masked())(x, y), smooth_loss(network(nn.Tanh))(x, y))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU])
def test_smooth_activations_are_exact(activation) -> None:
    model, (x, y) = network(activation), batch()
    plain, smooth = (smooth_loss(model, smooth=smooth)(x, y) for smooth in (None, "softplus"))
    assert torch.equal(plain, smooth)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before(fails) -> None:
    model, (x, y) = network(), batch()
    state, outputs, numbers = copy.deepcopy(model.state_dict()), model(x).detach(), torch.get_rng_state()
    rar = smooth_loss(model)
    if fails:
        handle = model[2].register_forward_hook(lambda module, inputs, output: output * torch.nan)
        with pytest.raises(BoundaryValueError, match="NaN or infinite"):
            rar(x, y)
        handle.remove()
    else:
        rar(x, y).backward()
    assert torch.equal(model(x), outputs)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


class Functional(nn.Module):
    """The same network, written with functions, methods and operations in place."""

    def __init__(self, relu) -> None:
        super().__init__()
        self.first, _, self.last = network()
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.first(x)))


class Attentive(nn.Module):
    """An encoder layer, which has a fused kernel for inference."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.encoder(self.first(x)[:, None])[:, 0])


def exported() -> nn.Module:
    shapes = ({0: torch.export.Dim("examples")},)
    inputs = (torch.rand(2, 5, dtype=torch.float64),)
    return torch.export.export(network(), inputs, dynamic_shapes=shapes).module()


FORMS = {
    "functions": lambda: Functional(F.relu),
    "methods": lambda: Functional(lambda z: z.clamp(min=0)),
    "in place": lambda: Functional(torch.relu_),
    "compiled": lambda: torch.compile(network(), backend="eager"),
    "compiled inside": lambda: nn.Sequential(torch.compile(network(), backend="eager")),
    "traced as a graph": lambda: torch.fx.symbolic_trace(network()),
    "exported": exported,
    "data parallel": lambda: nn.DataParallel(network()),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_all_forms_of_a_network_have_the_same_loss(form) -> None:
    x, y = batch()
    model, alike = form(), network()
    loss, expected = smooth_loss(model)(x, y), smooth_loss(alike)(x, y)
    torch.testing.assert_close(loss, expected)
    gradients, of_plain = (torch.autograd.grad(v, list(m.parameters())) for v, m in ((loss, model), (expected, alike)))
    torch.testing.assert_close(gradients, of_plain)
    assert abs(loss - smooth_loss(alike, smooth=None)(x, y)) > 1e-3


def test_fused_attention_is_smooth_inside() -> None:
    model, (x, y) = Attentive().double(), batch()
    plain, smooth, sharp = (
        smooth_loss(model, smooth=smooth, softplus_beta=beta).regularizer(x, ends(x), y)
        for smooth, beta in ((None, 1.0), ("softplus", 1.0), ("softplus", 1e7))
    )
    torch.testing.assert_close(sharp, plain, rtol=1e-4, atol=0)
    assert (smooth / plain - 1).abs().max() > 1e-2


class Recurrent(nn.Module):
    def __init__(self, nonlinearity: str) -> None:
        super().__init__()
        self.rnn, self.last = nn.RNN(5, 8, nonlinearity=nonlinearity, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rnn(x[:, None])[0][:, 0])


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", ["recurrent", "scripted", "traced", "leaky"])
def test_kinks_out_of_reach_are_named(name) -> None:
    x, y = batch()
    leaky = nn.Sequential(nn.Linear(5, 3), nn.LeakyReLU(), nn.Hardtanh(0.0, 6.0)).double()
    model = {
        "recurrent": lambda: Recurrent("relu").double(),
        "scripted": lambda: nn.Sequential(torch.jit.script(network())),
        "traced": lambda: nn.Sequential(torch.jit.trace(network(), x)),
        "leaky": lambda: nn.Sequential(torch.jit.script(leaky)),
    }[name]()
    kinks = "hardtanh, leaky_relu" if name == "leaky" else "relu"
    with pytest.raises(BoundaryValueError, match=f"does not reach every activation: {kinks}. It replaces"):
        smooth_loss(model)(x, y)
    smooth_loss(model, smooth=None)(x, y).backward()


def masked(z: Tensor) -> Tensor:
    return z.masked_fill(z < 0, 0.0)


def selected(z: Tensor) -> Tensor:
    result = torch.zeros_like(z)
    result[z > 0] = z[z > 0]
    return result


WITHOUT_SMOOTH_FORM = {
    "z * (z > 0)": (lambda z: z * (z > 0), "mul of a comparison"),
    "z * (z > 0).float()": (lambda z: z * (z > 0).to(z), "to_copy of a comparison"),
    "where": (lambda z: torch.where(z > 0, z, 0.1 * z), "where of a comparison"),
    "where of both": (lambda z: torch.where((z > 0) & (z < 6), z, torch.zeros_like(z)), "where of a comparison"),
    "masked_fill": (masked, "masked_fill of a comparison"),
    "indexing": (selected, "index of a comparison, index_put of a comparison"),
    "hardshrink": (F.hardshrink, "hardshrink"),
    "a threshold that jumps": (lambda z: F.threshold(z, 0.5, 0.0), "threshold"),
    "random leaks": (lambda z: F.rrelu(z, training=True), "rrelu"),
}


@pytest.mark.parametrize(("relu", "name"), WITHOUT_SMOOTH_FORM.values(), ids=WITHOUT_SMOOTH_FORM)
def test_kinks_without_a_smooth_form_are_named(relu, name) -> None:
    x, y = batch()
    rar = smooth_loss(Functional(relu))
    with pytest.raises(BoundaryValueError, match=rf"smooth='softplus' does not reach every activation: {name}\. It"):
        rar(x, y)
    smooth_loss(Functional(relu), smooth=None)(x, y).backward()


def padding(z: Tensor) -> Tensor:
    """Looks for padding, for NaN and for values out of range, and divides by a length."""
    assert not (z > 1e6).any()
    z = z.masked_fill((z == 0) | z.isnan(), -1.0)
    length = z.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-6)
    return torch.tanh(torch.where(torch.arange(z.shape[1]) > 2, z / length, F.normalize(z, dim=1)))


def test_comparisons_that_select_no_activation_are_welcome() -> None:
    x, y = batch()
    plain, smooth = (smooth_loss(Functional(padding), smooth=smooth)(x, y) for smooth in (None, "softplus"))
    assert torch.equal(plain, smooth)


SAME_AS_RELU = {
    "threshold": nn.Threshold(0.0, 0.0),
    "maximum": lambda z: torch.maximum(z, torch.zeros_like(z)),
    "clamp": lambda z: z.clamp(0, 1e9),
    "clamp without memory": lambda z: torch.clamp(z, min=0, out=None),
    "minimum": lambda z: -torch.minimum(-z, torch.zeros_like(z)),
}


@pytest.mark.parametrize("relu", SAME_AS_RELU.values(), ids=SAME_AS_RELU)
def test_all_ways_to_write_a_relu_have_the_same_loss(relu) -> None:
    x, y = batch()
    loss, expected = smooth_loss(Functional(relu))(x, y), smooth_loss(network())(x, y)
    torch.testing.assert_close(loss, expected)
    assert abs(loss - smooth_loss(network(), smooth=None)(x, y)) > 1e-3


def test_recurrent_layers_without_kinks_are_welcome() -> None:
    x, y = batch()
    model = Recurrent("tanh").double()
    assert torch.equal(smooth_loss(model)(x, y), smooth_loss(model, smooth=None)(x, y))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_models_are_refused_in_words() -> None:
    with pytest.raises(BoundaryTypeError, match=r"model must be .* from before it was scripted"):
        RARLoss(torch.jit.script(network()), epsilon=0.1, warmup=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smooth": "gelu"}, "smooth must be None or 'softplus', but it is 'gelu'"),
        ({"smooth": True}, "smooth must be None or 'softplus', but it is True"),
        ({"softplus_beta": 0.0}, "softplus_beta must be a positive number, but it is 0.0"),
        ({"softplus_beta": None}, "softplus_beta must be a positive number, but it is None"),
    ],
)
def test_options_that_make_no_sense(options, message) -> None:
    with pytest.raises(BoundaryValueError, match=message):
        RARLoss(network(), epsilon=0.1, **options, warmup=0)


@pytest.mark.parametrize("internal_batch_size", [None, 6])
def test_autocast_is_smooth_too(internal_batch_size) -> None:
    model, (x, y) = network().float(), batch()
    x = x.float()
    rar = smooth_loss(model, internal_batch_size=internal_batch_size)
    exact = rar(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        loss = rar(x, y)
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_print_says_so() -> None:
    assert "smooth='softplus', softplus_beta=4.0" in repr(smooth_loss(network()))
    assert "smooth" not in repr(RARLoss(network(), epsilon=0.1, warmup=0))
