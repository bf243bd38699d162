"""Three digits, their maps, and the maps after a small perturbation that keeps the predicted class."""

from __future__ import annotations

from _digits import network_and_digits
from matplotlib.figure import Figure

from captum_boundary import AttributionAttack, evaluate_attribution_robustness
from captum_boundary.visualization import show_stability


def draw() -> Figure:
    """What ``show_stability`` draws."""
    model, digits = network_and_digits()
    attack = AttributionAttack(
        model, "topk", epsilon=0.15, bounds=(0, 1), k=10, n_steps=20, attack_steps=40, softplus_beta=20.0
    )
    result = evaluate_attribution_robustness(model, digits, None, attack, k=10)
    figure, _ = show_stability(digits, result, plt_fig_axis=(Figure(figsize=(7.5, 6.4), layout="constrained"), None))
    return figure
