"""A page to look at a data set's explanations, made of files alone: no server, no network."""

from __future__ import annotations

import hashlib
import io
import math
import os
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

import captum_boundary
from captum_boundary._core.bounds import Bounds
from captum_boundary._core.checks import check_count
from captum_boundary.datasets._examples import Reader, check_dataset
from captum_boundary.datasets._identity import Describer
from captum_boundary.datasets._store import FolderError, write_atomically
from captum_boundary.datasets._summary import summarize
from captum_boundary.datasets.reading import Explanations, load_explanations

__all__ = ["write_gallery"]

_SHARP = 64  # images up to this size are enlarged pixel by pixel
_COLORS = np.array([[255, 0, 0], [255, 255, 255], [0, 128, 0]], dtype=float)  # Captum's, from negative to positive
_OUTLIERS = 0.995  # share of pixels whose magnitudes are told apart
_PICTURES = "1"  # how pictures are made; changed with it
_COLUMNS = ["index", "name", "label", "prediction", "target", "adversarial", "distance", "margin", "found"]
_COLUMNS += ["evaluations", "completeness_gap"]


def write_gallery(
    out: str | os.PathLike[str],
    dataset: Dataset[Any],
    *,
    bounds: Bounds = None,
    image_size: int = 160,
    title: str | None = None,
    show_progress: bool = False,
) -> Path:
    r"""Write a page that shows the explanations of a folder, into its subfolder ``gallery``.

    The page has a summary (distances by class, which classes lie side by side, the least and most certain examples), a
    grid of all examples with their maps, which can be filtered and sorted, and a view of each. It is made of plain
    files: open ``index.html`` in a browser, or copy the folder to wherever it should be seen. Of examples that are not
    images, it shows the numbers. Pictures are made again where bounds, image_size or explanations have changed.

    Args:

        out (str or PathLike): Folder that :func:`explain_dataset` has written, complete.
        dataset (Dataset): The data set that was explained.
        bounds (tuple, optional): Values of black and white, as a search takes them: ``(lower, upper)``, or tensors for
            normalized images. Default: None, 0 and 1 or, where an image leaves them, its own extremes.
        image_size (int, optional): Pixels of the longer side of an image, at most. Default: 160
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
    check_count("image_size", image_size)
    explanations = load_explanations(out)
    reader = Reader(dataset, explanations.manifest["settings"]["seed"])
    store, folder = explanations.store, explanations.path / "gallery"
    _check(explanations, dataset, reader)
    keys = []
    if _has_pictures(explanations):
        look = f"{_PICTURES} {image_size} {Describer().describe(bounds)}".encode()
        for batch in tqdm(range(store.n_batches), desc="Pictures", unit="batch", disable=not show_progress):
            keys.append(hashlib.sha256(look + store.rows(batch).read_bytes()).hexdigest()[:8])
            for index in store.examples(batch):
                _write_picture(folder / "pictures", keys[-1], explanations, reader, index, bounds, image_size)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("captum_boundary.datasets", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    content = _content(explanations, keys, title or explanations.path.resolve().name)
    text = environment.get_template("page.html").render(content).encode("utf-8", "backslashreplace")
    write_atomically(folder / "index.html", lambda file: file.write(text))
    return folder / "index.html"


def _check(explanations: Explanations, dataset: Any, reader: Reader) -> None:
    n_examples = len(explanations)
    if not explanations.is_complete:
        raise FolderError(
            f"{explanations.path} is not complete: {n_examples - len(explanations.indices())} of {n_examples} examples "
            "are missing. Let explain_dataset finish first."
        )
    for index in sorted({0, n_examples // 2, n_examples - 1}):
        digest = explanations[index].digest
        if len(dataset) < n_examples or digest not in (None, reader[index].facts["digest"]):
            raise FolderError(f"The explanations in {explanations.path} are not those of this data set.")


def _has_pictures(explanations: Explanations) -> bool:
    spec = explanations.manifest["data"]["spec"]
    return spec is not None and len(spec["shapes"][0]) == 3 and spec["shapes"][0][0] in (1, 3)


def _write_picture(
    folder: Path, key: str, explanations: Explanations, reader: Reader, index: int, bounds: Bounds, size: int
) -> None:
    path = folder / f"{index // 1000:04d}" / f"{index:09d}-{key}.webp"
    if path.exists():
        return
    for old in path.parent.glob(f"{index:09d}-*.webp"):
        old.unlink()
    example = reader[index]
    if "error" not in example.facts and example.inputs[0].ndim == 3 and example.inputs[0].shape[0] in (1, 3):
        attributions = explanations[index].attributions
        first = attributions[0] if isinstance(attributions, tuple) else attributions
        content = picture(example.inputs[0], first if first is None or first.ndim in (2, 3) else None, bounds, size)
        write_atomically(path, lambda file: file.write(content), durable=False)


def picture(image: Tensor, attributions: Tensor | None, bounds: Bounds, size: int) -> bytes:
    """WebP of an image ``(C, H, W)`` beside its attributions, each ``size`` pixels wide and high at most."""
    values = torch.nan_to_num(image.float())
    if bounds is None:
        bounds = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else (values.min(), values.max())
    pair: Any = bounds[0] if isinstance(bounds[0], list | tuple) else bounds  # of the first of several inputs
    lower, upper = (torch.as_tensor(side).float().cpu() for side in pair)
    lower, upper = (side[0] if side.ndim == 4 else side for side in (lower, upper))
    shares = (values - lower) / (upper - lower).clamp_min(torch.finfo(values.dtype).tiny)
    pixels = (shares.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)
    left = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    maps = Image.new("RGB", left.size, (128, 128, 128)) if attributions is None else _map(attributions)
    if max(left.size) > size:
        left.thumbnail((size, size), Image.Resampling.LANCZOS)
    both = Image.new("RGB", (2 * left.width, left.height))
    both.paste(left, (0, 0))
    both.paste(maps.resize(left.size, Image.Resampling.BOX), (left.width, 0))
    buffer = io.BytesIO()
    both.save(buffer, "webp", lossless=max(left.size) <= _SHARP, quality=85)
    return buffer.getvalue()


def _map(attributions: Tensor) -> Image.Image:
    """Attributions, summed over channels, in colors from minus to plus their largest magnitudes."""
    values: Any = (attributions.sum(dim=0) if attributions.ndim == 3 else attributions).double().numpy()
    if not np.isfinite(values).all():
        return Image.new("RGB", values.shape[::-1], (128, 128, 128))
    scale = np.quantile(np.abs(values), _OUTLIERS) or np.abs(values).max() or 1.0
    places = (np.clip(values / scale, -1, 1) + 1) * (len(_COLORS) - 1) / 2
    channels = [np.interp(places, range(len(_COLORS)), color) for color in _COLORS.T]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def _content(explanations: Explanations, keys: list[str], title: str) -> dict[str, Any]:
    """What the page shows, in numbers of no more digits than are shown."""
    table, spec = explanations.table(), explanations.manifest["data"]["spec"]
    columns = {name: [_short(value) for value in table.column(name).to_pylist()] for name in _COLUMNS}
    notes, errors = (dict(enumerate(table.column(name).to_pylist())) for name in ("note", "error"))
    summary = summarize(table)
    summary["largest"] = max((each["distances"][-1] for each in summary["classes"] if each["distances"]), default=0)
    data = {
        "classes": explanations.class_names,
        "columns": columns,
        "errors": {row: error for row, error in errors.items() if error is not None},
        "notes": {row: note for row, note in notes.items() if note is not None},
        "keys": keys,
        "batchSize": explanations.store.batch_size,
        "sharp": spec is not None and max(spec["shapes"][0], default=0) <= _SHARP,
        "distance": explanations.distance_text(),
    }
    return {"title": title, "version": captum_boundary.__version__, "data": data, "summary": summary}


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
