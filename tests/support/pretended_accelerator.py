"""A pretended accelerator: a device of its own kind, computed on the CPU, that counts what a real one would be asked.

Tensors on it mix with those of the CPU no more than a GPU's do, so that code which forgets the device fails. Whatever
would launch a kernel, make the host wait for the device, or copy from the host to the device is counted.

Unlike a GPU the device has no ``torch.Generator`` of its own: PyTorch makes those of a backend in C++ alone.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from device_costs import Cost, count
from torch import Tensor, library
from torch.utils import backend_registration

__all__ = ["DEVICE", "IS_POSSIBLE", "register"]

_NAME = "pretended"
_CPU = torch.device("cpu")

DEVICE = f"{_NAME}:0"
IS_POSSIBLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")  # since torch 2.10

aten = torch.ops.aten


class PretendedTensor(Tensor):
    """A tensor on the pretended device, whose values are those of ``host``, a tensor of the CPU."""

    host: Tensor
    is_number: bool = False  # a Python number on its way to the device, which a GPU gets as an argument of the kernel
    __torch_function__ = torch._C._disabled_torch_function_impl
    __module__ = "torch"  # by which Foolbox knows tensors

    @staticmethod
    def __new__(cls, host: Tensor) -> PretendedTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        tensor.host = host
        return tensor

    def __repr__(self) -> str:
        return f"{self.host!r}.to({DEVICE!r})"

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, values: PretendedTensor) -> None:
        Tensor.data.__set__(self, values)
        self.host = values.host

    # Tensor's own refuse subclasses.
    def __format__(self, specification: str) -> str:
        return format(self.item() if self.ndim == 0 else repr(self), specification)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _host_of(tensor: Tensor) -> Tensor:
    return tensor.host if isinstance(tensor, PretendedTensor) else tensor


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute on the host, as if on the device."""
    if func is aten.copy_.default:
        return _copy(*args, **kwargs)
    tensors: list[Tensor] = []
    _map(tensors.append, (args, tuple(kwargs.values())))
    _check_devices(func, args, tensors)
    _check_generator(kwargs.get("generator"))
    is_result_here = _is_here(kwargs.get("device"))
    name = func._schema.name.removeprefix("aten::")
    count(name, _cost(func, name, args, kwargs) if is_result_here else _cost_of_leaving(name))

    args, kwargs = _map(_host_of, args), {key: _map(_host_of, value) for key, value in kwargs.items()}
    if is_result_here and "device" in kwargs:
        kwargs["device"] = _CPU
    with _random_numbers() if torch.Tag.nondeterministic_seeded in func.tags else nullcontext():
        result = func(*args, **kwargs)
    if not is_result_here:
        return result

    here = {id(tensor.host): tensor for tensor in tensors if isinstance(tensor, PretendedTensor)}

    def wrap(host: Tensor) -> PretendedTensor:
        tensor = here.get(id(host))
        if tensor is None:
            return PretendedTensor(host)
        if tensor.shape != host.shape:
            raise NotImplementedError(f"{func} changes the shape of a tensor in place.")
        return tensor

    return _map(wrap, result)


