"""What an attack does to the maps of other methods than its own: Captum's, and those of this package."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial

import pytest
import torch
from captum.attr import DeepLift, InputXGradient, IntegratedGradients, Occlusion, Saliency
from torch import nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    AttributionAttack,
    BoundaryAttribution,
    BoundaryIntegratedGradients,
    BoundaryNotFoundWarning,
    BoundarySaliency,
    NearestBoundary,
    evaluate_attribution_robustness,
    metrics,
)
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust import MapAgreement

MEASURES = [field.name for field in dataclasses.fields(MapAgreement)]
# Captum says of DeepLift that it uses hooks.
pytestmark = pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")


def attack(model, **options):
    return AttributionAttack(model, **{"epsilon": 0.2, "n_steps": 8, "attack_steps": 4, "bounds": (0, 1), **options})


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 12), nn.ReLU(), nn.Linear(12, 3)
    return nn.Sequential(*layers).double().eval()


@pytest.fixture
def images():
    return torch.rand(5, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def search(model):
    return NearestBoundary(model, budget=10)


METHODS = {
    "IG": IntegratedGradients,
    "saliency": lambda model: partial(Saliency(model).attribute, abs=False),
    "DeepLift": DeepLift,
    "occlusion": lambda model: partial(Occlusion(model).attribute, sliding_window_shapes=(1, 2, 2)),
    "BSM": lambda model: BoundarySaliency(model, search(model)),
    "BIG": lambda model: BoundaryIntegratedGradients(model, search(model)),
    "boundary DeepLift": lambda model: BoundaryAttribution(model, DeepLift, search(model)),
    "boundary input x gradient": lambda model: BoundaryAttribution(model, InputXGradient, search(model)),
    "boundary normals": lambda model: AggregatedBoundaryNormals(model, search(model)),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("target", [None, [0, 1, 2, 0, 1]])
def test_measures_are_those_of_the_methods_maps(network, images, method, target):
    explainer, attacker = method(network), attack(network)
    robustness = evaluate_attribution_robustness(network, images, target, attacker, k=5, attribution=explainer)
    assert torch.equal(robustness.perturbed, attacker.perturb(images, target))
    explained = network(images).argmax(dim=1) if target is None else torch.tensor(target)
    control = attack(network, method="random", attack_steps=30).perturb(images)
    explain = getattr(explainer, "attribute", explainer)
    before, after, of_control = (
        explain(points.clone().requires_grad_(), target=explained).detach().abs().sum(dim=1)
        for points in (images, robustness.perturbed, control)
    )
    for maps, own in ((before, robustness.before), (after, robustness.after)):
        torch.testing.assert_close(own, maps / maps.sum(dim=(1, 2), keepdim=True))
    for maps, own in ((after, robustness), (of_control, robustness.control)):
        pair = before[:, None], maps[:, None]
        torch.testing.assert_close(own.topk_intersection, metrics.topk_intersection(*pair, k=5))
        for measure in MEASURES[1:]:
            torch.testing.assert_close(getattr(own, measure), getattr(metrics, measure)(*pair))


def test_the_attacks_own_method_gives_what_the_attack_sees(network, images):
    attacker = attack(network)
    own = evaluate_attribution_robustness(network, images, None, attacker)
    as_other = evaluate_attribution_robustness(
        network, images, None, attacker, attribution=partial(IntegratedGradients(network).attribute, n_steps=8)
    )
    for measure in MEASURES:
        torch.testing.assert_close(getattr(as_other, measure), getattr(own, measure))
        torch.testing.assert_close(getattr(as_other.control, measure), getattr(own.control, measure))


@pytest.mark.parametrize("attribution", [None, IntegratedGradients])
def test_one_attack_serves_several_methods(network, images, attribution, monkeypatch):
    attacker = attack(network)
    explainer = None if attribution is None else attribution(network)
    first = evaluate_attribution_robustness(network, images, None, attacker, attribution=explainer)

    def refuse(*arguments):
        raise AssertionError("the attack is run again")

    monkeypatch.setattr(AttributionAttack, "_perturbed", refuse)
    again = evaluate_attribution_robustness(
        network, images, None, attacker, attribution=explainer, perturbed=first.perturbed
    )
    assert torch.equal(again.perturbed, first.perturbed)
    for measure in MEASURES:
        torch.testing.assert_close(getattr(again, measure), getattr(first, measure))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.table = nn.Linear(12, 8).double(), nn.Linear(4, 8).double()
        self.last = nn.Linear(8, 3).double()

    def forward(self, image, table, scale, sign):
        return sign * self.last(torch.relu(self.image(image.flatten(1)) + self.table(table)) * scale[:, None])


@pytest.mark.parametrize("method", [IntegratedGradients, BoundaryIntegratedGradients])
def test_several_inputs_and_further_arguments(method):
    model = TwoInputs()
    generator = torch.Generator().manual_seed(0)
    image, table = (torch.rand(*shape, generator=generator).double() for shape in ((5, 3, 2, 2), (5, 4)))
    arguments = (1 + torch.rand(5, generator=generator).double(), -1)
    robustness = evaluate_attribution_robustness(
        model, (image, table), None, attack(model), arguments, attribution=method(model)
    )
    assert robustness.before.shape == (5, 8)  # pixels, and columns of the table
    assert [part.shape for part in robustness.perturbed] == [image.shape, table.shape]
    explained = model(image, table, *arguments).argmax(dim=1)
    of_image, of_table = (
        method(model).attribute((image, table), explained, additional_forward_args=arguments)
        if method is BoundaryIntegratedGradients
        else method(model).attribute((image, table), target=explained, additional_forward_args=arguments)
    )
    maps = torch.cat([of_image.abs().sum(dim=1).flatten(1), of_table.abs()], dim=1)
    torch.testing.assert_close(robustness.before, (maps / maps.sum(dim=1, keepdim=True)).detach())


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("method", [IntegratedGradients, BoundarySaliency])
def test_models_with_one_output(shape, method):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0) if shape == (-1,) else nn.Identity()
    )
    inputs = torch.rand(4, 6)
    robustness = evaluate_attribution_robustness(model, inputs, None, attack(model), attribution=method(model))
    assert robustness.kendall_tau.isfinite().all()


def test_what_is_not_found_is_no_number(network, images):
    explainer = BoundarySaliency(network, NearestBoundary(network, max_distance=1e-6))
    with pytest.warns(BoundaryNotFoundWarning):
        robustness = evaluate_attribution_robustness(network, images, None, attack(network), attribution=explainer)
    assert robustness.before.isnan().all()
    assert all(getattr(robustness, measure).isnan().all() for measure in MEASURES)


@pytest.mark.parametrize("inference", [False, True])
def test_nothing_of_the_users_changes(network, images, inference):
    network.requires_grad_(True).train()
    state, numbers = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    with torch.inference_mode(inference):
        robustness = evaluate_attribution_robustness(
            network, images, None, attack(network), attribution=BoundaryIntegratedGradients(network, search(network))
        )
    assert not robustness.after.requires_grad
    assert network.training
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_progress_is_that_of_the_attack(network, images, capsys):
    evaluate_attribution_robustness(
        network, images, None, attack(network, show_progress=True), attribution=IntegratedGradients(network)
    )
    assert "Maps: 100%" in capsys.readouterr().err
    evaluate_attribution_robustness(network, images, None, attack(network))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"attribution": 3},
            BoundaryTypeError,
            r"attribution must be .* attribute\(inputs, target=...\), .* it is int",
        ),
        ({"attribution": Saliency}, BoundaryTypeError, r"it is the class Saliency: build it with Saliency\(model\)"),
        (
            {"attribution": lambda inputs, target: inputs.sum(dim=1)},
            BoundaryValueError,
            r"shapes of the inputs, \[\(5, 2, 4, 4\)\], but it returned \[\(5, 4, 4\)\]",
        ),
        ({"attribution": lambda inputs, target: None}, BoundaryValueError, r"but it returned \['NoneType'\]"),
        ({"perturbed": torch.zeros(5, 2, 4, 3)}, BoundaryValueError, "perturbed must have the shapes of inputs"),
        ({"perturbed": "points"}, BoundaryTypeError, "must be a Tensor or a tuple of Tensors"),
    ],
)
def test_what_makes_no_sense(network, images, options, error, message):
    with pytest.raises(error, match=message):
        evaluate_attribution_robustness(network, images, None, attack(network), **options)


def test_perturbed_inputs_out_of_reach_are_refused(network, images) -> None:
    attacker = attack(network, bounds=(0, 1))
    labels = network(images).argmax(dim=1)
    far = images.clone()
    far[1] = (images[1] + 2 * attacker.epsilon * torch.where(images[1] < 0.5, 1.0, -1.0)).clamp(0, 1)
    with pytest.raises(
        BoundaryValueError, match=r"within epsilon of inputs and within bounds, .* row\(s\) \[1\] do not"
    ):
        evaluate_attribution_robustness(network, images, None, attacker, perturbed=far)
    low = images.clone()
    low[2] -= attacker.epsilon
    assert low.min() < 0
    with pytest.raises(BoundaryValueError, match=r"within bounds, .* row\(s\) \[2\]"):
        evaluate_attribution_robustness(network, images, None, attacker, perturbed=low)
    wide = attack(network, bounds=None, epsilon=100.0)
    others = 10 * torch.randn(200, 2, 4, 4, dtype=images.dtype, generator=torch.Generator().manual_seed(2))
    others = others[network(others).argmax(dim=1) != labels[0]][:1].expand_as(images)
    assert len(others) == len(images)
    with pytest.raises(
        BoundaryValueError, match=r"must keep the predicted labels of inputs, but those of row\(s\) \[0"
    ):
        evaluate_attribution_robustness(network, images, None, wide, perturbed=others)


def test_perturbed_inputs_at_the_edge_are_taken(network, images) -> None:
    """Rounded sums may lie outside of the ball by their last bit, and the inputs themselves are no perturbation."""
    attacker = attack(network, epsilon=1e-3)
    for points in (images, (images + 1e-3).clamp(0, 1), attacker.perturb(images)):
        result = evaluate_attribution_robustness(network, images, None, attacker, perturbed=points)
        torch.testing.assert_close(result.perturbed, points, rtol=0, atol=1e-7)


def test_the_control_of_a_random_perturbation_is_another_one(network, images) -> None:
    attacker = attack(network, method="random")
    result = evaluate_attribution_robustness(network, images, None, attacker)
    assert not torch.equal(result.kendall_tau, result.control.kendall_tau)
