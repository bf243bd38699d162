"""Models and methods that a command line can only name."""

from __future__ import annotations

import hashlib
import importlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from captum.attr import Attribution, DeepLift, IntegratedGradients, Saliency
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torchvision.models import get_model, get_model_weights

from captum_boundary.attr import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryIntegratedGradients,
    BoundarySaliency,
)
from captum_boundary.datasets._examples import message_of
from captum_boundary.errors import BoundaryError, BoundaryTypeError, BoundaryValueError
from captum_boundary.search import BoundarySearch

__all__ = ["METHODS", "LoadedModel", "call_named", "failing_as", "load_model", "reading"]

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
_PARALLEL = "module."  # how names begin of a model that was saved within DataParallel


class LoadedModel(NamedTuple):
    """A model, and what its weights bring along: names of classes, and means and standard deviations of channels."""

    model: nn.Module
    class_names: list[str] | None = None
    normalize: tuple[list[float], list[float]] | None = None


def load_model(name: str, weights: str | None, n_classes: int | None) -> LoadedModel:
    """The model that ``name`` stands for, with the weights of a file, or those that torchvision knows by a name."""
    if not name.startswith(_TORCHVISION):
        if n_classes is not None:
            raise BoundaryValueError(f"--num-classes is for models of torchvision, and would change nothing of {name}.")
        model = call_named(name, "--model", "torchvision:NAME")
        if not isinstance(model, nn.Module):
            raise BoundaryTypeError(f"{name} must return a torch.nn.Module, but it returned a {type(model).__name__}.")
        return LoadedModel(model if weights is None else _with_weights(model, Path(weights)))
    if weights is None:
        raise BoundaryValueError(f"--model {name} needs --weights: random weights have nothing to explain.")
    with failing_as(f"torchvision cannot build {name}: "):
        known = get_model_weights(name.removeprefix(_TORCHVISION))
        options = {} if n_classes is None else {"num_classes": n_classes}
        model = get_model(name.removeprefix(_TORCHVISION), weights=None, **options)
    if weights not in known.__members__:
        if not Path(weights).exists():
            choices = ", ".join(known.__members__)
            raise BoundaryValueError(f"--weights of {name} must be a file or one of {choices}, but it is {weights}.")
        ending = f"-{hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:8]}.pth"  # of torchvision's own files
        names = [entry.meta.get("categories") for entry in known if entry.url.endswith(ending)]
        return LoadedModel(_with_weights(model, Path(weights)), names[0] if names else None)
    entry = known[weights]
    with failing_as(f"The weights {weights} of torchvision cannot be had: "):
        model.load_state_dict(entry.get_state_dict(progress=False, check_hash=True))
    transforms = entry.transforms()
    normalize = (list(transforms.mean), list(transforms.std)) if hasattr(transforms, "mean") else None
    return LoadedModel(model, entry.meta.get("categories"), normalize)


def call_named(text: str, option: str, others: str, *arguments: Any) -> Any:
    """What the function that ``package.module:function`` names returns. An ``option`` may name ``others`` as well."""
    module, _, function = text.partition(":")
    if not all(part.isidentifier() for part in [function, *module.split(".")]):
        raise BoundaryValueError(f"{option} must be {others} or package.module:function, but it is {text}.")
    remedy = ". The module must be in the current folder or installed, and have the function."
    with failing_as(f"{option} {text} cannot be imported: ", remedy):
        named = getattr(importlib.import_module(module), function)
    try:
        return named(*arguments)
    except BoundaryError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename}, line {place.lineno}"
        raise BoundaryValueError(f"{option} {text} failed in {where}: {message_of(error)}") from error


@contextmanager
def failing_as(what: str, remedy: str = "") -> Iterator[None]:
    """Say what cannot be done, why, and what to change, in the place of whatever error."""
    try:
        yield
    except Exception as error:
        raise BoundaryValueError(f"{what}{message_of(error)}{remedy}") from error


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Say why a file cannot be read as ``what``: what its first bytes show, or else what the reader says."""
    try:
        yield
    except Exception as error:
        head = path.read_bytes()[:64] if path.is_file() else b"nothing"
        fault = str(error) if head else "it is empty. Was a download interrupted?"
        if head.startswith(b"version https://git-lfs"):
            fault = "it is a pointer of Git LFS, and not the file itself. Fetch that with: git lfs pull"
        raise BoundaryValueError(f"{path} cannot be read as {what}: {fault}") from error


def _with_weights(model: nn.Module, path: Path) -> nn.Module:
    with reading(path, "weights"):
        weights = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):  # checkpoints hold more than weights
        weights = weights.get(key, weights) if isinstance(weights, dict) else weights
    if not isinstance(weights, dict):
        raise BoundaryTypeError(f"{path} must hold a state dict, but it holds a {type(weights).__name__}.")
    is_wrapped = all(str(name).startswith(_PARALLEL) for name in weights)
    if is_wrapped and not all(name.startswith(_PARALLEL) for name in model.state_dict()):
        consume_prefix_in_state_dict_if_present(weights, _PARALLEL)
    with failing_as(f"The weights in {path} are not those of this model. ", " For more classes, give --num-classes."):
        model.load_state_dict(weights)
    return model
