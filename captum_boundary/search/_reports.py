"""What became of each example of a search: the status that it gets, and what users are told of it."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary._core.checks import shown
from captum_boundary._core.oracle import MarginOracle
from captum_boundary._core.user_warnings import warn_user
from captum_boundary.errors import BoundaryPrecisionWarning
from captum_boundary.search.boundary_points import BoundaryPoints
from captum_boundary.search.boundary_status import BoundaryStatus

__all__ = ["final_status", "not_found_message", "warn_of_coarse_scores"]

# Of an input's margin: how far beyond the boundary a point of a model in half precision may lie without a warning.
_LARGE_OVERSHOOT = 0.05


def final_status(status: Tensor, found: Tensor, is_beyond: Tensor, was_beyond: Tensor) -> Tensor:
    """What the search said of its end, where a point was found, and what became of it where not."""
    missing = BoundaryStatus.NOT_FOUND_BUDGET * (status % 10 == BoundaryStatus.NOT_FOUND_BUDGET)
    missing = torch.where(was_beyond, BoundaryStatus.LABEL_NOT_KEPT, missing)
    missing = torch.where(is_beyond, BoundaryStatus.TOO_FAR, missing)
    # The line of a search that had given up may cross the boundary a little further on.
    return torch.where(found, status.clamp_min(BoundaryStatus.FOUND), missing)


def warn_of_coarse_scores(oracle: MarginOracle, boundary: BoundaryPoints, examples: Tensor | None = None) -> None:
    """Name the rows whose points lie clearly beyond the boundary, since scores in half precision jump there.

    Where an example has several points, ``examples`` ``(P,)`` says which of them is whose.
    """
    if oracle.resolution <= torch.finfo(torch.float32).eps:
        return
    share = boundary.margin.abs() / oracle.start_depth.abs()
    coarse = boundary.found & (share > _LARGE_OVERSHOOT)
    largest = float(share.masked_fill(~coarse, 0.0).max())
    if examples is not None:
        coarse = coarse.new_zeros(int(examples.max()) + 1).index_fill(0, examples[coarse], True)
    if coarse.any():
        warn_user(
            f"The model's numbers have a relative resolution of {oracle.resolution:.2g}: the boundary points of "
            f"{int(coarse.sum())} of {len(coarse)} examples, row(s) {shown(coarse)}, lie beyond the boundary by up to "
            f"{largest:.0%} of their input's margin, and their distances are too large by about as "
            "much. Search with the model and the inputs in float32: copy.deepcopy(model).float().",
            BoundaryPrecisionWarning,
        )


def not_found_message(missing: Tensor, max_distance: float | None) -> str:
    within = "" if max_distance is None else f" within max_distance={max_distance:g}"
    return (
        f"No decision boundary was found{within} for {int(missing.sum())} of {len(missing)} examples, row(s) "
        f"{shown(missing)}: their points equal the inputs and their distance is infinite. The model may be constant "
        "there, its outputs may be saturated probabilities (use logits), or the bounds or the budget may be too tight."
    )
