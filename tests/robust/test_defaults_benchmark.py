"""The benchmark of the defaults of training: a row for each time, and claims about MNIST alone."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from scripts import run_script

pytest.importorskip("sklearn")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "rar_defaults.py"


def test_a_row_for_each_time(tmp_path: Path) -> None:
    output = tmp_path / "defaults.json"
    options = ["--dataset", "digits", "--minutes", "0.02", "0.01", "--pgd-images", "20", "--output", output]
    done = run_script(SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    section = json.loads(output.read_text())["defaults on digits"]
    assert list(section["rows"]) == [
        f"{name}, {minutes} min" for name in ("sum", "ig_norm, smooth") for minutes in (0.01, 0.02)
    ]
    assert all(row["steps / s"] > 0 and 0 <= row["AA %"] <= 100 for row in section["rows"].values())
    assert section["rows"]["sum, 0.02 min"]["NA %"] > 10
    assert section["claims"] == []


def test_claims_are_about_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    check = importlib.import_module("rar_defaults").check
    rows = {
        "sum, 1 min": {"NA %": 95.0, "AA %": 70.0},
        "sum, 3 min": {"NA %": 97.0, "AA %": 59.0},
        "sum, no warm-up, 3 min": {"NA %": 10.0, "AA %": 10.0},
        "ig_norm, smooth, 3 min": {"NA %": 93.0, "AA %": 41.0},
    }
    assert [(claim.value, claim.holds) for claim in check(rows)] == [(97.0, True), (59.0, False), (93.0, True)]
