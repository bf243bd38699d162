"""The data set that a command line names: a folder of images, an .npz file, or a function of the user's."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from captum_boundary.datasets._command.named import is_name, named
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["ImageFiles", "NpzArrays", "load_data"]

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def load_data(name: str, size: int | None, grey: bool, labels: bool) -> Dataset[Any]:
    """The data set that ``name`` stands for."""
    path = Path(name)
    if path.is_dir():
        return ImageFiles(path, size, grey, labels)
    if path.suffix == ".npz":
        return NpzArrays(path, labels)
    if not is_name(name):
        raise BoundaryValueError(
            f"There is no folder {name}. --data must be a folder of images, an .npz file, or package.module:function."
        )
    dataset = named(name, "--data")()
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise BoundaryTypeError(
            f"{name} must return a Dataset with a length, but it returned a {type(dataset).__name__}."
        )
    return dataset  # type: ignore[no-any-return]


class ImageFiles(Dataset[Any]):
    """Images in [0, 1] from the files of a folder. The names of its subfolders, in order, are their classes."""

    bounds = (0.0, 1.0)

    def __init__(self, folder: Path, size: int | None = None, grey: bool = False, labels: bool = True) -> None:
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir()) if labels else []
        if classes:
            self.classes = classes
        files = [(path, label) for label, name in enumerate(classes) for path in _images(folder / name)]
        self.files: list[tuple[Path, int | None]] = list(files) or [(path, None) for path in _images(folder)]
        if not self.files:
            raise BoundaryValueError(f"There are no images in {folder}. Known are {', '.join(sorted(_SUFFIXES))}.")
        self.size = size
        self.mode = "L" if grey else "RGB"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        path, label = self.files[index]
        with Image.open(path) as file:
            image = file.convert(self.mode)
        if self.size is not None:
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
        return _pixels(np.asarray(image)), label


class NpzArrays(Dataset[Any]):
    """The arrays ``images`` (or ``inputs``) and ``labels`` of an .npz file; images of bytes are brought to [0, 1]."""

    def __init__(self, path: Path, labels: bool = True) -> None:
        if not path.is_file():
            raise BoundaryValueError(f"There is no file {path}.")
        try:
            with np.load(path) as arrays:
                names = sorted(arrays)
                kept = {name: arrays[name] for name in ("images", "inputs", "labels", "class_names") if name in names}
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise BoundaryValueError(f"{path} cannot be read as arrays: {error}") from error
        inputs = kept.get("images", kept.get("inputs"))
        if inputs is None:
            raise BoundaryValueError(f"{path} must hold an array images or inputs, but it holds {', '.join(names)}.")
        self.inputs: Any = inputs
        self.labels: Any = kept.get("labels") if labels else None
        if self.labels is not None and len(self.labels) != len(self.inputs):
            raise BoundaryValueError(f"{path} holds {len(self.inputs)} inputs, but {len(self.labels)} labels.")
        if self.inputs.dtype == np.uint8:
            self.bounds = (0.0, 1.0)
        names_of_all = (
            "class_names" in kept and self.labels is not None and self.labels.max() < len(kept["class_names"])
        )
        if names_of_all:
            self.classes = [str(name) for name in kept["class_names"]]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        array = self.inputs[index]
        inputs = _pixels(array) if array.dtype == np.uint8 else torch.from_numpy(np.array(array, dtype=np.float32))
        return inputs, None if self.labels is None else int(self.labels[index])


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)


def _pixels(array: Any) -> Tensor:
    """Bytes ``(H, W)`` or ``(H, W, C)`` as an image ``(C, H, W)`` in [0, 1]."""
    pixels = torch.from_numpy(np.array(array)).float() / 255
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
