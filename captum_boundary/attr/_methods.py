"""What must be known of a Captum method to ask it about boundary points."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from captum.attr import (
    LRP,
    Attribution,
    Deconvolution,
    DeepLift,
    DeepLiftShap,
    FeaturePermutation,
    GuidedBackprop,
    LayerAttribution,
    NeuronAttribution,
    NoiseTunnel,
)
from torch import nn

from captum_boundary.attr._activations import separate_activations
from captum_boundary.attr._max_pooling import pool_in_batches
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.layers import ModelFromLayer

__all__ = [
    "baseline_argument",
    "build_method",
    "check_arguments",
    "core_of",
    "has_delta",
    "hookable_copy",
    "hooks_modules",
    "inside_parallel",
    "mixes_examples",
    "takes_baselines",
    "takes_target",
]


def build_method(method: Callable[..., Any], forward_func: Callable[..., Any], score: str) -> Attribution:
    """Build the Captum method for ``forward_func``, or say why it cannot explain an input from its boundary."""
    if not callable(method):
        raise BoundaryTypeError(
            "method must be a callable that builds a Captum attribution from a forward function, such as the class "
            f"IntegratedGradients, but it is a {type(method).__name__}. Pass the class, not an instance of it."
        )
    if inspect.isclass(method):
        _refuse_layers_and_neurons(method, forward_func)
    try:
        built = method(forward_func)
    except Exception as error:
        raise BoundaryTypeError(
            f"{_name(method)} could not be built from the forward function alone ({error}). If it needs more "
            "arguments, give them with functools.partial or a lambda."
        ) from error
    if not isinstance(built, Attribution):
        raise BoundaryTypeError(
            f"method must build a captum.attr.Attribution, but {_name(method)} returned {type(built).__name__}."
        )
    core = core_of(built)
    _refuse_layers_and_neurons(type(core), forward_func)
    if isinstance(core, FeaturePermutation):
        raise BoundaryTypeError(
            "FeaturePermutation shuffles features between the examples of a batch and has no use for boundary points. "
            "FeatureAblation replaces features by those of the boundary point."
        )
    if "inputs" not in _parameters(core):
        raise BoundaryTypeError(f"{_name(core)}.attribute takes no inputs, so that it cannot be asked about tensors.")
    if isinstance(core, LRP) and score == "margin":
        raise BoundaryValueError(
            'LRP redistributes the value of one output, so that it cannot explain score="margin", a difference of two '
            'outputs that is zero on the boundary. Use score="output".'
        )
    if isinstance(core, DeepLiftShap) and core is not built:
        raise BoundaryTypeError(
            "NoiseTunnel cannot hand DeepLiftShap one boundary point for each example. Wrap DeepLift, the same "
            "for one baseline."
        )
    if hooks_modules(built) and not isinstance(forward_func, nn.Module):
        raise BoundaryTypeError(
            f"{_name(core)} hooks the layers of a model, so that forward_func must be a torch.nn.Module, "
            f"but it is {type(forward_func).__name__}."
        )
    return built


def _refuse_layers_and_neurons(kind: type, forward_func: Callable[..., Any]) -> None:
    if issubclass(kind, NeuronAttribution):
        raise BoundaryTypeError(
            f"{kind.__name__} explains a neuron, whereas a boundary is that of the model's decision. Use the method "
            "for inputs of the same name, with a forward function whose one output is the neuron's less a threshold."
        )
    if issubclass(kind, LayerAttribution) and not isinstance(forward_func, ModelFromLayer):
        raise BoundaryTypeError(
            f"{kind.__name__} explains a layer, whereas a boundary point is an input of the whole model. Use the "
            "method for inputs of the same name, or LayerBoundaryAttribution, whose boundary points lie in the layer."
        )


def core_of(method: Attribution) -> Attribution:
    """The method itself or, if it is a NoiseTunnel, what it wraps."""
    return _chain(method)[-1]


def takes_baselines(method: Attribution) -> bool:
    """Whether boundary points are the method's baselines; if not, it is evaluated at them."""
    return baseline_argument(method) is not None


