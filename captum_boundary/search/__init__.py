"""Where is the decision boundary? Searches for the closest point at which the decision of a model changes."""

from captum_boundary.search.boundary_search import BoundaryPoints, BoundarySearch
from captum_boundary.search.nearest import NearestBoundary

__all__ = ["BoundaryPoints", "BoundarySearch", "NearestBoundary"]
