"""DeepLift's rescale rule for elementwise functions that Captum knows none for, and the names of what has no rule.

DeepLift (https://arxiv.org/abs/1704.02685, section 3.5.1) replaces the derivative of an activation y = f(x) by its mean
slope between input and baseline, (f(x) - f(x')) / (x - x'). This is exact for any function of one variable, so that
attributions add up. What combines two computed values, as products and attention do, has no such rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from captum_boundary.layers._origins import Origins

__all__ = ["Unruled", "rescale_elementwise"]

_ACTIVATIONS = (
    F.gelu, F.silu, F.mish, F.selu, F.celu, F.relu6, F.hardswish, F.hardsigmoid, F.hardtanh, F.logsigmoid, F.softsign,
    F.tanhshrink, F.softshrink, F.hardshrink, F.threshold, torch.selu, torch.celu, torch.hardshrink,
)  # fmt: skip
_FUNCTIONS = (
    "abs", "atan", "ceil", "clamp", "clamp_max", "clamp_min", "cos", "erf", "exp", "expm1", "floor", "log", "log10",
    "log1p", "log2", "pow", "reciprocal", "round", "rsqrt", "sign", "sin", "sqrt", "square",
)  # fmt: skip
# Not those that Captum's own rules are for: they are modules by now.
ELEMENTWISE: frozenset[Any] = frozenset(
    {*_ACTIVATIONS, *(getattr(owner, name) for owner in (torch, Tensor) for name in _FUNCTIONS), Tensor.__pow__}
)
# Linear in each operand: no rule is missing unless several of them depend on the inputs.
_PRODUCTS = frozenset((
    "mul", "__mul__", "__rmul__", "mul_", "__imul__", "multiply", "matmul", "__matmul__", "__rmatmul__",
    "bmm", "mm", "mv", "baddbmm", "addmm", "addbmm", "einsum", "dot", "outer", "inner", "tensordot",
    "bilinear", "linear", "conv1d", "conv2d", "conv3d", "lerp",
))  # fmt: skip
_QUOTIENTS = frozenset((
    "div", "__truediv__", "true_divide", "divide", "__rdiv__", "__rtruediv__", "div_", "__itruediv__",
))  # fmt: skip
_OTHERS = frozenset((
    "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "normalize", "lstm",
    "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "glu", "prelu",
    "rrelu", "var", "std", "var_mean", "std_mean", "norm", "vector_norm", "matrix_norm", "dist", "cdist",
    "cosine_similarity", "logsumexp", "log_softmax", "softmin", "amax", "amin", "max", "min", "maximum",
    "minimum", "cumprod", "prod", "median", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "lp_pool1d", "lp_pool2d", "scaled_dot_product_attention",
    "multi_head_attention_forward", "_transformer_encoder_layer_fwd", "_native_multi_head_attention",
))  # fmt: skip


def rescale_elementwise(model: nn.Module, eps: float) -> nn.Module:
    """Let a copy of a model, whose batches are inputs and then their baselines, apply the rescale rule itself."""
    forward = model.forward

    def forward_with_rules(*arguments: Any, **kwargs: Any) -> Any:
        n_rows = next((len(value) for value in arguments if isinstance(value, Tensor) and value.ndim > 0), 0)
        with _RescaleElementwise(n_rows, eps):
            return forward(*arguments, **kwargs)

    model.forward = forward_with_rules
    return model


class _RescaleElementwise(TorchFunctionMode):
    """Elementwise functions whose gradients are DeepLift's multipliers."""

    def __init__(self, n_rows: int, eps: float) -> None:
        super().__init__()
        self.n_rows, self.eps = n_rows, eps

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in ELEMENTWISE and _is_of_one_variable(args, kwargs) and self._has_both_halves(args[0]):
            return _RescaleRule.apply(args[0], lambda x: func(x, *args[1:], **kwargs), self.eps)
        return func(*args, **kwargs)

    def _has_both_halves(self, x: Tensor) -> bool:
        return x.requires_grad and x.ndim > 0 and self.n_rows % 2 == 0 and len(x) % max(self.n_rows, 1) == 0


def _is_of_one_variable(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    others = tree_flatten((args[1:], kwargs))[0]
    is_one = bool(args) and isinstance(args[0], Tensor) and not any(isinstance(other, Tensor) for other in others)
    return is_one and not kwargs.get("inplace", False)


class _RescaleRule(torch.autograd.Function):
    """An elementwise function of inputs and their baselines, the two halves of a batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], eps: float) -> Tensor:
        output = function(x.clone())
        ctx.save_for_backward(x, output)
        ctx.function, ctx.eps = function, eps
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        x, output = ctx.saved_tensors
        difference, gain = (half - baseline for half, baseline in (x.chunk(2), output.chunk(2)))
        with torch.enable_grad():
            point = x.detach().clone().requires_grad_()
            (local,) = torch.autograd.grad(ctx.function(point.clone()), point, grad_output)
        is_same = torch.cat([difference, difference]).abs() < ctx.eps
        slope = torch.cat([gain, gain]) / torch.cat([difference, difference])
        return torch.where(is_same, local, grad_output * slope), None, None


class Unruled(Origins):
    """Notes what combines values of the inputs in a way that DeepLift has no rule for.

    Attributes:

        names (dict): The functions, in order, with the modules that call them.
    """

    counts_parameters = False

    def __init__(self, module_in_call: Callable[[], str]) -> None:
        super().__init__()
        self.names: dict[str, None] = {}
        self._module_in_call = module_in_call

    def combined(self, name: str, is_computed: list[bool]) -> None:
        is_product = name in _PRODUCTS and sum(is_computed) > 1
        if is_product or name in _OTHERS or (name in _QUOTIENTS and _divides_by_computed(name, is_computed)):
            self.names.setdefault(f"{name.strip('_')}{self._module_in_call()}")


def _divides_by_computed(name: str, is_computed: list[bool]) -> bool:
    return is_computed[0] if name.startswith("__r") else len(is_computed) > 1 and is_computed[1]
