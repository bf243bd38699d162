"""Whether a copy computes what its model computes, with no call of an activation left to separate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_boundary.attr._global_state import preserve_rng_state
from captum_boundary.attr._rewrite.table import FUNCTIONAL_FORMS, SETTINGS
from captum_boundary.errors import BoundaryValueError

__all__ = ["verify"]


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
        if type(module) in SETTINGS and self.calls[name] > 1:
            self.problems[f"module '{name}' ({type(module).__name__}) is called several times"] = None

    def _leave(self) -> None:
        self.running.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function_name = getattr(func, "__name__", None)
        if self.running and (func in FUNCTIONAL_FORMS or function_name in FUNCTIONAL_FORMS):
            name, module = self.running[-1]
            if type(module) not in SETTINGS:
                self.problems[f"module '{name}' ({type(module).__name__}) calls the function {function_name}"] = None
        return func(*args, **(kwargs or {}))


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> object:
    """The outputs for ``inputs``, without a trace in them, in the buffers of the model or in the random states.

    A model and its copy draw the same random numbers, since both start from the same states.
    """
    own_inputs = tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs)
    own_buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad(), preserve_rng_state():
        return torch.func.functional_call(model, own_buffers, own_inputs)


def verify(model: nn.Module, separated: nn.Module, inputs: tuple[Any, ...], reasons: str) -> None:
    """Raise an error unless ``separated`` computes what ``model`` does, by activations that are called once each."""
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
