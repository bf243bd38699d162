"""A page to look at a data set's explanations, made of files alone: no server, no network."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

import captum_boundary
from captum_boundary._core.bounds import Bounds
from captum_boundary._core.checks import check_count
from captum_boundary.datasets._examples import Example, Reader, check_dataset
from captum_boundary.datasets._folder import write_atomically
from captum_boundary.datasets._html import page
from captum_boundary.datasets._pictures import is_image, picture
from captum_boundary.datasets._summary import summarise
from captum_boundary.datasets._team import Team
from captum_boundary.datasets.errors import FolderError
from captum_boundary.datasets.reading import Explanations, load_explanations

__all__ = ["write_gallery"]

_SHARP = 64  # images up to this size are enlarged pixel by pixel
_COLUMNS = (
    "index",
    "label",
    "prediction",
    "target",
    "adversarial",
    "distance",
    "margin",
    "found",
    "evaluations",
    "completeness_gap",
)


def write_gallery(
    out: str | os.PathLike[str],
    dataset: Dataset[Any],
    *,
    bounds: Bounds = None,
    size: int = 160,
    title: str | None = None,
    show_progress: bool = False,
) -> Path:
    r"""Write a page that shows the explanations of a folder, into its subfolder ``gallery``.

    The page has a summary (distances by class, which classes lie side by side, the least and most certain examples), a
    grid of all examples with their maps, which can be filtered and sorted, and a view of each. It is made of plain
    files: open ``index.html`` in a browser, or copy the folder to wherever it should be seen. Of examples that are not
    images, it shows the numbers.

    Pictures that are there already are kept. In a process group of ``torch.distributed``, the processes share them.

    Args:

        out (str or PathLike): Folder that :func:`explain_dataset` has written, complete.
        dataset (Dataset): The data set that was explained.
        bounds (tuple, optional): Values of black and white, as a search takes them: ``(lower, upper)``, or tensors for
            normalised images. Default: None, 0 and 1 or, where an image leaves them, its own extremes.
        size (int, optional): Pixels of the longer side of an image, at most. Default: 160
        title (str, optional): Title of the page. Default: None, the name of the folder.
        show_progress (bool, optional): Show a progress bar. Default: False

    Returns:

        - **page** (*pathlib.Path*): The page, ``out/gallery/index.html``.

    Raises:

        FolderError: If there are no explanations, if some are missing yet, or if they are those of another data set.

    Examples::

        >>> import tempfile
        >>> import torch
        >>> from captum_boundary import BoundarySaliency
        >>> from captum_boundary.datasets import explain_dataset
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        >>> images = list(torch.rand(6, 3, 2, 2))
        >>> out = tempfile.mkdtemp()
        >>> _ = explain_dataset(BoundarySaliency(model), images, out, batch_size=4)
        >>> write_gallery(out, images).name
        'index.html'
    """
    check_dataset(dataset)
    check_count("size", size)
    explanations = load_explanations(out)
    reader = Reader(dataset, explanations.manifest["settings"]["seed"])
    folder = explanations.path / "gallery"
    with Team() as team:
        team.together(lambda: _check(explanations, dataset, reader))
        places = range(team.rank, len(explanations), team.size)
        if _has_pictures(explanations):
            for index in tqdm(places, desc="Pictures", disable=not show_progress or team.rank > 0):
                _write_picture(folder, explanations, reader, index, bounds, size)
        team.together(lambda: None)
        team.first(lambda: _write_page(folder, explanations, title or explanations.path.resolve().name))
    return folder / "index.html"


def _check(explanations: Explanations, dataset: Any, reader: Reader) -> None:
    n_examples = len(explanations)
    if not explanations.is_complete:
        raise FolderError(
            f"{explanations.path} is not complete: {n_examples - len(explanations.indices())} of {n_examples} examples "
            "are missing. Let explain_dataset finish first."
        )
    digest = reader.digest(sorted({0, n_examples // 2, n_examples - 1})) if len(dataset) >= n_examples else None
    if digest != explanations.manifest["data"]["sample"]:
        raise FolderError(f"The explanations in {explanations.path} are not those of this data set.")


def _has_pictures(explanations: Explanations) -> bool:
    form = explanations.manifest["data"]["form"]
    return form is not None and is_image(tuple(form["shapes"][0]))


def _write_picture(
    folder: Path, explanations: Explanations, reader: Reader, index: int, bounds: Bounds, size: int
) -> None:
    path = folder / "pictures" / f"{index // 1000:04d}" / f"{index:09d}.webp"
    example = None if path.exists() else reader[index]
    if isinstance(example, Example) and is_image(tuple(example.inputs[0].shape)):
        attributions = explanations[index].attributions
        first = attributions[0] if isinstance(attributions, tuple) else attributions
        shown = first if first is None or _is_map(first) else None
        content = picture(example.inputs[0], shown, bounds, size)
        write_atomically(path, lambda file: file.write(content), durable=False)


def _is_map(attributions: Tensor) -> bool:
    return attributions.ndim in (2, 3)


def _write_page(folder: Path, explanations: Explanations, title: str) -> None:
    table = explanations.table([*_COLUMNS, "error"])
    names = explanations.class_names
    html = page(title, captum_boundary.__version__, summarise(table), names)
    files = resources.files("captum_boundary.datasets") / "_page"
    contents = {name: (files / name).read_text(encoding="utf-8") for name in ("gallery.css", "gallery.js")}
    contents |= {"index.html": html, "data.js": "".join(_data(table, explanations))}
    for name, text in contents.items():
        write_atomically(folder / name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]


def _data(table: Any, explanations: Explanations) -> Iterator[str]:
    """A script, since a page from a file may not read data in any other way."""
    errors = zip(table.column("index").to_pylist(), table.column("error").to_pylist(), strict=True)
    form = explanations.manifest["data"]["form"]
    content = {
        "classes": explanations.class_names,
        "errors": {index: error for index, error in errors if error is not None},
        "pictures": _has_pictures(explanations),
        "sharp": form is not None and max(form["shapes"][0], default=0) <= _SHARP,
        "columns": {name: [_short(value) for value in table.column(name).to_pylist()] for name in _COLUMNS},
    }
    yield "window.GALLERY = "
    yield json.dumps(content, separators=(",", ":"))
    yield ";\n"


def _short(value: Any) -> Any:
    """A number as JSON knows it, in no more digits than are shown."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
