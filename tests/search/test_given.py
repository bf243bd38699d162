"""A boundary that was found for other inputs is refused, wherever one can be given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import DeepLift, Saliency
from matplotlib import pyplot as plt
from torch import Tensor, nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryIntegratedGradients,
    BoundaryNotFoundWarning,
    BoundarySaliency,
    LayerBoundaryAttribution,
    NearestBoundary,
)
from captum_boundary.errors import BoundaryValueError
from captum_boundary.metrics import first_order_optimality, normal_alignment
from captum_boundary.visualization import (
    compare_attributions,
    describe_feature_changes,
    plot_boundary_slice,
    plot_feature_changes,
    show_boundary_point,
)

IMAGES = torch.rand(4, 1, 3, 4, generator=torch.Generator().manual_seed(0))
TABLE = IMAGES.flatten(1)


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def attribution(make: Callable[[nn.Module], Any]) -> Callable[..., Any]:
    return lambda model, inputs, boundary: make(model).attribute(inputs, boundary=boundary)


TAKERS: dict[str, Callable[[nn.Module, Tensor, Any], Any]] = {
    "BIG": attribution(lambda model: BoundaryIntegratedGradients(model)),
    "BSM": attribution(lambda model: BoundarySaliency(model)),
    "DeepLift": attribution(lambda model: BoundaryAttribution(model, DeepLift)),
    "margin": attribution(lambda model: BoundaryAttribution(model, Saliency, score="margin")),
    "normal_alignment": lambda model, inputs, boundary: normal_alignment(model, inputs, boundary),
    "first_order_optimality": lambda model, inputs, boundary: first_order_optimality(model, inputs, boundary),
    "show_boundary_point": lambda model, inputs, boundary: show_boundary_point(inputs, boundary),
    "compare_attributions": lambda model, inputs, boundary: compare_attributions(
        inputs, {"A": inputs}, boundary=boundary
    ),
    "plot_boundary_slice": lambda model, inputs, boundary: plot_boundary_slice(
        model, inputs, boundary, example=1, resolution=5
    ),
    "describe_feature_changes": lambda model, inputs, boundary: describe_feature_changes(inputs, boundary),
    "plot_feature_changes": lambda model, inputs, boundary: plot_feature_changes(inputs, boundary, example=1),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "moved": lambda inputs: inputs + 1,
    "moved by little": lambda inputs: inputs + 0.01,
    "shuffled": lambda inputs: inputs.roll(1, 0),
    "one row": lambda inputs: torch.cat([inputs[:3], inputs[3:].flip(-1)]),
    "scaled": lambda inputs: inputs * 1.05,
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)
def test_boundaries_of_other_inputs_are_refused(take, other, model):
    inputs = TABLE if "feature_changes" in str(take.__code__.co_names) else IMAGES
    boundary = NearestBoundary(model, budget=10).find(inputs)
    take(model, inputs, boundary)
    plt.close("all")
    with pytest.raises(BoundaryValueError, match="boundary must be that of these very inputs"):
        take(model, other(inputs), boundary)


@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)
def test_so_are_those_of_rows_where_nothing_was_found(take, model):
    """Such a point equals its input."""
    inputs = TABLE if "feature_changes" in str(take.__code__.co_names) else IMAGES
    distance = NearestBoundary(model, budget=10).find(inputs).distance
    limit = float(distance[distance.argsort()[2:]].mean())  # two are found at least
    with pytest.warns(BoundaryNotFoundWarning):
        boundary = NearestBoundary(model, budget=10, max_distance=limit).find(inputs)
    missing = ~boundary.found
    assert 0 < missing.sum() < 4
    others = inputs.clone()
    others[missing] += 0.01
    rows = ", ".join(map(str, missing.nonzero().flatten().tolist()))
    with pytest.raises(BoundaryValueError, match=rf"these very inputs.* row\(s\) \[{rows}\]"):
        take(model, others, boundary)


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_very_inputs_are_accepted_in_every_norm_and_precision(norm, dtype, model):
    model, inputs = model.to(dtype), (100 * IMAGES).to(dtype)
    boundary = NearestBoundary(model, norm=norm, budget=10).find(inputs)
    assert first_order_optimality(model, inputs, boundary).shape == (4,)
    assert first_order_optimality(model, inputs[1:3], boundary[1:3]).shape == (2,)
    for other in (inputs + 50, inputs.roll(1, 0)):
        with pytest.raises(BoundaryValueError, match="these very inputs"):
            first_order_optimality(model, other, boundary)


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("multiply_by_inputs", [False, True])
def test_normals_of_other_inputs_are_refused(other, multiply_by_inputs, model):
    method = AggregatedBoundaryNormals(
        model, NearestBoundary(model, norm=math.inf, budget=10), multiply_by_inputs=multiply_by_inputs
    )
    _, boundary = method.attribute(IMAGES, n_boundaries=2, return_boundary=True)
    assert boundary.norm == math.inf
    method.attribute(IMAGES, boundary=boundary)
    with pytest.raises(BoundaryValueError, match="these very inputs"):
        method.attribute(other(IMAGES), boundary=boundary)


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_activations_of_other_inputs_are_refused(other, model):
    method = LayerBoundaryAttribution(model, model[1], search=NearestBoundary(model, budget=10))
    maps, boundary = method.attribute(IMAGES, return_boundary=True)
    torch.testing.assert_close(method.attribute(IMAGES, boundary=boundary), maps)
    rows = torch.tensor([2, 0])  # whose activations are computed in another batch
    torch.testing.assert_close(method.attribute(IMAGES[rows], boundary=boundary[rows]), maps[rows])
    with pytest.raises(BoundaryValueError, match="these very inputs"):
        method.attribute(other(IMAGES), boundary=boundary)
