"""How good is an explanation? Functions of a batch, with one number for each example."""

from captum_boundary.metrics.alignment import attribution_gap, first_order_optimality, normal_alignment
from captum_boundary.metrics.faithfulness import deletion, insertion
from captum_boundary.metrics.localization import concentration, energy_game, localization, positive_percentage

__all__ = [
    "attribution_gap",
    "concentration",
    "deletion",
    "energy_game",
    "first_order_optimality",
    "insertion",
    "localization",
    "normal_alignment",
    "positive_percentage",
]
