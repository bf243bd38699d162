"""The commands: from words to a run, and from what came of it to words and an exit code."""

from __future__ import annotations

import argparse
import inspect
import math
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.transforms import v2

from captum_boundary.datasets._examples import ExampleWarning, Reader
from captum_boundary.datasets._models import METHODS, call_named, failing_as, load_model
from captum_boundary.datasets._sources import Standardized, load_data
from captum_boundary.datasets.explain import explain_dataset
from captum_boundary.datasets.gallery import summarize, write_gallery
from captum_boundary.datasets.reading import Explanations, merge_explanations, told
from captum_boundary.errors import BoundaryError, BoundaryValueError
from captum_boundary.search import NearestBoundary

__all__ = ["main"]

_NAME = "python -m captum_boundary"
_NORMS = {"2": 2, "inf": math.inf, "1": 1}
_FEATURES_AT_ONCE = 2**20  # of the examples of a batch, unless the user chooses: 6 images of 3 x 224 x 224


def parser() -> argparse.ArgumentParser:
    """The parser of ``python -m captum_boundary explain``."""
    text = (resources.files("captum_boundary.datasets") / "help.txt").read_text(encoding="utf-8")
    description, _, epilog = text.partition("\n---\n")
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(_NAME + " explain", None, description, epilog, formatter_class=form)
    count: dict[str, Any] = {"type": positive_integer, "metavar": "N"}

    add = parser.add_argument_group("what to explain").add_argument
    add("--model", required=True, help="torchvision:NAME, or package.module:function that returns a model")
    add("--weights", metavar="FILE", help="state dict, as torch.save writes it, or torchvision's DEFAULT and others")
    add("--num-classes", **count, help="classes of a torchvision model, if not 1000")
    pair: dict[str, Any] = {"nargs": 2, "type": numbers, "metavar": ("MEAN", "STD")}
    add("--normalize", **pair, help="of the model, per channel: 0.4,0.5,0.6 0.2")
    data = "folder of images (in a subfolder for each class, if labeled), .npz file with images and labels, or "
    add("--data", required=True, help=data + "package.module:function that returns a Dataset")
    given: dict[str, Any] = {"default": argparse.SUPPRESS}
    add("--size", **count, **given, help="scale and crop images of a folder to squares of N pixels")
    add("--gray", action="store_true", **given, help="read images of a folder with one channel")
    add("--layout", choices=("nchw", "nhwc"), **given, help="where arrays of an .npz file have their channels")
    add("--no-labels", dest="labels", action="store_false", **given, help="labels are not the model's classes")
    add("--class-names", type=utf8_lines, metavar="FILE", help="text file, the name of one class a line")
    add("--limit", **count, help="only the first N examples")

    add = parser.add_argument_group("how to explain it").add_argument
    methods = ", ".join(METHODS) + ", or package.module:function from a model to a Captum attribution"
    add("--method", default="big", help=methods + " (default: big, integrated gradients from the boundary)")
    add("--target", type=class_number, help="predicted (default), label, or the number of a class")
    add("--budget", **count, default=40, help="gradients for each boundary point (default: 40)")
    add("--norm", choices=_NORMS, default="2", help="norm of the distance (default: 2)")
    limits = "limits of real inputs, before --normalize (default: 0 1 for images, none for others)"
    add("--bounds", nargs=2, type=float, metavar=("LOWER", "UPPER"), help=limits)
    space = "search in units of the data (default), or in standard deviations, after --normalize"
    add("--distances-in", choices=("pixels", "std"), default="pixels", help=space)
    add("--steps", **count, help="path points of big and ig (default: 50)")
    add("--version", metavar="TEXT", help="a name for what results depend on and cannot be seen, such as other files")

    add = parser.add_argument_group("where to").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for what is written")
    resume = "go on where the run in DIR was stopped (default), or refuse a folder with results"
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help=resume)
    add("--verify", action="store_true", help="compare all examples that are done with the data, not three of a batch")
    add("--dtype", choices=("float16", "float32"), default="float32", help="of attributions")
    add("--map-size", **count, help="store maps of N x N cells, not of all pixels")
    add("--save-points", action="store_true", help="store boundary points too")
    add("--no-gallery", dest="gallery", action="store_false", help="write no page to look at")

    add = parser.add_argument_group("on what").add_argument
    add("--batch-size", **count, help="examples at once and in one file (default: by their size, at most 32)")
    add("--internal-batch-size", **count, help="path points at once (default: as many as fit)")
    add("--workers", dest="num_workers", type=int, default=0, metavar="N", help="processes that read examples")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU for each process, where there are any)")
    add("--shard", type=shard, metavar="I/N", help="only the I-th of N parts, from 0 (default: torchrun's)")
    add("--seed", type=int, default=0, help="seed of all that is random (default: 0)")
    add("--strict", action="store_true", help="stop at the first example that cannot be explained")
    return parser


