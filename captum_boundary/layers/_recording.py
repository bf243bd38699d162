"""One pass through a model, written down: which modules were called, within which, and what they returned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from captum_boundary._core.eager_kernels import uncompile
from captum_boundary._core.failures import types_and_exports_explained
from captum_boundary._core.modules import modules_of
from captum_boundary._core.outputs import call_model
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.layers._origins import Origins

__all__ = ["Call", "Pass", "as_written", "copied", "forward_replaced", "layers_of", "names_of", "record"]


@dataclass(eq=False)
class Call:
    """A call of a module, and those within it."""

    module: nn.Module
    output: Any = None
    calls: list[Call] = field(default_factory=list)


@dataclass(eq=False)
class Pass:
    """What happened in a pass up to the layers, what went in there and came out, and what came out in the end.

    ``before`` are the calls that were over when the first layer began, except those within others, in their order.
    """

    before: list[Call] = field(default_factory=list)
    layer_inputs: Any = None  # positional and keyword ones, of the first layer
    is_computed: tuple[bool, ...] = ()  # the positional ones, if origins were asked for: by the model, of its inputs
    layer_outputs: dict[int, Any] = field(default_factory=dict)  # by the number of the layer
    output: Any = None


def record(
    forward_func: Callable[..., Any],
    layers: tuple[nn.Module, ...],
    inputs: tuple[Tensor, ...],
    arguments: tuple[Any, ...],
    origins: Origins | None = None,
) -> Pass:
    """Evaluate the model once. Tensors are copied, since a model may change them later on in the same pass."""
    inputs, arguments = copied((inputs, arguments))
    happened = Pass()
    within = chain.from_iterable(layer.modules() for layer in layers)
    modules = {id(module): module for module in (*modules_of(forward_func), *within)}
    root = Call(nn.Identity())
    running = [root]

    def enter(module: nn.Module, _: Any) -> None:
        call = Call(module)
        running[-1].calls.append(call)
        running.append(call)

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        while (call := running.pop()).module is not module:  # one that ended in an exception, which the model caught
            pass
        if happened.layer_inputs is None:
            if origins is not None and isinstance(module, torch.jit.ScriptModule):
                origins.add(output)  # what happens within is not seen
            call.output = copied(output)

    def in_layer(number: int, layer_forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if number in happened.layer_outputs:
            raise BoundaryValueError(
                f"The layer, {type(layers[number]).__name__}, is called several times in one pass, so that it has no "
                "one place to begin from. Use a module of its own for each call, or the layer before or after it."
            )
        if happened.layer_inputs is None:
            happened.before = [call for parent in running for call in parent.calls if call not in running]
            if origins is not None:
                happened.is_computed = tuple(leaf in origins for leaf in tree_flatten(args)[0])
            happened.layer_inputs = copied((args, kwargs))
        output = layer_forward(*args, **kwargs)
        happened.layer_outputs[number] = copied(output)
        return output

    with ExitStack() as stack:
        for module in modules.values():
            with suppress(RuntimeError):  # scripted modules refuse hooks: they are evaluated as they are
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave, prepend=True).remove)
        for number, layer in enumerate(layers):
            stack.enter_context(forward_replaced(layer, partial(in_layer, number, layer.forward)))
        if origins is not None:
            origins.add(inputs)
            stack.enter_context(origins)
        with types_and_exports_explained(forward_func, inputs):
            happened.output = copied(call_model(forward_func, inputs, arguments))
    for layer in (layer for number, layer in enumerate(layers) if number not in happened.layer_outputs):
        raise BoundaryValueError(
            f"The layer, {type(layer).__name__}, was not called when the model was evaluated. Give a module that takes "
            "part in the forward pass, of this very model: not of a copy of it, and not of one that was scripted. "
            "Where several modules share a weight, as embeddings of encoders and decoders do, the one that is called."
        )
    return happened


@contextmanager
def as_written(function: Any) -> Iterator[None]:
    """Let the modules of a function compute as they are written, neither compiled nor fused.

    So each of them can be left out by itself. Nothing but these very modules is changed.
    """
    with ExitStack() as stack:
        modules = modules_of(function)
        uncompile(modules, stack)
        for module in modules:
            if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
                stack.callback(setattr, module, "use_nested_tensor", True)
                module.use_nested_tensor = False
        yield


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else, with its hooks around it as ever."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def layers_of(layer: Any) -> tuple[nn.Module, ...]:
    """The layers that are given as one module, or as several."""
    layers = layer.values() if isinstance(layer, nn.ModuleDict) else layer
    layers = tuple(layers) if isinstance(layer, list | tuple | nn.ModuleList | nn.ModuleDict) else (layers,)
    for module in layers:
        if not isinstance(module, nn.Module):
            raise BoundaryTypeError(
                "layer must be a torch.nn.Module of the model, such as model.embedding, or a list of them, but it is "
                f"{type(module).__name__}."
            )
    if not 0 < len(layers) == len(set(layers)):
        raise BoundaryValueError(
            f"layer must hold at least one module, each of them once, but it holds {len(layers)}, of which "
            f"{len(set(layers))} are different."
        )
    return layers


def names_of(layers: tuple[nn.Module, ...]) -> str:
    """What layers are called in messages."""
    return " and ".join(type(layer).__name__ for layer in layers)


def copied(value: Any) -> Any:
    """Nested values, with copies of the tensors."""
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, value)
