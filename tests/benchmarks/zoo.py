"""Real networks and images, read from the folder that the environment variable CAPTUM_BOUNDARY_DATA names.

All networks take RGB images ``(N, 3, H, W)`` in [0, 1] and return logits; the normalization is their first layer.

The folder holds state dictionaries (``torch.load(..., weights_only=True)``) and image files (``np.load``):

* ``cifar10_resnet20.pt``: resnet20 of https://github.com/akamaster/pytorch_resnet_cifar10, keys without "module.".
* ``cifar10_test500.npz``: the first 500 CIFAR-10 test images, ``images`` (N, 32, 32, 3) uint8 and ``labels`` (N,).
* ``imagenet_squeezenet1_0.pt``: weights for torchvision's ``squeezenet1_0``.
* ``imagenet_sample50.npz``: 50 ImageNet pictures, ``images`` (N, 224, 224, 3) uint8 and ``labels`` (N,).
* ``imagenet_val50_boxes.npz``: 50 ImageNet validation images of 227 x 227 pixels, likewise, with ``boxes`` (N, 4) of
  x0, y0, x1, y1 in pixels around the one object of the class.
* ``robust``: a folder of clones with robust networks, see published_networks.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

VARIABLE = "CAPTUM_BOUNDARY_DATA"


class DataNotSetError(RuntimeError):
    """The environment does not say where the data are."""


def data_folder() -> Path:
    if not os.environ.get(VARIABLE):
        raise DataNotSetError(f"Set {VARIABLE} to the folder with the pretrained networks and real images.")
    return Path(os.environ[VARIABLE])


def load_images(name: str) -> tuple[Tensor, Tensor]:
    """Images ``(N, C, H, W)`` in [0, 1] and labels ``(N,)`` of a data set such as ``cifar10_test500``."""
    with np.load(data_folder() / f"{name}.npz") as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]).long()
    return images.permute(0, 3, 1, 2).float().div(255).contiguous(), labels


def load_boxed_images(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images and labels, as :func:`load_images` gives them, and boxes ``(N, 4)`` in pixels around the objects."""
    with np.load(data_folder() / f"{name}.npz") as arrays:
        boxes = torch.from_numpy(arrays["boxes"])
    return *load_images(name), boxes


def first_correct(model: nn.Module, images: Tensor, labels: Tensor, n_images: int) -> tuple[Tensor, Tensor]:
    """The first ``n_images`` that ``model`` classifies correctly, and their labels."""
    with torch.no_grad():
        predicted = torch.cat([model(part).argmax(dim=1) for part in images.split(100)])
    rows = (predicted == labels).nonzero().flatten()[:n_images]
    if len(rows) < n_images:
        raise ValueError(f"Only {len(rows)} images are classified correctly, but {n_images} are wanted.")
    return images[rows], labels[rows]


def cifar_resnet20() -> nn.Module:
    return _pretrained(ResNet20(), "cifar10_resnet20.pt")


def imagenet_squeezenet() -> nn.Module:
    from torchvision.models import squeezenet1_0

    return _pretrained(squeezenet1_0(weights=None, num_classes=1000), "imagenet_squeezenet1_0.pt")


def random_resnet18() -> nn.Module:
    from torchvision.models import resnet18

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return resnet18(weights=None).eval()


def _pretrained(network: nn.Module, weights: str) -> nn.Module:
    network.load_state_dict(torch.load(data_folder() / weights, weights_only=True))
    return nn.Sequential(Normalization(), network).eval().requires_grad_(False)


class Normalization(nn.Module):
    """Standardizes the channels of images in [0, 1], of RGB images as torchvision's models expect them."""

    def __init__(
        self, mean: Sequence[float] = (0.485, 0.456, 0.406), std: Sequence[float] = (0.229, 0.224, 0.225)
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class ResNet20(nn.Module):
    """The residual network for 32x32 images of https://arxiv.org/abs/1512.03385, with parameter-free shortcuts."""

    def __init__(self, n_classes: int = 10, blocks_per_stage: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks_per_stage)
        self.layer2 = _stage(16, 32, blocks_per_stage)
        self.layer3 = _stage(32, 64, blocks_per_stage)
        self.linear = nn.Linear(64, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.linear(features.mean(dim=(2, 3)))


class ResidualBlock(nn.Module):
    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.stride = 1 if n_inputs == n_outputs else 2
        self.n_padded = (n_outputs - n_inputs) // 2
        self.conv1 = nn.Conv2d(n_inputs, n_outputs, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_outputs)
        self.conv2 = nn.Conv2d(n_outputs, n_outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(inputs)))))
        shortcut = inputs[:, :, :: self.stride, :: self.stride]
        shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, self.n_padded, self.n_padded))
        return torch.relu(residual + shortcut)


def _stage(n_inputs: int, n_outputs: int, n_blocks: int) -> nn.Sequential:
    widths = [n_inputs] + [n_outputs] * n_blocks
    return nn.Sequential(*(ResidualBlock(*pair) for pair in pairwise(widths)))