def baseline_argument(method: Attribution) -> str | None:
    """What the method calls its baselines, if it takes any."""
    parameters = _parameters(core_of(method))
    return next((name for name in ("baselines", "layer_baselines") if name in parameters), None)


def takes_target(method: Attribution) -> bool:
    """Whether the method explains an output, which LayerActivation does not."""
    return "target" in _parameters(core_of(method))


def has_delta(method: Attribution) -> bool:
    """Whether the method has one meaningful convergence delta for each example."""
    averages_deltas = isinstance(method, NoiseTunnel) and not takes_baselines(method)
    return bool(method.has_convergence_delta()) and not averages_deltas


def hooks_modules(method: Attribution) -> bool:
    """Whether the method sets hooks or attributes on all layers of a model, and so deserves its own copy of it."""
    return isinstance(core_of(method), DeepLift | Deconvolution | GuidedBackprop | LRP)


def inside_parallel(model: Any) -> Any:
    """What parallel wrappers wrap, which hooks must not meet on several devices."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def hookable_copy(model: nn.Module, method: Attribution, inputs: tuple[Any, ...]) -> nn.Module:
    """A copy of ``model`` for ``method`` to hook, made anew for every call since weights may change between calls.

    DeepLift and guided backpropagation need every activation to be a module of its own; LRP brings its own rules for
    the modules that it finds.
    """
    if isinstance(model, ModelFromLayer):
        raise BoundaryTypeError(
            f"{_name(core_of(method))} hooks the modules of a model, which a model from a layer on does not own. Use "
            "LayerBoundaryAttribution, which gives it a copy of its own."
        )
    core = core_of(method)
    if isinstance(core, LRP):
        return copy.deepcopy(model)
    separated = separate_activations(model, inputs)
    return pool_in_batches(separated, core.eps) if isinstance(core, DeepLift) else separated


def mixes_examples(method: Attribution, forward_func: Callable[..., Any]) -> bool:
    """Whether examples of one batch would influence each other, so that each must be asked about alone.

    A required ``baselines`` is a distribution that all examples share, as in GradientShap. Captum's rules for
    softmax and for max pooling, where we have not replaced it, read the gradients of all examples or of the first.
    """
    core = core_of(method)
    parameters = _parameters(core)
    if "baselines" in parameters and parameters["baselines"].default is inspect.Parameter.empty:
        return True
    mixing = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Softmax)
    return (
        isinstance(core, DeepLift)
        and isinstance(forward_func, nn.Module)
        and any(isinstance(module, mixing) for module in forward_func.modules())
    )


def check_arguments(method: Attribution, arguments: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that the method does not know, and calls that lack one it needs."""
    links = _chain(method)
    baselines, layer = ("baselines", "layer_baselines"), ("attribute_to_layer_input",)
    ours = {"inputs", *baselines, "target", "additional_forward_args", "return_convergence_delta", *layer}
    parameters = [parameter for link in links for parameter in _parameters(link).values()]
    options = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in ours]
    is_open = parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    unknown = [name for name in arguments if name not in options]
    if unknown and not is_open:
        raise BoundaryTypeError(
            f"{_name(links[-1])}.attribute does not know the argument {unknown[0]!r}. "
            f"Its options are: {', '.join(options) or 'none'}."
        )
    if arguments.get("draw_baseline_from_distrib"):
        raise BoundaryValueError(
            "draw_baseline_from_distrib=True would pair examples with boundary points of others. Leave it out."
        )
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name in options and parameter.name not in arguments:
            raise BoundaryTypeError(
                f"{_name(links[-1])}.attribute needs {parameter.name}: pass it as a keyword argument."
            )


def _chain(method: Attribution) -> list[Attribution]:
    """The method and, for every NoiseTunnel, what it wraps."""
    links = [method]
    while isinstance(links[-1], NoiseTunnel):
        links.append(links[-1].attribution_method)
    return links


def _parameters(method: Attribution) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(method.attribute).parameters


def _name(method: object) -> str:
    return getattr(method, "__name__", type(method).__name__)
