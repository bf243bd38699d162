"""Calls of a Captum method, so that nothing of the user's is changed by them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_boundary._core.arguments import of_examples
from captum_boundary._core.batch_sizes import points_at_once, slices
from captum_boundary._core.captum_helpers import format_output
from captum_boundary._core.checks import check_count
from captum_boundary.attr._methods import Capabilities, known_arguments

__all__ = ["MethodCall", "call_in_groups", "call_method", "default_device_of", "sizes_that_fit"]

_EXPECTED_WARNINGS = (
    "Setting forward, backward hooks and attributes on non-linear",  # DeepLift
    "Setting backward hooks on ReLU activations",  # GuidedBackprop, Deconvolution
    "You are providing multiple inputs for Lime / Kernel SHAP",
)


class MethodCall(NamedTuple):
    """The arguments of a call for N examples that have one entry for each of them."""

    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]  # of methods that take them
    target: Tensor | int | None
    arguments: tuple[Any, ...]

    def rows(self, rows: slice) -> MethodCall:
        """The same for some of the examples: tensors with N entries follow their examples."""
        n_examples = len(self.inputs[0])
        return MethodCall(
            inputs=of_examples(self.inputs, n_examples, rows),
            baselines=of_examples(self.baselines, n_examples, rows),
            target=of_examples((self.target,), n_examples, rows)[0],
            arguments=of_examples(self.arguments, n_examples, rows),
        )


def sizes_that_fit(
    method: Attribution,
    can: Capabilities,
    function: Callable[..., Any],
    call: MethodCall,
    options: Mapping[str, Any],
) -> tuple[int, dict[str, Any]]:
    """Examples of one call of the method, and its options with an ``internal_batch_size``.

    Captum never divides the examples of a call, only their path points: where not even two points of every example may
    pass through the model at once, the examples are divided here.
    """
    n_examples = len(call.inputs[0])
    if not can.has_internal_batch_size:
        return n_examples, dict(options)
    size = options.get("internal_batch_size")
    check_count("internal_batch_size", size, optional=True)
    n_copies = _number(method, options, "nt_samples", 1)
    if size is None:
        few = call.rows(slice(0, 2))  # a single one is too few for batch statistics
        n_points = n_examples * n_copies * _number(method, options, "n_steps", 1)
        size = points_at_once(
            n_points, few.inputs, function, lambda: function(*_differentiable(few.inputs), *few.arguments)
        )
        if size >= n_points:
            return n_examples, dict(options)
        if can.is_random:  # whose copies Captum takes at once
            size = max(size, n_examples * (options.get("nt_samples_batch_size") or n_copies))
    if not can.is_random and size == n_examples == 2:
        # Two points of one example are as many as both examples: a function that holds tensors of these would take them
        # for its own. Of more examples two have been evaluated before, where such a function fails.
        size = 1
    group_size = n_examples if can.is_random or size >= 2 * n_examples else max(1, size // 2)
    return group_size, {**options, "internal_batch_size": size}


@contextmanager
def default_device_of(device: torch.device) -> Iterator[None]:
    """Where the user has set a default device, let it be that of the inputs, for Captum makes tensors without one."""
    if torch.empty(0).device.type == "cpu":  # torch.get_default_device overlooks contexts in PyTorch 2.4
        yield
        return
    with device:
        yield


def _number(method: Attribution, options: Mapping[str, Any], name: str, default: int) -> int:
    """An option of the method, or what its signature says."""
    known, _ = known_arguments(method)
    value = options.get(name, known[name].default if name in known else default)
    return value if isinstance(value, int) else default  # what is wrong with it is the method's to say


def _differentiable(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().clone().requires_grad_().clone() for tensor in inputs)


def call_method(
    method: Attribution, can: Capabilities, call: MethodCall, as_tuple: bool, options: Mapping[str, Any]
) -> Any:
    """Call the method with copies of the inputs, so that whatever it does to them stays with them."""
    inputs = tuple(tensor.detach().clone().requires_grad_(can.needs_grad) for tensor in call.inputs)
    arguments = dict(options)
    if call.baselines and can.baselines is not None:
        arguments[can.baselines] = format_output(
            as_tuple, tuple(baseline.detach().clone() for baseline in call.baselines)
        )
    if call.target is not None and can.takes_target:
        arguments["target"] = call.target
    if call.arguments:
        arguments["additional_forward_args"] = call.arguments
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        return method.attribute(format_output(as_tuple, inputs), **arguments)


def call_in_groups(
    method: Attribution,
    can: Capabilities,
    call: MethodCall,
    as_tuple: bool,
    options: Mapping[str, Any],
    group_size: int,
) -> Any:
    """Call the method for one group of examples after the other, each example with its own boundary point."""
    n_examples = len(call.inputs[0])
    if group_size >= n_examples and can.least_baselines == 1:
        return call_method(method, can, call, as_tuple, options)
    answers = []
    for rows in slices(n_examples, group_size):
        group = call.rows(rows)
        if can.least_baselines > 1:
            # DeepLiftShap refuses a distribution of one baseline; the mean over two equal ones is the same.
            group = group._replace(
                baselines=tuple(baseline.repeat_interleave(can.least_baselines, 0) for baseline in group.baselines)
            )
        answers.append(call_method(method, can, group, as_tuple, options))
    return _joined(answers)


def _joined(answers: list[Any]) -> Any:
    """What a method answers about groups of examples, as if they had been one."""
    if len(answers) == 1:
        return answers[0]
    if isinstance(answers[0], tuple):
        return tuple(_joined(list(parts)) for parts in zip(*answers, strict=True))
    return torch.cat(answers)
