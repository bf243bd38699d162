"""The two files of a batch: rows (Parquet) and tensors (safetensors), the same bytes for the same content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from captum_boundary.datasets._batch import Explained
from captum_boundary.datasets._examples import Failure

__all__ = ["SCHEMA", "read_tensors", "rows_file", "tensors_file"]

SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        ("label", pa.int64()),
        ("prediction", pa.int64()),
        ("target", pa.int64()),
        ("adversarial", pa.int64()),
        ("distance", pa.float64()),
        ("margin", pa.float64()),
        ("found", pa.bool_()),
        ("evaluations", pa.int64()),
        ("completeness_gap", pa.float64()),
        ("error", pa.string()),
    ]
)


def rows_file(parts: Sequence[Explained], failures: Sequence[Failure]) -> bytes:
    """A Parquet file with one row for each example, in the order of the data set."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    failed: dict[str, list[Any]] = {
        "index": [failure.index for failure in failures],
        "label": [failure.label for failure in failures],
        "error": [failure.message for failure in failures],
    }
    for part in [*(explained.columns for explained in parts), failed]:
        for name, column in columns.items():
            column += part.get(name, [None] * len(part["index"]))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, SCHEMA).sort_by("index"), sink, compression="zstd")
    return bytes(sink.getvalue())


def tensors_file(parts: Sequence[Explained], dtype: torch.dtype) -> bytes:
    """A safetensors file: ``index`` of the examples that were explained, and their tensors in this order."""
    stored = {"index": torch.tensor([row for part in parts for row in part.columns["index"]], dtype=torch.int64)}
    if parts:
        maps = tuple(torch.cat(tensors) for tensors in zip(*(part.attributions for part in parts), strict=True))
        points = tuple(torch.cat(tensors) for tensors in zip(*(part.points for part in parts), strict=True))
        for name, tensor in _named("attributions", maps).items():
            stored |= _half(name, tensor) if dtype == torch.float16 else {name: tensor.to(dtype).contiguous()}
        stored |= {name: tensor.contiguous() for name, tensor in _named("points", points).items()}
    return bytes(save(stored))


def read_tensors(path: Path, index: int) -> dict[str, Tensor]:
    """The tensors of one example, without the rest of the file. Empty if it was not explained."""
    with safe_open(path, framework="pt") as file:
        place = (file.get_tensor("index") == index).nonzero().flatten().tolist()
        if not place:
            return {}
        row = slice(place[0], place[0] + 1)
        names = [name for name in file.keys() if name != "index"]  # noqa: SIM118, a file is no mapping
        stored = {name: file.get_slice(name)[row][0] for name in names}
    scales = {name: stored.pop(name) for name in list(stored) if name.endswith(".scale")}
    return {
        name: tensor.float() * scales[f"{name}.scale"] if f"{name}.scale" in scales else tensor
        for name, tensor in stored.items()
    }


def _named(name: str, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
    if len(tensors) == 1:
        return {name: tensors[0]}
    return {f"{name}.{index}": tensor for index, tensor in enumerate(tensors)}


def _half(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Half precision with a power of two for each example, so that no attribution is too large or too small for it."""
    largest = tensor.float().reshape(len(tensor), -1).abs().amax(dim=1)
    usable = largest.isfinite() & (largest > 0)
    exponent = torch.frexp(largest).exponent.clamp(max=127)  # 2**128 is no float32
    scale = torch.where(usable, torch.exp2(exponent.float()), 1.0)
    halves = (tensor.float() / scale.view(-1, *[1] * (tensor.ndim - 1))).half()
    return {name: halves.contiguous(), f"{name}.scale": scale}
