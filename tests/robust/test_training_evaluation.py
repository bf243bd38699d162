"""What the training benchmark reports: also of networks that learned nothing, and without packages it does not need."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Modules of the benchmarks, by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_packages_that_are_not_installed_have_no_version(
    benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = benchmark("report")

    def version(package: str) -> str:
        if package in ("foolbox", "torchvision"):
            raise PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(report, "version", version)
    environment = report.environment()
    assert environment["foolbox"] is environment["torchvision"] is None
    assert environment["torch"] == "1.0"


def test_networks_that_are_never_right_have_no_stability(
    benchmark: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    data = benchmark("rar_data").load("digits", tmp_path)
    data.test_labels.fill_(3)
    settings = benchmark("rar_settings")
    run = benchmark("rar_training").Run(
        settings.training("digits", "natural", "cpu", 0, quick=True), data, torch.device("cpu")
    )
    with torch.no_grad():
        run.network[-1].bias[5] = 1e3
    run.n_done = 1
    result = benchmark("rar_evaluation").evaluate(run, data, settings.evaluation("digits", "cpu", quick=True))
    row = result["row"]
    assert row["NA %"] == row["AA %"] == row["images"] == 0
    assert all(math.isnan(row[name]) for name in ("IN %", "IN % random", "CO", "CO random"))

    path = tmp_path / "maps.png"
    assert not benchmark("rar_picture").draw({"natural": result["shown"]}, data.test_images, 10, path)
    assert not path.exists()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_smooth_networks_bend_everywhere(
    shape: tuple[int, int, int], scale: str, benchmark: Callable[[str], ModuleType]
) -> None:
    build = benchmark("rar_networks").build
    for smooth in (False, True):
        kinds = {type(module) for module in build(shape, 10, scale, 0, smooth).modules()}
        assert (torch.nn.GELU in kinds) == smooth
        assert kinds.isdisjoint({torch.nn.ReLU, torch.nn.LeakyReLU}) == smooth


def test_weights_are_the_papers_unless_given(benchmark: Callable[[str], ModuleType]) -> None:
    training = benchmark("rar_settings").training
    weights = {
        (objective, weight): training("fashion_mnist", objective, "cpu", 0, False, weight=weight).loss.get("weight")
        for objective in ("natural", "ig_norm", "ig_sum_norm")
        for weight in (None, 3.0)
    }
    assert weights == {
        ("natural", None): None,
        ("natural", 3.0): None,
        ("ig_norm", None): 1.0,
        ("ig_norm", 3.0): 3.0,
        ("ig_sum_norm", None): 0.1,
        ("ig_sum_norm", 3.0): 3.0,
    }
