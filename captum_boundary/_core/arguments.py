"""Arguments of a model, and targets, that belong to the examples of a batch: those with an entry for each of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_boundary._core.captum_helpers import TargetType
from captum_boundary.errors import BoundaryValueError

__all__ = ["follows", "of_examples", "target_of_examples"]


def follows(argument: object, n_examples: int) -> bool:
    """Captum's rule: whether an argument is a tensor with one entry for each of ``n_examples``."""
    return isinstance(argument, Tensor) and argument.ndim > 0 and len(argument) == n_examples


def of_examples(arguments: tuple[Any, ...], n_examples: int, examples: Tensor | slice) -> tuple[Any, ...]:
    """The arguments of some of the examples, in any order, also several times."""
    return tuple(_chosen(value, examples) if follows(value, n_examples) else value for value in arguments)


def target_of_examples(target: TargetType, n_examples: int, examples: Tensor | slice) -> TargetType:
    """The targets of some of the examples; one that is the same for all stays as it is."""
    if not isinstance(target, (Tensor, list)) or (isinstance(target, Tensor) and target.numel() == 1):
        return target
    if len(target) != n_examples:
        raise BoundaryValueError(
            f"target must have one entry for each of the {n_examples} examples, but it has {len(target)}."
        )
    if isinstance(target, Tensor):
        return _chosen(target, examples)
    return target[examples] if isinstance(examples, slice) else [target[row] for row in examples.tolist()]


def _chosen(values: Tensor, examples: Tensor | slice) -> Tensor:
    return values[examples if isinstance(examples, slice) else examples.to(values.device)]
