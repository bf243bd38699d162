"""The only file that imports Captum's private helpers.

Captum offers no public way to treat ``inputs``, ``additional_forward_args`` and outputs exactly as its own methods do.
These helpers have had the same signatures in every release since 0.7; should one move, this is the place to mend.
"""

from __future__ import annotations

from typing import Any, TypeVar

from captum._utils.common import _format_additional_forward_args
from captum._utils.common import _format_output as format_output
from captum._utils.common import _is_tuple as is_tuple
from torch import Tensor

# As in captum._utils.typing, which type checkers do not see: Captum says not that it is typed.
TargetType = None | int | tuple[int, ...] | Tensor | list[tuple[int, ...]] | list[int]
TensorOrTupleOfTensorsGeneric = TypeVar("TensorOrTupleOfTensorsGeneric", Tensor, tuple[Tensor, ...])

__all__ = [
    "TargetType",
    "TensorOrTupleOfTensorsGeneric",
    "format_additional_forward_args",
    "format_output",
    "is_tuple",
]


def format_additional_forward_args(additional_forward_args: object) -> tuple[Any, ...]:
    """The further arguments of a model as a tuple, also where there are none, for which Captum has None."""
    return _format_additional_forward_args(additional_forward_args) or ()
