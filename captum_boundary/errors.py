"""The errors and warnings of the package: one family, so that one ``except`` catches them all."""

from __future__ import annotations

__all__ = [
    "BoundaryError",
    "BoundaryNotFoundError",
    "BoundaryNotFoundWarning",
    "BoundaryPrecisionWarning",
    "BoundaryTypeError",
    "BoundaryValueError",
]


class BoundaryError(Exception):
    r"""Base class of every error that captum_boundary raises on purpose."""


class BoundaryValueError(BoundaryError, ValueError):
    r"""An argument has the right type and an impossible value or shape."""


class BoundaryTypeError(BoundaryError, TypeError):
    r"""An argument has a type (or dtype) that cannot be used."""


class BoundaryNotFoundError(BoundaryError, RuntimeError):
    r"""No decision boundary was found for some examples and ``strict=True`` asked to be told."""


class BoundaryNotFoundWarning(UserWarning):
    r"""No decision boundary was found for the examples named in the message."""


class BoundaryPrecisionWarning(UserWarning):
    r"""Scores in half precision are too coarse for the boundary points and distances named in the message."""
