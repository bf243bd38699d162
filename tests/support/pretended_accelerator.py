"""A pretended accelerator: a device of its own kind, computed on the CPU, that counts what a real one would be asked.

Tensors on it cannot be mixed with those of the CPU, and whatever would launch a kernel, make the host wait for the
device, or copy from the host to the device is counted: apart for the forward passes of models, for backward passes, and
for all else, which is what the package itself costs.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

try:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
except ImportError:  # torch < 2.10
    _setup_privateuseone_for_python_backend = None

__all__ = ["AVAILABLE", "DEVICE", "Cost", "Counts", "counting", "install"]

AVAILABLE = _setup_privateuseone_for_python_backend is not None
NAME = "pretended"
DEVICE = f"{NAME}:0"
_PACKAGE = "captum_boundary"

aten = torch.ops.aten


@dataclass
class Cost:
    """What was asked of the device."""

    operations: int = 0
    synchronisations: int = 0
    copies: int = 0


@dataclass
class Counts:
    """What the package (``own``), the forward passes of models (``model``) and backward passes asked of the device."""

    own: Cost = field(default_factory=Cost)
    model: Cost = field(default_factory=Cost)
    backward: Cost = field(default_factory=Cost)
    forward_calls: int = 0
    backward_calls: int = 0
    by_name: Counter[str] = field(default_factory=Counter)  # own operations
    operations_by_line: Counter[str] = field(default_factory=Counter)  # own ones, as all below
    synchronisations_by_line: Counter[str] = field(default_factory=Counter)
    copies_by_line: Counter[str] = field(default_factory=Counter)


_counts: Counts | None = None
_region = "own"


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what is asked of the device. Every outermost call of a module not of the package is a forward pass."""
    global _counts  # noqa: PLW0603
    call, engine = nn.Module.__call__, torch.autograd._engine_run_backward

    def call_counted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _region == "model" or type(module).__module__.split(".")[0] == _PACKAGE:
            return call(module, *args, **kwargs)
        counts.forward_calls += 1
        with _inside("model"):
            return call(module, *args, **kwargs)

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        counts.backward_calls += 1
        with _inside("backward"):
            return engine(*args, **kwargs)

    outer, counts = _counts, Counts()
    _counts = counts
    try:
        with (
            mock.patch.object(nn.Module, "__call__", call_counted),
            mock.patch.object(torch.autograd, "_engine_run_backward", run_backward),
        ):
            yield counts
    finally:
        _counts = outer


@contextmanager
def _inside(region: str) -> Iterator[None]:
    global _region  # noqa: PLW0603
    outer, _region = _region, region
    try:
        yield
    finally:
        _region = outer


def _count(name: str, operations: int = 0, synchronisations: int = 0, copies: int = 0) -> None:
    if _counts is None:
        return
    cost: Cost = getattr(_counts, _region)
    cost.operations += operations
    cost.synchronisations += synchronisations
    cost.copies += copies
    if _region == "own":
        line = _line()
        for counter, key, amount in (
            (_counts.by_name, name, operations),
            (_counts.operations_by_line, line, operations),
            (_counts.synchronisations_by_line, line, synchronisations),
            (_counts.copies_by_line, line, copies),
        ):
            if amount:
                counter[key] += amount


def _line() -> str:
    """The innermost line of the package that is being run."""
    frame = sys._getframe(2)
    while frame is not None:
        parts = Path(frame.f_code.co_filename).parts
        if _PACKAGE in parts:
            return f"{'/'.join(parts[parts.index(_PACKAGE) + 1 :])}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class PretendedTensor(Tensor):
    """A tensor on the pretended device; its values are those of ``host``, a tensor of the CPU."""

    host: Tensor
    is_host_scalar: bool
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> PretendedTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device=DEVICE,
        )
        tensor.host = host
        tensor.is_host_scalar = False
        return tensor

    def __repr__(self) -> str:
        return f"{self.host!r}.to({DEVICE!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute ``func`` on the host, and count it."""
    name = func.name().removeprefix("aten::").split(".")[0]
    destination = kwargs.get("device")
    if func is aten.copy_.default:
        return _copy(*args, **kwargs)
    leaves, spec = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    _check_devices(func, name, args, tensors)
    _check_generator(kwargs)
    if kwargs.get("generator", "absent") is None or (_draws(func) and "generator" not in kwargs):
        kwargs = {**kwargs, "generator": _device_generator()}
        leaves, spec = tree_flatten((args, kwargs))
    wrappers = {id(leaf.host): leaf for leaf in tensors if isinstance(leaf, PretendedTensor)}
    host_args, host_kwargs = tree_unflatten(
        [leaf.host if isinstance(leaf, PretendedTensor) else leaf for leaf in leaves], spec
    )
    if destination is not None:
        host_kwargs["device"] = torch.device("cpu")
    result = func(*host_args, **host_kwargs)
    to_host = destination is not None and torch.device(destination).type == "cpu"
    _count(name, **_price(func, name, args, to_host))
    if to_host:
        return result

    def wrap(host: Tensor) -> PretendedTensor:
        wrapper = wrappers.get(id(host))
        if wrapper is None:
            return PretendedTensor(host)
        if wrapper.shape != host.shape:
            raise NotImplementedError(f"{func} changes the shape of a tensor in place.")
        return wrapper

    return tree_map_only(Tensor, wrap, result)


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    on_device = isinstance(target, PretendedTensor), isinstance(source, PretendedTensor)
    if on_device == (True, True):
        _count("copy_", operations=1)
    elif on_device == (True, False):
        _count("copy_", copies=1)
    else:
        _count("copy_", synchronisations=1)
    hosts = (tensor.host if isinstance(tensor, PretendedTensor) else tensor for tensor in (target, source))
    aten.copy_.default(*hosts)
    return target