def main(words: Sequence[str]) -> int:
    """Explain a data set or merge shards, as the ``words`` after the program's name say, and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal of ASCII
    act = _merge if words[0] == "merge" else _explain
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExampleWarning)  # which the report counts
            return act(words[1:])
    except (BoundaryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. What is done is kept: the same command goes on.", file=sys.stderr)
        return 130


def _explain(words: Sequence[str]) -> int:
    options = parser().parse_args(words)
    options.device, options.dtype = _device(options.device), getattr(torch, options.dtype)
    given, shown = vars(options), sys.stderr is not None
    of_data: dict[str, Any] = {name: given[name] for name in ("size", "gray", "layout", "labels") if name in given}
    dataset = load_data(options.data, options.out, of_data)
    loaded = load_model(options.model, options.weights, options.num_classes)
    bounds = options.bounds or getattr(dataset, "bounds", None)
    normalize, model = options.normalize or loaded.normalize, loaded.model
    if options.distances_in == "std":
        if normalize is None:
            raise BoundaryValueError("--distances-in std needs --normalize: the means and standard deviations.")
        dataset = Standardized(dataset, normalize[0], normalize[1], bounds)
        bounds = dataset.bounds
    elif normalize is not None:
        model = nn.Sequential(v2.Normalize(*normalize), model)
    with failing_as(f"--model {options.model} cannot be used on {options.device}: "):
        model = model.eval().requires_grad_(False).to(options.device)
    bounds, norm = None if bounds is None else tuple(bounds), _NORMS[options.norm]
    search = NearestBoundary(model, bounds=bounds, budget=options.budget, norm=norm, show_progress=shown)
    method, methods = METHODS.get(options.method), f"one of {', '.join(METHODS)}"
    signed = False if options.method == "saliency" else None
    chosen = {"n_steps": options.steps, "internal_batch_size": options.internal_batch_size, "abs": signed}
    options.batch_size = options.batch_size or _batch_size(dataset, options.seed)
    options.class_names = options.class_names or (None if hasattr(dataset, "classes") else loaded.class_names)
    alike = given.keys() & inspect.signature(explain_dataset).parameters
    explanations = explain_dataset(
        method(model, search) if method else call_named(options.method, "--method", methods, model),
        dataset,
        options={name: value for name, value in chosen.items() if value is not None},
        show_progress=shown,
        **{name: given[name] for name in alike},
    )
    closing = None
    if explanations.is_complete and options.gallery:
        closing = f"The gallery: {write_gallery(explanations.path, dataset, bounds=bounds, show_progress=shown)}"
    return _report(explanations, closing)


def _merge(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(_NAME + " merge", description="Copy shards into one folder.")
    parser.add_argument("parts", nargs="+", metavar="PART", help="folder that explain --shard I/N has written")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for all of them")
    options = parser.parse_args(words)
    closing = "For the gallery, give the command that explained a part, with this folder as --out and without --shard."
    return _report(merge_explanations(options.parts, options.out), closing)


def _report(explanations: Explanations, closing: str | None) -> int:
    summary = summarize(explanations.table())
    n_explained, median = summary["n_examples"] - summary["n_failed"], summary["distance"]
    lines = [f"{n_explained} of {len(explanations)} examples are explained."]
    lines += [text for column in ("error", "note") if (text := told(explanations, column))]
    if summary["found"] is not None:
        within = "" if median is None else f", half of them within {explanations.distance_text(median)}"
        lines.append(f"{sum(each['found'] for each in summary['classes'])} have a boundary point{within}.")
    lines.append(f"The results: {explanations.path}")
    print("\n".join([*lines, (closing or "") if explanations.is_complete else "Other shards are missing."]).rstrip())
    return 3 if summary["n_examples"] and n_explained == 0 else 0


def _batch_size(dataset: Any, seed: int) -> int:
    """As many examples as have a moderate number of features together, so that little is lost if the run is killed."""
    first = next(Reader(dataset, seed).readable(min(len(dataset), 16)), None)
    n_features = 1 if first is None else sum(tensor.numel() for tensor in first.inputs)
    return max(1, min(32, _FEATURES_AT_ONCE // max(1, n_features)))


def _device(name: str | None) -> torch.device:
    rank, n_devices = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    name = name or (f"cuda:{rank % n_devices}" if n_devices else "cpu")
    with failing_as(f"--device must be cpu, cuda or cuda:N, but {name} cannot be used: "):
        torch.empty(1, device=name).item()
    return torch.device(name)


# Types of options, which argparse names where a value is none of them.


def positive_integer(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def utf8_lines(text: str) -> list[str]:
    return Path(text).read_text(encoding="utf-8").splitlines()


def class_number(text: str) -> int | str | None:
    return {"predicted": None, "label": "label"}[text] if text in ("predicted", "label") else int(text)


def shard(text: str) -> tuple[int, int]:
    index, count = map(int, text.split("/"))
    return index, count
