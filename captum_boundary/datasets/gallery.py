"""A page to look at a data set's explanations, made of files alone: no server, no network."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from pathlib import Path
from typing import Any, cast

import jinja2
import numpy as np
import pyarrow as pa
import torch
from matplotlib.colors import Colormap
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from tqdm.auto import tqdm

import captum_boundary
from captum_boundary._core.bounds import Bounds, check_bounds
from captum_boundary._core.checks import check_count
from captum_boundary.datasets._examples import Example, Reader
from captum_boundary.datasets._identity import Describer, digest_of
from captum_boundary.datasets._store import FolderError, atomic_file
from captum_boundary.datasets.reading import Explanation, Explanations, load_explanations
from captum_boundary.visualization._panels import COLORS

__all__ = ["picture", "summarize", "write_gallery"]

_N_EXTREMES = 12
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_COLORS: Any = cast("Colormap", COLORS["all"]).resampled(513)  # of which the one in the middle is white
_SHARP = 64  # images up to this size are enlarged pixel by pixel
_OUTLIERS = 0.995  # share of pixels whose magnitudes are told apart
_PICTURES = 2  # how pictures are made; changed with it


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
    check_count("image_size", image_size)
    bounds = check_bounds(bounds)
    explanations = load_explanations(out)
    if not explanations.is_complete:
        raise FolderError(
            f"{explanations.path} is not complete: {len(explanations) - len(explanations.indices())} of "
            f"{len(explanations)} examples are missing. Let explain_dataset finish first."
        )
    folder, reader = explanations.path / "gallery", Reader(dataset, explanations.manifest["settings"]["seed"])
    for index in (0, len(explanations) // 2, len(explanations) - 1):
        _example(explanations, reader, index)
    spec, store = explanations.store.data["spec"], explanations.store
    shape = spec["shapes"][0] if spec else []
    n_batches = store.n_batches if len(shape) == 3 and shape[0] in (1, 3) else 0  # of images
    look = digest_of([_PICTURES, image_size, Describer().describe(bounds)]).encode()
    keys = []  # of the pictures of each batch, in their names
    for batch in tqdm(range(n_batches), desc="Pictures", unit="batch", disable=not (show_progress and n_batches)):
        keys.append(hashlib.sha256(look + store.files(batch)[1].read_bytes()).hexdigest()[:8])
        for index in store.examples(batch):
            path = folder / "pictures" / f"{index // 1000:04d}" / f"{index:09d}-{keys[-1]}.webp"
            if path.exists():
                continue
            example, explanation = _example(explanations, reader, index)
            if example.inputs and explanation.attributions is not None:
                with atomic_file(path, durable=False) as file:
                    file.write(picture(example.inputs[0], explanation.attributions, bounds, image_size))
    for path in (folder / "pictures").rglob("*.webp"):
        number, _, key = path.stem.partition("-")
        if key != keys[int(number) // store.batch_size]:
            path.unlink()
    table = explanations.table()
    columns = {name: [_short(value) for value in table.column(name).to_pylist()] for name in table.column_names}
    data = {
        "classes": explanations.class_names,
        "notes": {row: text for row, text in enumerate(columns.pop("note")) if text is not None},
        "errors": {row: text for row, text in enumerate(columns.pop("error")) if text is not None},
        "columns": {name: column for name, column in columns.items() if name != "digest"},
        "keys": keys,
        "batchSize": store.batch_size,
        "sharp": max(shape, default=0) <= _SHARP,
        "distance": explanations.distance_text(),
    }
    loader = jinja2.PackageLoader("captum_boundary.datasets", "page")
    template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    words = {"title": title or explanations.path.resolve().name, "version": captum_boundary.__version__}
    text = template.get_template("page.html").render(words, data=data, summary=summarize(table))
    with atomic_file(folder / "index.html") as file:
        file.write(text.encode("utf-8", "backslashreplace"))
    return folder / "index.html"


def _example(explanations: Explanations, reader: Reader, index: int) -> tuple[Example, Explanation]:
    """What has been explained, as far as it can be read, and its explanation."""
    example, explanation = reader[index] if index < len(reader) else None, explanations[index]
    if example is None or (example.inputs and explanation.digest not in (None, example.facts["digest"])):
        raise FolderError(f"The explanations in {explanations.path} are not those of this data set.")
    return example, explanation


def picture(image: Tensor, attributions: Tensor | tuple[Tensor, ...] | None, bounds: Bounds, size: int) -> bytes:
    """WebP of an image ``(C, H, W)`` beside its attributions, summed over channels; what is no map is gray."""
    values = torch.nan_to_num(image.float())
    if bounds is None:
        bounds = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else (values.min(), values.max())
    pair: Any = bounds[0] if isinstance(bounds[0], list | tuple) else bounds  # of the first of several inputs
    lower, upper = (torch.as_tensor(side).float().cpu() for side in pair)
    lower, upper = (side[0] if side.ndim == 4 else side for side in (lower, upper))
    shares = ((values - lower) / (upper - lower).clamp_min(torch.finfo(values.dtype).tiny)).clamp(0, 1)
    left = v2.functional.to_pil_image((shares * 255).round().byte().expand(3, -1, -1))
    first = attributions[0] if isinstance(attributions, tuple) else attributions
    if first is None or first.ndim not in (2, 3) or not first.isfinite().all():
        right = left.point(lambda _: 128)
    else:
        heights = (first.sum(dim=0) if first.ndim == 3 else first).double().numpy()
        scale = np.quantile(np.abs(heights), _OUTLIERS) or np.abs(heights).max() or 1.0
        colors = _COLORS((np.clip(heights / scale, -1, 1) + 1) / 2)[..., :3]
        right = Image.fromarray((colors * 255).round().astype(np.uint8))
    if max(left.size) > size:
        left.thumbnail((size, size), Image.Resampling.LANCZOS)
    both = Image.new("RGB", (2 * left.width, left.height))
    both.paste(left, (0, 0))
    both.paste(right.resize(left.size, Image.Resampling.BOX), (left.width, 0))
    buffer = io.BytesIO()
    both.save(buffer, "webp", lossless=max(left.size) <= _SHARP, quality=85)
    return buffer.getvalue()


def summarize(table: pa.Table) -> dict[str, Any]:
    """The summary of rows, by explained class and by pairs with the class beyond; None for shares of nothing."""
    names = ("index", "label", "prediction", "target", "adversarial", "distance", "margin", "found", "evaluations")
    # NaN where there is nothing; a label of more than 53 bits, which is an error, is rounded.
    numbers = (table.column(name).cast(pa.float64(), safe=False).to_numpy() for name in names)
    index, label, prediction, target, adversarial, distance, margin, found, evaluations = numbers
    explained, searched, is_found = np.isfinite(target), np.isfinite(found), found == 1
    judged = explained & np.isfinite(label)
    by = np.where(is_found, distance, np.nan) if searched.any() else margin
    known = np.isfinite(by)
    order = index[known][np.argsort(by[known], kind="stable")].astype(int).tolist()
    pairs = zip(target[is_found].astype(int).tolist(), adversarial[is_found].astype(int).tolist(), strict=True)
    classes, largest = [], 0.0
    for each in np.unique(target[explained]):
        near = distance[(target == each) & is_found]
        quantiles = np.quantile(near, _QUANTILES).tolist() if len(near) else []
        largest, count = max([largest, *quantiles]), int((target == each).sum())
        classes.append({"target": int(each), "n": count, "found": len(near), "distances": quantiles})
    return {
        "n_examples": table.num_rows,
        "n_failed": int((~explained).sum()),
        "accuracy": _mean(label[judged] == prediction[judged]),
        "found": _mean(is_found[searched]),
        "distance": float(np.median(distance[is_found])) if is_found.any() else None,
        "evaluations": _mean(evaluations[searched]),
        "classes": classes,
        "largest": largest,
        "neighbors": Counter(pairs),
        "least_certain": order[:_N_EXTREMES],
        "most_certain": order[::-1][:_N_EXTREMES],
    }


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value