# Nothing is computed: memory is taken, or read in another shape.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "is_same_size",
         "scalar_tensor"}  # fmt: skip
# The host waits for the values, or for the size of the result.
_WAITING = {"_local_scalar_dense", "equal", "allclose", "nonzero", "nonzero_numpy", "masked_select", "_unique", "_unique2",
            "unique_dim", "unique_consecutive", "bincount", "_linalg_check_errors", "is_nonzero"}  # fmt: skip


def _price(func: Any, name: str, args: tuple[Any, ...], to_host: bool) -> dict[str, int]:
    if to_host:
        return {"synchronisations": 1}
    if name in _FREE or _is_view(func):
        return {}
    if name == "_local_scalar_dense":
        return {"synchronisations": 1}
    if name == "repeat_interleave":
        return {"operations": 1, "synchronisations": 0 if "output_size" in func._schema.arguments else 1}
    if name in _WAITING:
        return {"operations": 1, "synchronisations": 1}
    if name in {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}:
        return _price_of_indexing(name, args)
    return {"operations": 1}


def _price_of_indexing(name: str, args: tuple[Any, ...]) -> dict[str, int]:
    indices = [index for index in args[1] if index is not None]
    masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
    copies = sum(not isinstance(index, PretendedTensor) for index in indices)
    if masks and name != "index" and (not isinstance(args[2], PretendedTensor) or args[2].is_host_scalar):
        return {"operations": 1, "copies": copies}  # a mask and a number: masked_fill
    waiting = sum(isinstance(mask, PretendedTensor) for mask in masks)
    return {"operations": 1 + waiting, "synchronisations": waiting, "copies": copies}


@lru_cache(None)
def _is_view(func: Any) -> bool:
    return any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)


@lru_cache(None)
def _draws(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


def _check_devices(func: Any, name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    strangers = [tensor for tensor in tensors if not isinstance(tensor, PretendedTensor)]
    if not strangers or len(strangers) == len(tensors):
        return
    if name in {"index", "index_put", "index_put_", "_index_put_impl_"} and isinstance(args[0], PretendedTensor):
        # Indices may stay on the CPU, and a single value too.
        strangers = [value for value in args[2:3] if isinstance(value, Tensor) and value.device.type == "cpu"]
        if all(tensor.ndim == 0 for tensor in strangers):
            return
    elif torch.Tag.pointwise in func.tags and all(tensor.ndim == 0 for tensor in strangers):
        written = func._schema.is_mutable and not isinstance(args[0], PretendedTensor)
        if not written:
            return
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and "
        f"{strangers[0].device}! (in {func})"
    )


_generator: torch.Generator | None = None


def _device_generator() -> torch.Generator:
    """The device's own source of random numbers."""
    global _generator  # noqa: PLW0603
    if _generator is None:
        _generator = torch.Generator().manual_seed(0)
    return _generator


def _check_generator(kwargs: dict[str, Any]) -> None:
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != NAME:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device.type}'")


_FACTORIES = [
    "empty.memory_format", "empty_strided", "scalar_tensor", "zeros", "ones", "full", "eye", "eye.m", "arange",
    "arange.start", "arange.start_step", "linspace", "logspace", "rand", "rand.generator", "randn", "randn.generator",
    "randint", "randint.low", "randint.generator", "randint.low_generator", "randperm", "randperm.generator",
    "tril_indices", "triu_indices",
]  # fmt: skip

_library: torch.library.Library | None = None


def install() -> None:
    """Register the device with torch, once for the process."""
    global _library  # noqa: PLW0603
    if _library is not None:
        return
    # The engine's thread for the device calls Python as it ends, which must not happen after Python itself has ended.
    os.environ["TORCH_AUTOGRAD_SHUTDOWN_WAIT_LIMIT"] = "0"
    _setup_privateuseone_for_python_backend(NAME)
    _library = torch.library.Library("aten", "IMPL")
    # torch.tensor(..., device=...) copies past __torch_dispatch__.
    _library.impl("_copy_from", lambda source, target, non_blocking=False: _copy(target, source), "PrivateUse1")
    for full_name in _FACTORIES:
        name, _, overload = full_name.partition(".")
        func = getattr(getattr(aten, name), overload or "default")
        _library.impl(full_name, _factory(func, name), "PrivateUse1")


def _factory(func: Any, name: str) -> Callable[..., Tensor]:
    def make(*args: Any, **kwargs: Any) -> Tensor:
        _check_generator(kwargs)
        kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": False}
        if name.startswith("rand"):
            kwargs["generator"] = _device_generator()
        host = getattr(torch, name)(*args, **kwargs)
        _count(name, operations=0 if name in _FREE else 1)
        tensor = PretendedTensor(host)
        tensor.is_host_scalar = name == "scalar_tensor"
        return tensor

    return make
