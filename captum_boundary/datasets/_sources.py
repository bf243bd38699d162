"""What a command line can only name: a model with its weights, the data, and what explains the model."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from captum.attr import Attribution, DeepLift, IntegratedGradients, Saliency
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.models import get_model, get_model_weights
from torchvision.transforms import v2

from captum_boundary.attr import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryIntegratedGradients,
    BoundarySaliency,
)
from captum_boundary.datasets._examples import message_of
from captum_boundary.errors import BoundaryError, BoundaryTypeError, BoundaryValueError
from captum_boundary.search import BoundarySearch

__all__ = [
    "METHODS",
    "CommandModel",
    "ImageFiles",
    "NpzArrays",
    "Standardized",
    "build_explainer",
    "load_data",
    "load_model",
]

# From a model and a search to what explains it.
METHODS: dict[str, Callable[[nn.Module, BoundarySearch], Attribution]] = {
    "big": BoundaryIntegratedGradients,
    "bsm": BoundarySaliency,
    "normals": AggregatedBoundaryNormals,
    "boundary-deeplift": lambda model, search: BoundaryAttribution(model, DeepLift, search),
    "ig": lambda model, _: IntegratedGradients(model),
    "saliency": lambda model, _: Saliency(model),
    "deeplift": lambda model, _: DeepLift(model),
}
_PIXELS = "pixels of [0, 1]"
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_TORCHVISION = "torchvision:"


class CommandModel(nn.Module):
    """A model of inputs in their own units, for one of inputs with mean 0 and standard deviation 1 per channel.

    Whoever sets ``on_evaluation`` is told how many inputs the model is asked about.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, model: nn.Module, mean: list[float] | None = None, std: list[float] | None = None) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, None if values is None else torch.tensor(values).view(-1, 1, 1))
        self.model = model
        self.on_evaluation: Callable[[int], None] | None = None

    def __call__(self, *inputs: Any, **others: Any) -> Any:
        """Evaluate the model, and tell so. Not in ``forward``, which may be traced."""
        if self.on_evaluation is not None and inputs:
            self.on_evaluation(len(inputs[0]))
        return super().__call__(*inputs, **others)

    def forward(self, inputs: Any, *others: Any) -> Any:
        """Normalize, then ask the model."""
        return self.model(inputs if self.mean is None else (inputs - self.mean) / self.std, *others)


