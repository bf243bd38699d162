"""A Captum method whose baselines, or whose inputs, are boundary points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from captum.attr import Attribution, GradientAttribution
from torch import Tensor, nn

from captum_boundary._core.captum_helpers import TargetType
from captum_boundary._core.margin import refuse_not_finite, resolve_target
from captum_boundary._core.model import Model
from captum_boundary._core.modules import unwrapped
from captum_boundary.attr._calls import MethodCall, call_in_groups, call_method, sizes_that_fit
from captum_boundary.attr._layer_methods import HookableFromLayer
from captum_boundary.attr._methods import build_method, capabilities_of, check_arguments
from captum_boundary.attr._rewrite.hookable import hookable_copy
from captum_boundary.attr._score import ClassScore, ScoreTensor, shared_tensors
from captum_boundary.errors import BoundaryValueError
from captum_boundary.search import BoundaryPoints
from captum_boundary.search._given import check_same_target

__all__ = ["MethodAtPoints"]


class MethodAtPoints:
    """Attributions of one score of a model by one method, from given boundary points."""

    def __init__(self, forward_func: Callable[..., Any], method: Callable[..., Any], score: str) -> None:
        self.forward_func = forward_func
        self.method = method
        self.score = score
        self.prototype = build_method(method, forward_func, score)
        self.can = capabilities_of(self.prototype)
        self._built: dict[int, tuple[ScoreTensor, Attribution]] = {}  # by the number of inputs

    def check(self, options: dict[str, Any], with_delta: bool) -> None:
        """Refuse options, or a delta, that the method does not have."""
        if options.pop("baselines", None) is not None:
            raise BoundaryValueError(
                "baselines cannot be given, since the boundary points take their place. Points found before can be "
                "given as boundary; for any other baseline, call the Captum method itself."
            )
        check_arguments(self.prototype, options)
        if with_delta and not self.can.has_delta:
            raise BoundaryValueError(
                f"{self.prototype.get_name()} has no convergence delta for each example. Leave out "
                'return_convergence_delta, or, with score="output", compare sums with compute_convergence_delta.'
            )

    def attribute(
        self,
        inputs: tuple[Tensor, ...],
        as_tuple: bool,
        target: TargetType,
        arguments: tuple[Any, ...],
        boundary: BoundaryPoints,
        with_delta: bool,
        options: Mapping[str, Any],
    ) -> tuple[Any, Any]:
        """Attributions and, if wanted, deltas of all examples; those of examples without a point mean nothing."""
        points = boundary.points if isinstance(boundary.points, tuple) else (boundary.points,)
        function, score_target, score_arguments = self._score_of(
            inputs, target, arguments, boundary, n_rows=1 if options.get("internal_batch_size") == 1 else 2
        )
        is_own = len(inputs) in self._built and self._built[len(inputs)][0] is function
        method = self._built[len(inputs)][1] if is_own else self.method(function)
        uses_baselines = self.can.baselines is not None
        call = MethodCall(
            inputs=inputs if uses_baselines else points,
            baselines=points if uses_baselines else (),
            target=score_target,
            arguments=score_arguments,
        )
        if with_delta and not uses_baselines:
            options = {**options, "return_convergence_delta": True}
            attributions, delta = call_method(method, self.can, call, as_tuple, options)
            return attributions, delta
        group_size, options = sizes_that_fit(method, self.can, function, call, options)
        if self.can.mixes_examples(function):
            group_size = 1
        attributions = call_in_groups(method, self.can, call, as_tuple, options, group_size)
        if not with_delta:
            return attributions, None
        delta = GradientAttribution(function).compute_convergence_delta(
            attributions, points, inputs, score_target, score_arguments
        )
        return attributions, delta

    def _score_of(
        self,
        inputs: tuple[Tensor, ...],
        target: TargetType,
        arguments: tuple[Any, ...],
        boundary: BoundaryPoints,
        n_rows: int,
    ) -> tuple[Callable[..., Any], Tensor | None, tuple[Any, ...]]:
        """The function to attribute, with its target and additional arguments. A ``target`` of None needs no check."""
        is_asked = target is not None and not _is_target_of(boundary, target)
        rows = slice(None) if is_asked else slice(0, n_rows)  # a few show the form of the scores
        model = Model(self.forward_func, len(boundary), arguments)
        scores = model.scores(tuple(tensor[rows] for tensor in inputs), rows)
        refuse_not_finite(scores)
        if is_asked:
            check_same_target(resolve_target(target, scores, model.is_binary), boundary.target)
        fixed, arguments = shared_tensors(arguments, len(inputs[0]))
        function: nn.Module
        if self.can.hooks_modules:
            function = ScoreTensor(unwrapped(self.forward_func), len(inputs), fixed)
            if not isinstance(self.forward_func, HookableFromLayer):
                function = hookable_copy(function, self.prototype, (*inputs, *arguments), len(inputs))
        elif fixed:
            function = ScoreTensor(self.forward_func, len(inputs), fixed)
        else:
            function = self._scored(len(inputs))
        if self.score == "margin":
            adversarial = torch.where(boundary.found, boundary.adversarial, boundary.target)
            return ClassScore(function, 2), None, (*arguments, boundary.target, adversarial)
        if model.is_binary:
            return function, None, arguments
        if not self.can.repeats_target:
            return ClassScore(function, 1), None, (*arguments, boundary.target)
        return function, boundary.target, arguments

    def _scored(self, n_inputs: int) -> ScoreTensor:
        """The scores of the model, for which the method is built once."""
        if n_inputs not in self._built:
            scored = ScoreTensor(self.forward_func, n_inputs, {})
            self._built[n_inputs] = scored, self.method(scored)
        return self._built[n_inputs][0]


def _is_target_of(boundary: BoundaryPoints, target: TargetType) -> bool:
    """Whether ``target`` is the very one of the boundary, a tensor or a list: of a model with one output, the sides."""
    classes = target.tolist() if isinstance(target, Tensor) else target
    return bool(classes == boundary.target.tolist())
