"""Imports point one way: each floor of the package stands on those below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import captum_boundary

PACKAGE = Path(captum_boundary.__file__).parent

# Each floor and those it may import from.
FLOORS = {
    "_core": set(),
    "search": {"_core"},
    "layers": {"_core"},
    "smoothing": {"_core"},
    "attr": {"_core", "search", "layers", "smoothing"},
    "robust": {"_core"},
    "metrics": {"_core", "search", "attr", "robust"},
    "visualization": {"_core", "search", "attr", "metrics", "robust"},
    "llm": {"_core", "search", "layers", "smoothing", "attr", "metrics", "visualization"},
    "datasets": {"_core", "search", "attr", "metrics", "robust", "visualization"},
}


def imported_floors(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = (name.split(".") for name in names)
    return {part[1] for part in parts if part[0] == "captum_boundary" and len(part) > 1 and part[1] in FLOORS}


@pytest.mark.parametrize("floor", FLOORS)
def test_each_floor_imports_from_those_below(floor: str) -> None:
    files = list((PACKAGE / floor).rglob("*.py"))
    assert files
    upward = {
        str(file.relative_to(PACKAGE)): sorted(wrong)
        for file in files
        if (wrong := imported_floors(file) - FLOORS[floor] - {floor})
    }
    assert upward == {}


def test_every_package_has_a_floor() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages - {"_demo"} == set(FLOORS)


def test_only_one_file_imports_private_helpers_of_captum() -> None:
    def imports_private(file: Path) -> bool:
        return any(
            isinstance(node, ast.ImportFrom) and (node.module or "").startswith("captum._")
            for node in ast.walk(ast.parse(file.read_text()))
        )

    assert [file.name for file in PACKAGE.rglob("*.py") if imports_private(file)] == ["captum_helpers.py"]
