"""The sides of a model with one output, given as ``target`` to everything that takes one."""

from __future__ import annotations

import pytest
import torch
from captum.attr import DeepLift, IntegratedGradients, NoiseTunnel, Saliency
from captum.metrics import sensitivity_max
from torch import nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    AttributionAttack,
    BoundaryAttribution,
    NearestBoundary,
    PGDBoundary,
    evaluate_attribution_robustness,
    metrics,
)
from captum_boundary.errors import BoundaryValueError
from captum_boundary.search import ClosestBoundary

INPUTS = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["column", "vector"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        column = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).eval()
    return column if request.param == "column" else nn.Sequential(column, nn.Flatten(0)).eval()


@pytest.fixture
def sides(model: nn.Module) -> torch.Tensor:
    sides = (model(INPUTS).flatten() > 0).long()
    assert 0 < sides.sum() < len(sides)
    return sides


SEARCHES = {
    "nearest": NearestBoundary,
    "descent": lambda model: PGDBoundary(model, epsilons=(1.0, 8.0)),
    "closest": lambda model: ClosestBoundary([NearestBoundary(model, budget=5)]),
}


@pytest.mark.parametrize("make", SEARCHES.values(), ids=SEARCHES)
def test_the_sides_of_the_inputs_are_what_no_target_means(make, model, sides):
    search = make(model)
    expected = search.find(INPUTS)
    assert torch.equal(expected.target, sides)
    for target in (expected.target, expected.target.tolist(), 0):
        boundary = search.find(INPUTS, target)
        assert torch.equal(boundary.points, expected.points)
        assert torch.equal(boundary.target, sides)
    negative = sides == 0
    alone = search.find(INPUTS[negative], expected.target[negative])
    assert torch.equal(alone.target, expected.target[negative])


def test_the_positive_side_is_entered_from_the_negative_one(model, sides):
    boundary = NearestBoundary(model).find(INPUTS, 1)
    two_outputs = NearestBoundary(lambda x: torch.stack([0 * model(x).flatten(), model(x).flatten()], dim=1))
    expected = two_outputs.find(INPUTS, 1)
    assert boundary.target.tolist() == [1] * 8
    assert torch.equal(boundary.margin > 0, sides == 0)
    torch.testing.assert_close(boundary.distance, expected.distance)
    again = NearestBoundary(model).find(INPUTS, boundary.target)
    assert torch.equal(again.points, boundary.points)


def test_class_labels_are_not_mistaken_for_sides(model, sides):
    labels = 1 - sides
    with pytest.raises(BoundaryValueError, match=r"inputs lie on the positive side.*two outputs"):
        NearestBoundary(model).find(INPUTS, labels)


@pytest.mark.parametrize("score", ["output", "margin"])
@pytest.mark.parametrize("method", [IntegratedGradients, DeepLift, Saliency])
def test_attributions(method, score, model, sides):
    explainer = BoundaryAttribution(model, method, NearestBoundary(model, budget=5), score=score)
    expected, boundary = explainer.attribute(INPUTS, return_boundary=True)
    torch.testing.assert_close(explainer.attribute(INPUTS, boundary.target), expected)
    torch.testing.assert_close(explainer.attribute(INPUTS, sides.tolist(), boundary=boundary), expected)
    positive = explainer.search.find(INPUTS, 1)
    entering = explainer.attribute(INPUTS, 1, boundary=positive)
    torch.testing.assert_close(entering[sides == 1], expected[sides == 1])


def test_convergence_delta(model):
    explainer = BoundaryAttribution(model)
    maps, delta, boundary = explainer.attribute(INPUTS, return_convergence_delta=True, return_boundary=True)
    for target in (boundary.target, 1, 0):
        given = explainer.compute_convergence_delta(maps, boundary.points, INPUTS, target)
        torch.testing.assert_close(given, delta)


def test_normals(model):
    normals = AggregatedBoundaryNormals(model)
    expected, boundaries = normals.attribute(INPUTS, n_boundaries=3, sampling="random", return_boundary=True)
    given = normals.attribute(INPUTS, boundaries.target, n_boundaries=3, sampling="random")
    torch.testing.assert_close(given, expected)


def test_inside_of_captum(model, sides):
    explainer = BoundaryAttribution(model, search=NearestBoundary(model, budget=5))
    expected = explainer.attribute(INPUTS)
    tunnel = NoiseTunnel(explainer)
    torch.testing.assert_close(tunnel.attribute(INPUTS, target=sides, nt_samples=2, stdevs=0.0), expected)
    sensitivity = sensitivity_max(explainer.attribute, INPUTS, perturb_radius=1e-6, target=sides, n_perturb_samples=1)
    assert sensitivity.shape == (8,)


def test_metrics(model):
    boundary = NearestBoundary(model).find(INPUTS)
    maps = INPUTS - boundary.points
    alignment = metrics.normal_alignment(model, INPUTS, boundary, boundary.target)
    torch.testing.assert_close(alignment, metrics.normal_alignment(model, INPUTS, boundary))
    for measure in (metrics.deletion, metrics.insertion):
        expected = measure(model, INPUTS, maps, None, baselines=0.0)
        torch.testing.assert_close(measure(model, INPUTS, maps, boundary.target, baselines=0.0), expected)
    positive = metrics.deletion(model, INPUTS, maps, 1, n_steps=1, return_curves=True)[1][:, 0]
    torch.testing.assert_close(positive, torch.sigmoid(model(INPUTS).flatten()).detach())


def test_robustness(model, sides):
    attack = AttributionAttack(model, epsilon=0.1, n_steps=4, attack_steps=3)
    expected = evaluate_attribution_robustness(model, INPUTS, None, attack)
    given = evaluate_attribution_robustness(model, INPUTS, sides, attack)
    assert torch.equal(given.perturbed, expected.perturbed)
    assert torch.equal(attack.perturb(INPUTS, sides), expected.perturbed)
