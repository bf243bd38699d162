"""The nearest decision boundary: ``solver`` tells the story, ``settings`` has its constants, each phase has a file."""

from captum_boundary.search.nearest.settings import NearestBoundarySettings
from captum_boundary.search.nearest.solver import NearestBoundary

__all__ = ["NearestBoundary", "NearestBoundarySettings"]
