"""The only file that imports Captum's private helpers.

Captum offers no public way to treat ``inputs``, ``additional_forward_args`` and outputs exactly as its own methods do.
These helpers have had the same signatures in every release since 0.7; should one move, this is the place to mend.
"""

from __future__ import annotations

from captum._utils.common import (
    _format_additional_forward_args as format_additional_forward_args,
)
from captum._utils.common import _format_output as format_output
from captum._utils.common import _is_tuple as is_tuple
from captum._utils.typing import TargetType, TensorOrTupleOfTensorsGeneric

__all__ = [
    "TargetType",
    "TensorOrTupleOfTensorsGeneric",
    "format_additional_forward_args",
    "format_output",
    "is_tuple",
]
