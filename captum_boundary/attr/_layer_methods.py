r"""Captum's layer methods with boundary points in the layer, and models whose layer they can hook.

Captum's layer methods take baselines in the space of the inputs, whereas a boundary point lies in that of the layer. So
they are given a model whose inputs are the activations, with a layer that passes them on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from captum.attr import Attribution
from torch import Tensor, nn

from captum_boundary._core.captum_helpers import format_additional_forward_args
from captum_boundary.attr._methods import Hooks, build_method, capabilities_of
from captum_boundary.attr._rewrite import copy_model, hookable_copy
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.layers import ModelFromLayer
from captum_boundary.layers.model_from_layer import n_activations_of

__all__ = ["HookableFromLayer", "build_layer_method", "for_activations", "hookable_from_layer"]


class _OfActivations:
    """A layer method as a method for a function of activations; a class, since it must pickle."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        self.__name__ = getattr(method, "__name__", type(method).__name__)

    def __call__(self, forward_func: Callable[..., Any]) -> Any:
        model = _ThroughLayer(forward_func)
        return self.method(model, model.layer)


def for_activations(method: Callable[..., Any]) -> Callable[..., Any]:
    """What builds the method from a function of activations: the method itself, unless it wants a layer as well."""
    return _OfActivations(method) if callable(method) and _wants_layer(method) else method


def _wants_layer(method: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return any(p.name == "layer" and p in required for p in parameters) or len(required) == 2


def build_layer_method(method: Callable[..., Any], from_layer: ModelFromLayer, score: str) -> Attribution:
    """Build the method for activations, or say why it cannot be used with them."""
    built = build_method(method, from_layer, score)
    can = capabilities_of(built)
    if can.hooks is Hooks.RULES:
        raise BoundaryTypeError(
            "LRP has no rule for a model that is evaluated from a layer on. Write what follows the layer as a model of "
            "its own, for BoundaryAttribution(upper, LRP), or use LayerDeepLift, which is the nearest to it."
        )
    can.check_hooks(from_layer.forward_func)
    if can.hooks_modules and len(from_layer.layers) > 1:
        raise BoundaryTypeError(
            f"{can.name} hooks the layers of a model, and can begin with one layer, but layer holds "
            f"{len(from_layer.layers)}. LayerIntegratedGradients takes several."
        )
    return built


class _ThroughLayer(nn.Module):
    """A function of activations, which first pass through a layer that returns them as they are."""

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        super().__init__()
        self.forward_func = forward_func
        self.layer = _Unchanged()

    def forward(self, *activations_and_arguments: Any) -> Any:
        n = n_activations_of(activations_and_arguments)
        activations = self.layer(*activations_and_arguments[:n])
        activations = activations if isinstance(activations, tuple) else (activations,)
        return self.forward_func(*activations, *activations_and_arguments[n:])


class _Unchanged(nn.Module):
    def forward(self, *activations: Tensor) -> Tensor | tuple[Tensor, ...]:
        return activations if len(activations) > 1 else activations[0]


class HookableFromLayer(ModelFromLayer):
    """A model from a layer on whose modules may be hooked: a copy that was made for it."""


def hookable_from_layer(
    from_layer: ModelFromLayer, method: Attribution, inputs: Any, additional_forward_args: object
) -> tuple[HookableFromLayer, tuple[Any, ...]]:
    """The same in a copy of the model, in which the layer can be found although other modules are rewritten.

    Its arguments at the inputs come with it.
    """
    model, (layer,) = from_layer.forward_func, from_layer.layers
    paths = [name for name, module in model.named_modules(remove_duplicate=False) if module is layer]
    marked = copy_model(model)
    own = _Marked(marked.get_submodule(paths[0]), from_layer.attribute_to_layer_input)
    for path in filter(None, paths):
        parent, _, name = path.rpartition(".")
        marked.get_submodule(parent)._modules[name] = own
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    further = format_additional_forward_args(additional_forward_args)
    copied = hookable_copy(marked if paths[0] else own, method, (*tensors, *further), n_attributed=0)
    for path in paths:  # by any of which the model may call the layer
        marker = ".".join(filter(None, (path, "before" if from_layer.attribute_to_layer_input else "after")))
        with suppress(AttributeError, BoundaryValueError):
            hookable = HookableFromLayer(copied, copied.get_submodule(marker))
            return hookable, hookable.at(inputs, additional_forward_args)[1]
    raise BoundaryValueError(
        f"The layer, {type(layer).__name__}, cannot be found in the copy of the model that {type(method).__name__} "
        "hooks. Choose a layer that the model calls itself, or a method that needs no hooks, such as "
        "LayerIntegratedGradients."
    )


class _Marked(nn.Module):
    """A layer with a module of its own before and after it, which keep their names when others are rewritten."""

    is_marker = True

    def __init__(self, layer: nn.Module, at_input: bool) -> None:
        super().__init__()
        self.before, self.layer, self.after = nn.Identity(), layer, nn.Identity()
        (self.before if at_input else self.after).is_attributed_to = True  # type: ignore[assignment]
        self.train(layer.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        marked = self.before(args)
        return self.after(self.layer(*(marked[index] for index in range(len(args))), **kwargs))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["layer"], name)
