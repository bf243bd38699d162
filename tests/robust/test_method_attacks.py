"""The benchmark of attacks on several methods: what its columns mean, and that a stopped run goes on."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import method_attacks

    return method_attacks


def test_the_worst_attack_is_that_of_each_image(benchmark: ModuleType) -> None:
    shares = {
        "IG": {"on IG": [0.1, 0.6], "on SM": [0.3, 0.2], "on BIG": [0.5, 0.5], "random": [0.0, 0.0]},
        "BIG": {"on IG": [0.9, 0.8], "on SM": [0.4, 0.9], "on BIG": [0.7, 0.3], "random": [1.0, 1.0]},
    }
    rows = benchmark.summary(shares)
    assert rows["IG"]["worst"].mean == pytest.approx(0.15)
    assert rows["BIG"]["worst"].mean == pytest.approx(0.35)
    assert rows["BIG"]["beside IG"].mean == pytest.approx(0.2)
    assert rows["IG"]["beside IG"].mean == rows["IG"]["beside IG"].high == 0
    assert rows["BIG"]["on SM"].mean == pytest.approx(0.65)
    assert rows["BIG"]["random"].mean == 1


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_stopped_runs_go_on_batch_by_batch(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    images = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    monkeypatch.setattr(benchmark, "BATCH", 2)
    monkeypatch.setattr(benchmark, "SETTINGS", {"small": benchmark.Setting(None, 0.1, 8, 5, 2)})
    monkeypatch.setattr(benchmark, "network_and_images", lambda *arguments: (model, images, labels))
    kept, seen = benchmark.kept, []

    def stops_after_one(model, images, labels, setting):
        seen.append(len(images))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return kept(model, images, labels, setting)

    monkeypatch.setattr(benchmark, "kept", stops_after_one)
    options = argparse.Namespace(output=tmp_path, seed=0, quick=False)
    with pytest.raises(KeyboardInterrupt):
        benchmark.finish("small", options)
    shares = benchmark.finish("small", options)
    assert seen == [2, 2, 2, 1]
    assert set(shares) == set(benchmark.METHODS)
    for columns in shares.values():
        assert {name: len(values) for name, values in columns.items()} == dict.fromkeys(
            ("on IG", "on SM", "on BIG", "random"), 5
        )
    assert benchmark.finish("small", options) == shares
    assert len(seen) == 4
