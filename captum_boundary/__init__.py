"""Boundary attributions for Captum: explain a classifier from its nearest decision boundary."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from captum_boundary import attr, errors, layers, metrics, robust, search, smoothing, visualization
from captum_boundary.attr import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryDistance,
    BoundaryEnergy,
    BoundaryGradCam,
    BoundaryIntegratedGradients,
    BoundaryNormals,
    BoundarySaliency,
    LayerBoundaryAttribution,
)
from captum_boundary.errors import BoundaryError, BoundaryNotFoundWarning
from captum_boundary.layers import ModelFromLayer
from captum_boundary.robust import AttributionAttack, RARLoss, evaluate_attribution_robustness, paper_settings
from captum_boundary.search import BoundaryPoints, NearestBoundary, PGDBoundary, bounds_of
from captum_boundary.smoothing import SmoothedModel, certified_radius, largest_stdev

__version__ = "0.1.0"

__all__ = [
    "AggregatedBoundaryNormals",
    "AttributionAttack",
    "BoundaryAttribution",
    "BoundaryDistance",
    "BoundaryEnergy",
    "BoundaryError",
    "BoundaryGradCam",
    "BoundaryIntegratedGradients",
    "BoundaryNormals",
    "BoundaryNotFoundWarning",
    "BoundaryPoints",
    "BoundarySaliency",
    "LayerBoundaryAttribution",
    "ModelFromLayer",
    "NearestBoundary",
    "PGDBoundary",
    "RARLoss",
    "SmoothedModel",
    "attr",
    "bounds_of",
    "certified_radius",
    "errors",
    "evaluate_attribution_robustness",
    "largest_stdev",
    "layers",
    "metrics",
    "paper_settings",
    "robust",
    "search",
    "smoothing",
    "visualization",
]

if not TYPE_CHECKING:  # for which every attribute would exist

    def __getattr__(name: str) -> ModuleType:
        """Import the packages that need optional dependencies when they are asked for."""
        if name in ("datasets", "llm"):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
