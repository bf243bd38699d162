"""The model that a command line names, and what explains it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from captum.attr import Attribution, DeepLift, IntegratedGradients, Saliency
from torch import Tensor, nn

from captum_boundary._core.bounds import Bounds
from captum_boundary.attr import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryIntegratedGradients,
    BoundarySaliency,
)
from captum_boundary.datasets._command.named import is_name, named
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search import BoundarySearch, NearestBoundary

__all__ = ["METHODS", "Normalized", "build_explainer", "load_model"]

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
_TORCHVISION = "torchvision:"


class Normalized(nn.Module):
    """A model of inputs in their own units, for one of inputs with mean 0 and standard deviation 1 per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.model = model

    def forward(self, images: Tensor) -> Any:
        """Normalise, then ask the model."""
        return self.model((images - self.mean) / self.std)


def load_model(
    name: str,
    weights: Path | None,
    n_classes: int | None,
    normalize: tuple[list[float], list[float]] | None,
    device: torch.device,
) -> nn.Module:
    """The model, ready to be asked."""
    model = _torchvision(name, weights, n_classes) if name.startswith(_TORCHVISION) else _users(name)
    if weights is not None:
        _load_weights(model, weights)
    if normalize is not None:
        model = Normalized(model, *normalize)
    return model.eval().requires_grad_(False).to(device)


def build_explainer(method: str, model: nn.Module, bounds: Bounds, budget: int, norm: float) -> Attribution:
    """What explains the model: one of METHODS, or what a function of the user's makes of the model."""
    if method in METHODS:
        return METHODS[method](model, NearestBoundary(model, bounds=bounds, budget=budget, norm=norm))
    if not is_name(method):
        raise BoundaryValueError(
            f"--method must be one of {', '.join(METHODS)}, or package.module:function, but it is {method}."
        )
    return named(method, "--method")(model)


def _torchvision(name: str, weights: Path | None, n_classes: int | None) -> nn.Module:
    try:
        from torchvision.models import get_model
    except ImportError as error:
        raise BoundaryValueError('torchvision is not installed: pip install "captum-boundary[vision]".') from error
    if weights is None:
        raise BoundaryValueError(f"--model {name} needs --weights FILE: nothing is to be learnt of random weights.")
    options = {} if n_classes is None else {"num_classes": n_classes}
    try:
        build = partial(get_model, name.removeprefix(_TORCHVISION), weights=None)
        return build(**options)  # type: ignore[no-any-return]
    except (ValueError, TypeError) as error:
        raise BoundaryValueError(f"torchvision cannot build {name}: {error}.") from error


def _users(name: str) -> nn.Module:
    if not is_name(name):
        raise BoundaryValueError(f"--model must be torchvision:NAME or package.module:function, but it is {name}.")
    model = named(name, "--model")()
    if not isinstance(model, nn.Module):
        raise BoundaryTypeError(f"{name} must return a torch.nn.Module, but it returned a {type(model).__name__}.")
    return model


def _load_weights(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise BoundaryValueError(f"There is no file {path} of weights.")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise BoundaryValueError(f"{path} cannot be read as weights: {error}") from error
    for key in ("state_dict", "model"):  # checkpoints hold more than weights
        weights = weights.get(key, weights) if isinstance(weights, dict) else weights
    if not isinstance(weights, dict):
        raise BoundaryTypeError(f"{path} must hold a state dict, but it holds a {type(weights).__name__}.")
    try:
        model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in weights.items()})
    except (RuntimeError, AttributeError, TypeError) as error:
        raise BoundaryValueError(
            f"The weights in {path} are not those of this model. {error} For another number of classes, give "
            "--num-classes."
        ) from error
