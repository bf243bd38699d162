"""Warnings that name the line of the user's code that they are about."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn_user"]

# Modules whose frames stand between the user's call and a warning: ours, Captum's log_usage and context managers.
_BETWEEN = ("captum_boundary", "captum", "contextlib", "torch")


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn of the innermost call that is neither this package's nor that of a library which it goes through."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
