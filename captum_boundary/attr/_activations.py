r"""A copy of a model in which every call of a non-linear activation is a module of its own.

DeepLift replaces the gradient of each activation *module* by a multiplier, with hooks on the tensor that goes in and on
the tensor that comes out. This is right only if the module is called once, is not in-place, and receives a tensor that
nothing else uses or hooks. Otherwise Captum raises an error, or returns attributions that do not add up.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from captum_boundary._errors import BoundaryTypeError, BoundaryValueError

__all__ = ["separate_activations"]

# The modules for which DeepLift has a rule, and their settings, which are arguments of the functional forms as well.
_POOLING = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ReLU: (),
    nn.ELU: ("alpha",),
    nn.LeakyReLU: ("negative_slope",),
    nn.Sigmoid: (),
    nn.Tanh: (),
    nn.Softplus: ("beta", "threshold"),
    nn.MaxPool1d: _POOLING,
    nn.MaxPool2d: _POOLING,
    nn.MaxPool3d: _POOLING,
    nn.Softmax: ("dim",),
}
_FUNCTIONAL_FORMS: dict[object, type[nn.Module]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), nn.ReLU),
    **dict.fromkeys((F.elu, F.elu_), nn.ELU),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), nn.LeakyReLU),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"), nn.Sigmoid),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), nn.Tanh),
    F.softplus: nn.Softplus,
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), nn.MaxPool1d),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), nn.MaxPool2d),
    **dict.fromkeys((F.max_pool3d, torch.max_pool3d), nn.MaxPool3d),
    **dict.fromkeys((F.softmax, torch.softmax, "softmax"), nn.Softmax),
}


def separate_activations(model: nn.Module, example_inputs: Tensor | tuple[Any, ...] | None = None) -> nn.Module:
    r"""Copy a model so that every call of an activation is its own module, as DeepLift and its kin require.

    ReLU modules that are shared or in-place, functional calls such as ``F.relu(x)`` and ``x.relu()``, and reused
    pooling or softmax modules all become separate modules that are not in-place. The activations concerned are those
    that :class:`captum.attr.DeepLift` has a rule for: ReLU, ELU, LeakyReLU, Sigmoid, Tanh, Softplus, Softmax and
    MaxPool. Each receives a tensor of its own, because Captum's hooks mix up an activation that directly follows
    another one (a max pooling after a ReLU), or whose input is used elsewhere too (a residual connection).

    The model itself is left as it is. The copy computes the same outputs with the *same* parameter and buffer tensors:
    it takes hardly any memory and follows later changes of the weights. Make the copy after moving the model to its
    device and dtype, and make it anew after ``model.train()`` or ``model.eval()``.

    A model that needs more than new modules is rewritten with :mod:`torch.fx`. Its layers keep their names, but
    containers (as ``layer4`` of a ResNet) are no longer called as modules, and arguments of ``forward`` other than
    tensors are fixed at the values in ``example_inputs``, or else at their defaults. Where a forward cannot be traced,
    because it depends on data or because the module carries hooks, it is kept and its submodules are rewritten.

    Args:
        model (nn.Module): The model to copy.
        example_inputs (Tensor or tuple, optional): Inputs to verify that the copy computes what the model computes
            and has no call left to separate. Recommended, and required for models that cannot be traced as a whole.
            Default: None

    Returns:
        nn.Module: The copy, in the training mode of the model.

    Raises:
        BoundaryTypeError: If ``model`` is not a module, or is a compiled, scripted or parallel one.
        BoundaryValueError: If an activation cannot be separated, or the copy differs from the model.

    Examples::

        >>> relu = nn.ReLU(inplace=True)
        >>> model = nn.Sequential(nn.Linear(4, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 3))
        >>> inputs = torch.randn(2, 4)
        >>> separated = separate_activations(model, inputs)
        >>> torch.equal(separated(inputs), model(inputs))
        True
        >>> sum(isinstance(module, nn.ReLU) for module in separated.modules())
        2
    """
    _require_plain_module(model)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    untraceable: dict[nn.Module, str] = {}
    separated = _separate(_copy_sharing_tensors(model), () if example_inputs is None else inputs, untraceable, set())
    separated = _prepare_for_hooks(separated)
    reasons = "; ".join(f"{type(module).__name__}: {reason}" for module, reason in untraceable.items())
    if example_inputs is not None:
        _verify(model, separated, inputs, reasons)
    elif untraceable:
        raise BoundaryValueError(
            f"The model cannot be traced as a whole ({reasons}). "
            "Pass example_inputs, so that it can be verified that every activation was separated."
        )
    return separated


def _require_plain_module(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise BoundaryTypeError(f"model must be an nn.Module, but it is {type(model).__name__}.")
    for name, module in model.named_modules():
        kind = f"'{name}' ({type(module).__name__})" if name else f"The model ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise BoundaryTypeError(f"{kind} is a ScriptModule, which cannot be rewritten. Pass the original module.")
        if hasattr(module, "_orig_mod"):
            raise BoundaryTypeError(f"{kind} is the result of torch.compile. Pass the module that was compiled.")
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise BoundaryTypeError(f"{kind} is a parallel wrapper. Pass the module that it wraps (.module).")


def _copy_sharing_tensors(module: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    for submodule in module.modules():
        for value in vars(submodule).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # deepcopy refuses these, such as stored activations
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def _separate(
    module: nn.Module, inputs: tuple[Any, ...], untraceable: dict[nn.Module, str], seen: set[nn.Module]
) -> nn.Module:
    """``module`` itself or a traced replacement, with separate calls as far as its forward can be traced."""
    if _is_leaf(module):
        return module
    traced = _trace(module, inputs, untraceable)
    if isinstance(traced, str):
        for name, child in module._modules.items():
            if child is not None:
                own_child = child if seen.isdisjoint(child.modules()) else _copy_sharing_tensors(child)
                module._modules[name] = separated = _separate(own_child, (), untraceable, seen)
                seen.update(separated.modules())
        traced = _trace(module, inputs, untraceable)  # with the untraceable children, known by now, called as they are
    if isinstance(traced, str):
        if type(module).forward is not nn.Module.forward:  # which a ModuleList has
            untraceable[module] = traced
        return module
    return traced if _separate_calls(traced) else module


def _is_leaf(module: nn.Module) -> bool:
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return module.__module__.startswith(("torch.nn", "torch.ao.nn")) and not isinstance(module, containers)


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(map(len, hooks))


class _Tracer(fx.Tracer):
    """Symbolic tracing that runs neither hooks nor changes of buffers, and keeps untraceable modules whole."""

    proxy_buffer_attributes = True

    def __init__(self, kept_whole: set[str]) -> None:
        super().__init__()
        self.kept_whole = kept_whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.kept_whole or _is_leaf(m):
            return True
        if _has_hooks(m):
            raise ValueError("hooks can not be traced")
        return False


def _trace(module: nn.Module, inputs: tuple[Any, ...], untraceable: dict[nn.Module, str]) -> fx.GraphModule | str:
    """The traced module, or the reason why there is none."""
    if _has_hooks(module):
        return "it has hooks"
    kept_whole = {name for name, submodule in module.named_modules() if submodule in untraceable}
    root = _copy_sharing_tensors(module)  # tracing may leave its proxies behind in attributes
    try:
        parameters = inspect.signature(module.forward).parameters
        arguments = {name: parameter.default for name, parameter in parameters.items()}
        arguments |= dict(zip(parameters, inputs, strict=False))
        constants = {k: v for k, v in arguments.items() if v is None or isinstance(v, (bool, int, float, str))}
        graph = _Tracer(kept_whole).trace(root, concrete_args=constants or None)
        traced = fx.GraphModule(root, graph, type(module).__name__)
    except Exception as error:  # tracing runs the user's forward, which may raise anything
        return str(error).partition("\n")[0]
    originals = dict(module.named_modules(remove_duplicate=False))
    for name, submodule in traced.named_modules():
        submodule.training = originals[name].training
    return traced


def _separate_calls(traced: fx.GraphModule) -> bool:
    """Give every call of an activation in the graph its own module, and tell whether that changed anything."""
    changed = False
    called: set[object] = set()
    earlier: set[fx.Node] = set()
    for node in list(traced.graph.nodes):
        call = node
        in_place = False
        if node.op in ("call_function", "call_method") and node.target in _FUNCTIONAL_FORMS:
            in_place = node.kwargs.get("inplace", False) or getattr(node.target, "__name__", node.target).endswith("_")
            call = _replace_by_module(traced, node, _FUNCTIONAL_FORMS[node.target])
            changed = True
        elif node.op == "call_module":
            module = traced.get_submodule(node.target)
            in_place = getattr(module, "inplace", False) is True
            if node.target in called and any(type(submodule) in _SETTINGS for submodule in module.modules()):
                node.target = _add_submodule(traced, node.target, _copy_sharing_tensors(module))
                changed = True
            called.add(node.target)
            if node.kwargs and type(module) in _SETTINGS:  # Captum's hooks do not see keywords
                node.args, node.kwargs = tuple(node.all_input_nodes), {}
                changed = True
        earlier |= {node, call}
        if in_place:
            changed |= _redirect_later_uses(call, earlier)
    if changed:
        traced.recompile()
    return changed


def _replace_by_module(traced: fx.GraphModule, node: fx.Node, module_type: type[nn.Module]) -> fx.Node:
    names = ("input", *_SETTINGS[module_type])
    arguments = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    settings = {name: arguments[name] for name in names[1:] if name in arguments}
    if len(node.all_input_nodes) > 1:
        raise BoundaryValueError(
            f"{module_type.__name__} is computed by a function whose {', '.join(settings)} depend on the input, which "
            "no module can do. Use constants, or an operation without such settings (as amax for a global max pooling)."
        )
    dtypes = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, torch.dtype)]
    module = module_type(**settings).train(traced.training)
    target = _add_submodule(traced, module_type.__name__.lower(), module)
    with traced.graph.inserting_before(node):
        value = arguments["input"]
        if dtypes:
            value = traced.graph.call_method("to", (value, dtypes[0]))
        call = traced.graph.call_module(target, (value,))
    node.replace_all_uses_with(call)
    traced.graph.erase_node(node)
    return call


def _add_submodule(traced: fx.GraphModule, target: str, module: nn.Module) -> str:
    taken = {name for name, _ in traced.named_modules(remove_duplicate=False)} | set(dir(traced))
    name = next(name for i in itertools.count(1) if (name := f"{target}_{i}") not in taken)
    traced.add_submodule(name, module)
    return name


def _redirect_later_uses(call: fx.Node, earlier: set[fx.Node]) -> bool:
    """After an in-place call, its input holds its output: let those who read the input later read the output."""
    value = call.all_input_nodes[0]
    later = [user for user in value.users if user not in earlier]
    for user in later:
        user.replace_input_with(value, call)
    return bool(later)


def _prepare_for_hooks(module: nn.Module) -> nn.Module:
    """Make ``module`` and all that it contains safe for DeepLift's hooks, and return it or what takes its place."""
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = _prepare_for_hooks(child)
    if getattr(module, "inplace", False) is True:
        module.inplace = False  # type: ignore[assignment]
    if type(module) in _SETTINGS:
        module._backward_hooks.clear()  # Captum would leave a module with backward hooks out
        if _own_input not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_own_input)
    return _WindowMaxPool(module) if _has_overlapping_windows(module) else module


