"""Images to train with: from the folder that CAPTUM_BOUNDARY_DATA names where it has them, or from torchvision.

The folder may hold ``mnist.npz``, ``fashion_mnist.npz`` and ``gtsrb_subset.npz`` with ``train_images``,
``train_labels``, ``test_images`` and ``test_labels``; images are uint8, ``(N, H, W)`` or ``(N, H, W, 3)``. ``digits``
are scikit-learn's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from zoo import VARIABLE


class DataNotReachableError(RuntimeError):
    """A data set is neither in the folder nor can it be downloaded."""


@dataclass(frozen=True)
class Data:
    """Images ``(N, C, H, W)`` as uint8, and their classes ``(N,)``."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    source: str

    @property
    def n_classes(self) -> int:
        return int(self.train_labels.max()) + 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.train_images.shape[1:])

    def to(self, device: torch.device) -> Data:
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


def pixels(images: Tensor) -> Tensor:
    """Images in [0, 1]."""
    return images.float().div(255)


def load(name: str, downloads: Path) -> Data:
    """The data set ``name``; what has to be downloaded is kept in the folder ``downloads``."""
    if name == "digits":
        return _digits()
    path = Path(os.environ.get(VARIABLE, "")) / _FILES.get(name, "")
    if os.environ.get(VARIABLE) and path.is_file():
        with np.load(path) as arrays:
            parts = [arrays[part] for part in ("train_images", "train_labels", "test_images", "test_labels")]
        return _data(parts, str(path))
    try:
        return _data(_TORCHVISION[name](downloads), "torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        lacking = f"the folder that {VARIABLE} names has no {_FILES[name]}" if name in _FILES else "it is in no folder"
        raise DataNotReachableError(
            f"{name} cannot be had: {lacking}, and torchvision could not download it to {downloads} ({error}). "
            f"Set {VARIABLE} to a folder with the file, go online, or choose --dataset digits."
        ) from error


def _data(parts: Sequence[np.ndarray], source: str) -> Data:
    """Shuffled, so that the first images are a sample of all classes."""
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for images, labels in (parts[:2], parts[2:]):
        order = torch.randperm(len(labels), generator=generator)
        channels_first = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        tensors += [torch.tensor(channels_first)[order], torch.tensor(labels).long()[order]]
    return Data(*tensors, source)


def _digits() -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=0
    )
    return _data([train_images, train_labels, test_images, test_labels], "scikit-learn")


def _mnist_like(class_name: str) -> Callable[[Path], list[np.ndarray]]:
    def download(folder: Path) -> list[np.ndarray]:
        from torchvision import datasets

        parts = [getattr(datasets, class_name)(folder, train=train, download=True) for train in (True, False)]
        return [array.numpy() for part in parts for array in (part.data, part.targets)]

    return download


def _gtsrb(folder: Path) -> list[np.ndarray]:
    from torchvision.datasets import GTSRB
    from torchvision.transforms import Resize

    scale = Resize((32, 32))
    parts = [GTSRB(folder, split=split, download=True, transform=scale) for split in ("train", "test")]
    return [array for part in parts for array in _arrays(part)]


def _flowers102(folder: Path) -> list[np.ndarray]:
    """The training part is small: the validation part joins it."""
    from torchvision.datasets import Flowers102
    from torchvision.transforms import CenterCrop, Compose, Resize

    scale = Compose([Resize(128), CenterCrop(128)])
    train, val, test = (
        Flowers102(folder, split=split, download=True, transform=scale) for split in ("train", "val", "test")
    )
    return [array for part in (train + val, test) for array in _arrays(part)]


def _arrays(photographs: Any) -> list[np.ndarray]:
    """Images ``(N, H, W, 3)`` and classes of one of torchvision's data sets."""
    examples = tqdm((photographs[i] for i in range(len(photographs))), "Images", len(photographs), unit="image")
    images, labels = zip(*((np.asarray(image), label) for image, label in examples), strict=True)
    return [np.stack(images), np.array(labels)]


_FILES = {"mnist": "mnist.npz", "fashion_mnist": "fashion_mnist.npz", "gtsrb": "gtsrb_subset.npz"}
_TORCHVISION: dict[str, Callable[[Path], list[np.ndarray]]] = {
    "mnist": _mnist_like("MNIST"),
    "fashion_mnist": _mnist_like("FashionMNIST"),
    "gtsrb": _gtsrb,
    "flowers102": _flowers102,
}
