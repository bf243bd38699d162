"""What type checkers know of results: mypy reads this file too, and the types that it is told are those that come."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryDistance,
    BoundaryEnergy,
    BoundaryIntegratedGradients,
    BoundaryNormals,
    BoundaryPoints,
    LayerBoundaryAttribution,
    NearestBoundary,
    metrics,
)

MODEL = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
X = torch.linspace(-1, 1, 8).view(2, 4)


def of_pair(x: Tensor, y: Tensor) -> Tensor:
    scores: Tensor = MODEL(x + y)
    return scores


def test_searches_return_what_they_are_given() -> None:
    search = NearestBoundary(MODEL, budget=5)
    assert isinstance(assert_type(search.find(X), BoundaryPoints), BoundaryPoints)
    assert isinstance(assert_type(search.perturb(X), Tensor), Tensor)
    points = assert_type(NearestBoundary(of_pair, budget=5).perturb((X, X)), tuple[Tensor, ...])
    assert isinstance(points, tuple)


def test_attributions_have_the_form_of_the_inputs() -> None:
    big = BoundaryIntegratedGradients(MODEL, NearestBoundary(MODEL, budget=5))
    assert isinstance(assert_type(big.attribute(X, n_steps=2), Tensor), Tensor)
    pair = BoundaryAttribution(of_pair, search=NearestBoundary(of_pair, budget=5))
    assert isinstance(assert_type(pair.attribute((X, X), n_steps=2), tuple[Tensor, ...]), tuple)
    assert isinstance(assert_type(BoundaryEnergy(MODEL, 0.1).attribute(X, n_samples=4), Tensor), Tensor)


def test_what_else_is_returned_follows_the_flags() -> None:
    big = BoundaryIntegratedGradients(MODEL, NearestBoundary(MODEL, budget=5))
    with_boundary = assert_type(big.attribute(X, return_boundary=True, n_steps=2), tuple[Tensor, BoundaryPoints])
    assert isinstance(with_boundary[1], BoundaryPoints)
    with_delta = assert_type(big.attribute(X, return_convergence_delta=True, n_steps=2), tuple[Tensor, Tensor])
    assert with_delta[1].shape == (2,)
    everything = big.attribute(X, return_boundary=True, return_convergence_delta=True, n_steps=2)
    assert len(assert_type(everything, tuple[Tensor, Tensor, BoundaryPoints])) == 3
    wanted = bool(len(X))
    assert isinstance(assert_type(big.attribute(X, return_boundary=wanted, n_steps=2), Any), tuple)

    layer = LayerBoundaryAttribution(MODEL, MODEL[0], search=NearestBoundary(MODEL, budget=5))
    of_layer = layer.attribute(X, return_boundary=True, n_steps=2)
    assert_type(of_layer, tuple[Tensor | tuple[Tensor, ...], BoundaryPoints])
    assert isinstance(of_layer[1], BoundaryPoints)


def test_normals_and_distances_come_with_their_boundaries() -> None:
    normals = AggregatedBoundaryNormals(MODEL, NearestBoundary(MODEL, budget=10))
    assert isinstance(assert_type(normals.attribute(X), Tensor), Tensor)
    maps_and_normals = assert_type(normals.attribute(X, return_boundary=True), tuple[Tensor, BoundaryNormals])
    assert isinstance(maps_and_normals[1], BoundaryNormals)
    distances = BoundaryDistance(MODEL, NearestBoundary(MODEL, budget=5))
    assert isinstance(assert_type(distances.attribute(X), Tensor), Tensor)
    of_features = assert_type(distances.attribute(X, return_boundary=True), tuple[Tensor, BoundaryPoints])
    assert len(of_features[1]) == X.numel()


def test_curves_come_when_they_are_asked_for() -> None:
    assert assert_type(metrics.deletion(MODEL, X, X), Tensor).shape == (2,)
    area_and_curves = metrics.insertion(MODEL, X, X, baselines=0.0, return_curves=True)
    assert assert_type(area_and_curves, tuple[Tensor, Tensor])[1].shape == (2, 5)
