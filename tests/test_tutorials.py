"""Notebooks are stored as a reader should see them: run from top to bottom, without errors, small."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
LARGEST = 400_000  # bytes
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|Users|root|tmp|work|opt|usr|var)/|[A-Z]:\\\\")

pytestmark = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def outputs(notebook: Path) -> list[dict]:
    return [output for cell in cells(notebook, "code") for output in cell["outputs"]]


def text(cell: dict) -> str:
    return "".join(cell["source"])


def test_it_was_run_from_top_to_bottom(notebook):
    counts = [cell["execution_count"] for cell in cells(notebook, "code")]
    assert counts == list(range(1, len(counts) + 1))


def test_it_ran_without_errors_and_warnings(notebook):
    shown = outputs(notebook)
    assert shown
    assert not [output for output in shown if output["output_type"] == "error"]
    assert not [output["text"] for output in shown if output.get("name") == "stderr"]


def test_it_shows_a_picture(notebook):
    assert any({"image/png", "image/jpeg"} & set(output.get("data", {})) for output in outputs(notebook))


def test_it_names_no_machine(notebook):
    strings = [text(cell) for kind in ("code", "markdown") for cell in cells(notebook, kind)]
    for output in outputs(notebook):
        strings.append("".join(output.get("text", "")))
        strings.extend("".join(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))
    assert not [string for string in strings if MACHINE_PATH.search(string)]


def test_it_is_small(notebook):
    assert notebook.stat().st_size < LARGEST


def test_it_begins_with_its_only_title(notebook):
    titles = [re.findall(r"^# .+", text(cell), re.MULTILINE) for cell in cells(notebook, "markdown")]
    assert len(titles[0]) == 1
    assert not any(titles[1:])


def test_the_site_lists_it(notebook):
    assert f"[]({notebook.name})" in (ROOT / "docs" / "tutorials" / "index.md").read_text(encoding="utf-8")


def test_links_lead_somewhere(notebook):
    for cell in cells(notebook, "markdown"):
        for target in re.findall(r"\]\(([^)#\s]+)", text(cell)):
            assert target.startswith("https://") or (notebook.parent / target).exists(), target
