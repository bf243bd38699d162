"""What does a model decide when its inputs are noisy? Randomized smoothing, for any classifier."""

from captum_boundary.smoothing.certified_radius import CertifiedRadius, certified_radius
from captum_boundary.smoothing.largest_stdev import largest_stdev
from captum_boundary.smoothing.smoothed_model import SmoothedModel

__all__ = ["CertifiedRadius", "SmoothedModel", "certified_radius", "largest_stdev"]
