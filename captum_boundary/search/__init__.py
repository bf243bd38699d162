"""Where is the decision boundary? Searches for the closest point at which the decision of a model changes."""

from captum_boundary.search.boundary_points import BoundaryPoints
from captum_boundary.search.boundary_search import BoundarySearch
from captum_boundary.search.categorical import CategoricalBoundary
from captum_boundary.search.closest import ClosestBoundary
from captum_boundary.search.foolbox import FoolboxBoundary
from captum_boundary.search.nearest import NearestBoundary
from captum_boundary.search.pgd import PGDBoundary

__all__ = [
    "BoundaryPoints",
    "BoundarySearch",
    "CategoricalBoundary",
    "ClosestBoundary",
    "FoolboxBoundary",
    "NearestBoundary",
    "PGDBoundary",
]
