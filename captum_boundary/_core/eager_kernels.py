"""Kernels that have second derivatives, in place of fused and compiled ones, for the model at hand alone.

What PyTorch lets be chosen for one thread, or for one module, is chosen there. Three settings it has for the whole
process alone: they are changed for models that need it, while any thread does, and put back by the last one. Other
threads get the same numbers meanwhile, from other kernels.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from captum_boundary.errors import BoundaryValueError

__all__ = ["math_attention", "native_recurrence", "uncompile", "without_compiled_code"]


class _ProcessSetting:
    """A setting of the whole process, changed as long as any thread needs it."""

    def __init__(self, changed: Callable[[], AbstractContextManager[object]]) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._n_users = 0
        self._stack = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._n_users == 0:
                self._stack.enter_context(self._changed())
            self._n_users += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_users -= 1
                if self._n_users == 0:
                    self._stack.close()


@contextmanager
def _cudnn_off() -> Iterator[None]:
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled


_without_cudnn = _ProcessSetting(_cudnn_off)
_math_attention_of_scripts = _ProcessSetting(lambda: sdpa_kernel(SDPBackend.MATH))
_all_code_eager = _ProcessSetting(lambda: torch.compiler.set_stance("force_eager"))


def native_recurrence(model: Callable[..., Any]) -> AbstractContextManager[None]:
    """Recurrent layers without cuDNN, which has no second derivatives of them, and in evaluation mode not even one."""
    is_recurrent = isinstance(model, nn.Module) and any(isinstance(each, nn.RNNBase) for each in model.modules())
    return _without_cudnn() if is_recurrent else nullcontext()


@contextmanager
def math_attention(model: Callable[..., Any]) -> Iterator[None]:
    """Attention by matrix products and a softmax: fused kernels have no second derivatives."""
    with ExitStack() as stack:
        if isinstance(model, nn.Module) and any(map(_calls_attention, _scripts_of(model))):
            stack.enter_context(_math_attention_of_scripts())
        stack.enter_context(_MathAttention())
        yield


def _scripts_of(module: nn.Module) -> Iterator[torch.jit.ScriptModule]:
    if isinstance(module, torch.jit.ScriptModule):
        yield module
    else:
        for child in module.children():
            yield from _scripts_of(child)


def _calls_attention(script: torch.jit.ScriptModule) -> bool:
    try:
        return "attention" in str(script.inlined_graph)
    except (AttributeError, RuntimeError):  # it has methods of other names than forward
        return True


class _MathAttention(TorchFunctionMode):
    """In this thread alone."""

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _IN_PLACE_OF.get(func, func)(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    device = query.device.type
    with ExitStack() as stack:
        if torch.is_autocast_enabled(device):  # it would cast what the fused function is given, and nothing in it
            dtype = torch.get_autocast_dtype(device)
            query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
            stack.enter_context(torch.autocast(device, enabled=False))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            attn_mask = attn_mask.to(query.dtype)
        attended: Tensor = torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, None, **options
        )[0]
        return attended


def _with_globals(function: Any, **names: Any) -> Any:
    """A function of one's own with the same code, where some of the names that it looks up mean something else."""
    copied = types.FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__)
    copied.__defaults__, copied.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return copied


_IN_PLACE_OF = {
    scaled_dot_product_attention: _attention,
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
    # Of a function that asks for modes itself, none sees what it calls.
    multi_head_attention_forward: _with_globals(
        multi_head_attention_forward,
        has_torch_function=lambda _: False,
        scaled_dot_product_attention=_attention,
    ),
}


@contextmanager
def without_compiled_code(model: Callable[..., Any]) -> Iterator[None]:
    """The model without what ``torch.compile`` made of its modules and functions: that has no second derivatives."""
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            modules = list(model.modules())
            uncompile(modules, stack)
            if any(map(_is_compiled_function, _functions_of(modules))):
                if not hasattr(torch.compiler, "set_stance"):
                    raise BoundaryValueError(
                        "The model calls functions that are compiled, and compiled code has no second derivatives. "
                        "Before torch 2.6 they cannot be run otherwise: compile the whole, torch.compile(model), or "
                        "take a newer torch."
                    )
                stack.enter_context(_all_code_eager())
        yield


def uncompile(modules: Iterable[nn.Module], stack: ExitStack) -> None:
    """Let modules compute as they were before they were compiled, until the stack is left."""
    for module in modules:
        if "_orig_mod" in module._modules:  # torch.compile(module)
            stack.callback(setattr, module, "forward", module.forward)
            module.forward = module._orig_mod.__call__  # type: ignore[operator]
        if getattr(module, "_compiled_call_impl", None) is not None:  # module.compile()
            stack.callback(setattr, module, "_compiled_call_impl", module._compiled_call_impl)
            module._compiled_call_impl = None


def _functions_of(modules: list[nn.Module]) -> Iterator[Any]:
    """What modules hold, and what their forward methods name."""
    for module in modules:
        if "_orig_mod" not in module._modules:
            yield from vars(module).values()
    for kind in {type(module) for module in modules}:
        forward = getattr(kind, "forward", None)  # of scripted modules there is none
        if isinstance(forward, types.FunctionType):
            names = forward.__globals__
            yield from (names[name] for name in forward.__code__.co_names if name in names)


def _is_compiled_function(value: Any) -> bool:
    return callable(value) and "_torchdynamo_orig_callable" in getattr(value, "__dict__", ())
