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
from captum_boundary.datasets._store import FolderError, atomic_file

__all__ = ["Describer", "check_same", "claim", "digest_of", "hash_of_tensors", "read_manifest", "versions"]

_PACKAGES = ("captum", "torch", "torchvision", "numpy", "pillow", "pyarrow", "safetensors")
_FORMAT = "3"  # of the files
_SHOWN = 12  # differences between two runs
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_OF_MODULES = set(vars(nn.Module()))  # what PyTorch keeps for itself
_OF_A_RUN = {"show_progress"}  # what changes no result


class Describer:
    """Describes values as what JSON can hold, each object once: a search and its explainer share a model."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[object, Any]] = {}
        self.generators: list[torch.Generator] = []

    def describe(self, value: Any) -> Any:
        """``value`` in words. Two values with the same description give the same results."""
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if id(value) not in self.known:
            self.known[id(value)] = (value, f"<{_name(type(value))} again>")  # should it hold itself
            self.known[id(value)] = (value, self._describe_object(value))
        return self.known[id(value)][1]

    def _describe_object(self, value: Any) -> Any:
        match value:
            case torch.Generator():
                self.generators.append(value)
                return "generator"  # its state does not matter: it is seeded for every batch
            case torch.dtype() | torch.device() | torch.Size():
                return str(value)
            case np.generic():
                return self.describe(value.item())
            case nn.Module():
                return self._describe_model(value)
            case Tensor() | np.ndarray(dtype=np.dtype(kind="b" | "i" | "u" | "f")):
                return {"tensor": list(value.shape), "hash": hash_of_tensors({"": torch.as_tensor(value)})}
            case Mapping():
                return {str(key): self.describe(entry) for key, entry in value.items()}
            case list() | tuple():
                return [self.describe(entry) for entry in value]
            case set() | frozenset():
                return sorted(str(self.describe(entry)) for entry in value)
            case functools.partial():
                return self.describe({"partial": value.func, "arguments": value.args, "keywords": value.keywords})
            case types.FunctionType():
                return self._describe_function(value)
            case types.MethodType():
                return {"method": self.describe(value.__func__), "of": self.describe(value.__self__)}
            case type():
                return {"class": _name(value), "code": self._code_of(value)}
            case types.ModuleType() | types.BuiltinFunctionType():
                file = None if _is_installed(_name(value)) else getattr(value, "__file__", None)
                return {"module": _name(value), "code": file and digest_of(Path(file).read_text())}
        parts = {name: self.describe(part) for name, part in _parts_of(value)}
        return {**self.describe(type(value)), **parts}

    def _describe_function(self, function: types.FunctionType) -> dict[str, Any]:
        """Name, code, and whatever of the user's own it reads from around it, down to the functions that it calls."""
        if _is_installed(function.__module__) and "<" not in function.__qualname__:
            return {"function": _name(function)}
        used = inspect.getclosurevars(function)
        around = {name: part for name, part in used.nonlocals.items() if name != "__class__"}
        around |= {name: part for name, part in used.globals.items() if _may_matter(part)}
        defaults = self.describe([function.__defaults__, function.__kwdefaults__])
        code = digest_of([_words_of(function.__code__), defaults])
        return {"function": _name(function), "code": code, **self.describe(around)}

    def _code_of(self, kind: type) -> str | None:
        """A digest of the user's own code in a class and those it stems from; None where there is none."""
        own = [each for each in kind.__mro__ if not _is_installed(each.__module__)]
        code = []
        for name, member in (pair for each in own for pair in sorted(vars(each).items())):
            is_property = isinstance(member, property)
            for part in (member.fget, member.fset) if is_property else (getattr(member, "__func__", member),):
                if isinstance(part, types.FunctionType) or (_is_plain(part) and not name.startswith("__")):
                    code.append((name, self.describe(part)))
        return digest_of(code) if own else None

    def _describe_model(self, model: nn.Module) -> dict[str, Any]:
        modules = dict(model.named_modules())
        for name, module in modules.items():  # which an explainer may hold, and by which they are told apart
            self.known.setdefault(id(module), (module, {"layer": name}))
        kinds = {name: self.describe(type(module)) for name, module in modules.items()}
        kept = {}  # plain attributes, and hooks that change what a module computes
        for name, module in modules.items():
            hooks = {kind: list(vars(module)[kind].values()) for kind in _HOOKS if vars(module).get(kind)}
            held = {attribute: value for attribute, value in vars(module).items() if attribute not in _OF_MODULES}
            kept[name] = self.describe(held | hooks)
        own = {name: kept[name] for name, kind in kinds.items() if kept[name] and kind["code"]}
        return {
            "class": _name(type(model)),
            "training": [name for name, module in modules.items() if module.training],
            "layers": digest_of([kinds, kept, model.code if isinstance(model, torch.jit.ScriptModule) else None]),
            "attributes": {name: parts if len(str(parts)) < 1000 else digest_of(parts) for name, parts in own.items()},
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


def digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def versions() -> dict[str, str]:
    own = {"format": _FORMAT, "captum-boundary": captum_boundary.__version__, "python": platform.python_version()}
    return own | {package: importlib.metadata.version(package) for package in _PACKAGES}


def read_manifest(folder: Path) -> dict[str, Any]:
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


def claim(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a new folder, or check it against that of the run that the folder holds."""
    if not (folder / "manifest.json").exists():
        if foreign := sorted(each.name for each in folder.iterdir() if not each.name.startswith(".")):
            raise FolderError(f"{folder} holds other files, such as {foreign[0]}. Give a folder of its own.")
        with atomic_file(folder / "manifest.json") as file:
            file.write(json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n")
    return check_same(folder, manifest)


def check_same(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a folder, if it differs from the ``wanted`` one in nothing but the times of files."""
    stored = read_manifest(folder)
    lines = list(_differences(stored, json.loads(json.dumps(wanted)), f"in {folder}"))
    if lines:
        title = f"The results in {folder} are those of another run. What differs:"
        more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        remedy = "Give this run a folder of its own, or the settings of the other."
        raise FolderError("\n".join([title, *lines[:_SHOWN], *more, remedy]))
    return stored


def _differences(there: Any, here: Any, place: str, name: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            yield from _differences(there.get(key, "nothing"), here.get(key, "nothing"), place, f"{name}.{key}")
    elif there != here and name != ".data.files.times":
        yield f"  {name[1:]}: {json.dumps(there)[:60]} {place}, {json.dumps(here)[:60]} now"


def _parts_of(value: object) -> Iterator[tuple[str, object]]:
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
    yield from sorted((name, part) for name, part in held.items() if name not in _OF_A_RUN)


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


def _words_of(value: Any) -> Any:
    """A function's code without its place in a file, or a constant in it."""
    if isinstance(value, types.CodeType):
        return [value.co_code.hex(), list(value.co_names), list(map(_words_of, value.co_consts))]
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)  # in no order of a process


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None)
    name = str(getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__)))
    return f"{module}.{name}" if module else name
