"""Where is the decision boundary? Searches for the closest point at which the decision of a model changes."""

from captum_boundary._core.norms import Norm
from captum_boundary._core.weighted_l2 import WeightedL2
from captum_boundary.search.boundary_points import BoundaryPoints
from captum_boundary.search.boundary_search import BoundarySearch
from captum_boundary.search.boundary_status import BoundaryStatus
from captum_boundary.search.categorical import CategoricalBoundary
from captum_boundary.search.closest import ClosestBoundary
from captum_boundary.search.foolbox import FoolboxBoundary
from captum_boundary.search.nearest import NearestBoundary, NearestBoundarySettings
from captum_boundary.search.normalized_bounds import bounds_of
from captum_boundary.search.pgd import PGDBoundary
from captum_boundary.search.search_problem import Proposal, SearchProblem, Solution

__all__ = [
    "BoundaryPoints",
    "BoundarySearch",
    "BoundaryStatus",
    "CategoricalBoundary",
    "ClosestBoundary",
    "FoolboxBoundary",
    "NearestBoundary",
    "NearestBoundarySettings",
    "Norm",
    "PGDBoundary",
    "Proposal",
    "SearchProblem",
    "Solution",
    "WeightedL2",
    "bounds_of",
]
