"""What can go wrong with a whole data set, beside what can go wrong with one batch."""

from __future__ import annotations

from captum_boundary.errors import BoundaryError

__all__ = ["ExampleError", "FolderError"]


class ExampleError(BoundaryError, RuntimeError):
    r"""An example could not be read or explained and ``strict=True`` asked to be told."""


class FolderError(BoundaryError, RuntimeError):
    r"""A folder of explanations cannot be used: it is another run's, in use, incomplete, or on a full disk."""
