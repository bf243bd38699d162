"""What does it look like? Pictures of boundary points, their surroundings, and the attributions they give."""

from captum_boundary.visualization.boundary_point import show_boundary_point
from captum_boundary.visualization.boundary_slice import plot_boundary_slice
from captum_boundary.visualization.comparison import compare_attributions
from captum_boundary.visualization.feature_changes import describe_feature_changes, plot_feature_changes
from captum_boundary.visualization.show_attribution import show_attribution
from captum_boundary.visualization.stability import show_stability

__all__ = [
    "compare_attributions",
    "describe_feature_changes",
    "plot_boundary_slice",
    "plot_feature_changes",
    "show_attribution",
    "show_boundary_point",
    "show_stability",
]
