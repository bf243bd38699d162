"""The benchmark of robust networks: its measures on a linear network, its means and differences by hand."""

from __future__ import annotations

from argparse import Namespace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
imread = pytest.importorskip("matplotlib.image").imread


NAMES = ("normality", "normality_measures", "normality_picture", "normality_summary", "rar_settings", "rar_data")


@pytest.fixture(scope="module")
def linear() -> SimpleNamespace:
    """A linear network with images that it all classifies correctly, and whose boundaries are images too."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 5))
    weight, images = torch.randn(5, 25, generator=generator), torch.rand(8, 1, 5, 5, generator=generator)
    images[:, :, 0] = 0
    network[1].weight.data, network[1].bias.data = weight, -weight.sum(dim=1) * 0.4
    return SimpleNamespace(network=network, weight=weight, images=images, labels=network(images).argmax(dim=1))


def test_measures_of_a_linear_network(benchmark, linear) -> None:
    columns = benchmark.normality_measures.measure(linear.network, linear.images, linear.labels, budget=20)
    zero, one = torch.zeros(8), torch.ones(8)
    for name, expected in {
        "|SM - BSM|": zero,
        "|SM - BSM| at unit length": zero,
        "alignment of margins": one,
        "gradient kept": one,
        "|SM|": linear.weight[linear.labels].norm(dim=1),
    }.items():
        torch.testing.assert_close(columns[name], expected, atol=1e-5, rtol=1e-5)

    slope = linear.weight[linear.labels]
    on_object = slope[:, 5:]  # the first line is black
    torch.testing.assert_close(columns["PP SM"], on_object.clamp_min(0).sum(1) / on_object.abs().sum(1))
    ordinary = slope * linear.images.flatten(1)
    torch.testing.assert_close(columns["|IG|"], ordinary.norm(dim=1))

    margins = linear.network(linear.images)
    rivals = margins.scatter(1, linear.labels[:, None], -torch.inf).topk(3, dim=1).indices
    normals = nn.functional.normalize(slope[:, None] - linear.weight[rivals], dim=2)
    pairs = [(normals[:, i] * normals[:, j]).sum(dim=1) for i, j in combinations(range(3), 2)]
    torch.testing.assert_close(columns["neighbors"], torch.stack(pairs).mean(dim=0), atol=1e-5, rtol=1e-5)


def test_only_correct_images_are_explained(benchmark, linear) -> None:
    labels = linear.labels.clone()
    labels[1] = (labels[1] + 1) % 5
    attack = benchmark.rar_settings.Evaluation(0.0, 1, 0.1, 1, 1, 1, 0.1)
    columns = benchmark.normality_measures.evaluate(
        linear.network, linear.images, labels, attack, n_explained=3, budget=10
    )
    assert columns["accuracy"] == columns["robust accuracy"] == [1, 0, 1, 1, 1, 1, 1, 1]
    assert [value is None for value in columns["distance"]] == [False, True, False]


def test_maps_at_unit_length(benchmark) -> None:
    maps = torch.randn(4, 1, 3, 3)
    unit = benchmark.normality_measures.unit(maps)
    torch.testing.assert_close(unit.flatten(1).norm(dim=1), torch.ones(4))
    torch.testing.assert_close(unit, benchmark.normality_measures.unit(1e-3 * maps))


def test_means_over_seeds(benchmark) -> None:
    summary = benchmark.normality_summary
    assert summary.over_seeds([[1.0, 2.0, None], [3.0, None, None]]) == [2.0, 2.0, None]
    cell = summary.means({"one": [{"a": [1.0, 2.0, None]}, {"a": [3.0, None, None]}]})["one"]["a"]
    assert (cell["mean"], cell["n"], cell["seeds"]) == (2.0, 2, [1.5, 3.0])


def test_differences_are_paired_by_image_and_seed(benchmark) -> None:
    per_seed = {
        "standard": [{"a": [0.0, 10.0, 5.0]}, {"a": [1.0, None, 1.0]}],
        "robust": [{"a": [1.0, 11.0, None]}, {"a": [4.0, 4.0, 4.0]}],
        "unfinished": [{"a": [0.0, 9.0, 4.0]}],
    }
    found = benchmark.normality_summary.differences(per_seed, "standard")
    assert set(found) == {"robust", "unfinished"}
    robust, unfinished = found["robust"]["a"], found["unfinished"]["a"]
    assert [seed["mean"] for seed in robust["seeds"]] == [1.0, 3.0]
    assert (robust["mean"], robust["n"]) == (2.0, 3)  # the images' means over seeds are 2, 1 and 3
    assert [seed["n"] for seed in unfinished["seeds"]] == [3]


def test_picture_has_a_line_of_panels_for_each_data_set(benchmark, tmp_path: Path) -> None:
    columns = {
        "distance": [1.0, 2.0],
        "alignment": [0.5, None],
        "alignment of margins": [0.9, 0.8],
        "|IG - BIG|": [0.1, 0.3],
    }
    means = benchmark.normality_summary.means({"standard": [columns], "ig_norm": [columns, columns]})
    path = tmp_path / "picture.png"
    benchmark.normality_picture.draw({"mnist": means, "digits": means}, path)
    height, width = imread(path).shape[:2]
    assert height / width == pytest.approx((2 * 2.9 + 0.3) / 10.2, rel=0.02)


@pytest.mark.parametrize(
    ("intervals", "expected"), [([(1, 2), (0.5, 3)], 1), ([(-2, -1), (-3, -1)], -1), ([(1, 2), (-1, 3)], 0)]
)
def test_sign_is_that_of_all_seeds(benchmark, intervals, expected) -> None:
    seeds = [{"low": low, "high": high, "n": 5} for low, high in intervals]
    assert benchmark.normality_summary.sign({"seeds": seeds}) == expected
    assert benchmark.normality_summary.sign({"seeds": [*seeds, {"low": None, "high": None, "n": 0}]}) == 0


def test_networks_are_those_of_the_training_benchmark(benchmark) -> None:
    published = benchmark.rar_settings.training("mnist", "madry", "cpu", 3, quick=False)
    schedule = benchmark.normality.schedule
    assert schedule("mnist", "adversarial", 3, None, None, smooth=False) == published
    weaker = schedule("mnist", "adversarial / 4", 3, published.n_steps // 2, 16, smooth=True)
    assert weaker.loss["epsilon"] == published.loss["epsilon"] / 4
    assert (weaker.warm_up, weaker.batch_size, weaker.smooth) == (published.warm_up // 2, 16, True)


@pytest.fixture
def options(tmp_path: Path) -> Namespace:
    return Namespace(
        steps=20, batch_size=32, images=5, budget=10, smooth=False, device="cpu", save_seconds=0.0, output=tmp_path
    )


def test_what_is_finished_is_not_done_again(benchmark, options: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    data = benchmark.rar_data.load("digits", options.output)
    monkeypatch.setattr(benchmark.normality_measures, "measure", lambda _, images, *__: {"a": torch.ones(len(images))})
    first = benchmark.normality.finish("digits", "standard", 0, data, options)
    monkeypatch.setattr(benchmark.normality, "Run", None)
    assert benchmark.normality.finish("digits", "standard", 0, data, options) == first
    with pytest.raises(benchmark.normality.CheckpointError, match="n_images was 5 and is now 6"):
        benchmark.normality.finish("digits", "standard", 0, data, Namespace(**{**vars(options), "images": 6}))


def test_a_network_that_is_always_wrong_is_an_error(benchmark, linear) -> None:
    attack = benchmark.rar_settings.Evaluation(0.0, 1, 0.1, 1, 1, 1, 0.1)
    with pytest.raises(ValueError, match="none of the first 3 test images correctly: train for longer"):
        benchmark.normality_measures.evaluate(
            linear.network, linear.images, (linear.labels + 1) % 5, attack, 3, budget=10
        )
