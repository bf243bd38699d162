"""What results depend on, in words that can be stored and compared, so that no run goes on with another one's.

Objects are described by what their constructors were given; models by their tensors, plain attributes, hooks and code.
Code of installed packages is known by their versions, code of one's own by its bytes. What neither shows (a file that
``forward`` reads, say) is for the user's ``version``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import math
import platform
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import captum_boundary
from captum_boundary.datasets._store import FolderError, Store, write_atomically

__all__ = ["Describer", "check_same", "claim", "hash_of_tensors", "read_manifest", "versions"]

_PACKAGES = ("captum", "torch", "torchvision", "numpy", "pillow", "pyarrow", "safetensors")
_FORMAT = "2"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_OF_MODULES = set(vars(nn.Module()))  # what PyTorch keeps for itself


class Describer:
    """Describes values as what JSON can hold, each object once: a search and its explainer share a model."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[object, Any]] = {}
        self.layers: dict[int, str] = {}  # qualified names of the layers of models
        self.classes: dict[type, dict[str, str]] = {}
        self.generators: list[torch.Generator] = []

    def describe(self, value: Any) -> Any:
        """``value`` in words. Two values with the same description give the same results."""
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if id(value) in self.layers and id(value) not in self.known:
            return {"layer": self.layers[id(value)]}
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
            return self._describe_model(value)
        if isinstance(value, np.generic):
            return self.describe(value.item())
        if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf"):
            return {"tensor": list(value.shape), "hash": hash_of_tensors({"": torch.as_tensor(value)})}
        if isinstance(value, Mapping):
            return {str(key): self.describe(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.describe(entry) for entry in value]
        if isinstance(value, set | frozenset):
            return sorted(str(self.describe(entry)) for entry in value)
        if isinstance(value, functools.partial):
            return self.describe({"partial": value.func, "arguments": value.args, "keywords": value.keywords})
        if isinstance(value, types.FunctionType):
            return self._describe_function(value)
        if isinstance(value, types.MethodType):
            return {"method": self.describe(value.__func__), "of": self.describe(value.__self__)}
        if isinstance(value, type):
            return {"class": _name(value), **self._code_of(value)}
        if isinstance(value, types.ModuleType | types.BuiltinFunctionType):
            file = getattr(value, "__file__", None)
            return [
                _name(value),
                None if file is None or _is_installed(_name(value)) else _digest(Path(file).read_text()),
            ]
        parts = {name: self.describe(part) for name, part in _kept(value)}
        return {"class": _name(type(value)), **self._code_of(type(value)), **parts}

    def _describe_function(self, function: types.FunctionType) -> dict[str, Any]:
        """Name, code, and whatever of the user's own it reads from around it, down to the functions that it calls."""
        if _is_installed(function.__module__) and "<" not in function.__qualname__:
            return {"function": _name(function)}
        used = inspect.getclosurevars(function)
        around = {name: part for name, part in used.nonlocals.items() if name != "__class__"}
        around |= {name: part for name, part in used.globals.items() if _may_matter(part)}
        code = _digest([_words_of(function.__code__), self.describe([function.__defaults__, function.__kwdefaults__])])
        return {"function": _name(function), "code": code, **self.describe(around)}

    def _code_of(self, kind: type) -> dict[str, str]:
        """A digest of the user's own code in a class and those it stems from."""
        if kind not in self.classes:
            self.classes[kind] = {}  # should it name itself
            own = [each for each in kind.__mro__ if not _is_installed(each.__module__)]
            parts = [[name, self.describe(part)] for each in own for name, part in _members_of(each)]
            self.classes[kind] = {"code": _digest(parts)} if own else {}
        return self.classes[kind]

    def _describe_model(self, model: nn.Module) -> dict[str, Any]:
        modules = dict(model.named_modules())
        self.layers |= {id(module): name for name, module in modules.items() if name}
        kept = {name: self.describe(_attributes_of(module)) for name, module in modules.items()}
        code = [[name, _name(type(module)), self._code_of(type(module))] for name, module in modules.items()]
        own = {name: kept[name] for name, module in modules.items() if kept[name] and self._code_of(type(module))}
        return {
            "class": _name(type(model)),
            "training": [name for name, module in modules.items() if module.training],
            "layers": _digest([code, kept, model.code if isinstance(model, torch.jit.ScriptModule) else None]),
            "attributes": {name: parts if len(str(parts)) < 1000 else _digest(parts) for name, parts in own.items()},
            "parameters": hash_of_tensors(dict(model.named_parameters())),
            "buffers": hash_of_tensors(dict(model.named_buffers())),
        }


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, dtypes, shapes and every bit of the values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what results depend on."""
    versions = {"format": _FORMAT, "captum-boundary": captum_boundary.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    return versions


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of explanations."""
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise FolderError(f"There is no folder {folder}.")
    if not path.is_file():
        raise FolderError(f"{folder} holds no explanations: it has no manifest.json.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"data", "settings", "versions"} <= set(manifest):
            raise ValueError("it is not that of a run")
        return manifest
    except (ValueError, TypeError) as error:
        raise FolderError(f"{path} cannot be read: {error}.") from error


def claim(store: Store, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a new folder, or check it against that of the run that the folder holds."""
    path = store.path / "manifest.json"
    if not path.exists():
        foreign = next((each for each in sorted(store.path.iterdir()) if not each.name.startswith(".")), None)
        if foreign is not None:
            raise FolderError(f"{store.path} holds other files, such as {foreign.name}. Give a folder of its own.")
        text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))
    stored = read_manifest(store.path)
    check_same(stored, manifest, f"in {store.path}")
    return stored


def check_same(stored: Mapping[str, Any], wanted: Mapping[str, Any], place: str) -> None:
    """Refuse to go on where two manifests differ but in the times of files, and say in what."""
    there, here = dict(_leaves(stored)), dict(_leaves(json.loads(json.dumps(wanted))))
    names = sorted({*there, *here} - {"data.files.times"})
    missing = "nothing"
    differing = [name for name in names if there.get(name, missing) != here.get(name, missing)]
    if differing:
        values = [
            [str(json.dumps(leaves[n]) if n in leaves else missing)[:60] for leaves in (there, here)] for n in differing
        ]
        lines = [f"  {name}: {old} {place}, {new} now" for name, (old, new) in zip(differing, values, strict=True)]
        more = [f"  and {len(lines) - 12} more"] if len(lines) > 12 else []
        remedy = "Give this run a folder of its own, or the settings of the other."
        title = f"The results {place} are those of another run. What differs:"
        raise FolderError("\n".join([title, *lines[:12], *more, remedy]))


def _attributes_of(module: nn.Module) -> dict[str, Any]:
    """What a module holds beside tensors and modules: plain attributes, and hooks that change what it computes."""
    hooks = {name: list(vars(module)[name].values()) for name in _HOOKS if vars(module).get(name)}
    return {name: value for name, value in vars(module).items() if name not in _OF_MODULES} | hooks


def _kept(value: object) -> Iterator[tuple[str, object]]:
    """What the constructor was given, as far as it was kept under its name; of a user's own class, all it holds."""
    held = {} if _is_installed(type(value).__module__) else dict(getattr(value, "__dict__", {}))
    try:
        names = list(inspect.signature(type(value).__init__).parameters)[1:]
    except (ValueError, TypeError):  # of a class written in C
        names = []
    for name in names:
        kept = [getattr(value, each) for each in (name, f"_{name}") if hasattr(value, each)]
        if kept:
            held.pop(f"_{name}", None)
            held[name] = kept[0]
    yield from sorted(held.items())


def _members_of(kind: type) -> Iterator[tuple[str, Any]]:
    for name, member in sorted(vars(kind).items()):
        parts = (member.fget, member.fset) if isinstance(member, property) else (getattr(member, "__func__", member),)
        for part in parts:
            if isinstance(part, types.FunctionType) or (_is_plain(part) and not name.startswith("__")):
                yield name, part


def _may_matter(value: Any) -> bool:
    """Whether a global that a function reads may change what it computes."""
    if isinstance(value, nn.Module | Tensor | np.ndarray) or _is_plain(value):
        return True
    kind = value if isinstance(value, types.FunctionType | type) else type(value)
    return not _is_installed(value.__name__ if isinstance(value, types.ModuleType) else kind.__module__)


def _is_plain(value: object) -> bool:
    entries = [*value, *value.values()] if isinstance(value, dict) else value
    if isinstance(entries, list | tuple | set | frozenset):
        return all(map(_is_plain, entries))
    return value is None or isinstance(value, bool | int | float | str)


@functools.cache
def _is_installed(module: str | None) -> bool:
    """Whether code is the standard library's or a package's, which its version tells apart."""
    if module is None or module.partition(".")[0] in {*sys.stdlib_module_names, "captum_boundary"}:
        return module is not None
    path = str(getattr(sys.modules.get(module), "__file__", None))
    return "site-packages" in path or "dist-packages" in path


def _words_of(code: types.CodeType) -> list[Any]:
    """A function's code without its place in a file."""
    constants = [
        _words_of(each)
        if isinstance(each, types.CodeType)
        else sorted(map(repr, each))
        if isinstance(each, frozenset)  # whose order changes from process to process
        else repr(each)
        for each in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), constants]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None)
    name = str(getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__)))
    return f"{module}.{name}" if module else name