def _own_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.clone() for value in inputs)


def _has_overlapping_windows(module: nn.Module) -> bool:
    if _SETTINGS.get(type(module)) is not _POOLING or module.return_indices:
        return False
    settings = _per_dimension(module, "kernel_size", "stride", "dilation")
    return any(stride < dilation * (kernel - 1) + 1 for kernel, stride, dilation in zip(*settings, strict=True))


def _per_dimension(pool: nn.Module, *names: str) -> list[tuple[int, ...]]:
    n_dimensions = int(type(pool).__name__[-2])
    values = [getattr(pool, name) for name in names]
    return [tuple(value) if isinstance(value, (tuple, list)) else (value,) * n_dimensions for value in values]


class _WindowMaxPool(nn.Module):
    """Max pooling of windows copied side by side, since DeepLift's rule is wrong for windows that overlap."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        settings = _per_dimension(pool, "kernel_size", "stride", "padding", "dilation")
        self.windows = list(zip(*settings, strict=True))
        self.ceil_mode = pool.ceil_mode
        self.maximum = _prepare_for_hooks(nn.MaxPool1d(math.prod(settings[0])))
        self.train(pool.training)

    def forward(self, values: Tensor) -> Tensor:
        first = values.ndim - len(self.windows)
        margins = [self._margins(*sizes) for sizes in zip(values.shape[first:], self.windows, strict=True)]
        # The margins are finite: in DeepLift's rule, the difference of two infinite values would be NaN.
        lowest = torch.finfo(values.dtype).min
        values = F.pad(values, [margin for pair in reversed(margins) for margin in pair], value=lowest)
        for dimension, (kernel, stride, _, dilation) in enumerate(self.windows, first):
            values = values.unfold(dimension, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        shape = values.shape[: first + len(self.windows)]
        maxima: Tensor = self.maximum(values.flatten(first))
        return maxima.reshape(shape)

    def _margins(self, size: int, window: tuple[int, int, int, int]) -> tuple[int, int]:
        kernel, stride, padding, dilation = window
        span = dilation * (kernel - 1) + 1
        last, rest = divmod(size + 2 * padding - span, stride)
        if self.ceil_mode and rest and (last + 1) * stride < size + padding:  # a window must not start in the margin
            last += 1
        return padding, last * stride + span - size - padding


class _CallRecorder(TorchFunctionMode):
    """Runs a model once and notes the calls that are still shared or functional."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.running: list[tuple[str, nn.Module]] = []
        self.calls: Counter[str] = Counter()
        self.problems: dict[str, None] = {}  # an ordered set

    def run(self, inputs: tuple[Any, ...]) -> object:
        handles = []
        for name, module in self.model.named_modules():
            handles += [
                module.register_forward_pre_hook(lambda module, _, name=name: self._enter(name, module)),
                module.register_forward_hook(lambda *_: self._leave()),
            ]
        try:
            with self:
                return _outputs(self.model, inputs)
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module) -> None:
        self.running.append((name, module))
        self.calls[name] += 1
        if type(module) in _SETTINGS and self.calls[name] > 1:
            self.problems[f"module '{name}' ({type(module).__name__}) is called several times"] = None

    def _leave(self) -> None:
        self.running.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function_name = getattr(func, "__name__", None)
        if self.running and (func in _FUNCTIONAL_FORMS or function_name in _FUNCTIONAL_FORMS):
            name, module = self.running[-1]
            if type(module) not in _SETTINGS:
                self.problems[f"module '{name}' ({type(module).__name__}) calls the function {function_name}"] = None
        return func(*args, **(kwargs or {}))


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> object:
    """The outputs for ``inputs``, without a trace in them, in the buffers of the model or in the random state."""
    own_inputs = tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)
    own_buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        return torch.func.functional_call(model, own_buffers, own_inputs)


def _verify(model: nn.Module, separated: nn.Module, inputs: tuple[Any, ...], reasons: str) -> None:
    expected = _outputs(model, inputs)
    recorder = _CallRecorder(separated)
    try:
        torch.testing.assert_close(recorder.run(inputs), expected, equal_nan=True)
    except Exception as error:
        raise BoundaryValueError(
            "The model with separate activations does not compute what the model computes. Write the activations as "
            f"modules that are called once and are not in-place. {error}"
        ) from error
    if recorder.problems:
        untraced = f" These modules could not be traced: {reasons}." if reasons else ""
        raise BoundaryValueError(
            f"Some activations could not be separated: {', '.join(recorder.problems)}. "
            f"Use one module, such as nn.ReLU(), for each call.{untraced}"
        )
