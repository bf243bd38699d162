"""The benchmark of terms beyond the paper: a table over seeds, and nothing done twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts import run_script

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "rar_terms.py"


def table_of(output: Path, *settings: str) -> dict[str, Any]:
    options = ["--dataset", "digits", "--quick", "--seconds", "1", "--seeds", "0", "1", "--setting", *settings]
    done = run_script(SCRIPT, *options, "--output", output)
    assert done.returncode == 0, done.stderr
    assert (output / "digits" / "frontier.png").stat().st_size > 0
    table: dict[str, Any] = json.loads((output / "digits" / "table.json").read_text())["rar_terms"]
    return table


def test_rows_differences_and_what_is_done_already(tmp_path: Path) -> None:
    first = table_of(tmp_path, "adversarial")
    assert first["differences"] == {}
    then = table_of(tmp_path, "adversarial", "cosine")
    assert then["seeds"]["adversarial"] == first["seeds"]["adversarial"]
    assert then["rows"]["cosine"]["steps"] < then["rows"]["adversarial"]["steps"]
    by_seed = [
        row["IN %"] - other["IN %"]
        for row, other in zip(then["seeds"]["cosine"], then["seeds"]["adversarial"], strict=True)
    ]
    difference, low, high = then["differences"]["cosine"]["IN %"]
    assert difference == pytest.approx(sum(by_seed) / 2)
    assert low <= min(by_seed)
    assert max(by_seed) <= high
