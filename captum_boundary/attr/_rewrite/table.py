"""The activations that DeepLift has a rule for: their modules, settings and functional forms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["FUNCTIONAL_FORMS", "POOLING", "SETTINGS"]

# The modules for which DeepLift has a rule, and their settings, which are arguments of the functional forms as well.
POOLING = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ReLU: (),
    nn.ELU: ("alpha",),
    nn.LeakyReLU: ("negative_slope",),
    nn.Sigmoid: (),
    nn.Tanh: (),
    nn.Softplus: ("beta", "threshold"),
    nn.MaxPool1d: POOLING,
    nn.MaxPool2d: POOLING,
    nn.MaxPool3d: POOLING,
    nn.Softmax: ("dim",),
}
FUNCTIONAL_FORMS: dict[object, type[nn.Module]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), nn.ReLU),
    **dict.fromkeys((F.elu, F.elu_), nn.ELU),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), nn.LeakyReLU),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"), nn.Sigmoid),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), nn.Tanh),
    F.softplus: nn.Softplus,
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), nn.MaxPool1d),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), nn.MaxPool2d),
    **dict.fromkeys((F.max_pool3d, torch.max_pool3d), nn.MaxPool3d),
    **dict.fromkeys((F.softmax, torch.softmax, "softmax"), nn.Softmax),
}
