"""The command: from words to a run, and from what came of it to words and an exit code."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
import torch.distributed as dist

from captum_boundary.datasets._command.models import build_explainer, load_model
from captum_boundary.datasets._command.options import parser
from captum_boundary.datasets._command.sources import load_data
from captum_boundary.datasets.explain import explain_dataset
from captum_boundary.datasets.gallery import write_gallery
from captum_boundary.datasets.reading import Explanations
from captum_boundary.errors import BoundaryError, BoundaryValueError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Explain a data set as ``arguments`` say, and return the exit code."""
    options = parser().parse_args(arguments)
    with _process_group() as rank:
        try:
            return _explain(options, rank)
        except (BoundaryError, OSError) as error:
            # What every process was told is said once; what went wrong in one of them, by that one.
            if rank == 0 or error.__cause__ is not None or isinstance(error, OSError):
                print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            if rank == 0:
                print("\nInterrupted. What is done is kept: the same command goes on.", file=sys.stderr)
            return 130


def _explain(options: Namespace, rank: int) -> int:
    device = _device(options.device)
    dataset = load_data(options.data, options.size, options.grey, options.labels)
    model = load_model(options.model, options.weights, options.num_classes, options.normalize, device)
    bounds = (options.bounds and tuple(options.bounds)) or getattr(dataset, "bounds", None)
    explanations = explain_dataset(
        build_explainer(options.method, model, bounds, options.budget, options.norm),
        dataset,
        options.out,
        batch_size=options.batch_size,
        target=options.target,
        options=_attribute_options(options),
        dtype=getattr(torch, options.dtype),
        map_size=options.map_size,
        save_points=options.save_points,
        limit=options.limit,
        class_names=_class_names(options),
        seed=options.seed,
        strict=options.strict,
        resume=options.resume,
        shard=options.shard,
        device=device,
        num_workers=options.workers,
        show_progress=True,
    )
    if explanations.is_complete and options.gallery:
        page = write_gallery(explanations.path, dataset, bounds=bounds, show_progress=True)
        closing = f"The gallery: {page}"
    else:
        closing = "Other shards are missing." if not explanations.is_complete else ""
    return _report(explanations, closing) if rank == 0 else 0


def _report(explanations: Explanations, closing: str) -> int:
    table = explanations.table(["index", "error", "found", "distance"])
    n_failed = table.num_rows - table.column("error").null_count
    lines = [f"{table.num_rows - n_failed} of {len(explanations)} examples are explained."]
    if n_failed:
        failed = table.filter(pc.is_valid(table.column("error")))
        first = failed.slice(0, 1).to_pylist()[0]
        lines.append(
            f"{n_failed} have an error in their row, the first of them example {first['index']}: {first['error']}"
        )
    if table.column("found").null_count < table.num_rows:
        near = table.filter(pc.field("found")).column("distance").to_numpy()
        within = f", half of them within {np.median(near):.3g}" if len(near) else ""
        lines.append(f"{len(near)} have a boundary point{within}.")
    lines += [f"The results: {explanations.path}", closing]
    print("\n".join(line for line in lines if line))
    return 3 if table.num_rows and n_failed == table.num_rows else 0


def _attribute_options(options: Namespace) -> dict[str, Any]:
    steps = {"n_steps": options.steps} if options.steps is not None else {}
    return {"abs": False, **steps} if options.method == "saliency" else steps


def _class_names(options: Namespace) -> list[str] | None:
    if options.class_names is None:
        return None
    try:
        return options.class_names.read_text(encoding="utf-8").splitlines()  # type: ignore[no-any-return]
    except (OSError, UnicodeDecodeError) as error:
        raise BoundaryValueError(f"{options.class_names} cannot be read as names of classes: {error}") from error


def _device(name: str | None) -> torch.device:
    if name is not None:
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise BoundaryValueError(f"--device must be cpu, cuda or cuda:N, but it is {name}.") from error
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


@contextmanager
def _process_group() -> Iterator[int]:
    """Join the process group of torchrun, if there is one. Yields the number of this process."""
    joins = "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized()
    if joins:
        dist.init_process_group("gloo")  # a few words between processes; no tensors
    try:
        yield dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    finally:
        if joins:
            dist.destroy_process_group()
