"""What results depend on, in words that can be stored and compared; what these do not show is for ``version=``."""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.metadata
import inspect
import json
import logging
import math
import os
import platform
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import captum_boundary

__all__ = ["Describer", "digest_of", "hash_of_tensors", "versions"]

_PACKAGES = ("captum", "torch", "torchvision", "numpy", "pillow", "pyarrow", "safetensors")
_FORMAT = "4"  # of the files
_HOOKS = {"_forward_pre_hooks", "_forward_hooks"}
_OF_MODULES = {*vars(nn.Module())} - {"training"}  # what PyTorch keeps for itself
_OF_A_RUN = (type(None), type(os.environ), logging.Logger)  # what changes no result, but from run to run
_READS = {"LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME"}
_CODE = types.FunctionType | types.BuiltinFunctionType | type


class Describer:
    """Describes values as what JSON can hold, each object once: a search and its explainer share a model."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[object, Any]] = {}
        self.generators: list[torch.Generator] = []
        self.read: dict[str, object] = {}  # by the user's own code, from around it

    def describe(self, value: Any) -> Any:
        """``value`` in words. Two values with the same description, and the same code, give the same results."""
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if id(value) not in self.known:
            self.known[id(value)] = (value, f"<{_name(type(value))} again>")  # should it hold itself
            self.known[id(value)] = (value, self._describe_object(value))
        return self.known[id(value)][1]

    def code(self) -> dict[str, Any]:
        """What the user's code that was described reads from around it, down to the last function that it calls."""
        found: dict[str, Any] = {}
        while self.read:
            name, part = self.read.popitem()
            if name not in found:
                found[name] = _short(self.describe(part))
        return found

    def _describe_object(self, value: Any) -> Any:
        match value:
            case torch.Generator():
                self.generators.append(value)
                return "generator"  # its state does not matter: it is seeded for every batch
            case torch.dtype() | torch.device():
                return str(value)
            case np.generic() if not isinstance(value.item(), np.generic):
                return self.describe(value.item())
            case np.ndarray(dtype=np.dtype(hasobject=True)):
                return self.describe(value.tolist())
            case np.ndarray() | np.generic():
                return {"array": f"{value.dtype} {value.shape}", "hash": hashlib.sha256(value.tobytes()).hexdigest()}
            case bytes() | bytearray():
                return {"bytes": hashlib.sha256(value).hexdigest()}
            case nn.Module():
                return self._describe_model(value)
            case Tensor():
                return {"tensor": list(value.shape), "hash": hash_of_tensors({"": value})}
            case Mapping():
                names = [key if isinstance(key, str) else json.dumps(self.describe(key)) for key in value]
                return dict(zip(names, map(self.describe, value.values()), strict=True))
            case list() | tuple():
                return [self.describe(entry) for entry in value]
            case set() | frozenset():
                return sorted(json.dumps(self.describe(entry)) for entry in value)
            case functools.partial():
                return self.describe({"partial": value.func, "arguments": value.args, "keywords": value.keywords})
            case types.MethodType():
                return {"method": self.describe(value.__func__), "of": self.describe(value.__self__)}
            case types.FunctionType():
                return self._describe_function(value)
            case torch.jit.ScriptFunction():
                return {"script": value.code}
            case type():
                own = [vars(each).items() for each in value.__mro__ if not _is_installed(each.__module__)]
                members = [pair for each in own for pair in sorted(each)]
                code = [(n, self.describe(part)) for n, part in members if callable(part) or not n.startswith("__")]
                return {"class": _name(value), "code of class": digest_of(code) if own else None}
            case types.ModuleType():
                self._note({value.__name__: value}, {value.__name__}, {*vars(value)})
                return {"module": value.__name__}
            case types.BuiltinFunctionType():
                return {"function": _name(value)}
        return {name: self.describe(part) for name, part in _parts_of(value)} | self.describe(type(value))

    def _describe_function(self, function: types.FunctionType) -> dict[str, Any]:
        """Name, code and what is bound to it; what else it reads is noted, for :meth:`code`."""
        if _is_installed(function.__module__) and "<" not in function.__qualname__:
            return {"function": _name(function)}
        code, around = function.__code__, function.__globals__
        if not _is_installed(place := around.get("__name__")):
            parts = list(_codes_in(code))
            read = {step.argval for part in parts for step in dis.get_instructions(part) if step.opname in _READS}
            package = around.get("__package__")
            imported = {name: sys.modules.get(f"{package}.{name}", sys.modules.get(name)) for name in read}
            held = imported | {name: around[name] for name in read & around.keys()}
            self._note(held, read, {name for part in parts for name in part.co_names}, f"{place}.")
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        bound = {name: cell.cell_contents for name, cell in cells if name != "__class__"}
        defaults = self.describe([function.__defaults__, function.__kwdefaults__])
        return {"function": _name(function), "code": digest_of([_words_of(code), defaults]), **self.describe(bound)}

    def _note(self, held: Mapping[str, object], wanted: set[str], names: set[str], place: str = "") -> None:
        """Note what code may read by ``names``; where that is in a module, by attribute. Packages have versions."""
        for name in sorted(wanted & held.keys()):  # in no order of a process
            part = held[name]
            if isinstance(part, types.ModuleType):
                if not _is_installed(part.__name__):
                    self._note(vars(part), names, names - {name}, f"{part.__name__}.")
            elif not isinstance(part, _OF_A_RUN) and not (isinstance(part, _CODE) and _is_installed(part.__module__)):
                self.read.setdefault(place + name, part)

    def _describe_model(self, model: nn.Module) -> dict[str, Any]:
        modules = dict(model.named_modules())
        for name, module in modules.items():  # which an explainer may hold, and by which they are told apart
            self.known.setdefault(id(module), (module, {"layer": name}))
        layers: dict[bool, dict[str, Any]] = {True: {}, False: {}}  # of packages, and of the user's own kinds
        for name, module in modules.items():
            held = {attribute: part for attribute, part in vars(module).items() if attribute not in _OF_MODULES}
            held |= {kind: list(hooks.values()) for kind in _HOOKS if (hooks := vars(module).get(kind))}
            if isinstance(module, torch.jit.ScriptModule):
                held["script"] = getattr(module, "inlined_code", None)
            parts = self.describe(held) | self.describe(type(module))
            layers[_is_installed(type(module).__module__)][name] = _short(parts)
        tensors = {"parameters": model.named_parameters(), "buffers": model.named_buffers()}
        hashes = {kind: hash_of_tensors(dict(named)) for kind, named in tensors.items()}
        return {"class": _name(type(model)), "layers": digest_of(layers[True]), "attributes": layers[False], **hashes}


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, dtypes, shapes and every bit of the values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().to_dense().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def versions() -> dict[str, str]:
    own = {"format": _FORMAT, "captum-boundary": captum_boundary.__version__, "python": platform.python_version()}
    return own | {package: importlib.metadata.version(package) for package in _PACKAGES}


