"""What does the decision boundary say about an input? Attributions by Captum's methods, from boundary points."""

from captum_boundary.attr._rewrite import separate_activations
from captum_boundary.attr.aggregated_boundary_normals import AggregatedBoundaryNormals
from captum_boundary.attr.boundary_attribution import BoundaryAttribution
from captum_boundary.attr.boundary_distance import BoundaryDistance
from captum_boundary.attr.boundary_energy import BoundaryEnergy
from captum_boundary.attr.boundary_grad_cam import BoundaryGradCam
from captum_boundary.attr.boundary_noise_tunnel import BoundaryNoiseTunnel
from captum_boundary.attr.boundary_normals import BoundaryNormals
from captum_boundary.attr.layer_boundary_attribution import LayerBoundaryAttribution
from captum_boundary.attr.paper_methods import BoundaryIntegratedGradients, BoundarySaliency

__all__ = [
    "AggregatedBoundaryNormals",
    "BoundaryAttribution",
    "BoundaryDistance",
    "BoundaryEnergy",
    "BoundaryGradCam",
    "BoundaryIntegratedGradients",
    "BoundaryNoiseTunnel",
    "BoundaryNormals",
    "BoundarySaliency",
    "LayerBoundaryAttribution",
    "separate_activations",
]