class ImageFiles(ImageFolder):  # type: ignore[misc]
    """Images in [0, 1], as people see them, from the files of a folder; the names of its subfolders are classes.

    Hidden files and folders and the folder ``without`` are left out, and links are followed once.
    """

    bounds = (0.0, 1.0)
    units = _PIXELS

    def __init__(
        self,
        folder: Path,
        size: int | None = None,
        gray: bool = False,
        labels: bool = True,
        without: Path | None = None,
    ) -> None:
        self.without = None if without is None else os.path.realpath(without)
        self.gray = gray
        entries = sorted(each.name for each in os.scandir(folder) if self._counts(each.path))
        names = [name for name in entries if os.path.isdir(folder / name)] if labels else []
        loose = [name for name in entries if _is_image(name) and not os.path.isdir(folder / name)]
        if names and loose:
            raise BoundaryValueError(
                f"{folder} holds {len(loose)} images beside its {len(names)} folders of classes, such as {loose[0]}. "
                "Move them into these folders, or leave labels out (--no-labels)."
            )
        self.names = names
        steps = [] if size is None else [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
        super().__init__(str(folder), v2.Compose([*steps, v2.Lambda(_in_range)]), loader=self._load, allow_empty=True)
        if not self.samples:
            raise BoundaryValueError(f"There are no images in {folder}. Known are {', '.join(_SUFFIXES)}.")
        if not names:
            del self.classes

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        image, label = super().__getitem__(index)
        return image, label if self.names else None

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        """The classes, or one for the whole folder where images have no labels."""
        names = self.names or ["."]
        return names, {name: number for number, name in enumerate(names)}

    def make_dataset(self, directory: Any, class_to_idx: dict[str, int], *_: Any, **__: Any) -> list[tuple[str, int]]:
        """The files of each class, in order."""
        samples = []
        for name, number in class_to_idx.items():
            top = os.path.normpath(os.path.join(directory, name))
            seen = {os.path.realpath(top)}  # links may lead in circles
            for folder, folders, files in os.walk(top, followlinks=True):
                new = {os.path.realpath(os.path.join(folder, each)): each for each in sorted(folders, reverse=True)}
                folders[:] = sorted(each for real, each in new.items() if real not in seen)
                folders[:] = [each for each in folders if self._counts(os.path.join(folder, each))]
                seen |= set(new)
                paths = [os.path.join(folder, each) for each in sorted(files) if _is_image(each)]
                samples += [(path, number) for path in paths if self._counts(path)]
        return samples

    def _counts(self, path: str) -> bool:
        return not os.path.basename(path).startswith(".") and os.path.realpath(path) != self.without

    def _load(self, path: str) -> Tensor:
        with Image.open(path) as file:
            if getattr(file, "is_animated", False):
                warnings.warn(f"The first of {getattr(file, 'n_frames', '?')} frames.", UserWarning, stacklevel=1)
            return pixels_of(file, self.gray)


class NpzArrays(Dataset[Any]):
    """The arrays ``images`` (or ``inputs``) and ``labels`` of an .npz file; images of bytes are brought to [0, 1].

    A table of bytes, ``inputs`` ``(N, D)``, holds numbers, such as ages: these stay as they are.
    """

    def __init__(self, path: Path, labels: bool = True, layout: str | None = None) -> None:
        try:
            with np.load(path) as arrays:
                names = sorted(arrays)
                kept = {name: arrays[name] for name in ("images", "inputs", "labels", "class_names") if name in names}
        except FileNotFoundError as error:
            raise BoundaryValueError(f"There is no file {path}.") from error
        except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise BoundaryValueError(f"{path} cannot be read as arrays: {_fault_of(path, error)}") from error
        self.inputs: Any = kept.get("images", kept.get("inputs"))
        if self.inputs is None:
            raise BoundaryValueError(f"{path} must hold an array images or inputs, but it holds {', '.join(names)}.")
        if self.inputs.ndim < 2:
            raise BoundaryValueError(
                f"The array in {path} must hold a row for each example: its shape is {self.inputs.shape}."
            )
        self.labels: Any = kept.get("labels") if labels else None
        if self.labels is not None and self.labels.shape != self.inputs.shape[:1]:
            raise BoundaryValueError(
                f"{path} holds {len(self.inputs)} inputs, but labels of shape {self.labels.shape}."
            )
        self.is_pixels = self.inputs.dtype == np.uint8 and ("images" in kept or self.inputs.ndim > 2)
        if self.is_pixels:
            self.bounds, self.units = (0.0, 1.0), _PIXELS
        if self.inputs.ndim == 4 and (layout == "nhwc" or (layout is None and self.inputs.dtype == np.uint8)):
            if layout is None and (self.inputs.shape[3] not in (1, 3) or self.inputs.shape[1] in (1, 3)):
                raise BoundaryValueError(
                    f"{path} holds bytes of shape {self.inputs.shape}, of which it cannot be told whether channels are "
                    "first or last. Say which: --layout nchw or --layout nhwc."
                )
            self.inputs = np.moveaxis(self.inputs, 3, 1)
        elif self.inputs.ndim == 3 and self.inputs.dtype == np.uint8:  # gray images
            self.inputs = self.inputs[:, None]
        names_of_all = kept.get("class_names", np.array([]))
        if self.labels is not None and names_of_all.ndim == 1 and self.labels.max(initial=0) < len(names_of_all):
            self.classes = [str(name) for name in names_of_all]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        values = torch.from_numpy(np.array(self.inputs[index], dtype=np.float32, order="C"))
        inputs = values / 255 if self.is_pixels else values
        return inputs, None if self.labels is None else self.labels[index]


class Standardized(Dataset[Any]):
    """A data set of images in standard deviations from the mean of their channels."""

    units = "standard deviations"

    def __init__(self, dataset: Any, mean: list[float], std: list[float], bounds: Any) -> None:
        self.dataset = dataset
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self.bounds = None if bounds is None else tuple((side - self.mean) / self.std for side in bounds)
        for name in ("classes", "samples", "root"):
            if hasattr(dataset, name):
                setattr(self, name, getattr(dataset, name))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        if isinstance(item, tuple | list):
            return ((item[0] - self.mean) / self.std, *item[1:])
        return (item - self.mean) / self.std


def pixels_of(file: Image.Image, gray: bool = False) -> Tensor:
    """An image file as people see it, ``(C, H, W)`` in [0, 1]: turned upright, on white, of whatever depth."""
    image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16") or (image.mode == "I" and file.format == "PNG"):
        return torch.from_numpy(np.asarray(image).astype(np.float32) / 65535).expand(1 if gray else 3, -1, -1)
    if image.mode in ("I", "F"):
        raise BoundaryValueError(
            f"Its pixels are of 32 bits (mode {image.mode}): black and white are not known. Convert it to 16 bits."
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels: Tensor = v2.functional.pil_to_tensor(image.convert("L" if gray else "RGB")).float() / 255
    return pixels


def load_data(name: str, size: int | None, gray: bool, labels: bool, layout: str | None, out: Path) -> Any:
    """The data set that ``name`` stands for: a folder of images, an .npz file, or what a function returns."""
    path = Path(name).expanduser()
    if path.is_dir():
        return ImageFiles(path, size, gray, labels, without=out)
    if path.suffix == ".npz":
        return NpzArrays(path, labels, layout)
    if not _is_name(name):
        raise BoundaryValueError(
            f"There is no folder {name}. --data must be a folder of images, an .npz file, or package.module:function."
        )
    dataset = called(name, "--data")
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise BoundaryTypeError(
            f"{name} must return a Dataset with a length, but it returned a {type(dataset).__name__}."
        )
    return dataset


class Loaded(NamedTuple):
    """A model, and what its weights bring along: names of classes, and means and standard deviations of channels."""

    model: nn.Module
    class_names: list[str] | None = None
    normalize: tuple[list[float], list[float]] | None = None


def load_model(name: str, weights: str | None, n_classes: int | None) -> Loaded:
    """The model that ``name`` stands for, with the weights of a file, or those that torchvision knows by a name."""
    if not name.startswith(_TORCHVISION):
        if not _is_name(name):
            raise BoundaryValueError(f"--model must be torchvision:NAME or package.module:function, but it is {name}.")
        model = called(name, "--model")
        if not isinstance(model, nn.Module):
            raise BoundaryTypeError(f"{name} must return a torch.nn.Module, but it returned a {type(model).__name__}.")
        if weights is not None:
            _load_weights(model, Path(weights))
        return Loaded(model)
    if weights is None:
        raise BoundaryValueError(f"--model {name} needs --weights: random weights have nothing to explain.")
    name = name.removeprefix(_TORCHVISION)
    try:
        known = get_model_weights(name)
        model = get_model(name, weights=None, **({} if n_classes is None else {"num_classes": n_classes}))
    except (ValueError, TypeError) as error:
        raise BoundaryValueError(f"torchvision cannot build torchvision:{name}: {error}.") from error
    entry = getattr(known, weights, None) if weights.isidentifier() else None
    if entry is None:
        _load_weights(model, Path(weights))
        digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()[
            :8
        ]  # which ends the names of torchvision's files
        entry = next((each for each in known if each.url.endswith(f"-{digest}.pth")), None)
        return Loaded(model, None if entry is None else entry.meta.get("categories"))
    try:
        model.load_state_dict(entry.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise BoundaryValueError(f"The weights {weights} of torchvision cannot be had: {error}") from error
    transforms = entry.transforms()
    normalize = (list(transforms.mean), list(transforms.std)) if hasattr(transforms, "mean") else None
    return Loaded(model, entry.meta.get("categories"), normalize)


def build_explainer(method: str, model: nn.Module, search: BoundarySearch) -> Attribution:
    """What explains the model: one of METHODS, or what a function of the user's makes of the model."""
    if method in METHODS:
        return METHODS[method](model, search)
    if not _is_name(method):
        raise BoundaryValueError(
            f"--method must be one of {', '.join(METHODS)}, or package.module:function, but it is {method}."
        )
    explainer: Attribution = called(method, "--method", model)
    return explainer


def called(text: str, option: str, *arguments: Any) -> Any:
    """What the function that ``package.module:function`` names returns."""
    module, _, function = text.partition(":")
    try:
        named = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise BoundaryValueError(
            f"{option} {text} cannot be imported: {error}. It must be package.module:function, with the module in the "
            "current folder or installed."
        ) from error
    try:
        return named(*arguments)
    except BoundaryError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename}, line {place.lineno}"
        raise BoundaryValueError(f"{option} {text} failed in {where}: {message_of(error)}") from error


def _load_weights(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise BoundaryValueError(f"There is no file {path} of weights.")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise BoundaryValueError(f"{path} cannot be read as weights: {_fault_of(path, error)}") from error
    for key in ("state_dict", "model"):  # checkpoints hold more than weights
        weights = weights.get(key, weights) if isinstance(weights, dict) else weights
    if not isinstance(weights, dict):
        raise BoundaryTypeError(f"{path} must hold a state dict, but it holds a {type(weights).__name__}.")
    prefix = "module."  # of a model that was saved within DataParallel
    if all(str(name).startswith(prefix) for name in weights) and not any(
        k.startswith(prefix) for k in model.state_dict()
    ):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise BoundaryValueError(
            f"The weights in {path} are not those of this model. {error} For another number of classes, give "
            "--num-classes."
        ) from error


def _fault_of(path: Path, error: Exception) -> str:
    """Why a file cannot be read: what its first bytes show, or else what the reader said."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "it is empty. Was a download interrupted?"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, and not the file itself. Fetch that with: git lfs pull"
    return str(error)


def _in_range(image: Tensor) -> Tensor:
    return image.clamp(0, 1)  # which resizing leaves by rounding


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def _is_name(text: str) -> bool:
    """Whether ``text`` has the form ``package.module:function``."""
    module, _, function = text.partition(":")
    return function.isidentifier() and all(part.isidentifier() for part in module.split("."))
