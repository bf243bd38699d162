"""Training models whose attributions are stable under perturbation, and testing that they are."""

from captum_boundary.robust.attribution_attack import AttributionAttack
from captum_boundary.robust.evaluation import AttributionRobustness, MapAgreement, evaluate_attribution_robustness
from captum_boundary.robust.rar_loss import RARLoss, RARParts
from captum_boundary.robust.sizes import paper_settings
from captum_boundary.robust.terms import AttributionCosine, InputAlignment, StabilityTerm, TopKMargin

__all__ = [
    "AttributionAttack",
    "AttributionCosine",
    "AttributionRobustness",
    "InputAlignment",
    "MapAgreement",
    "RARLoss",
    "RARParts",
    "StabilityTerm",
    "TopKMargin",
    "evaluate_attribution_robustness",
    "paper_settings",
]
