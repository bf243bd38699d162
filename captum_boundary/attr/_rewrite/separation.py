r"""A copy of a model in which every call of a non-linear activation is a module of its own.

DeepLift replaces the gradient of each activation *module* by a multiplier, with hooks on the tensor that goes in and on
the tensor that comes out. This is right only if the module is called once, is not in-place, and receives a tensor that
nothing else uses or hooks. Otherwise Captum raises an error, or returns attributions that do not add up.
"""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from captum_boundary._core.random_state import preserve_rng_state
from captum_boundary.attr._rewrite.copies import copy_model
from captum_boundary.attr._rewrite.hook_safe import prepare_for_hooks
from captum_boundary.attr._rewrite.table import FUNCTIONAL_FORMS, SETTINGS
from captum_boundary.attr._rewrite.verification import verify
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["separate_activations", "separated_copy"]


def separate_activations(model: nn.Module, example_inputs: Tensor | tuple[Any, ...] | None = None) -> nn.Module:
    r"""Copy a model so that every call of an activation is its own module, as DeepLift and similar methods require.

    ReLU modules that are shared or in-place, functional calls such as ``F.relu(x)`` and ``x.relu()``, and reused
    pooling or softmax modules all become separate modules that are not in-place. The activations concerned are those
    that :class:`captum.attr.DeepLift` has a rule for: ReLU, ELU, LeakyReLU, Sigmoid, Tanh, Softplus, Softmax and
    MaxPool. Each receives a tensor of its own, because Captum's hooks mix up an activation that directly follows
    another one (a max pooling after a ReLU), or whose input is used elsewhere too (a residual connection).

    The model itself is left as it is. The copy computes the same outputs with the *same* parameter and buffer tensors:
    it takes hardly any memory and follows later changes of the weights. Make the copy after moving the model to its
    device and dtype, and make another one after ``model.train()`` or ``model.eval()``.

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
        BoundaryTypeError: If ``model`` is not a module, or is a compiled, scripted, exported or parallel one.
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
    return separated_copy(model, example_inputs)[0]


def separated_copy(
    model: nn.Module, example_inputs: Tensor | tuple[Any, ...] | None, n_attributed: int | None = None
) -> tuple[nn.Module, list[str]]:
    """The copy, and the names of what in it DeepLift has no rule for, in the ``n_attributed`` first inputs."""
    _require_plain_module(model)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    untraceable: dict[nn.Module, str] = {}
    with preserve_rng_state():  # tracing runs the model's own code
        separated = _separate(copy_model(model), () if example_inputs is None else inputs, untraceable, set())
        separated = prepare_for_hooks(separated)
        reasons = "; ".join(
            f"{type(module).__name__}: {reason}"
            for module, reason in untraceable.items()
            if not getattr(module, "is_marker", False)  # of ours, around a layer
        )
        if example_inputs is not None:
            return separated, verify(model, separated, inputs, reasons, n_attributed)
    if untraceable:
        raise BoundaryValueError(
            f"The model cannot be traced as a whole ({reasons}). "
            "Pass example_inputs, so that it can be verified that every activation was separated."
        )
    return separated, []


def _require_plain_module(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise BoundaryTypeError(f"model must be an nn.Module, but it is {type(model).__name__}.")
    for name, module in model.named_modules():
        kind = f"'{name}' ({type(module).__name__})" if name else f"The model ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise BoundaryTypeError(f"{kind} is a ScriptModule, which cannot be rewritten. Pass the original module.")
        if hasattr(module, "_orig_mod"):
            raise BoundaryTypeError(f"{kind} is the result of torch.compile. Pass the module that was compiled.")
        if isinstance(module, fx.GraphModule) and any(map(_is_exported, module.graph.nodes)):
            raise BoundaryTypeError(
                f"{kind} is an exported program, in which no rule finds its activations. Pass the module that was "
                "exported."
            )
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise BoundaryTypeError(f"{kind} is a parallel wrapper. Pass the module that it wraps (.module).")


def _is_exported(node: fx.Node) -> bool:
    return node.op == "call_function" and str(node.target).startswith("aten.")


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
                own_child = child if seen.isdisjoint(child.modules()) else copy_model(child)
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


# Tracing replaces methods of nn.Module, for all threads, and puts back what it found: one trace at a time.
_one_at_a_time = threading.RLock()


class _Tracer(fx.Tracer):
    """Symbolic tracing that runs neither hooks nor changes of buffers, and keeps untraceable modules whole.

    Modules that other threads call meanwhile compute as ever.
    """

    proxy_buffer_attributes = True

    def __init__(self, kept_whole: set[str]) -> None:
        super().__init__()
        self.kept_whole = kept_whole
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

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
    root = copy_model(module)  # tracing may leave its proxies behind in attributes
    try:
        parameters = inspect.signature(module.forward).parameters
        arguments = {name: parameter.default for name, parameter in parameters.items()}
        arguments |= dict(zip(parameters, inputs, strict=False))
        constants = {k: v for k, v in arguments.items() if v is None or isinstance(v, (bool, int, float, str))}
        with _one_at_a_time:
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
        if node.op in ("call_function", "call_method") and node.target in FUNCTIONAL_FORMS:
            in_place = node.kwargs.get("inplace", False) or getattr(node.target, "__name__", node.target).endswith("_")
            call = _replace_by_module(traced, node, FUNCTIONAL_FORMS[node.target])
            changed = True
        elif node.op == "call_module":
            module = traced.get_submodule(node.target)
            in_place = getattr(module, "inplace", False) is True
            if node.target in called and any(type(submodule) in SETTINGS for submodule in module.modules()):
                node.target = _add_submodule(traced, node.target, copy_model(module))
                changed = True
            called.add(node.target)
            if node.kwargs and type(module) in SETTINGS:  # Captum's hooks do not see keywords
                node.args, node.kwargs = tuple(node.all_input_nodes), {}
                changed = True
        earlier |= {node, call}
        if in_place:
            changed |= _redirect_later_uses(call, earlier)
    if changed:
        traced.recompile()
    return changed


def _replace_by_module(traced: fx.GraphModule, node: fx.Node, module_type: type[nn.Module]) -> fx.Node:
    names = ("input", *SETTINGS[module_type])
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
