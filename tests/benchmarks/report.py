"""Tables, claims and JSON of a benchmark."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Claim:
    text: str
    value: float
    holds: bool


def print_table(rows: Mapping[str, Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["", *columns]] + [
        [name, *(shown(row.get(column, "")) for column in columns)] for name, row in rows.items()
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_claims(claims: list[Claim]) -> None:
    for claim in claims:
        print(f"{'PASS' if claim.holds else 'FAIL'}  {claim.text}: {shown(claim.value)}")


def save(section: str, result: Mapping[str, Any], path: Path) -> None:
    """Replace one section of the JSON file at ``path``, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {}
    results[section] = {**result, "claims": [vars(claim) for claim in result["claims"]], "environment": environment()}
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(results, indent=2) + "\n")
    os.replace(part, path)


def environment() -> dict[str, Any]:
    packages = ("torch", "captum", "foolbox", "torchvision")
    return {
        **{name: version_of(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "peak memory, MiB": peak_memory(),
    }


def version_of(package: str) -> str | None:
    """None where it is not installed: not every benchmark needs every package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def peak_memory() -> int:
    """Of this process since its beginning, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, what getrusage says includes the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) // 2**10
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20