def _short(parts: Any) -> Any:
    return parts if len(str(parts)) < 1000 else digest_of(parts)


def _parts_of(value: object) -> Iterator[tuple[str, object]]:
    """What the constructor was given, as far as it was kept under its name; of a user's own class, all it holds."""
    held = {} if _is_installed(type(value).__module__) else dict(getattr(value, "__dict__", {}))
    names = ["__wrapped__", "fget", "fset"]  # by a decorator
    with suppress(ValueError, TypeError):  # of a class written in C
        names += list(inspect.signature(type(value).__init__).parameters)[1:]
    for name in names:
        for kept in (f"_{name}", name):
            with suppress(Exception):  # of a property
                held[name] = getattr(value, kept)
    if not held:
        with suppress(Exception):  # of what cannot be taken apart, such as a lock
            held["made of"] = value.__reduce_ex__(4)[1]
    yield from sorted((name, part) for name, part in held.items() if name != "show_progress")


@functools.cache
def _is_installed(module: str | None) -> bool:
    """Whether code is the standard library's or a package's, which its version tells apart."""
    if module is None:
        return False
    root = module.partition(".")[0]
    files = [str(file) for each in (root, module) if (file := getattr(sys.modules.get(each), "__file__", None))]
    if root == "captum_boundary" or not files:
        return root == "captum_boundary" or root in sys.stdlib_module_names
    places = ("site-packages", "dist-packages", sysconfig.get_path("stdlib"))
    return any(place in file for file in files for place in places)


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of functions and comprehensions within it."""
    yield code
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _codes_in(part)


def _words_of(value: Any) -> Any:
    """A function's code without its place in a file, or a constant in it."""
    if isinstance(value, types.CodeType):
        return [value.co_code.hex(), list(value.co_names), list(map(_words_of, value.co_consts))]
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)  # in no order of a process


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None)
    name = str(getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__)))
    return f"{module}.{name}" if module else name
