"""The modules behind a forward function: inside of wrappers, partials, methods and closures; what a module returns."""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["modules_of", "outputs_recorded", "unwrapped"]

_METHODS = frozenset({"__call__", "forward", "_call_impl", "_wrapped_call_impl"})
# How far references are followed from a function to modules: a container in a closure within a partial is 3.
_MAX_DEPTH = 4
_MAX_ENTRIES = 1000  # of a container


def unwrapped(function: Any, partials: bool = False) -> Any:
    """The model inside of ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``.

    With ``partials``, partials and the methods ``forward`` and ``__call__`` stand for what is inside them, too.
    """
    while True:
        attributes = getattr(function, "__dict__", {})
        if isinstance(function, nn.DataParallel | nn.parallel.DistributedDataParallel):
            function = function.module
        elif "_orig_mod" in attributes.get("_modules", ()):  # a compiled module
            function = function._orig_mod
        elif "_torchdynamo_orig_callable" in attributes:  # a compiled function
            function = attributes["_torchdynamo_orig_callable"]
        elif partials and isinstance(function, functools.partial):
            function = function.func
        elif partials and getattr(function, "__name__", None) in _METHODS and hasattr(function, "__self__"):
            function = function.__self__
        else:
            return function


def modules_of(function: Any) -> list[nn.Module]:
    """All modules that a forward function can be seen to hold, each once.

    Those of a module are its submodules. Those of another function are looked for in what it refers to: its object,
    closure, defaults, the globals that its code names, the attributes of a callable object, and containers of these.
    """
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    pending = [(function, 0)]
    while pending:
        value, depth = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        references = list(_references(value)) if depth < _MAX_DEPTH else []
        if isinstance(value, nn.Module):
            found.update((id(module), module) for module in value.modules())
            # A module may hold a function around other modules.
            attributes = [each for module in value.modules() for each in vars(module).values()]
            references = [each for each in attributes if callable(each) and not isinstance(each, nn.Module | type)]
        pending.extend((each, depth + 1) for each in references)
    return list(found.values())


@contextmanager
def outputs_recorded(module: nn.Module) -> Iterator[list[Any]]:
    """What a module returns in this thread, call by call. What follows it gets a copy, which it may change in place."""
    outputs: list[Any] = []
    thread = threading.get_ident()

    def record(_: nn.Module, __: Any, output: Any) -> Any:
        if threading.get_ident() != thread:
            return output
        outputs.append(output)
        return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)

    handle = module.register_forward_hook(record)
    try:
        yield outputs
    finally:
        handle.remove()


def _references(value: Any) -> Iterator[Any]:
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        yield from _references_of_function(value)
    elif isinstance(value, dict):
        yield from list(value.values())[:_MAX_ENTRIES]
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from list(value)[:_MAX_ENTRIES]
    elif callable(value) and not isinstance(value, type):
        yield from list(getattr(value, "__dict__", {}).values())


def _references_of_function(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from function.__dict__.values()  # of decorators: __wrapped__, compiled functions
    pending = [function.__code__]
    while pending:
        code = pending.pop()
        yield from (function.__globals__[name] for name in code.co_names if name in function.__globals__)
        pending.extend(constant for constant in code.co_consts if isinstance(constant, types.CodeType))
