"""Whether a copy computes what its model computes, with no call of an activation left to separate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from captum_boundary._core.random_state import preserve_rng_state
from captum_boundary.attr._rewrite.rescale import Unruled
from captum_boundary.attr._rewrite.table import FUNCTIONAL_FORMS, SETTINGS
from captum_boundary.errors import BoundaryValueError

__all__ = ["verify"]

# Rounding of deep networks whose operations run in another order, in units of the resolution of their scores: 1.5e-5
# in a GoogLeNet with scores of 0.3 is 400.
_ROUNDING = 2000
_LARGEST_ROUNDING = 0.1  # relative to the scores, in half precision


class _CallRecorder(TorchFunctionMode):
    """Runs a model once and notes the calls that are still shared or functional, and those without a rule."""

    def __init__(self, model: nn.Module, warns: bool) -> None:
        super().__init__()
        self.model, self.warns = model, warns
        self.running: list[tuple[str, nn.Module]] = []
        self.calls: Counter[str] = Counter()
        self.problems: dict[str, None] = {}  # an ordered set
        self.unruled = Unruled(self._module_in_call)

    def run(self, inputs: tuple[Any, ...], n_attributed: int) -> object:
        """The outputs; the first inputs, or what a layer returns that is marked, are attributed to."""
        handles = []
        for path, module in self.model.named_modules():
            # What is around the user's model is called so.
            name = "" if path == "forward_func" else path.removeprefix("forward_func.")
            handles += [
                module.register_forward_pre_hook(lambda module, _, name=name: self._enter(name, module)),
                module.register_forward_hook(lambda module, _, output: self._leave(module, output)),
            ]
        own_inputs = tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)
        self.unruled.add(own_inputs[:n_attributed])
        try:
            with self, self.unruled:
                return _outputs(self.model, own_inputs)
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module) -> None:
        self.running.append((name, module))
        self.calls[name] += 1
        if type(module) in SETTINGS and self.calls[name] > 1:
            self.problems[f"module '{name}' ({type(module).__name__}) is called several times"] = None

    def _leave(self, module: nn.Module, output: Any) -> None:
        self.running.pop()
        if getattr(module, "is_attributed_to", False):
            self.unruled.add(output)

    def _module_in_call(self) -> str:
        """The module that is at work, for a message."""
        name, module = self.running[-1] if self.running else ("", self.model)
        return f" in '{name}' ({type(module).__name__})" if name else ""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function_name = getattr(func, "__name__", None)
        activation = FUNCTIONAL_FORMS.get(func) or FUNCTIONAL_FORMS.get(function_name)
        name, module = self.running[-1] if self.running else ("", None)
        if module is not None and activation is not None and type(module) not in SETTINGS:
            if activation is nn.Softmax and self.warns:  # as fused attention, which has no rule either
                self.unruled.names.setdefault(f"softmax{self._module_in_call()}")
            else:
                self.problems[f"module '{name}' ({type(module).__name__}) calls the function {function_name}"] = None
        return func(*args, **(kwargs or {}))


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> object:
    """The outputs for ``inputs``, without a trace in the buffers of the model or in the random states.

    A model and its copy draw the same random numbers, since both start from the same states.
    """
    own_buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad(), preserve_rng_state():
        return torch.func.functional_call(model, own_buffers, inputs)


def verify(
    model: nn.Module, separated: nn.Module, inputs: tuple[Any, ...], reasons: str, n_attributed: int | None
) -> list[str]:
    """Raise an error unless ``separated`` computes what ``model`` does, by activations that are called once each.

    Returns the names of what else is not linear in the ``n_attributed`` first inputs, for which DeepLift has no rule;
    calls of softmax in code that cannot be traced too, unless None says that nobody would be told.
    """
    own_inputs = tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)
    expected = _outputs(model, own_inputs)
    recorder = _CallRecorder(separated, warns=n_attributed is not None)
    try:
        _require_same(recorder.run(inputs, n_attributed or 0), expected)
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
    return list(recorder.unruled.names)


def _require_same(output: object, expected: object) -> None:
    """That two outputs are equal up to rounding, which is relative to the largest score of an example."""
    for one, other in zip(tree_flatten(output)[0], tree_flatten(expected)[0], strict=True):
        if type(other).__name__.endswith("Cache"):
            raise ValueError(
                f"It returns a {type(other).__name__} besides its scores: set model.config.use_cache = False, or wrap "
                "it in a function that returns the scores alone."
            )
        if not isinstance(other, Tensor) or not other.is_floating_point() or other.numel() == 0:
            torch.testing.assert_close(one, other)
            continue
        scale = other.nan_to_num(0.0, 0.0, 0.0).abs().amax()
        tolerance = min(_ROUNDING * torch.finfo(other.dtype).eps, _LARGEST_ROUNDING)
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(scale), equal_nan=True)
