"""What is asked of accelerators, and devices that are the default of the moment."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from synchronizations import synchronizations
from torch import Tensor, nn

from captum_boundary import metrics
from captum_boundary.errors import BoundaryValueError
from captum_boundary.search import NearestBoundary

GENERATOR = torch.Generator().manual_seed(0)
IMAGES, MAPS, OTHERS = (torch.rand(4, 2, 6, 6, generator=GENERATOR) for _ in range(3))
BOXES = torch.tensor([[0, 0, 3, 4], [1, 1, 5, 5], [0, 2, 6, 6], [2, 0, 4, 3]])
MASKS = torch.rand(4, 6, 6, generator=GENERATOR) > 0.5


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


@pytest.mark.parametrize("measure", [metrics.deletion, metrics.insertion])
@pytest.mark.parametrize("score", ["probability", "output"])
@pytest.mark.parametrize("target", [None, torch.tensor([0, 1, 2, 0])], ids=["predicted", "given"])
def test_curves_wait_a_few_times_however_many_steps_they_have(network, measure, score, target) -> None:
    def waits(n_steps: int, per_eval: int = 1) -> int:
        options = {"score": score, "n_steps": n_steps, "perturbations_per_eval": per_eval}
        return synchronizations(lambda: measure(network, IMAGES, MAPS, target, **options))

    assert waits(3) == waits(30) == waits(30, 7) <= 5


@pytest.mark.parametrize("score", ["probability", "output"])
@pytest.mark.parametrize("measure", [metrics.deletion, metrics.insertion])
@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_scores_between_are_looked_at_in_the_end(network, measure, score, fault) -> None:
    n_calls = 0

    def breaks_down(x: Tensor) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        scores = network(x)
        return scores + fault if n_calls == 3 else scores

    with pytest.raises(BoundaryValueError, match="NaN or infinite scores at points between"):
        measure(breaks_down, IMAGES, MAPS, score=score, n_steps=6)
    assert n_calls == 8


STABILITY = {
    "topk_intersection": lambda: metrics.topk_intersection(MAPS, OTHERS, 5),
    "kendall_tau": lambda: metrics.kendall_tau(MAPS, OTHERS),
    "spearman_rho": lambda: metrics.spearman_rho(MAPS, OTHERS),
    "center_shift": lambda: metrics.center_shift(MAPS, OTHERS),
    "cosine_similarity": lambda: metrics.cosine_similarity(MAPS, OTHERS),
    "attribution_gap": lambda: metrics.attribution_gap(MAPS, OTHERS),
}
LOCALIZATION = {
    f"{measure.__name__} {kind}": lambda measure=measure, masks=masks: measure(MAPS, masks)
    for measure in (
        metrics.localization,
        metrics.energy_game,
        metrics.positive_percentage,
        metrics.concentration,
    )
    for kind, masks in (("boxes", BOXES), ("masks", MASKS))
}


@pytest.mark.parametrize(
    ("call", "limit"),
    [*((call, 2) for call in STABILITY.values()), *((call, 3) for call in LOCALIZATION.values())],
    ids=[*STABILITY, *LOCALIZATION],
)
def test_measures_wait_for_the_checks_of_their_arguments_alone(call, limit) -> None:
    assert synchronizations(call) <= limit


def with_network(network: nn.Module) -> dict[str, Callable[[], Tensor]]:
    boundary = NearestBoundary(network).find(IMAGES)
    return {
        "deletion": lambda: metrics.deletion(network, IMAGES, MAPS, n_steps=9),
        "deletion of each channel": lambda: metrics.deletion(network, IMAGES, MAPS, baselines=IMAGES[0, :, :1, :1]),
        "insertion": lambda: metrics.insertion(network, IMAGES, MAPS, n_steps=9, perturbations_per_eval=4),
        "normal_alignment": lambda: metrics.normal_alignment(network, IMAGES, boundary, score="margin"),
        "first_order_optimality": lambda: metrics.first_order_optimality(network, IMAGES, boundary),
    }


OF_NETWORKS = ("deletion", "deletion of each channel", "insertion", "normal_alignment", "first_order_optimality")


@pytest.mark.parametrize("name", [*STABILITY, *LOCALIZATION, *OF_NETWORKS])
def test_the_default_device_does_not_matter(network, name) -> None:
    call = with_network(network)[name] if name in OF_NETWORKS else {**STABILITY, **LOCALIZATION}[name]
    expected = call()
    with torch.device("meta"):
        value = call()
    assert value.device == torch.device("cpu")
    assert torch.equal(value, expected)
