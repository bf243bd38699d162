"""Data that a command line can only name: folders of images as people see them, arrays of a file, or a function's."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from captum_boundary.datasets._models import call_named, reading
from captum_boundary.errors import BoundaryValueError

__all__ = ["ImageFiles", "NpzArrays", "Standardized", "load_data", "pixels_of"]

_PIXELS = "pixels of [0, 1]"
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFiles(ImageFolder):  # type: ignore[misc]
    """Images in [0, 1], as people see them, of a folder; the names of its subfolders and links to some are classes."""

    bounds, units = (0.0, 1.0), _PIXELS

    def __init__(
        self,
        folder: Path,
        size: int | None = None,
        gray: bool = False,
        labels: bool = True,
        without: Path | None = None,
    ) -> None:
        self.has_labels, self.without = labels, without and without.resolve()
        in_range = v2.Lambda(partial(torch.clamp, min=0, max=1))  # which resizing leaves by rounding
        resize = None if size is None else v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size), in_range])
        super().__init__(str(folder), resize, loader=partial(_load, gray=gray), allow_empty=True)
        if not self.samples:
            raise BoundaryValueError(f"There are no images in {folder}. Known are {', '.join(_SUFFIXES)}.")
        if not labels or not self.classes:
            del self.classes

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        _, names, _ = next(self._walk(directory))
        return names, {name: number for number, name in enumerate(names)}

    def make_dataset(self, directory: Any, class_to_idx: dict[str, int], *_: Any, **__: Any) -> list[tuple[str, Any]]:
        """Loose images, and those of each subfolder, in order; without labels, classes are None."""
        loose = next(self._walk(directory))[2]
        if self.has_labels and class_to_idx and loose:
            raise BoundaryValueError(
                f"{directory} holds {len(loose)} images beside its {len(class_to_idx)} folders of classes, such as "
                f"{Path(loose[0]).name}. Move them into these folders, or leave labels out (--no-labels)."
            )
        samples: list[tuple[str, Any]] = [(path, None) for path in loose]
        for name, number in class_to_idx.items():
            paths = (path for _, _, images in self._walk(Path(directory, name)) for path in images)
            samples += [(path, number if self.has_labels else None) for path in paths]
        return samples

    def _walk(self, folder: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        """A folder and those below it, each with its subfolders and the paths of its images."""
        for place, folders, files in os.walk(folder, onerror=_raise):
            shown = (name for name in sorted(folders) if not name.startswith("."))
            folders[:] = [name for name in shown if Path(place, name).resolve() != self.without]
            images = (name for name in sorted(files) if name.lower().endswith(_SUFFIXES) and not name.startswith("."))
            yield place, folders, [os.path.join(place, name) for name in images]


class NpzArrays(Dataset[Any]):
    """The arrays ``images`` (or ``inputs``) and ``labels`` of an .npz file; images of bytes are brought to [0, 1]."""

    def __init__(self, path: Path, labels: bool = True, layout: str | None = None) -> None:
        with reading(path, "arrays"), np.load(path) as arrays:
            held = {name: arrays[name] for name in arrays}
        inputs = held.get("images", held.get("inputs"))
        if inputs is None or inputs.ndim < 2:
            shapes = ", ".join(f"{name} of shape {array.shape}" for name, array in held.items())
            raise BoundaryValueError(
                f"{path} must hold an array images or inputs with a row for each example, but it holds {shapes}."
            )
        self.labels: Any = held.get("labels") if labels else None
        if self.labels is not None and (self.labels.shape != inputs.shape[:1] or self.labels.dtype.kind not in "iu"):
            raise BoundaryValueError(
                f"{path} holds {len(inputs)} inputs, but labels of shape {self.labels.shape} and type "
                f"{self.labels.dtype}. It needs one class number for each input, or --no-labels."
            )
        self.is_pixels = inputs.dtype == np.uint8 and ("images" in held or inputs.ndim > 2)  # and no table of ages
        if self.is_pixels:
            self.bounds, self.units = (0.0, 1.0), _PIXELS
        if self.is_pixels and inputs.ndim == 4 and layout is None:
            if inputs.shape[3] not in (1, 3) or inputs.shape[1] in (1, 3):
                raise BoundaryValueError(
                    f"{path} holds bytes of shape {inputs.shape}, of which it cannot be told whether channels are "
                    "first or last. Say which: --layout nchw or --layout nhwc."
                )
            layout = "nhwc"
        inputs = np.moveaxis(inputs, 3, 1) if layout == "nhwc" and inputs.ndim == 4 else inputs
        self.inputs: Any = inputs[:, None] if self.is_pixels and inputs.ndim == 3 else inputs  # gray images
        if self.labels is not None and "class_names" in held:
            self.classes = [str(name) for name in held["class_names"].reshape(-1)]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        values = torch.from_numpy(np.array(self.inputs[index], dtype=np.float32, order="C"))
        return values / 255 if self.is_pixels else values, None if self.labels is None else self.labels[index]


class Standardized(Dataset[Any]):
    """A data set of images in standard deviations from the mean of their channels."""

    units = "standard deviations"

    def __init__(self, dataset: Any, mean: list[float], std: list[float], bounds: Any) -> None:
        self.dataset = dataset
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self.bounds = None if bounds is None else tuple((side - self.mean) / self.std for side in bounds)
        held = ("classes", "samples", "root")
        vars(self).update({name: getattr(dataset, name) for name in held if hasattr(dataset, name)})

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        image, *label = item if isinstance(item, tuple | list) else (item,)
        return ((image - self.mean) / self.std, *label)


def pixels_of(file: Image.Image, gray: bool = False) -> Tensor:
    """An image file as people see it, ``(C, H, W)`` in [0, 1]: turned upright, on white, of whatever depth."""
    image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16") or (image.mode == "I" and file.format == "PNG"):
        return torch.from_numpy(np.asarray(image).astype(np.float32) / 65535).expand(1 if gray else 3, -1, -1)
    if image.mode in ("I", "F"):
        raise BoundaryValueError(
            f"Its pixels are of 32 bits (mode {image.mode}): black and white are not known. Convert it to 16 bits."
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels: Tensor = v2.functional.pil_to_tensor(image.convert("L" if gray else "RGB")).float() / 255
    return pixels


def load_data(name: str, out: Path, options: Mapping[str, Any]) -> Any:
    """The data set that ``name`` stands for: a folder of images, an .npz file, or what a function returns."""
    path, takes = Path(name).expanduser(), set[str]()
    build: Callable[..., Any] = partial(call_named, name, "--data", "a folder of images, an .npz file")
    if path.is_dir():
        build, takes = partial(ImageFiles, path, without=out), {"size", "gray", "labels"}
    elif path.suffix == ".npz":
        build, takes = partial(NpzArrays, path), {"layout", "labels"}
    if unused := sorted(options.keys() - takes):
        flags = " and ".join(f"--{option}".replace("--labels", "--no-labels") for option in unused)
        raise BoundaryValueError(f"{flags} would change nothing about --data {name}. Leave that out.")
    return build(**options)


def _load(path: str, gray: bool) -> Tensor:
    with Image.open(path) as file:
        if getattr(file, "is_animated", False):
            warnings.warn(f"The first of {getattr(file, 'n_frames', '?')} frames.", UserWarning, stacklevel=1)
        return pixels_of(file, gray)


def _raise(error: OSError) -> None:
    raise error
