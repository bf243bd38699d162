"""What a result depends on, in words that can be stored and compared: objects by what their constructors were given."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["describe", "generators_of", "hash_of_tensors"]


def describe(value: object) -> Any:
    """``value`` as what JSON can hold. Two values with the same description give the same results."""
    return _Describer().describe(value)


def generators_of(value: object) -> list[torch.Generator]:
    """All random generators that ``value`` was given, at whatever depth, each once."""
    describer = _Describer()
    describer.describe(value)
    return describer.generators


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, dtypes, shapes and every bit of the values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Describer:
    """Describes values, each object once: a search and its explainer share a model."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[object, Any]] = {}
        self.generators: list[torch.Generator] = []

    def describe(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if id(value) not in self.known:
            self.known[id(value)] = (value, f"<{_name(type(value))} again>")  # should it hold itself
            self.known[id(value)] = (value, self._describe_object(value))
        return self.known[id(value)][1]

    def _describe_object(self, value: Any) -> Any:
        if isinstance(value, torch.Generator):
            self.generators.append(value)
            return "generator"  # its state does not matter: it is seeded for every batch
        if isinstance(value, torch.dtype | torch.device | torch.Size):
            return str(value)
        if isinstance(value, nn.Module):
            return _describe_model(value)
        if isinstance(value, np.generic):
            return self.describe(value.item())
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if isinstance(value, Tensor):
            return {"tensor": list(value.shape), "hash": hash_of_tensors({"": value})}
        if isinstance(value, Mapping):
            return {str(key): self.describe(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.describe(entry) for entry in value]
        if isinstance(value, set | frozenset):
            return sorted(str(self.describe(entry)) for entry in value)
        if isinstance(value, functools.partial):
            parts = {"partial": value.func, "arguments": value.args, "keywords": value.keywords}
            return {key: self.describe(part) for key, part in parts.items()}
        if isinstance(value, types.FunctionType):
            return self._describe_function(value)
        if isinstance(value, types.MethodType):
            return {"method": value.__name__, "of": self.describe(value.__self__)}
        if isinstance(value, type | types.BuiltinFunctionType | types.ModuleType):
            return _name(value)
        return {"class": _name(type(value)), **{name: self.describe(part) for name, part in _arguments(value)}}

    def _describe_function(self, function: types.FunctionType) -> Any:
        description: dict[str, Any] = {"function": _name(function)}
        if "<" in function.__qualname__:  # a lambda's or local function's name says little
            description["code"] = _hash_of_code(function.__code__)
        used = inspect.getclosurevars(function)
        models = {name: value for name, value in used.globals.items() if isinstance(value, nn.Module | Tensor)}
        return {**description, **{name: self.describe(value) for name, value in {**used.nonlocals, **models}.items()}}


def _describe_model(model: nn.Module) -> dict[str, Any]:
    architecture = re.sub(r" at 0x[0-9a-f]+", "", str(model))
    return {
        "class": _name(type(model)),
        "training": any(module.training for module in model.modules()),
        "architecture": hashlib.sha256(architecture.encode()).hexdigest(),
        "weights": hash_of_tensors(model.state_dict()),
    }


def _arguments(value: object) -> Iterator[tuple[str, object]]:
    """What the constructor of ``value`` was given, as far as it was kept under the same name."""
    missing = object()
    for name in inspect.signature(type(value).__init__).parameters:
        kept = getattr(value, name, missing)
        kept = getattr(value, f"_{name}", missing) if kept is missing else kept
        if name != "self" and kept is not missing:
            yield name, kept


def _hash_of_code(code: types.CodeType) -> str:
    digest = hashlib.sha256(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        text = _hash_of_code(constant) if isinstance(constant, types.CodeType) else repr(constant)
        digest.update(text.encode())
    return digest.hexdigest()


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None)
    name = str(getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__)))
    return f"{module}.{name}" if module else name
