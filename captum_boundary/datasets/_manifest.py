"""What a folder's results depend on, stored beside them, so that no run goes on with another one's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import captum_boundary
from captum_boundary.datasets.errors import FolderError

__all__ = ["as_json", "check_same", "read_manifest", "versions"]

_PACKAGES = ("captum", "torch", "numpy", "pyarrow", "safetensors")
_FORMAT = 1
_MISSING = "nothing"


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    ours = {"format": str(_FORMAT), "captum-boundary": captum_boundary.__version__}
    return {**ours, **{package: _version(package) for package in _PACKAGES}}


def as_json(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as the text that is stored."""
    return (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of explanations."""
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise FolderError(f"There is no folder {folder}.")
    if not path.is_file():
        raise FolderError(f"{folder} holds no explanations: it has no manifest.json.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FolderError(f"{path} cannot be read: {error}.") from error
    return manifest


def check_same(stored: Mapping[str, Any], wanted: Mapping[str, Any], place: str, remedy: str) -> None:
    """Refuse to go on where two manifests differ, and say in what."""
    there, here = dict(_leaves(stored)), dict(_leaves(json.loads(as_json(wanted))))
    differing = [name for name in sorted({*there, *here}) if there.get(name, _MISSING) != here.get(name, _MISSING)]
    if differing:
        lines = [f"  {name}: {_short(there, name)} {place}, {_short(here, name)} now" for name in differing[:12]]
        more = [f"  and {len(differing) - 12} more"] if len(differing) > 12 else []
        raise FolderError(
            "\n".join([f"The results {place} are those of another run. What differs:", *lines, *more, remedy])
        )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _short(leaves: Mapping[str, Any], name: str) -> str:
    text = json.dumps(leaves[name]) if name in leaves else _MISSING
    return text if len(text) <= 60 else f"{text[:57]}..."


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
