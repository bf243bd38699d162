"""What Captum's methods take and what they do to a model and a batch: one table, which everything else reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from captum.attr import (
    LRP,
    Attribution,
    Deconvolution,
    DeepLift,
    DeepLiftShap,
    FeaturePermutation,
    GradientAttribution,
    GuidedBackprop,
    LayerAttribution,
    NeuronAttribution,
    NoiseTunnel,
)
from torch import nn

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.layers import ModelFromLayer

__all__ = [
    "Capabilities",
    "Hooks",
    "build_method",
    "capabilities_of",
    "check_arguments",
    "core_of",
    "known_arguments",
]


class Hooks(Enum):
    """What a method sets on the modules of a model, and so what its own copy of the model must be like."""

    NONE = "none"
    GRADIENTS = "other gradients of ReLUs, each a module of its own"
    MULTIPLIERS = "multipliers in place of gradients, of activations that are modules of their own"
    RULES = "rules for all modules, and changes of their weights"


# What cannot be read from a signature; a method that is not listed does none of it.
_HOOKS: Mapping[type[Attribution], Hooks] = {
    Deconvolution: Hooks.GRADIENTS,
    GuidedBackprop: Hooks.GRADIENTS,
    DeepLift: Hooks.MULTIPLIERS,
    LRP: Hooks.RULES,
}
# Whose distribution of baselines must hold several of them.
_LEAST_BASELINES: Mapping[type[Attribution], int] = {DeepLiftShap: 2}
# Captum's rules for these read the gradients of all examples of a batch, or of its first.
_MIXED_BY_MULTIPLIERS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Softmax)
_REFUSED: Mapping[type[Attribution], str] = {
    FeaturePermutation: (
        "FeaturePermutation shuffles features between the examples of a batch and has no use for boundary points. "
        "FeatureAblation replaces features by those of the boundary point."
    ),
}


@dataclass(frozen=True)
class Capabilities:
    """What a method takes and does. Where a NoiseTunnel is around it, that is part of the method."""

    name: str  # in messages
    baselines: str | None  # the argument for them; None for a method that is evaluated at boundary points instead
    least_baselines: int  # of an example
    shares_baselines: bool  # whether they are a distribution that all examples of a batch share
    takes_target: bool  # whether it explains an output, which LayerActivation does not
    repeats_target: bool  # whether it repeats a target of each example where it repeats the inputs
    needs_grad: bool  # whether Captum warns of inputs that do not require gradients
    has_delta: bool  # whether it has one meaningful convergence delta for each example
    has_internal_batch_size: bool  # whether it can bound what passes through the model at once
    is_random: bool  # whether noise is drawn for a whole batch, which must then not be divided
    targets_are_sides: bool  # whether the target of a model with one output is a side of it, as for our own methods
    hooks: Hooks  # what it sets on the modules of a model

    @property
    def hooks_modules(self) -> bool:
        """Whether the method sets anything on the modules of a model, and so deserves its own copy of it."""
        return self.hooks is not Hooks.NONE

    def check_hooks(self, forward_func: object) -> None:
        """Refuse a function on which the method cannot set what it has to."""
        if self.hooks_modules and not isinstance(forward_func, nn.Module):
            raise BoundaryTypeError(
                f"{self.name} hooks the layers of a model, so that forward_func must be a torch.nn.Module, but it is "
                f"{type(forward_func).__name__}."
            )

    def mixes_examples(self, forward_func: object) -> bool:
        """Whether examples of one batch would influence each other, so that the method is called for each alone."""
        if self.shares_baselines:
            return True
        return (
            self.hooks is Hooks.MULTIPLIERS
            and isinstance(forward_func, nn.Module)
            and any(isinstance(module, _MIXED_BY_MULTIPLIERS) for module in forward_func.modules())
        )


def capabilities_of(method: Attribution) -> Capabilities:
    """The row of the table for a method that was built, also for one of a user's own."""
    core = core_of(method)
    parameters = _parameters(core)
    baselines = next((name for name in ("baselines", "layer_baselines") if name in parameters), None)
    is_noisy = core is not method
    return Capabilities(
        name=_name(core),
        baselines=baselines,
        least_baselines=_entry(_LEAST_BASELINES, core, 1),
        # A required argument is a distribution, as GradientShap's is.
        shares_baselines=baselines == "baselines" and parameters[baselines].default is inspect.Parameter.empty,
        takes_target="target" in parameters,
        repeats_target=baselines != "layer_baselines",  # LayerFeatureAblation fixes the target in a closure
        needs_grad=isinstance(core, GradientAttribution),
        # The deltas of a NoiseTunnel are those of its copies, which only a common baseline makes those of the example.
        has_delta=bool(method.has_convergence_delta()) and not (is_noisy and baselines is None),
        has_internal_batch_size="internal_batch_size" in parameters,
        is_random=is_noisy,
        targets_are_sides=getattr(core, "_targets_are_sides", False),
        hooks=_entry(_HOOKS, core, Hooks.NONE),
    )


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
    if refusal := _entry(_REFUSED, core, ""):
        raise BoundaryTypeError(refusal)
    if "inputs" not in _parameters(core):
        raise BoundaryTypeError(f"{_name(core)}.attribute takes no inputs, so that it cannot be called with tensors.")
    can = capabilities_of(built)
    if can.hooks is Hooks.RULES and score == "margin":
        raise BoundaryValueError(
            f'{can.name} redistributes the value of one output, so that it cannot explain score="margin", a difference '
            'of two outputs that is zero on the boundary. Use score="output".'
        )
    if can.least_baselines > 1 and can.is_random:
        raise BoundaryTypeError(
            f"NoiseTunnel cannot hand {can.name} one boundary point for each example. Wrap DeepLift, the same for one "
            "baseline."
        )
    can.check_hooks(forward_func)
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


