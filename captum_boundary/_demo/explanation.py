"""One search for boundary points, and six maps that explain the same decisions with and without them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from captum.attr import DeepLift, IntegratedGradients, Saliency
from torch import Tensor, nn

from captum_boundary._core.margin import margin_and_rival
from captum_boundary._demo.digits import Digits
from captum_boundary.attr import BoundaryAttribution, BoundaryIntegratedGradients, BoundarySaliency
from captum_boundary.search import BoundaryPoints, NearestBoundary

__all__ = ["HEADINGS", "Explanation", "explain"]

HEADINGS = (
    "example",
    "true class",
    "predicted",
    "other side",
    "distance (l2)",
    "margin at input (logits)",
    "margin at boundary (logits)",
    "delta of BIG (logits)",
)
# Of a grid of three by three over the image.
_PLACES = ("upper left", "top", "upper right", "left", "center", "right", "lower left", "bottom", "lower right")
_SMALL = 0.25  # of the largest change of a place: what is not worth a word


@dataclass(frozen=True)
class Explanation:
    """What the boundary says about some digits."""

    digits: Digits
    boundary: BoundaryPoints
    margin: Tensor
    delta: Tensor
    maps: Mapping[str, Tensor]

    @property
    def points(self) -> Tensor:
        """The boundary points, images like the digits."""
        points = self.boundary.points
        return points if isinstance(points, Tensor) else points[0]

    def rows(self) -> list[tuple[str, ...]]:
        """The table under ``HEADINGS``, one row for each example."""
        boundary = self.boundary
        return [
            (
                str(row),
                str(int(self.digits.labels[row])),
                str(int(boundary.target[row])),
                str(int(boundary.adversarial[row])) if boundary.found[row] else "not found",
                f"{boundary.distance[row]:.3f}",
                f"{self.margin[row]:.2f}",
                f"{boundary.margin[row]:.1e}",
                f"{self.delta[row]:.1e}",
            )
            for row in range(len(boundary))
        ]

    def sentences(self) -> list[str]:
        """What turns each digit into another one: where pixels become brighter or darker, by how much, and how far."""
        return [self._sentence(row) for row in range(len(self.boundary))]

    def _sentence(self, row: int) -> str:
        boundary, seen = self.boundary, int(self.boundary.target[row])
        if not boundary.found[row]:
            return f"Nothing was found that turns this {seen} into another digit."
        change = (self.points - self.digits.images)[row, 0]
        brighter, darker = (
            nn.functional.adaptive_avg_pool2d(part[None].clamp_min(0), 3).flatten() for part in (change, -change)
        )
        least = _SMALL * max(float(brighter.max()), float(darker.max()))
        parts = [
            f"{verb} the {_PLACES[int(amount.argmax())]}"
            for verb, amount in (("brightening", brighter), ("darkening", darker))
            if amount.max() > least
        ]
        return (
            f"{' and '.join(parts).capitalize()}, by at most {change.abs().max():.2f} a pixel, turns this {seen} into "
            f"a {int(boundary.adversarial[row])}."
        )


def explain(model: nn.Module, digits: Digits, budget: int) -> Explanation:
    """Find the nearest boundary points of ``digits`` once and draw all maps of the predicted classes from them."""
    images = digits.images
    boundary = NearestBoundary(model, bounds=(0, 1), budget=budget, show_progress=True).find(images)
    big, delta = BoundaryIntegratedGradients(model).attribute(images, boundary=boundary, return_convergence_delta=True)
    target, leaves = boundary.target, images.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting forward, backward hooks")  # DeepLift takes them off again
        maps = {
            "Saliency": Saliency(model).attribute(leaves, target, abs=False),
            "IG": IntegratedGradients(model).attribute(leaves, target=target),
            "DeepLift": DeepLift(model).attribute(leaves, target=target),
            "BSM": BoundarySaliency(model).attribute(images, boundary=boundary),
            "BIG": big,
            "Boundary DeepLift": BoundaryAttribution(model, DeepLift).attribute(images, boundary=boundary),
        }
    margin, _ = margin_and_rival(model(images).detach(), target)
    return Explanation(digits, boundary, margin, delta, {name: each.detach() for name, each in maps.items()})
