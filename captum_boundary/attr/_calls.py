"""How a Captum method is asked for attributions, so that nothing of the user's is changed by it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from captum.attr import Attribution, DeepLiftShap, GradientAttribution
from torch import Tensor

from captum_boundary._core.captum_helpers import format_output
from captum_boundary.attr._methods import baseline_argument, core_of, takes_target

__all__ = ["MethodCall", "ask", "ask_one_by_one"]

_EXPECTED_WARNINGS = (
    "Setting forward, backward hooks and attributes on non-linear",  # DeepLift
    "Setting backward hooks on ReLU activations",  # GuidedBackprop, Deconvolution
    "You are providing multiple inputs for Lime / Kernel SHAP",
)


class MethodCall(NamedTuple):
    """What a method is asked about N examples: everything that has one entry for each of them."""

    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...] | None
    target: Tensor | int | None
    arguments: tuple[Any, ...] | None

    def example(self, index: int) -> MethodCall:
        """The same question about one example alone, tensors with N entries following their examples."""
        n_examples = len(self.inputs[0])

        def row_of(value: Any) -> Any:
            is_per_example = isinstance(value, Tensor) and value.ndim > 0 and len(value) == n_examples
            return value[index : index + 1] if is_per_example else value

        return MethodCall(
            inputs=tuple(map(row_of, self.inputs)),
            baselines=None if self.baselines is None else tuple(map(row_of, self.baselines)),
            target=row_of(self.target),
            arguments=None if self.arguments is None else tuple(map(row_of, self.arguments)),
        )


def ask(method: Attribution, call: MethodCall, as_tuple: bool, options: Mapping[str, Any]) -> Any:
    """Call the method on copies of the inputs, so that whatever it does to them stays with them."""
    needs_grad = isinstance(core_of(method), GradientAttribution)
    inputs = tuple(tensor.detach().clone().requires_grad_(needs_grad) for tensor in call.inputs)
    arguments = dict(options)
    if call.baselines is not None:
        arguments[baseline_argument(method) or "baselines"] = format_output(
            as_tuple, tuple(baseline.detach().clone() for baseline in call.baselines)
        )
    if call.target is not None and takes_target(method):
        arguments["target"] = call.target
    if call.arguments is not None:
        arguments["additional_forward_args"] = call.arguments
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        return method.attribute(format_output(as_tuple, inputs), **arguments)


def ask_one_by_one(method: Attribution, call: MethodCall, as_tuple: bool, options: Mapping[str, Any]) -> Any:
    """Call the method for one example after the other, each with its own boundary point."""
    answers = []
    for index in range(len(call.inputs[0])):
        alone = call.example(index)
        if isinstance(method, DeepLiftShap) and alone.baselines is not None:
            # DeepLiftShap refuses a distribution of one baseline; the mean over two equal ones is the same.
            alone = alone._replace(baselines=tuple(baseline.repeat_interleave(2, 0) for baseline in alone.baselines))
        answers.append(ask(method, alone, as_tuple, options))
    if isinstance(answers[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*answers, strict=True))
    return torch.cat(answers)
