r"""Activations without kinks, for as long as a block lasts.

A network of ReLUs is piecewise linear, so the slope of its gradient is zero wherever it exists, and whatever follows a
gradient of its attributions stands still. With softplus, :math:`\log(1 + e^{\beta z}) / \beta`, in the place of
:math:`\max(z, 0)`, the network hardly changes and has curvature.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["KinksOutOfReach", "smooth_activations"]

# Softplus is taken as constant where it is below the 2e-9th part of 1 / beta. Its derivatives there are numbers so tiny
# (denormal) that processors take several times as long for them.
_CUT = 20.0

PositivePart = Callable[[Tensor], Tensor]


def smooth_activations(beta: float) -> TorchFunctionMode:
    r"""A context in which piecewise linear activations are computed as their softplus counterparts.

    Replaced are relu, leaky_relu, prelu, relu6, hardtanh and hardsigmoid, and clamp, clip and clamp_min where they
    limit at zero from below and nowhere else, as modules, functions and methods, in-place or not. The modules
    themselves are not touched. All other functions are computed as they are: those with curvature of their own (tanh,
    GELU, SiLU, ELU, hardswish), and also max pooling, ``abs``, ``maximum``, ``threshold``, ``rrelu`` and ``where``.
    Compiled and scripted code and fused kernels are out of reach: :class:`KinksOutOfReach` tells.

    Args:

        beta (float): Sharpness of the softplus: the largest difference to a ReLU is ``log(2) / beta``.
    """
    return _SmoothActivations(beta)


class KinksOutOfReach(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context, around :func:`smooth_activations`, that notes what is computed with a kink all the same.

    Activations in fused and scripted code do not pass by the functions that are replaced, but come down to the same
    kernels.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if name in _KERNELS or (name in ("clamp", "clamp_min") and _clamps_at_zero(*args, **(kwargs or {}))):
            self.names.add(name.removeprefix("_").removesuffix("_kernel"))
        return func(*args, **(kwargs or {}))


class _SmoothActivations(TorchFunctionMode):
    def __init__(self, beta: float) -> None:
        super().__init__()
        self._beta = beta

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        smooth = None if "out" in kwargs else _SMOOTH_FORMS.get(func)
        if smooth is None:
            return func(*args, **kwargs)
        arguments = inspect.signature(smooth).bind(self._positive_part, *args, **kwargs).arguments
        values = arguments["input"]
        in_place = arguments.pop("inplace", False) or func in _IN_PLACE
        arguments["input"] = values.clone() if in_place else values  # the backward pass needs them as they were
        result = smooth(**arguments)
        if result is None:
            return func(*args, **kwargs)
        return values.copy_(result) if in_place else result

    def _positive_part(self, values: Tensor) -> Tensor:
        return F.softplus(values.clamp_min(-_CUT / self._beta), self._beta)


# The activations, written with max(z, 0) alone. Their arguments have the names and defaults of torch's own functions.


def _relu(positive_part: PositivePart, input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002
    return positive_part(input)


def _leaky_relu(
    positive_part: PositivePart,
    input: Tensor,  # noqa: A002
    negative_slope: float = 0.01,
    inplace: bool = False,
) -> Tensor:
    return negative_slope * input + (1 - negative_slope) * positive_part(input)


def _prelu(positive_part: PositivePart, input: Tensor, weight: Tensor) -> Tensor:  # noqa: A002
    if weight.numel() > 1:  # one for each channel
        weight = weight.view(-1, *[1] * (input.ndim - 2))
    return weight * input + (1 - weight) * positive_part(input)


def _hardtanh(
    positive_part: PositivePart,
    input: Tensor,  # noqa: A002
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> Tensor:
    return min_val + positive_part(input - min_val) - positive_part(input - max_val)


def _relu6(positive_part: PositivePart, input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002
    return _hardtanh(positive_part, input, 0.0, 6.0)


def _hardsigmoid(positive_part: PositivePart, input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002
    return _hardtanh(positive_part, input, -3.0, 3.0) / 6 + 0.5


def _clamp(positive_part: PositivePart, input: Tensor, min: Any = None, max: Any = None) -> Tensor | None:  # noqa: A002
    return positive_part(input) if _clamps_at_zero(input, min, max) else None


def _clamps_at_zero(input: Tensor, min: Any = None, max: Any = None, **others: Any) -> bool:  # noqa: A002
    return isinstance(min, (int, float)) and min == 0 and max is None and input.is_floating_point()


def _table(
    *groups: tuple[Callable[..., Tensor | None], Iterable[Any]],
) -> dict[Any, Callable[..., Tensor | None]]:
    return {function: smooth for smooth, functions in groups for function in functions}


# Graphs that were exported call operators by name.
_ATEN = torch.ops.aten

_OUT_OF_PLACE = _table(
    (_relu, (F.relu, torch.relu, Tensor.relu, _ATEN.relu.default)),
    (_leaky_relu, (F.leaky_relu, _ATEN.leaky_relu.default)),
    (_prelu, (F.prelu, torch.prelu, Tensor.prelu, _ATEN.prelu.default)),
    (_hardtanh, (F.hardtanh, _ATEN.hardtanh.default)),
    (_relu6, (F.relu6, _ATEN.relu6.default)),
    (_hardsigmoid, (F.hardsigmoid, _ATEN.hardsigmoid.default)),
    (_clamp, (torch.clamp, torch.clip, torch.clamp_min, Tensor.clamp, Tensor.clip, Tensor.clamp_min)),
    (_clamp, (_ATEN.clamp.default, _ATEN.clamp_min.default)),
)
_IN_PLACE = _table(
    (_relu, (F.relu_, torch.relu_, Tensor.relu_, _ATEN.relu_.default)),
    (_leaky_relu, (F.leaky_relu_, _ATEN.leaky_relu_.default)),
    (_hardtanh, (F.hardtanh_, _ATEN.hardtanh_.default)),
    (_clamp, (torch.clamp_, torch.clip_, torch.clamp_min_, Tensor.clamp_, Tensor.clip_, Tensor.clamp_min_)),
    (_clamp, (_ATEN.clamp_.default, _ATEN.clamp_min_.default)),
)
_SMOOTH_FORMS = {**_OUT_OF_PLACE, **_IN_PLACE}
# What they come down to.
_KERNELS = ("relu", "leaky_relu", "_prelu_kernel", "hardtanh", "relu6", "hardsigmoid")
