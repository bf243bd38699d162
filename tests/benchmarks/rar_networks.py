"""The networks of https://arxiv.org/abs/1905.09957, and a small one for a processor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


def build(image_shape: tuple[int, int, int], n_classes: int, scale: str, seed: int, smooth: bool = False) -> nn.Module:
    """A network that takes images in [0, 1] and returns logits, with weights drawn from ``seed``.

    Its activations are the paper's or, if it is to be ``smooth``, GELUs, whose second derivative is not zero.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if scale == "cpu":
            return SmallNet(image_shape, n_classes, nn.GELU if smooth else nn.ReLU)
        if image_shape[0] == 1:
            return PaperNet(image_shape, n_classes, nn.GELU if smooth else nn.ReLU)
        return ResidualNet(n_classes, nn.GELU if smooth else partial(nn.LeakyReLU, 0.1))


class PaperNet(nn.Sequential):
    """Two 5x5 convolutions, each with a max-pooling, and two linear layers."""

    def __init__(self, image_shape: tuple[int, int, int], n_classes: int, activation: Activation) -> None:
        n_channels, height, width = image_shape
        layers: list[nn.Module] = []
        for n_inputs, n_outputs in pairwise((n_channels, 32, 64)):
            layers += [nn.Conv2d(n_inputs, n_outputs, 5, padding=2), activation(), nn.MaxPool2d(2)]
        n_features = 64 * (height // 4) * (width // 4)
        super().__init__(*layers, nn.Flatten(), nn.Linear(n_features, 1024), activation(), nn.Linear(1024, n_classes))
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.trunc_normal_(parameter, std=0.1, a=-0.2, b=0.2)
            else:
                nn.init.constant_(parameter, 0.1)


class SmallNet(nn.Sequential):
    """Two strided convolutions and two linear layers: a fifth of the work of 5x5 convolutions with pooling."""

    def __init__(self, image_shape: tuple[int, int, int], n_classes: int, activation: Activation) -> None:
        n_channels, height, width = image_shape
        layers: list[nn.Module] = []
        for n_inputs, n_outputs in pairwise((n_channels, 16, 32)):
            layers += [nn.Conv2d(n_inputs, n_outputs, 4, stride=2, padding=1), activation()]
        n_features = 32 * (height // 4) * (width // 4)
        super().__init__(*layers, nn.Flatten(), nn.Linear(n_features, 100), activation(), nn.Linear(100, n_classes))


class ResidualNet(nn.Sequential):
    """A residual network without batch normalization, which standardizes every image by itself."""

    def __init__(self, n_classes: int, activation: Activation) -> None:
        n_before = 16
        layers: list[nn.Module] = [Standardization(), _convolution(3, n_before)]
        for n_filters in (16, 32, 64):
            layers += [ResidualBlock(n_before, n_filters, activation, stride=1 if n_filters == 16 else 2)]
            layers += [ResidualBlock(n_filters, n_filters, activation)]
            n_before = n_filters
        super().__init__(*layers, activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_before, n_classes))


class ResidualBlock(nn.Module):
    """Activations before convolutions; the shortcut is averaged over strides and padded with zero channels."""

    def __init__(self, n_inputs: int, n_outputs: int, activation: Activation, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            activation(),
            _convolution(n_inputs, n_outputs, stride),
            activation(),
            _convolution(n_outputs, n_outputs),
        )
        self.shortcut = nn.AvgPool2d(stride)
        self.n_padded = (n_outputs - n_inputs) // 2

    def forward(self, inputs: Tensor) -> Tensor:
        shortcut = nn.functional.pad(self.shortcut(inputs), (0, 0, 0, 0, self.n_padded, self.n_padded))
        return self.residual(inputs) + shortcut


class Standardization(nn.Module):
    """Images of mean 0 and variance 1, each by itself; uniform ones are left at 0."""

    def forward(self, images: Tensor) -> Tensor:
        centered = images - images.mean(dim=(1, 2, 3), keepdim=True)
        least = images[0].numel() ** -0.5 / 255
        variance = centered.square().mean(dim=(1, 2, 3), keepdim=True)
        return centered / variance.clamp_min(least**2).sqrt()


def _convolution(n_inputs: int, n_outputs: int, stride: int = 1) -> nn.Conv2d:
    convolution = nn.Conv2d(n_inputs, n_outputs, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
