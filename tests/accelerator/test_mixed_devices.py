"""What belongs to inputs on an accelerator may lie on the CPU, where users have it from data sets and from pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_boundary import (
    AttributionAttack,
    BoundaryIntegratedGradients,
    BoundaryPoints,
    NearestBoundary,
    PGDBoundary,
    RARLoss,
    evaluate_attribution_robustness,
)
from captum_boundary.errors import BoundaryValueError
from captum_boundary.metrics import (
    attribution_gap,
    center_shift,
    cosine_similarity,
    deletion,
    first_order_optimality,
    insertion,
    kendall_tau,
    localization,
    normal_alignment,
    spearman_rho,
    topk_intersection,
)
from captum_boundary.visualization import (
    compare_attributions,
    plot_boundary_slice,
    show_boundary_point,
    show_stability,
)

NUMBERS = torch.Generator().manual_seed(0)
IMAGES = torch.rand(4, 1, 6, 6, generator=NUMBERS)
MAPS, OTHER_MAPS = torch.randn(2, 4, 1, 6, 6, generator=NUMBERS)
MASKS = torch.eye(6).expand(4, 6, 6)
TARGET = torch.tensor([0, 1, 2, 1])


@pytest.fixture
def model(device: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)).eval().to(device)


@pytest.fixture
def images(device: str) -> Tensor:
    return IMAGES.to(device)


@pytest.fixture
def generator(device: str) -> torch.Generator:
    """Of the device itself."""
    if torch.device(device).type == "pretended":
        pytest.skip("PyTorch makes generators of a device in C++ alone")
    return torch.Generator(device)


def search(model: Callable[..., Any], **options: Any) -> NearestBoundary:
    return NearestBoundary(model, **{"norm": math.inf, "budget": 5, **options})


def on_cpu(boundary: BoundaryPoints) -> BoundaryPoints:
    values = {name: value.cpu() for name, value in vars(boundary).items() if isinstance(value, Tensor)}
    return dataclasses.replace(boundary, **values)


def attack(model: nn.Module, **options: Any) -> AttributionAttack:
    return AttributionAttack(model, epsilon=0.05, n_steps=3, attack_steps=2, **options)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, images: search(model).find(images, TARGET).distance,
        lambda model, images: search(model, bounds=(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))).find(images).distance,
        lambda model, images: (
            search(lambda x, scale: model(x) * scale.to(x)[:, None]).find(images, None, torch.ones(4)).distance
        ),
        lambda model, images: search(lambda x, y: model(x) + y.to(x.device)).find((images, torch.ones(4, 3))).distance,
        lambda model, images: BoundaryIntegratedGradients(model, search(model)).attribute(images, TARGET),
        lambda model, images: attack(model).perturb(images, TARGET),
        lambda model, images: attack(model, method="target", target_map=MASKS[0]).perturb(images),
        lambda model, images: attack(model, baselines=torch.zeros(1, 1, 6, 6)).perturb(images),
        lambda model, images: RARLoss(model, epsilon=0.1, n_steps=3)(images, TARGET).detach(),
        lambda model, images: deletion(model, images, MAPS, TARGET),
        lambda model, images: insertion(model, images, MAPS, baselines=torch.zeros(1, 6, 6)),
        lambda model, images: normal_alignment(model, images, search(model).find(images, TARGET), TARGET),
    ],
)
@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_results_lie_where_the_inputs_do(
    call: Callable[..., Tensor], model: nn.Module, images: Tensor, device: str
) -> None:
    result = call(model, images)
    assert str(result.device) == device
    torch.testing.assert_close(result.cpu(), call(model.cpu(), IMAGES), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, images, generator: search(model, generator=generator).find(images).distance,
        lambda model, images, generator: PGDBoundary(model, attack_steps=5, generator=generator).find(images).distance,
        lambda model, images, generator: attack(model, method="random", generator=generator).perturb(images),
        lambda model, images, generator: RARLoss(model, epsilon=0.1, n_steps=3, generator=generator)(
            images, TARGET.to(images.device)
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_generators_may_be_those_of_the_device(
    call: Callable[..., Tensor], model: nn.Module, images: Tensor, generator: torch.Generator
) -> None:
    results = [call(model, images, generator.manual_seed(1)) for _ in range(2)]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "measure",
    [
        kendall_tau,
        spearman_rho,
        center_shift,
        cosine_similarity,
        lambda first, second: topk_intersection(first, second, 5),
        lambda first, second: localization(first, MASKS.to(second.device)),
        attribution_gap,
    ],
)
def test_measures_of_maps_lie_where_the_first_map_does(measure: Callable[..., Tensor], device: str) -> None:
    expected = measure(MAPS, OTHER_MAPS)
    for first, second in ((MAPS.to(device), OTHER_MAPS), (MAPS, OTHER_MAPS.to(device))):
        result = measure(first, second)
        assert result.device == first.device
        torch.testing.assert_close(result.cpu(), expected)


@pytest.mark.parametrize("measure", [kendall_tau, spearman_rho, cosine_similarity, attribution_gap])
def test_maps_of_several_inputs_may_lie_on_several_devices(measure: Callable[..., Tensor], device: str) -> None:
    first, second = (MAPS, OTHER_MAPS[:, 0]), (OTHER_MAPS, MAPS[:, 0])
    result = measure((first[0], first[1].to(device)), (second[0].to(device), second[1]))
    torch.testing.assert_close(result, measure(first, second))


@pytest.mark.parametrize(
    "call",
    [
        lambda model, images, boundary: BoundaryIntegratedGradients(model).attribute(images, boundary=boundary),
        lambda model, images, boundary: normal_alignment(model, images, boundary),
        lambda model, images, boundary: first_order_optimality(model, images, boundary, norm=math.inf),
    ],
)
def test_boundaries_of_other_devices_are_refused(
    call: Callable[..., Any], model: nn.Module, images: Tensor, device: str
) -> None:
    boundary = on_cpu(search(model).find(images))
    with pytest.raises(BoundaryValueError, match=f"devices .*{device.partition(':')[0]}"):
        call(model, images, boundary)


@pytest.mark.parametrize(
    "show",
    [
        lambda model, images, boundary: compare_attributions(images, {"maps": MAPS}, boundary=on_cpu(boundary)),
        lambda model, images, boundary: compare_attributions(IMAGES, {"maps": MAPS.to(images)}, boundary=boundary),
        lambda model, images, boundary: show_boundary_point(images, on_cpu(boundary)),
        lambda model, images, boundary: show_boundary_point(IMAGES, boundary),
        lambda model, images, boundary: plot_boundary_slice(model, images, on_cpu(boundary), resolution=5),
        lambda model, images, boundary: show_stability(
            IMAGES, evaluate_attribution_robustness(model, images, None, attack(model))
        ),
    ],
)
def test_pictures_take_tensors_of_any_device(show: Callable[..., Any], model: nn.Module, images: Tensor) -> None:
    figure, _ = show(model, images, search(model).find(images))
    assert any(axis.images for axis in figure.axes)