def _map(function: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with all its tensors replaced."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(_map(function, part) for part in value)
    return value


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if not isinstance(target, PretendedTensor):
        cost = Cost(synchronizations=1)
    elif not isinstance(source, PretendedTensor):
        cost = Cost(copies=1)
    else:
        cost = Cost(operations=1)
    count("copy_", cost)
    _host_of(target).copy_(_host_of(source))
    return target


def _is_here(device: Any) -> bool:
    return device is None or torch.device(device).type == _NAME


# Memory is taken, or looked at in another shape.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "scalar_tensor"}
# The host looks at a value, or the size of the result depends on values.
_WAITING = {
    "_linalg_check_errors", "_unique", "_unique2", "allclose", "bincount", "equal", "is_nonzero", "masked_select",
    "nonzero", "nonzero_numpy", "unique_consecutive", "unique_dim",
}  # fmt: skip
_INDEXING = {"_index_put_impl_", "_unsafe_index", "_unsafe_index_put", "index", "index_put", "index_put_"}


def _cost(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cost:
    if name in _FREE or _is_view(func):
        return Cost()
    if name == "_local_scalar_dense":
        return Cost(synchronizations=1)
    if name in _INDEXING:
        return _cost_of_indexing(*args[1:3])
    if name in _WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        return Cost(operations=1, synchronizations=1)
    return Cost(operations=1)


def _cost_of_leaving(name: str) -> Cost:
    """The host waits for values; not for zeros_like and similar functions, which need the shape alone."""
    return Cost(synchronizations=int(name == "_to_copy"))


def _cost_of_indexing(indices: list[Tensor | None], values: Tensor | None = None) -> Cost:
    """A mask is turned into indices, for whose number the host waits, unless all its places are set to one number."""
    given = [index for index in indices if index is not None]
    copies = sum(not isinstance(index, PretendedTensor) for index in given)
    is_filled = values is not None and (not isinstance(values, PretendedTensor) or values.is_number)
    masks = [
        index for index in given if index.dtype in (torch.bool, torch.uint8) and isinstance(index, PretendedTensor)
    ]
    n_masks = 0 if is_filled else len(masks)
    return Cost(operations=1 + n_masks, synchronizations=n_masks, copies=copies)


@lru_cache(None)
def _is_view(func: Any) -> bool:
    return any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)


def _check_devices(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """Refuse tensors of the host where CUDA does: but for single numbers, and for indices."""
    strangers = [tensor for tensor in tensors if not isinstance(tensor, PretendedTensor)]
    is_indexing = func._schema.name.removeprefix("aten::") in _INDEXING
    if is_indexing:
        strangers = [value for value in (args[0], *args[2:3]) if not isinstance(value, PretendedTensor)]
    if not strangers:
        return
    is_on_host = strangers[0] is args[0] and (is_indexing or func._schema.is_mutable)
    takes_numbers = is_indexing or torch.Tag.pointwise in func.tags
    if is_on_host or not takes_numbers or any(tensor.ndim > 0 for tensor in strangers):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and "
            f"{strangers[0].device}! ({func})"
        )


def _check_generator(generator: torch.Generator | None) -> None:
    if generator is not None:
        raise RuntimeError(f"Expected a '{_NAME}' device type for generator but found '{generator.device.type}'")


_random_state = torch.Generator().manual_seed(0)


@contextmanager
def _random_numbers() -> Iterator[None]:
    """Draw the device's random numbers, not those of the host."""
    of_host = torch.get_rng_state()
    torch.set_rng_state(_random_state.get_state())
    try:
        yield
    finally:
        _random_state.set_state(torch.get_rng_state())
        torch.set_rng_state(of_host)


class _Backend(getattr(backend_registration, "_DummyBackendModule", object)):  # type: ignore[misc]
    """What PyTorch asks of a device's module, such as ``torch.cuda``."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def manual_seed_all(self, seed: int) -> None:
        _random_state.manual_seed(seed)

    def get_rng_state(self, device: Any = None) -> Tensor:
        return _random_state.get_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        _random_state.set_state(state)


# What makes tensors without being given one. The others of PyTorch fill what these make.
_FACTORIES = (
    "empty.memory_format", "empty_strided", "scalar_tensor", "arange", "arange.start", "arange.start_step", "eye",
    "eye.m", "randperm", "randperm.generator",
)  # fmt: skip

_kernels: library.Library | None = None


def register() -> None:
    """Make the device known to PyTorch, for the rest of the process, which must not have run a backward pass before."""
    global _kernels
    if _kernels is not None:
        return
    # After a backward pass its thread still lets go of tensors, which aborts the process where Python ends meanwhile.
    atexit.register(time.sleep, 0.1)
    backend_registration._setup_privateuseone_for_python_backend(_NAME, _Backend())
    _kernels = library.Library("aten", "IMPL")
    for name in _FACTORIES:
        _kernels.impl(name, _factory(name.partition(".")[0]), "PrivateUse1")
    # torch.tensor(..., device=...) copies without __torch_dispatch__.
    _kernels.impl("_copy_from", lambda source, target, non_blocking=False: _copy(target, source), "PrivateUse1")


def _factory(name: str) -> Callable[..., Tensor]:
    def make(*args: Any, **kwargs: Any) -> Tensor:
        _check_generator(kwargs.get("generator"))
        with _random_numbers() if name == "randperm" else nullcontext():
            host = getattr(torch, name)(*args, **{**kwargs, "device": _CPU, "pin_memory": False})
        tensor = PretendedTensor(host)
        tensor.is_number = name == "scalar_tensor"
        count(name, Cost(operations=int(name not in _FREE)))
        return tensor

    return make
