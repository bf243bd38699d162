"""Further terms of the training loss: closed forms, naive loops, exact gradients, memory's groups, bad input."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from captum_boundary import RARLoss
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust import AttributionCosine, InputAlignment, StabilityTerm, TopKMargin

TERMS = {
    "cosine": AttributionCosine(2.0, n_steps=4),
    "cosine from a baseline": AttributionCosine(2.0, baselines=0.3, quadrature="riemann_middle"),
    "cosine from a baseline of its own": AttributionCosine(2.0, baselines=torch.full((1, 8), 0.2)),
    "top": TopKMargin(0.3, k=2),
    "top of some pairs": TopKMargin(0.3, k=3, n_pairs=1, curvature=0.5),
    "alignment": InputAlignment(0.7),
    "contrast": InputAlignment(0.7, contrast=True),
}
terms = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)


def network(activation: type[nn.Module] = nn.Softplus) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), activation(), nn.Linear(12, 4)).double()


def batch(n_examples: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n_examples, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (n_examples,), generator=generator)


def loss_of(model: nn.Module, term: Any, **options: Any) -> RARLoss:
    return RARLoss(
        model, "sum", **{"epsilon": 0.2, "bounds": (0, 1), "random_start": False, "terms": term, **options}, warmup=0
    )


def one_value(term: StabilityTerm, model: nn.Module, x: Tensor, perturbed: Tensor, label: int) -> float:
    """The definition of a term for one example, written out, with Captum's Integrated Gradients."""

    def gradient(point: Tensor, label: int) -> Tensor:
        point = point.clone().requires_grad_()
        return torch.autograd.grad(model(point[None])[0, label], point)[0]

    if isinstance(term, AttributionCosine):
        method = IntegratedGradients(model)
        options = {"target": label, "baselines": term.baselines, "n_steps": term.n_steps, "method": term.quadrature}
        before, after = (method.attribute(point[None], **options)[0] for point in (x, perturbed))
        return float(1 - before @ after / before.norm() / after.norm())
    if isinstance(term, TopKMargin):
        at_input, at_perturbed = gradient(x, label), gradient(perturbed, label)
        ranked = at_input.abs().sort(descending=True).values
        n = term.n_pairs or term.k
        gap = sum(float(ranked[term.k - 1 - i] - ranked[term.k + i]) for i in range(n)) / n
        change = float((at_perturbed - at_input).abs().mean())
        return (term.curvature * change - gap) / float(at_input.abs().mean())
    assert isinstance(term, InputAlignment)

    def distance(label: int) -> Tensor:
        return (F.normalize(gradient(perturbed, label), dim=0) - F.normalize(perturbed, dim=0)).square().sum() / 2

    if not term.contrast:
        return float(distance(label))
    rival = max((other for other in range(4) if other != label), key=lambda other: model(perturbed)[other].item())
    return math.log1p(math.exp(distance(label) - distance(rival)))


