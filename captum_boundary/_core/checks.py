"""Arguments that every entry to the package checks in the same words."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = [
    "check_choice",
    "check_count",
    "check_examples",
    "check_inputs",
    "check_not_negative",
    "check_positive",
    "names_in_order",
    "plain_number",
    "shown",
]


def check_inputs(inputs: object) -> tuple[Tensor, ...]:
    """Return ``inputs`` as a tuple of tensors that share their number of examples, or say what is wrong with them."""
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if not tensors:
        raise BoundaryValueError("inputs must hold at least one Tensor, but it is an empty tuple.")
    names = [f"inputs[{index}]" if isinstance(inputs, tuple) else "inputs" for index in range(len(tensors))]
    for name, tensor in zip(names, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            way_out = f" Convert it with torch.as_tensor({name})." if hasattr(tensor, "__array__") else ""
            raise BoundaryTypeError(
                f"{name} must be a Tensor or a tuple of Tensors, but it is {type(tensor).__name__}.{way_out}"
            )
        if not tensor.is_floating_point():
            raise BoundaryTypeError(
                f"{name} must be floating point to be moved towards a boundary, but its dtype is {tensor.dtype}. "
                "Convert it with .float(); for token indices, search in the layer of embeddings, with ModelFromLayer "
                "or LayerBoundaryAttribution."
            )
        if tensor.ndim == 0 or tensor.shape[0] == 0:
            raise BoundaryValueError(f"{name} must hold at least one example, but its shape is {tuple(tensor.shape)}.")
        if tensor[0].numel() == 0:
            raise BoundaryValueError(f"{name} must have at least one feature, but its shape is {tuple(tensor.shape)}.")
        if tensor.shape[0] != tensors[0].shape[0]:
            raise BoundaryValueError(
                f"All inputs must hold the same number of examples, but inputs[0] has {tensors[0].shape[0]} "
                f"and {name} has {tensor.shape[0]}."
            )
    # One question for all inputs, since an accelerator has to be waited for to answer it.
    device = tensors[0].device
    if not torch.stack([torch.isfinite(tensor).all().to(device) for tensor in tensors]).all():
        for name, tensor in zip(names, tensors, strict=True):
            rows = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(dim=1).nonzero().flatten().tolist()
            if rows:
                raise BoundaryValueError(f"{name} contains NaN or infinity in row(s) {rows}.")
    return tensors


def check_examples(tensors: tuple[Tensor, ...]) -> None:
    """Refuse inputs, of any dtype, that do not share their number of examples, or have none."""
    sizes = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if 0 in sizes or len(sizes) > 1:
        raise BoundaryValueError(
            "All inputs must hold the same number of examples, at least one, but their shapes are "
            f"{', '.join(str(tuple(tensor.shape)) for tensor in tensors)}."
        )


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Refuse everything but the names that an option has."""
    if not isinstance(value, str) or value not in choices:
        raise BoundaryValueError(f"{name} must be {' or '.join(map(repr, choices))}, but it is {value!r}.")


def check_count(name: str, value: object, optional: bool = False) -> None:
    """Refuse everything but positive integers (and None, where it is optional)."""
    if value is None and optional:
        return
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise BoundaryValueError(f"{name} must be a positive integer, but it is {value!r}.")


def plain_number(value: Any) -> Any:
    """NumPy's numbers as Python's, which work with tensors and are stored without NumPy; all else as it is."""
    return value.item() if isinstance(value, numbers.Number) and hasattr(value, "item") else value


def check_positive(name: str, value: float | None, optional: bool = False) -> None:
    """Refuse everything but finite numbers above 0 (and None, where it is optional)."""
    if value is None and optional:
        return
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 < value < math.inf:
        raise BoundaryValueError(f"{name} must be a positive number, but it is {value!r}.")


def check_not_negative(name: str, value: float) -> None:
    """Refuse everything but finite numbers of at least 0."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise BoundaryValueError(f"{name} must be a number of at least 0, but it is {value!r}.")


def names_in_order(class_names: Any) -> list[Any] | None:
    """Names of classes as a list, from a sequence or from a mapping of classes to names, or of names to classes."""
    if class_names is None:
        return None
    if isinstance(class_names, str | Set):
        raise BoundaryTypeError(
            f"class_names must be a sequence of names in the order of the model's outputs, but it is {class_names!r}."
        )
    if not isinstance(class_names, Mapping):
        return list(class_names)
    names = dict(class_names)
    if names and all(isinstance(index, numbers.Integral) for index in names.values()):  # as class_to_idx and label2id
        names = {index: name for name, index in names.items()}
    if set(names) != set(range(len(names))):
        raise BoundaryValueError(
            f"class_names must name every class from 0 on in the order of the model's outputs, but the mapping has the "
            f"keys {list(names)[:5]}{' ...' if len(names) > 5 else ''}."
        )
    return [names[index] for index in range(len(names))]


def shown(rows: Tensor) -> str:
    """The indices of the rows that a mask marks, for a message: the first twenty."""
    indices = rows.nonzero().flatten().tolist()
    return ", ".join(map(str, indices[:20])) + (", ..." if len(indices) > 20 else "")
