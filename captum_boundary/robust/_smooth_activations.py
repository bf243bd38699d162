r"""Activations without kinks, for as long as a block lasts.

A network of ReLUs is piecewise linear, so the slope of its gradient is zero wherever it exists, and a gradient of its
attributions vanishes with it. With softplus, :math:`\log(1 + e^{\beta z}) / \beta`, in place of :math:`\max(z, 0)`,
the network hardly changes and has curvature.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from captum_boundary.errors import BoundaryValueError

__all__ = ["check_smoothed", "smooth_activations"]

# Softplus is taken as constant where it is below the 2e-9th part of 1 / beta. Its derivatives there are numbers so tiny
# (denormal) that processors take several times as long for them.
_CUT = 20.0
# Lower limits of a clamp up to this one guard a division or a logarithm. They are no activations, and stay.
_GUARD = 1e-3

PositivePart = Callable[[Tensor], Tensor]
Limit = float | Tensor | None


def smooth_activations(beta: float) -> TorchFunctionMode:
    r"""A context in which piecewise linear activations are computed as their softplus counterparts.

    Replaced are relu, leaky_relu, prelu, rrelu (in evaluation mode), relu6, hardtanh, hardsigmoid, softshrink,
    threshold (where it is continuous), clamp, clip, clamp_min and clamp_max, and maximum, minimum, fmax and fmin of two
    tensors, as modules, functions and methods, in-place or not. The modules themselves are not changed. All other
    functions are computed as they are: those with curvature of their own (tanh, GELU, SiLU, ELU, hardswish), max
    pooling, ``abs``, and clamps at a lower limit of at most 1e-3 that guard a division or logarithm.
    :func:`check_smoothed` refuses models with other kinks.

    Args:

        beta (float): Sharpness of the softplus: the largest difference to a ReLU is ``log(2) / beta``.
    """
    return _SmoothActivations(beta)


def check_smoothed(forward_pass: Callable[[Tensor], object], point: Tensor, beta: float) -> None:
    """Refuse kinks that :func:`smooth_activations` leaves in a forward pass from ``point``.

    Activations in fused and scripted code are not replaced, but come down to the same kernels; and a comparison of
    values, such as ``x > 0``, selects or multiplies others.
    """
    leaf = point.clone().requires_grad_()
    with torch.enable_grad(), _RemainingKinks(leaf, beta) as kinks:
        forward_pass(leaf)
    if kinks.names:
        raise BoundaryValueError(
            f"smooth='softplus' does not reach every activation: {', '.join(sorted(kinks.names))}. It replaces "
            "activations, clamp, maximum and minimum that the model calls itself. Scripted modules and nn.RNN with "
            "nonlinearity='relu' compute them inside of fused code: give the model from before it was scripted, with "
            "its activations written out. A comparison of activations, such as x * (x > 0) or torch.where(x > 0, ...), "
            "has no smooth form: write it with torch.relu or torch.maximum, or leave smooth out."
        )


class _RemainingKinks(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context, around :func:`smooth_activations`, that notes what is computed with a kink all the same."""

    def __init__(self, point: Tensor, beta: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()
        self._cut = -_CUT / beta  # the limit of our own clamps
        self._dependent: dict[int, Tensor] = {}  # tensors that depend on the point, by memory, which they keep alive
        self._note(point)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        dependent = [leaf for leaf in tree_leaves((args, kwargs)) if self._depends(leaf)]
        if not dependent:
            return result
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if any(tensor.is_floating_point() for tensor in results):
            if name in _KERNELS or (name in _CLAMPS and self._has_kink(name, *args, **kwargs)):
                self.names.add(name.removeprefix("_").removesuffix("_kernel").removesuffix("_with_noise"))
            if any(tensor.dtype == torch.bool for tensor in dependent):
                self.names.add(f"{name.removeprefix('_')} of a comparison")
        if name not in _EQUALITIES:
            for tensor in results:
                self._note(tensor)
        return result

    def _has_kink(self, name: str, values: Tensor, *limits: Any, **named: Any) -> bool:
        limit_of = dict(zip(("max",) if name == "clamp_max" else ("min", "max"), limits, strict=False)) | named
        return limit_of.get("min") != self._cut and _clamps(values, limit_of.get("min"), limit_of.get("max"))

    def _depends(self, value: object) -> bool:
        return isinstance(value, Tensor) and _memory(value) in self._dependent

    def _note(self, tensor: Tensor) -> None:
        if _memory(tensor):
            self._dependent[_memory(tensor)] = tensor


def _memory(tensor: Tensor) -> int:
    return 0 if tensor.layout != torch.strided else tensor.untyped_storage()._cdata


class _SmoothActivations(TorchFunctionMode):
    def __init__(self, beta: float) -> None:
        super().__init__()
        self._beta = beta

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {name: value for name, value in (kwargs or {}).items() if name != "out" or value is not None}
        # Functions, methods and operators of exported graphs share a name: relu, relu_ (in-place), relu_.default.
        name = getattr(func, "__name__", "").partition(".")[0]
        smooth = None if "out" in kwargs else _SMOOTH_FORMS.get(name.strip("_"))
        if smooth is None:
            return func(*args, **kwargs)
        arguments = inspect.signature(smooth).bind(self._positive_part, *args, **kwargs).arguments
        values = arguments["input"]
        in_place = arguments.pop("inplace", False) or name.endswith("_")
        arguments["input"] = values.clone() if in_place else values  # the backward pass needs them as they were
        result = smooth(**arguments)
        if result is None:
            return func(*args, **kwargs)
        return values.copy_(result) if in_place else result

    def _positive_part(self, values: Tensor) -> Tensor:
        return F.softplus(values.clamp_min(-_CUT / self._beta), self._beta)


# The activations, written with max(z, 0) alone. Their arguments have the names and defaults of torch's own functions.
# ruff: noqa: A002


def _relu(positive_part: PositivePart, input: Tensor, inplace: bool = False) -> Tensor:
    return positive_part(input)


def _leaky_relu(
    positive_part: PositivePart, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    return negative_slope * input + (1 - negative_slope) * positive_part(input)  # a z for z < 0, else z


def _prelu(positive_part: PositivePart, input: Tensor, weight: Tensor) -> Tensor:
    if weight.numel() > 1:  # one for each channel
        weight = weight.view(-1, *[1] * (input.ndim - 2))
    return weight * input + (1 - weight) * positive_part(input)


def _hardtanh(
    positive_part: PositivePart, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    # A slope of one between the limits: the second part takes it back from the upper one on.
    return min_val + positive_part(input - min_val) - positive_part(input - max_val)


def _relu6(positive_part: PositivePart, input: Tensor, inplace: bool = False) -> Tensor:
    return _hardtanh(positive_part, input, 0.0, 6.0)


def _hardsigmoid(positive_part: PositivePart, input: Tensor, inplace: bool = False) -> Tensor:
    return _hardtanh(positive_part, input, -3.0, 3.0) / 6 + 0.5


def _rrelu(
    positive_part: PositivePart,
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor | None:
    return None if training else _leaky_relu(positive_part, input, (lower + upper) / 2)


def _softshrink(positive_part: PositivePart, input: Tensor, lambd: float = 0.5) -> Tensor:
    return positive_part(input - lambd) - positive_part(-input - lambd)


def _threshold(
    positive_part: PositivePart, input: Tensor, threshold: float, value: float, inplace: bool = False
) -> Tensor | None:
    return threshold + positive_part(input - threshold) if value == threshold else None


def _clamp(positive_part: PositivePart, input: Tensor, min: Limit = None, max: Limit = None) -> Tensor | None:
    if not _clamps(input, min, max):
        return None
    if min is None:
        assert max is not None
        return max - positive_part(max - input)
    rises = min + positive_part(input - min)
    return rises if max is None else rises - positive_part(input - max)


def _clamp_max(positive_part: PositivePart, input: Tensor, max: Limit) -> Tensor | None:
    return _clamp(positive_part, input, max=max)


def _maximum(positive_part: PositivePart, input: Tensor, other: Any = None, *args: Any, **others: Any) -> Tensor | None:
    if not isinstance(other, Tensor) or not input.is_floating_point():  # that along a dimension
        return None
    return other + positive_part(input - other)


def _minimum(positive_part: PositivePart, input: Tensor, other: Any = None, *args: Any, **others: Any) -> Tensor | None:
    if not isinstance(other, Tensor) or not input.is_floating_point():
        return None
    return other - positive_part(other - input)


def _clamps(input: Tensor, min: Limit, max: Limit) -> bool:
    """Whether a clamp is an activation, with a kink."""
    if not input.is_floating_point() or (min is None and max is None):
        return False
    is_guard = max is None and isinstance(min, (int, float)) and 0 < min <= _GUARD
    return not is_guard


_SMOOTH_FORMS: Mapping[str, Callable[..., Tensor | None]] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "rrelu": _rrelu,
    "hardtanh": _hardtanh,
    "relu6": _relu6,
    "hardsigmoid": _hardsigmoid,
    "softshrink": _softshrink,
    "threshold": _threshold,
    **dict.fromkeys(("clamp", "clip", "clamp_min"), _clamp),
    "clamp_max": _clamp_max,
    **dict.fromkeys(("maximum", "max", "fmax"), _maximum),
    **dict.fromkeys(("minimum", "min", "fmin"), _minimum),
}
# What they come down to, and activations that jump.
_KERNELS = (
    *("relu", "leaky_relu", "_prelu_kernel", "rrelu_with_noise", "hardtanh", "relu6", "hardsigmoid"),
    *("softshrink", "hardshrink", "threshold", "maximum", "minimum", "fmax", "fmin"),
)
_CLAMPS = ("clamp", "clamp_min", "clamp_max")
# Comparisons that change at single points alone, such as those that look for padding or NaN.
_EQUALITIES = ("eq", "ne", "isnan", "isinf", "isfinite")