@terms
@pytest.mark.parametrize("internal_batch_size", [None, 1, 7])
def test_values_are_their_definition(term, internal_batch_size) -> None:
    model, (x, y) = network(), batch()
    rar = loss_of(model, [term], internal_batch_size=internal_batch_size)
    total = rar(x, y)
    expected = [one_value(term, model, *example) for example in zip(x, rar.parts.perturbed, y.tolist(), strict=True)]
    torch.testing.assert_close(rar.parts.terms[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-9)
    alone = loss_of(model, ())(x, y)
    torch.testing.assert_close(total.detach(), alone.detach() + term.weight * rar.parts.terms[0].mean())
    assert rar.parts.terms[0].grad_fn is None


@terms
@pytest.mark.parametrize("internal_batch_size", [None, 1, 7])
def test_gradients_of_parameters_are_exact(term, internal_batch_size) -> None:
    model, (x, y) = network(), batch()
    # Points that do not move with the parameters, as in the gradient of training.
    options = {"epsilon": 1e-9, "internal_batch_size": internal_batch_size}
    loss_of(model, [term], **options)(x, y).backward()
    for parameter in model.parameters():
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        values = []
        for step in (1e-6, -1e-6):
            moved = copy.deepcopy(model)
            at = dict(zip(model.parameters(), moved.parameters(), strict=True))[parameter]
            with torch.no_grad():
                at += step * direction
            values.append(loss_of(moved, [term], **options)(x, y).item())
        slope = (values[0] - values[1]) / 2e-6
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_all_is_still_in_linear_models() -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Linear(8, 4, bias=False).double(), batch()
    rar = loss_of(model, [AttributionCosine(), TopKMargin(k=2), InputAlignment()], epsilon=0.05)
    rar(x, y)
    weights, perturbed = model.weight.detach()[y], rar.parts.perturbed
    cosine, margin, alignment = rar.parts.terms
    torch.testing.assert_close(cosine, 1 - F.cosine_similarity(weights * x, weights * perturbed))
    ranked = weights.abs().sort(dim=1, descending=True).values
    torch.testing.assert_close(margin, (ranked[:, 2:4] - ranked[:, :2]).mean(dim=1) / weights.abs().mean(dim=1))
    torch.testing.assert_close(alignment, 1 - F.cosine_similarity(weights, perturbed))


@terms
def test_values_do_not_depend_on_the_batch_and_scale_no_map(term) -> None:
    model, (x, y) = network(), batch()
    together = loss_of(model, [term])
    together(x, y)
    for row in range(len(x)):
        single = loss_of(model, term)
        single(x[row : row + 1], y[row : row + 1])
        torch.testing.assert_close(single.parts.terms[0], together.parts.terms[0][row : row + 1])
    larger = copy.deepcopy(model)
    with torch.no_grad():  # the attack follows signs, so that the perturbed inputs are the same
        larger[-1].weight.mul_(1.5)
        larger[-1].bias.mul_(1.5)
    at_larger = loss_of(larger, [term], attack_steps=1, attack_step_size=0.2)
    at_model = loss_of(model, [term], attack_steps=1, attack_step_size=0.2)
    at_larger(x, y), at_model(x, y)
    same = (at_larger.parts.perturbed == at_model.parts.perturbed).all(dim=1)
    assert same.any()
    torch.testing.assert_close(at_larger.parts.terms[0][same], at_model.parts.terms[0][same])


@terms
def test_without_gradients_the_loss_is_the_same(term) -> None:
    model, (x, y) = network(), batch()
    rar = loss_of(model, [term])
    expected = rar(x, y).detach()
    with torch.no_grad():
        without = rar(x, y)
    assert not without.requires_grad
    torch.testing.assert_close(without, expected)
    assert torch.isfinite(rar.parts.terms[0]).all()
    with torch.autocast("cpu", torch.bfloat16):
        half = loss_of(network().float(), [term])(x.float(), y)
    assert torch.isfinite(half)


def test_training_holds_maps_still() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).double()
    x, y = batch(64)
    rar = loss_of(model, [AttributionCosine(3.0)], smooth="softplus", epsilon=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        rar(x, y).backward()
        optimizer.step()
        losses.append(rar.parts.terms[0].mean().item())
    assert losses[-1] < losses[0] / 2


def test_several_inputs_binary_models_and_losses_of_the_users() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 1)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return self.linear(torch.cat([first, second.flatten(1)], dim=1)).tanh()

    torch.manual_seed(0)
    first, second, y = torch.rand(4, 3), torch.rand(4, 1, 2), torch.tensor([0, 1, 1, 0])
    chosen = [AttributionCosine(), TopKMargin(k=2), InputAlignment()]
    rar = loss_of(TwoInputs(), chosen)
    rar((first, second), y).backward()
    assert [values.shape for values in rar.parts.terms] == [(4,)] * 3

    def squares(output: Tensor, target: Tensor) -> Tensor:
        return (output[:, 0] - target).square()

    model = TwoInputs()
    rar = loss_of(model, chosen, loss_func=squares)
    rar((first, second), y).backward()
    assert all(torch.isfinite(values).all() for values in rar.parts.terms)
    assert model.linear.weight.grad.abs().sum() > 0


def test_without_a_weight_the_terms_are_alone() -> None:
    model, (x, y) = network(), batch()
    rar = loss_of(model, [InputAlignment(2.0)], weight=0)
    total = rar(x, y).detach()
    at_perturbed = zip(x, rar.parts.perturbed, y.tolist(), strict=True)
    of_term = sum(one_value(InputAlignment(), model, *example) for example in at_perturbed) / len(x)
    torch.testing.assert_close(total, F.cross_entropy(model(x), y).detach() + 2 * of_term)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: AttributionCosine(-1.0), BoundaryValueError, "weight must be"),
        (lambda: AttributionCosine(math.nan), BoundaryValueError, "weight must be"),
        (lambda: AttributionCosine(n_steps=0), BoundaryValueError, "n_steps"),
        (lambda: AttributionCosine(quadrature="simpson"), BoundaryValueError, "quadrature must be"),
        (lambda: AttributionCosine(baselines=torch.zeros(5, 8)), BoundaryValueError, "of one example"),
        (lambda: TopKMargin(k=0), BoundaryValueError, "k must be"),
        (lambda: TopKMargin(n_pairs=0), BoundaryValueError, "n_pairs"),
        (lambda: TopKMargin(curvature=-1), BoundaryValueError, "curvature must be"),
        (lambda: loss_of(network(), ["cosine"]), BoundaryTypeError, "terms must be"),
        (lambda: loss_of(network(), 3), BoundaryTypeError, "terms must be"),
        (lambda: loss_of(network(), TopKMargin(k=8))(*batch()), BoundaryValueError, "k must be less"),
        (lambda: loss_of(network(), TopKMargin(k=9))(*batch()), BoundaryValueError, "k must be at most"),
        (
            lambda: loss_of(
                nn.Linear(8, 1).double(), InputAlignment(contrast=True), loss_func=lambda output, y: output[:, 0]
            )(*batch()),
            BoundaryValueError,
            "contrast",
        ),
    ],
)
def test_bad_input_is_told(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()
