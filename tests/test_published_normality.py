"""The benchmarks of published robust networks: on a linear network, whose answers are known, and by hand."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")

NAMES = ("normality_published", "published_networks", "published_paths", "normality_measures", "rar_checkpoint")


@pytest.fixture(scope="module")
def linear() -> SimpleNamespace:
    """A linear network with images that it all classifies correctly, and whose boundaries are images too."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 5))
    weight, images = torch.randn(5, 25, generator=generator), torch.rand(8, 1, 5, 5, generator=generator)
    network[1].weight.data, network[1].bias.data = weight, -weight.sum(dim=1) * 0.4
    return SimpleNamespace(network=network, images=images, labels=network(images).argmax(dim=1))


def test_a_linear_network_is_the_same_all_along_the_way(benchmark: SimpleNamespace, linear: SimpleNamespace) -> None:
    columns = benchmark.published_paths.measure(linear.network, linear.images, linear.labels, "cifar10", budget=20)
    for name, values in columns.items():
        if name.startswith("cosine, 0.") and "before" not in name:
            torch.testing.assert_close(values, torch.ones(8))
        if name.startswith("length"):
            torch.testing.assert_close(values, torch.zeros(8), atol=1e-4, rtol=0)
        if name.startswith("smoothed"):
            torch.testing.assert_close(values, torch.ones(8), atol=1e-3, rtol=0)
    distance = max(benchmark.published_paths.BEFORE["cifar10"])
    is_nearer = columns["distance"] < distance
    assert 0 < is_nearer.sum() < 8
    assert torch.equal(columns[f"cosine, {distance} before"].isnan(), is_nearer)


def test_images_classified_wrongly_have_no_numbers(benchmark: SimpleNamespace, linear: SimpleNamespace) -> None:
    labels = linear.labels.clone()
    labels[2] = (labels[2] + 1) % 5
    columns = benchmark.published_paths.columns_of(linear.network, linear.images, labels, "cifar10", budget=5)
    assert [i for i, value in enumerate(columns["cosine, 0.0"]) if value is None] == [2]


def test_what_lies_on_black_pixels(benchmark: SimpleNamespace) -> None:
    gradient, normal = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[3.0, 0.0, 4.0]])
    found = benchmark.published_paths.on_and_off(gradient, normal, torch.tensor([[True, True, False]]))
    expected = {"cosine on the object": 1.0, "gradient off the object": 0.0, "normal off the object": 16 / 25}
    assert {name: values.item() for name, values in found.items()} == pytest.approx(expected, abs=1e-6)


def cell(mean: float) -> dict[str, object]:
    bounds = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 9}
    return {**bounds, "seeds": [bounds]}


def test_predictions_by_hand(benchmark: SimpleNamespace) -> None:
    """One network is no less normal at an equal distance; one is, for its gradient is short; one is more normal."""
    lacking = {"cosine, 0.0": cell(-0.4), "score": cell(-0.4)}
    differences = {
        "far": {
            **lacking,
            "cosine, 0.5 before": cell(0),
            "cosine on the object": cell(-0.1),
            "centered score": cell(0),
        },
        "flat": {
            **lacking,
            "cosine, 0.5 before": cell(-0.3),
            "cosine on the object": cell(-0.3),
            "centered score": cell(-0.3),
        },
        "normal": {"cosine, 0.0": cell(0.2), "score": cell(0.2)},
    }
    means = {"far": {"length, 0.0": cell(-0.5)}, "flat": {"length, 0.0": cell(-2.0)}}
    found = benchmark.published_paths.predictions(means, differences, (0.5,))
    of = {name: [claim.holds for claim in found if claim.text.startswith(name)] for name in differences}
    assert of == {"far": [True, True, False, True], "flat": [False, False, True, False], "normal": []}


def test_what_all_scores_share_is_taken_away(benchmark: SimpleNamespace, linear: SimpleNamespace) -> None:
    shared = torch.randn(25, generator=torch.Generator().manual_seed(1)) * 10

    class Shifted(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return linear.network(images) + (images.flatten(1) @ shared)[:, None]

    plain = benchmark.published_paths.measure(linear.network, linear.images, linear.labels, "cifar10", budget=20)
    shifted = benchmark.published_paths.measure(Shifted(), linear.images, linear.labels, "cifar10", budget=20)
    for name in ("centered score", "cosine, 0.0", "distance"):
        torch.testing.assert_close(shifted[name], plain[name], atol=1e-3, rtol=1e-3)
    assert shifted["score"].abs().mean() < 0.5 < plain["score"].mean()


def test_files_of_all_networks_are_told_apart(benchmark: SimpleNamespace) -> None:
    plain = benchmark.rar_checkpoint.plain
    names = [*benchmark.published_networks.PUBLISHED, *benchmark.normality_published.TRAINED]
    assert len({plain(name) for name in names}) == len(names)
    assert all("." not in plain(name) and "/" not in plain(name) for name in names)


def test_groups_are_of_networks_that_can_be_had(benchmark: SimpleNamespace) -> None:
    """Each has a standard network to compare with, and all its networks are of its data."""
    module, published = benchmark.normality_published, benchmark.published_networks.PUBLISHED
    for group in module.GROUPS.values():
        assert "standard" in group.networks
        for source in (source for seeds in group.networks.values() for source in seeds):
            assert source in (*module.TRAINED, module.RESNET20) or published[source].dataset == group.dataset


def test_a_network_is_measured_once(
    benchmark: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmark.normality_published
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 1, 28, 28), generator=generator, dtype=torch.uint8)
    data = SimpleNamespace(test_images=images, test_labels=torch.zeros(40, dtype=torch.long))
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    network[1].bias.data[0] = 100.0  # all are of class 0
    monkeypatch.setattr(module, "load_published", lambda *_: network)
    monkeypatch.setattr(benchmark.normality_measures, "measure", lambda _, images, *__: {"a": torch.ones(len(images))})
    options = Namespace(images=5, budget=10, networks=None, output=tmp_path)
    first = module.finish(module.GROUPS["mnist"], "provable 0.1", data, options)
    assert (len(first["accuracy"]), len(first["a"])) == (40, 5)
    monkeypatch.setattr(module, "load_published", None)
    assert module.finish(module.GROUPS["mnist"], "provable 0.1", data, options) == first


def test_points_of_a_linear_network_are_the_nearest(benchmark: SimpleNamespace, linear: SimpleNamespace) -> None:
    pytest.importorskip("foolbox")
    points = importlib.import_module("published_points")
    row = points.compare(linear.network, linear.images, linear.labels)
    assert [row["40"], row["1000"]] == pytest.approx([1, 1], abs=1e-3)
    assert 1 <= row["DDN-1000"] < 1.1
    assert row["cosine, 40"] == pytest.approx(1, abs=1e-4)
    assert row["1000, no bounds"] <= 1 + 1e-6
    holds = {claim.text: claim.holds for claim in points.claims({"linear": row})}
    assert holds["linear: 40 within 2% of the nearest"]
    assert not points.claims({"linear": {**row, "1000": 1.03}})[1].holds
