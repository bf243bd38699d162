r"""How far do the model's slopes and the normals of its decision boundary agree?

"Robust Models Are More Interpretable Because Attributions Look Normal" (https://arxiv.org/abs/2103.11257) explains
the better maps of robust models by the smoothness of their boundaries: the gradient at an input is then nearly the
normal of the boundary nearby, and ordinary attributions are nearly boundary attributions. Here the *unit normal* at a
boundary point is the direction of the gradient of ``f_target - f_adversarial`` there; it points into the region of the
target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.bounds import Bounds, box_of
from captum_boundary._core.captum_helpers import TargetType, TensorOrTupleOfTensorsGeneric
from captum_boundary._core.checks import check_choice, check_inputs
from captum_boundary._core.context import geometry
from captum_boundary._core.geometry import row_dot
from captum_boundary._core.norms import L2, Norm, norm_of
from captum_boundary._core.oracle import MarginOracle
from captum_boundary._core.repeatability import watch_repeatability
from captum_boundary.errors import BoundaryValueError
from captum_boundary.metrics._maps import flat_pair
from captum_boundary.search import BoundaryPoints
from captum_boundary.search._given import check_same_target, points_for

__all__ = ["attribution_gap", "first_order_optimality", "normal_alignment"]


def normal_alignment(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    boundary: BoundaryPoints,
    target: TargetType = None,
    additional_forward_args: object = None,
    *,
    score: str = "output",
) -> Tensor:
    r"""Cosine of the gradient at the input and the unit normal at its boundary point.

    1 means that the ordinary saliency map already shows the normal of the boundary, as in a linear model with
    ``score="margin"``. The paper finds it higher for robust models.

    Args:

        forward_func (Callable): Returns class scores ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for a binary model.
        inputs (Tensor or tuple[Tensor, ...]): Inputs, floating point; N examples.
        boundary (BoundaryPoints): Boundary points of these inputs.
        target (int, tuple, Tensor or list, optional): Class whose score is differentiated, which must be that of the
            boundary. Default: None, that of the boundary
        additional_forward_args (Any, optional): Further arguments of ``forward_func``, given after ``inputs``.
            Tensors with N entries follow their examples. Default: None
        score (str, optional): ``"output"`` differentiates the output of the target class at the input, as a saliency
            map does; ``"margin"`` its difference to the output of the class on the other side of the boundary. For a
            model with one output, both are that output with the sign of the example's side. Default: ``"output"``

    Returns:

        - **cosine** (*Tensor*): Between -1 and 1, shape ``(N,)``. NaN where no boundary point was found, and where a
          gradient is zero.

    Raises:

        BoundaryTypeError: For inputs, targets, outputs or a boundary of the wrong type.
        BoundaryValueError: For inputs, targets and outputs of the wrong shape or value, an unknown ``score``, and a
            ``boundary`` of other inputs or targets.

    Examples::

        >>> import torch
        >>> from captum_boundary import NearestBoundary
        >>> model = torch.nn.Linear(3, 4)
        >>> inputs = torch.randn(5, 3)
        >>> boundary = NearestBoundary(model).find(inputs)
        >>> cosine = normal_alignment(model, inputs, boundary, score="margin")
        >>> bool(torch.allclose(cosine, torch.ones(5), atol=1e-5))
        True
    """
    check_choice("score", score, ("output", "margin"))
    with geometry(), watch_repeatability(forward_func):
        oracle, points = _oracle_of(forward_func, inputs, target, boundary, additional_forward_args)
        normal = _slope(oracle, points, boundary, with_adversarial=True)
        with_adversarial = score == "margin" or oracle.is_binary
        gradient = _slope(oracle, oracle.x, boundary, with_adversarial)
        cosine = row_dot(gradient, normal) / (L2.safe_length(gradient) * L2.safe_length(normal))
        return cosine.masked_fill(~boundary.found, torch.nan)


def first_order_optimality(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    boundary: BoundaryPoints,
    additional_forward_args: object = None,
    *,
    bounds: Bounds = None,
    norm: float | Norm | None = None,
) -> Tensor:
    r"""Whether boundary points are closest, to first order: cosine of the move ``x - x'`` and the unit normal.

    At a closest boundary point ``x'`` the move is normal to the boundary, and this is 1. In general it is the distance
    from ``x`` to the plane that touches the boundary at ``x'``, relative to the distance to ``x'``: just that cosine in
    the l2 norm without bounds. Within bounds the point of the plane must respect them, so that coordinates held back by
    a limit are not counted against ``x'``.

    Args:

        forward_func (Callable): Returns class scores ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for a binary model.
        inputs (Tensor or tuple[Tensor, ...]): Inputs, floating point; N examples.
        boundary (BoundaryPoints): Boundary points of these inputs.
        additional_forward_args (Any, optional): Further arguments of ``forward_func``, given after ``inputs``.
            Tensors with N entries follow their examples. Default: None
        bounds (tuple, optional): Limits of the search that found the points, in the same form. Default: None, those
            that the boundary points carry. ``(-math.inf, math.inf)`` leaves them out.
        norm (float or Norm, optional): Norm of that search. Default: None, that of the boundary points.

    Returns:

        - **optimality** (*Tensor*): At most 1, shape ``(N,)``; negative where the boundary at ``x'`` faces away from
          the input. NaN where no boundary point was found, and where the gradient there is zero.

    Raises:

        BoundaryTypeError: For inputs, outputs or a boundary of the wrong type.
        BoundaryValueError: For inputs and outputs of the wrong shape or value, inputs or points outside ``bounds``, an
            unknown ``norm``, and a ``boundary`` of other inputs.

    Examples::

        >>> import torch
        >>> from captum_boundary import NearestBoundary
        >>> model = torch.nn.Linear(3, 4)
        >>> inputs = torch.randn(5, 3)
        >>> optimality = first_order_optimality(model, inputs, NearestBoundary(model).find(inputs))
        >>> bool(torch.allclose(optimality, torch.ones(5), atol=1e-3))
        True
    """
    asked = None if norm is None else norm_of(norm)
    with geometry(), watch_repeatability(forward_func):
        oracle, points = _oracle_of(forward_func, inputs, None, boundary, additional_forward_args)
        tensors = check_inputs(inputs)
        flat_norm = (asked or norm_of(boundary.norm)).for_inputs(tensors)
        box = box_of(boundary.bounds if bounds is None else bounds, tensors)
        if not torch.allclose(box.clamp(points), points, rtol=1e-5, atol=1e-5):
            raise BoundaryValueError(
                "boundary has points outside bounds. Give the bounds of the search that found them."
            )
        normal = _slope(oracle, points, boundary, with_adversarial=True)
        normal = L2.steepest(normal)
        uphill = -boundary.margin.sign().to(normal)[:, None] * normal  # towards the side of the input
        move = oracle.x - points
        drop = row_dot(uphill, move)
        shortest = oracle.x - flat_norm.project_onto_half_space(oracle.x, uphill, drop.clamp_min(0), box)
        # A hyperplane n . (y - x') = 0 lies at a distance of n . (x - x') / |n|_* from x, in the dual norm.
        beyond = drop / flat_norm.dual.safe_length(normal)
        to_plane = torch.where(drop > 0, flat_norm.safe_length(shortest), beyond)
        return (to_plane / flat_norm.safe_length(move)).masked_fill(~boundary.found, torch.nan)


def attribution_gap(first: TensorOrTupleOfTensorsGeneric, second: TensorOrTupleOfTensorsGeneric) -> Tensor:
    r"""Euclidean distance of two attributions of the same inputs, such as IG and BIG, or a saliency map and BSM.

    The paper's measure of how much the boundary's view differs from the ordinary one; it is small for robust models. It
    is not relative: it grows with the attributions and with the number of features.

    Args:

        first (Tensor or tuple[Tensor, ...]): Attributions ``(N, ...)``; those of a tuple count together.
        second (Tensor or tuple[Tensor, ...]): Attributions of the same shapes.

    Returns:

        - **gap** (*Tensor*): Not negative, shape ``(N,)``. NaN for examples with NaN attributions.

    Raises:

        BoundaryTypeError: If an attribution is not a floating-point Tensor.
        BoundaryValueError: If shapes differ, or an attribution is infinite or empty.

    Examples::

        >>> import torch
        >>> attribution_gap(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
        tensor([5.])
    """
    one, other = flat_pair(first, second)
    return L2.length(one - other)


def _oracle_of(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    target: TargetType,
    boundary: BoundaryPoints,
    additional_forward_args: object,
) -> tuple[MarginOracle, Tensor]:
    """The model and the flat boundary points ``(N, D)``, after a look at whether all belong together."""
    tensors = check_inputs(inputs)
    points = points_for(tensors, boundary)
    oracle = MarginOracle(forward_func, tensors, target, additional_forward_args)
    if target is not None:
        check_same_target(oracle.target, boundary.target)
    return oracle, oracle.pack(points)


def _slope(oracle: MarginOracle, points: Tensor, boundary: BoundaryPoints, with_adversarial: bool) -> Tensor:
    """Gradients ``(N, D)`` at ``points`` of the target's score, less that of the adversarial class if wanted.

    Only their directions matter. They are scaled to a largest component of 1, for squares of tiny ones would underflow.
    """
    slope = oracle.gradient(points, boundary.target, boundary.adversarial.clamp_min(0) if with_adversarial else None)
    return slope / slope.abs().amax(dim=1, keepdim=True)
