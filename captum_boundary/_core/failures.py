"""Failures of a model whose cause is known: what to change, in the place of an error from within the model.

All other errors of a model reach the user as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from captum_boundary._core.margin import shaped_scores
from captum_boundary._core.modules import modules_of
from captum_boundary.errors import BoundaryError, BoundaryValueError

__all__ = ["other_batch_explained", "scripts_explained", "types_and_exports_explained", "without_batch_dimension"]

_FAILURES = (IndexError, RuntimeError, ValueError, AssertionError)
_OF_TYPES = re.compile(r"same dtype|expected scalar type|type .* should be the same")
_OF_EXPORTS = re.compile(r"Guard failed|Expected input at \*args")
_OF_SHAPES = re.compile(r"size|shape|dimension|batch|match|bound", re.IGNORECASE)


@contextmanager
def types_and_exports_explained(forward_func: Any, inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """Name the cause where inputs and weights have different types, or a program takes batches of one size."""
    try:
        yield
    except BoundaryError:
        raise
    except (RuntimeError, AssertionError) as error:
        if _OF_TYPES.search(str(error)) and all(tensor.is_floating_point() for tensor in inputs):
            raise BoundaryValueError(_different_types(forward_func, inputs, error)) from error
        if _OF_EXPORTS.search(str(error)):
            raise BoundaryValueError(
                f"The exported program takes batches of one size only ({_in_brief(error)}), but it was given "
                f"{len(inputs[0])} examples. Export it with a dynamic batch dimension (torch.export.Dim), or for one "
                "example and give internal_batch_size=1, to the search as well."
            ) from error
        raise


@contextmanager
def scripts_explained() -> Iterator[None]:
    """Name the cause where a script cannot be differentiated under the autocast of its caller."""
    try:
        yield
    except RuntimeError as error:
        if "TorchScript" not in str(error) or not _OF_TYPES.search(str(error)):
            raise
        raise BoundaryValueError(
            "The scripted model cannot be differentiated under this autocast: PyTorch derives a script for the one "
            f"dtype under which it first ran ({str(error).strip().splitlines()[-1]}). Take the module from before it "
            "was scripted, or leave torch.autocast."
        ) from error


@contextmanager
def other_batch_explained(n_variants: int, n_examples: int) -> Iterator[None]:
    """Name the cause where a function that holds tensors of its examples is given another number of rows."""
    try:
        yield
    except _FAILURES as error:
        if n_variants == n_examples or not (isinstance(error, IndexError) or _OF_SHAPES.search(str(error))):
            raise
        if "out of memory" in str(error):
            raise
        if isinstance(error, BoundaryError) and f"it returned shape ({n_examples}," not in str(error):
            raise
        if "more than 1 value per channel" in str(error):  # of PyTorch's normalizations
            raise BoundaryValueError(
                "The model normalizes by the statistics of its batch, and so has no decision of one example alone "
                f"({_in_brief(error)}). Call model.eval(), or give its normalization running statistics."
            ) from error
        raise BoundaryValueError(
            f"The model failed on {n_variants} rows made of the {n_examples} examples ({_in_brief(error)}). Examples "
            "whose boundaries are found leave the batch, and others are evaluated at several points at once. So "
            "forward_func must not hold tensors that belong to the examples, such as an attention_mask: give them as "
            "additional_forward_args, whose entries follow their examples. A tensor there that belongs to all of them "
            f"must not have {n_examples} entries: let forward_func hold that one."
        ) from error


def without_batch_dimension(inputs: tuple[Tensor, ...], output_of: Callable[..., Tensor]) -> BoundaryValueError | None:
    """The error to raise if a model that refused ``inputs`` takes them as one example; else None."""
    try:
        shaped_scores(output_of(tuple(tensor[None] for tensor in inputs)), 1)
    except Exception:
        return None
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
    return BoundaryValueError(
        f"inputs seem to have no batch dimension: their shape is {shapes}, and the model takes them as one example. "
        "Add a batch dimension: inputs[None], or inputs.unsqueeze(0)."
    )


def _different_types(forward_func: Any, inputs: tuple[Tensor, ...], error: Exception) -> str:
    given = ", ".join(dict.fromkeys(str(tensor.dtype) for tensor in inputs))
    parameters = [each for module in modules_of(forward_func) for each in module.parameters(recurse=False)]
    needed = list(dict.fromkeys(str(each.dtype) for each in parameters if each.is_floating_point()))
    if len(needed) != 1 or needed == [given]:
        return (
            f"The inputs are {given}, and the model computes in another type ({_in_brief(error)}). Convert the inputs "
            "to the type of the model's weights, with inputs.to(dtype)."
        )
    return (
        f"The inputs are {given}, and the weights of the model are {needed[0]}. Convert one of them: "
        f"inputs.to({needed[0]}), or model.to({given})."
    )


def _in_brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
