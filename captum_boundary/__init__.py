"""Boundary attributions for Captum: explain a classifier from its nearest decision boundary."""

from captum_boundary._errors import (
    BoundaryError,
    BoundaryNotFoundError,
    BoundaryNotFoundWarning,
    BoundaryTypeError,
    BoundaryValueError,
)
from captum_boundary.search import BoundaryPoints, BoundarySearch, NearestBoundary

__version__ = "0.1.0"

__all__ = [
    "BoundaryError",
    "BoundaryNotFoundError",
    "BoundaryNotFoundWarning",
    "BoundaryPoints",
    "BoundarySearch",
    "BoundaryTypeError",
    "BoundaryValueError",
    "NearestBoundary",
]
