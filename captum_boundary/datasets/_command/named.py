"""Things of the user's that a command line can only name."""

from __future__ import annotations

import importlib
from typing import Any

from captum_boundary.errors import BoundaryValueError

__all__ = ["is_name", "named"]


def is_name(text: str) -> bool:
    """Whether ``text`` has the form ``package.module:function``."""
    module, _, function = text.partition(":")
    return function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def named(text: str, purpose: str) -> Any:
    """The function that ``package.module:function`` names."""
    module, _, function = text.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BoundaryValueError(
            f"{purpose} {text} cannot be imported: {error}. It must be package.module:function, with the module in the "
            "current folder or installed."
        ) from error
