"""Boundary attributions for Captum: explain a classifier from its nearest decision boundary."""

from captum_boundary import metrics, visualization
from captum_boundary.attr import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryDistance,
    BoundaryEnergy,
    BoundaryGradCam,
    BoundaryIntegratedGradients,
    BoundaryNoiseTunnel,
    BoundaryNormals,
    BoundarySaliency,
    LayerBoundaryAttribution,
    separate_activations,
)
from captum_boundary.errors import (
    BoundaryError,
    BoundaryNotFoundError,
    BoundaryNotFoundWarning,
    BoundaryPrecisionWarning,
    BoundaryTypeError,
    BoundaryValueError,
)
from captum_boundary.layers import ModelFromLayer, nearest_tokens
from captum_boundary.robust import (
    AttributionAttack,
    AttributionCosine,
    AttributionRobustness,
    InputAlignment,
    RARLoss,
    RARParts,
    TopKMargin,
    evaluate_attribution_robustness,
    paper_settings,
)
from captum_boundary.search import (
    BoundaryPoints,
    BoundarySearch,
    CategoricalBoundary,
    ClosestBoundary,
    FoolboxBoundary,
    NearestBoundary,
    PGDBoundary,
    bounds_of,
)
from captum_boundary.smoothing import CertifiedRadius, SmoothedModel, certified_radius, largest_stdev

__version__ = "0.1.0"

__all__ = [
    "AggregatedBoundaryNormals",
    "AttributionAttack",
    "AttributionCosine",
    "AttributionRobustness",
    "BoundaryAttribution",
    "BoundaryDistance",
    "BoundaryEnergy",
    "BoundaryError",
    "BoundaryGradCam",
    "BoundaryIntegratedGradients",
    "BoundaryNoiseTunnel",
    "BoundaryNormals",
    "BoundaryNotFoundError",
    "BoundaryNotFoundWarning",
    "BoundaryPoints",
    "BoundaryPrecisionWarning",
    "BoundarySaliency",
    "BoundarySearch",
    "BoundaryTypeError",
    "BoundaryValueError",
    "CategoricalBoundary",
    "CertifiedRadius",
    "ClosestBoundary",
    "FoolboxBoundary",
    "InputAlignment",
    "LayerBoundaryAttribution",
    "ModelFromLayer",
    "NearestBoundary",
    "PGDBoundary",
    "RARLoss",
    "RARParts",
    "SmoothedModel",
    "TopKMargin",
    "bounds_of",
    "certified_radius",
    "evaluate_attribution_robustness",
    "largest_stdev",
    "metrics",
    "nearest_tokens",
    "paper_settings",
    "separate_activations",
    "visualization",
]
