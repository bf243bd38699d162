"""How good is an explanation? Functions of a batch, with one number for each example."""

from captum_boundary.metrics.alignment import attribution_gap, first_order_optimality, normal_alignment
from captum_boundary.metrics.erasure import comprehensiveness, sufficiency
from captum_boundary.metrics.faithfulness import deletion, insertion
from captum_boundary.metrics.localization import concentration, energy_game, localization, positive_percentage
from captum_boundary.metrics.stability import (
    center_shift,
    cosine_similarity,
    evaluate_attribution_robustness,
    kendall_tau,
    spearman_rho,
    topk_intersection,
)

__all__ = [
    "attribution_gap",
    "center_shift",
    "comprehensiveness",
    "concentration",
    "cosine_similarity",
    "deletion",
    "energy_game",
    "evaluate_attribution_robustness",
    "first_order_optimality",
    "insertion",
    "kendall_tau",
    "localization",
    "normal_alignment",
    "positive_percentage",
    "spearman_rho",
    "sufficiency",
    "topk_intersection",
]
