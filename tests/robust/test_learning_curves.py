"""The benchmark of learning curves: a run with more minutes goes on where an earlier one ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts import run_script

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "rar_curve.py"


def curves_after(minutes: float, output: Path) -> dict[str, list[dict[str, float]]]:
    options = ["--dataset", "digits", "--objective", "natural", "madry", "--scale", "cpu", "--quick", "--images", "50"]
    options += ["--threads", "1", "--points", "2", "--minutes", str(minutes), "--output", str(output)]
    done = run_script(SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    folder = output / "digits-quick"
    assert (folder / "curves.png").stat().st_size > 0
    curves: dict[str, list[dict[str, float]]] = json.loads((folder / "curves.json").read_text())["rar_curve"]["curves"]
    return curves


def test_curves_rise_and_go_on(tmp_path: Path) -> None:
    first = curves_after(0.001, tmp_path)
    assert set(first) == {"natural, cpu", "madry, cpu"}
    then = curves_after(1.0, tmp_path)  # more than the quick schedule takes
    for name, curve in then.items():
        assert curve[: len(first[name])] == first[name]
        assert [at["step"] for at in curve] == sorted({at["step"] for at in curve})
        assert curve[-1]["step"] == 31
        assert curve[-1]["NA %"] > max(50, first[name][0]["NA %"])
        assert all(0 <= at["AA %"] <= 100 for at in curve)
    assert curves_after(1.0, tmp_path) == then
