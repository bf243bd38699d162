"""What an attack does to attributions, and that it does more than noise."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from captum.attr import IntegratedGradients
from captum.robust import FGSM
from torch import nn

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.metrics import stability
from captum_boundary.robust import (
    AttributionAttack,
    AttributionRobustness,
    MapAgreement,
    evaluate_attribution_robustness,
)

MEASURES = [field.name for field in dataclasses.fields(MapAgreement)]


def attack(model, method="topk", **options):
    return AttributionAttack(model, method, **{"epsilon": 0.2, "n_steps": 8, "attack_steps": 8, **options})


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def network():
    layers = nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 12), nn.ReLU(), nn.Linear(12, 3)
    return nn.Sequential(*layers).double().eval()


@pytest.fixture
def images():
    return torch.rand(5, 2, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("target", [None, 1, [0, 1, 2, 0, 1]])
def test_measures_are_those_of_captums_maps(network, images, target):
    """Everything again by way of Captum and the public measures."""
    robustness = evaluate_attribution_robustness(network, images, target, attack(network, bounds=(0, 1)), k=5)
    assert torch.equal(robustness.perturbed, attack(network, bounds=(0, 1)).perturb(images, target))
    explained = network(images).argmax(dim=1) if target is None else torch.as_tensor(target).expand(5)
    control = attack(network, "random", bounds=(0, 1)).perturb(images)
    ig = IntegratedGradients(network)
    before, after, of_control = (
        ig.attribute(points, target=explained, n_steps=8).abs().sum(dim=1)
        for points in (images, robustness.perturbed, control)
    )
    for maps, own in ((before, robustness.before), (after, robustness.after)):
        torch.testing.assert_close(own, maps / maps.sum(dim=(1, 2), keepdim=True))
    for maps, own in ((after, robustness), (of_control, robustness.control)):
        pair = before[:, None], maps[:, None]
        torch.testing.assert_close(own.topk_intersection, stability.topk_intersection(*pair, k=5))
        for measure in MEASURES[1:]:
            torch.testing.assert_close(getattr(own, measure), getattr(stability, measure)(*pair))


def test_the_result_describes_every_example(network, images):
    robustness = evaluate_attribution_robustness(network, images, None, attack(network))
    assert isinstance(robustness, AttributionRobustness)
    assert isinstance(robustness, MapAgreement)
    assert type(robustness.control) is MapAgreement
    for measure in MEASURES:
        for agreement in (robustness, robustness.control):
            assert getattr(agreement, measure).shape == (5,)
            assert not getattr(agreement, measure).isnan().any()
    assert robustness.before.shape == robustness.after.shape == (5, 4, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        robustness.kendall_tau = None


def test_k_is_the_attacks_unless_given(network, images):
    values = {
        k: evaluate_attribution_robustness(network, images, None, attack(network, k=4), k=k).topk_intersection
        for k in (None, 4, 5)
    }
    assert torch.equal(values[None], values[4])
    assert not torch.equal(values[None], values[5])
    by_default = evaluate_attribution_robustness(network, images, None, attack(network))
    an_eighth = evaluate_attribution_robustness(network, images, None, attack(network), k=2)
    assert torch.equal(by_default.topk_intersection, an_eighth.topk_intersection)


def test_only_images_have_a_center():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    robustness = evaluate_attribution_robustness(model, torch.rand(3, 6, dtype=torch.float64), None, attack(model))
    assert robustness.center_shift.isnan().all()
    assert robustness.control.center_shift.isnan().all()
    assert robustness.before.shape == (3, 6)


def test_several_inputs_and_arguments(network, images):
    parts = images[:, :1], images[:, 1:]

    def model(first, second, shift):
        return network(torch.cat([first, second], dim=1) + shift)

    shift = torch.rand(5, 2, 4, 4, dtype=torch.float64)
    robustness = evaluate_attribution_robustness(model, parts, 1, attack(model), additional_forward_args=shift)
    assert isinstance(robustness.perturbed, tuple)
    assert robustness.before.shape == (5, 32)
    assert (robustness.kendall_tau < 1).all()
    assert robustness.center_shift.isnan().all()
    alone = evaluate_attribution_robustness(
        model, tuple(part[2:3] for part in parts), 1, attack(model), additional_forward_args=shift[2:3]
    )
    torch.testing.assert_close(alone.after, robustness.after[2:3])


def test_without_epsilon_all_agrees(network, images):
    robustness = evaluate_attribution_robustness(network, images, None, attack(network, epsilon=0))
    for agreement in (robustness, robustness.control):
        for measure in MEASURES:
            best = 0.0 if measure == "center_shift" else 1.0
            assert getattr(agreement, measure).tolist() == pytest.approx([best] * 5)


def test_the_generator_draws_the_control(network, images):
    def control(generator):
        robustness = evaluate_attribution_robustness(network, images, None, attack(network, generator=generator))
        return robustness.control.kendall_tau

    by_default, first, again, other = (
        control(generator) for generator in (None, *(torch.Generator().manual_seed(seed) for seed in (1, 1, 2)))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, by_default)


def test_all_measures_come_from_one_run_of_the_attack(network, images, capsys):
    evaluate_attribution_robustness(network, images, None, attack(network, show_progress=True))
    assert capsys.readouterr().err.count("Attribution attack:   0%") == 1
    evaluate_attribution_robustness(network, images, None, attack(network))
    assert capsys.readouterr().err == ""


def test_bad_arguments_are_refused(network, images):
    with pytest.raises(BoundaryTypeError, match="attack must be an AttributionAttack, but it is FGSM"):
        evaluate_attribution_robustness(network, images, None, FGSM(network))
    with pytest.raises(BoundaryValueError, match="made for another model"):
        evaluate_attribution_robustness(nn.Linear(4, 3), images, None, attack(network))
    with pytest.raises(BoundaryValueError, match="k must be a positive integer"):
        evaluate_attribution_robustness(network, images, None, attack(network), k=0)
    with pytest.raises(BoundaryValueError, match="at most the 16 features of a map, but it is 17"):
        evaluate_attribution_robustness(network, images, None, attack(network), k=17)
    with pytest.raises(BoundaryTypeError, match="it is list"):
        evaluate_attribution_robustness(network, [images], None, attack(network))


# Real images: the attack has to do far more harm than noise of its size -----------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """A trained network and the digits that it recognizes; their background is black, and so is the baseline."""
    pytest.importorskip("sklearn")
    from captum_boundary._demo.digits import load, train

    learned, new = load(seed=0)
    model = train(learned, epochs=6, seed=0)
    with torch.no_grad():
        correct = model(new.images).argmax(dim=1) == new.labels
    return model, new.images[correct][:12], new.labels[correct][:12]


def test_the_top_is_lost_more_often_than_by_noise(digits):
    model, images, labels = digits
    attacker = AttributionAttack(model, epsilon=0.2, bounds=(0, 1), measure="topk", attack_steps=15, n_steps=20)
    robustness = evaluate_attribution_robustness(model, images, labels, attacker)
    assert robustness.topk_intersection.mean() < robustness.control.topk_intersection.mean() - 0.15
    assert (robustness.topk_intersection <= robustness.control.topk_intersection).float().mean() >= 0.95


def test_the_order_is_lost_more_often_than_by_noise(digits):
    model, images, labels = digits
    attacker = AttributionAttack(model, epsilon=0.2, bounds=(0, 1), k=32, attack_steps=15, n_steps=20)
    robustness = evaluate_attribution_robustness(model, images, labels, attacker)
    assert robustness.kendall_tau.mean() < robustness.control.kendall_tau.mean() - 0.2
    assert robustness.spearman_rho.mean() < robustness.control.spearman_rho.mean() - 0.2
    assert (robustness.kendall_tau < robustness.control.kendall_tau).all()


def test_the_center_moves_further_than_by_noise(digits):
    model, images, labels = digits
    attacker = AttributionAttack(model, "mass_center", epsilon=0.2, bounds=(0, 1), attack_steps=10, n_steps=20)
    robustness = evaluate_attribution_robustness(model, images, labels, attacker)
    assert (robustness.center_shift > 2 * robustness.control.center_shift).float().mean() >= 0.9


def test_gradients_are_attacked_as_well(digits):
    model, images, labels = digits
    attacker = AttributionAttack(model, epsilon=0.2, bounds=(0, 1), attribution="gradient", attack_steps=15)
    robustness = evaluate_attribution_robustness(model, images, labels, attacker)
    assert robustness.topk_intersection.mean() < robustness.control.topk_intersection.mean() - 0.15
    assert robustness.kendall_tau.mean() < robustness.control.kendall_tau.mean() - 0.05


def test_mass_goes_to_a_target(digits):
    model, images, labels = digits
    corner = torch.zeros(8, 8)
    corner[:4, :4] = 1.0
    attacker = AttributionAttack(
        model, "target", epsilon=0.2, bounds=(0, 1), target_map=corner, attack_steps=10, n_steps=20
    )
    robustness = evaluate_attribution_robustness(model, images, labels, attacker)
    gained = (robustness.after - robustness.before)[:, :4, :4].sum(dim=(1, 2))
    assert (gained > 0.1).float().mean() >= 0.9


def test_the_attack_beats_noise_on_a_pretrained_network(zoo):
    model = zoo.cifar_resnet20()
    images, labels = zoo.first_correct(model, *zoo.load_images("cifar10_test500"), 2)
    attacker = AttributionAttack(model, epsilon=2 / 255, bounds=(0, 1), attack_steps=5, n_steps=5)
    robustness = evaluate_attribution_robustness(model, images, labels, attacker)
    assert (robustness.topk_intersection < 0.6 * robustness.control.topk_intersection).all()
    assert (robustness.kendall_tau < robustness.control.kendall_tau).all()