def known_arguments(method: Attribution) -> tuple[dict[str, inspect.Parameter], bool]:
    """All arguments of ``attribute`` and of what it passes them on to, and whether any other is taken as well."""
    links = _chain(method)
    while (built := getattr(links[-1], "_prototype", None)) is not None:  # what a boundary attribution calls
        links += _chain(built)
    parameters = [parameter for link in links for parameter in _parameters(link).values()]
    known: dict[str, inspect.Parameter] = {}
    for parameter in parameters:
        if parameter.kind is not parameter.VAR_KEYWORD:
            known.setdefault(parameter.name, parameter)
    return known, parameters[-1].kind is inspect.Parameter.VAR_KEYWORD


def check_arguments(method: Attribution, arguments: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that the method does not know, and calls that lack one it needs."""
    name = _name(core_of(method))
    baselines, layer = ("baselines", "layer_baselines"), ("attribute_to_layer_input",)
    ours = {"inputs", *baselines, "target", "additional_forward_args", "return_convergence_delta", *layer}
    known, is_open = known_arguments(method)
    options = {option: parameter for option, parameter in known.items() if option not in ours}
    unknown = [argument for argument in arguments if argument not in options]
    if unknown and not is_open:
        raise BoundaryTypeError(
            f"{name}.attribute does not know the argument {unknown[0]!r}. "
            f"Its options are: {', '.join(options) or 'none'}."
        )
    if arguments.get("draw_baseline_from_distrib"):
        raise BoundaryValueError(
            "draw_baseline_from_distrib=True would pair examples with boundary points of others. Leave it out."
        )
    for option, parameter in options.items():
        if parameter.default is parameter.empty and option not in arguments:
            raise BoundaryTypeError(f"{name}.attribute needs {option}: pass it as a keyword argument.")


def _chain(method: Attribution) -> list[Attribution]:
    """The method and, for every NoiseTunnel, what it wraps."""
    links = [method]
    while isinstance(links[-1], NoiseTunnel):
        links.append(links[-1].attribution_method)
    return links


def _entry(table: Mapping[type[Attribution], Any], method: Attribution, default: Any) -> Any:
    """The entry of the method's class, or of the nearest of its bases that has one."""
    return next((table[kind] for kind in type(method).__mro__ if kind in table), default)


def _parameters(method: Attribution) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(method.attribute).parameters


def _name(method: object) -> str:
    return getattr(method, "__name__", type(method).__name__)
