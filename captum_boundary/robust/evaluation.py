"""How much the explanations of a model change when they are attacked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_boundary._core.agreement import (
    center_shift,
    cosine_similarity,
    kendall_tau,
    spearman_rho,
    top_count,
    topk_intersection,
)
from captum_boundary._core.captum_helpers import TargetType, TensorOrTupleOfTensorsGeneric, format_output, is_tuple
from captum_boundary._core.checks import check_count, check_inputs, shown
from captum_boundary._core.context import callers_autocast, geometry
from captum_boundary._core.eager_kernels import native_recurrence
from captum_boundary._core.flat import pack
from captum_boundary._core.geometry import Box
from captum_boundary._core.repeatability import watch_repeatability
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust._attack_descent import random_displacement
from captum_boundary.robust._attribution_maps import AttributionMaps, as_shares
from captum_boundary.robust.attribution_attack import AttributionAttack

__all__ = ["AttributionRobustness", "MapAgreement", "evaluate_attribution_robustness"]

# Draws among which the control is the first that keeps the label.
_CONTROL_TRIES = 30
# Points that leave the box by rounding alone, as shares of its width, are not refused.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class MapAgreement:
    r"""Agreement of maps before and after a perturbation, ``(N,)`` each, as :mod:`captum_boundary.metrics` has them.

    NaN where a map is constant and the measure has no meaning.

    Attributes:

        topk_intersection (Tensor): Share of the ``k`` largest features that remain among the ``k`` largest.
        kendall_tau (Tensor): Kendall's rank correlation, tau-b.
        spearman_rho (Tensor): Spearman's rank correlation.
        cosine_similarity (Tensor): Cosine of the angle between the maps.
        center_shift (Tensor): Distance between the maps' centers of mass, in pixels; NaN for all but a single input of
            images.
    """

    topk_intersection: Tensor
    kendall_tau: Tensor
    spearman_rho: Tensor
    cosine_similarity: Tensor
    center_shift: Tensor


@dataclass(frozen=True)
class AttributionRobustness(MapAgreement):
    r"""What an attack did to the attributions of N examples, and what a random perturbation does.

    Attributes:

        perturbed (Tensor or tuple[Tensor, ...]): The perturbed inputs, like the inputs.
        before (Tensor): Maps at the inputs, ``(N, H, W)`` for images, the shape of the input for others, ``(N, P)`` for
            several inputs. They sum to one, or are zero.
        after (Tensor): Maps at the perturbed inputs.
        control (MapAgreement): The same measures under a random perturbation.
        k (int): Number of features whose intersection is measured.
    """

    perturbed: Tensor | tuple[Tensor, ...]
    before: Tensor
    after: Tensor
    control: MapAgreement
    k: int


def evaluate_attribution_robustness(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    target: TargetType,
    attack: AttributionAttack,
    additional_forward_args: object = None,
    *,
    k: int | None = None,
    attribution: Any = None,
    perturbed: TensorOrTupleOfTensorsGeneric | None = None,
) -> AttributionRobustness:
    r"""Attack the attributions of a model and measure how much of them remains.

    The numbers of "Robust Attribution Regularization" (https://arxiv.org/abs/1905.09957), for each example: top-k
    intersection (the paper's IN) and Kendall's tau (CO), with Spearman's rho, the cosine and the shift of the center of
    mass. Maps are magnitudes of the attribution, summed over the channels of images. The paper leaves out
    examples that are misclassified; here all count.

    The maps are those that the attack is made for or, with ``attribution``, those of any other method at the same
    perturbed inputs: whether what moves the one moves the other. An attack that is not made for a method may do less to
    it than one that is. One attack serves several methods when its result is passed on as ``perturbed``.

    Such numbers mean little alone, since a random perturbation changes maps as well
    (https://arxiv.org/abs/2312.10534). Therefore ``control`` has them for one random draw: every feature moved
    by ``epsilon`` up or down, clipped to the bounds, the first draw that keeps the label. Where none of the draws does,
    the control is the input itself.

    Args:

        forward_func (Callable): The model that the attack is made for.
        inputs (Tensor or tuple[Tensor, ...]): Inputs, as for :meth:`AttributionAttack.perturb`.
        target (int, tuple, Tensor, list or None): Class whose attribution is meant; None for the predicted class.
        attack (AttributionAttack): The attack, which shows its progress if it was made so.
        additional_forward_args (Any, optional): Further arguments of the model. Default: None
        k (int, optional): Number of features that are the top. Default: None, that of the attack, which is an eighth of
            the map unless told otherwise.
        attribution (Any, optional): Whose maps are compared: an attribution method of the model, such as
            ``BoundaryIntegratedGradients(model)`` or Captum's ``DeepLift(model)``, or a function that is called as
            their ``attribute(inputs, target=...)`` is, with ``additional_forward_args=...`` where there are any. It
            gets the predicted classes where ``target`` is None. Where it finds nothing (a boundary attribution without
            a boundary point), its map is NaN, and so are the measures. Default: None, what the attack is made for.
        perturbed (Tensor or tuple[Tensor, ...], optional): Perturbed inputs that were found before, like ``inputs``,
            within ``epsilon`` and ``bounds`` of the attack and with the labels of ``inputs``: the attack is not run
            again. Default: None

    Returns:

        - **robustness** (*AttributionRobustness*): Measures of agreement ``(N,)``, those of the control, the perturbed
          inputs and the maps before and after.

    Raises:

        BoundaryTypeError: If ``attack`` is no AttributionAttack or ``attribution`` no method, and for inputs, targets
            or outputs of the wrong type.
        BoundaryValueError: If the attack is made for another model, whose labels it would keep, for a ``k`` larger than
            the map, perturbed inputs or attributions of other shapes than the inputs, perturbed inputs out of reach of
            the attack or with other labels, and for whatever :meth:`AttributionAttack.perturb` refuses.

    Examples::

        >>> import torch
        >>> from captum_boundary.robust import AttributionAttack, evaluate_attribution_robustness
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)).eval()
        >>> inputs = torch.rand(8, 64)
        >>> attack = AttributionAttack(model, epsilon=0.05, bounds=(0, 1))
        >>> robustness = evaluate_attribution_robustness(model, inputs, None, attack)
        >>> bool(robustness.kendall_tau.mean() < robustness.control.kendall_tau.mean() < 1)
        True
        >>> from captum_boundary import BoundaryIntegratedGradients
        >>> of_big = evaluate_attribution_robustness(
        ...     model,
        ...     inputs,
        ...     None,
        ...     attack,
        ...     attribution=BoundaryIntegratedGradients(model),
        ...     perturbed=robustness.perturbed,
        ... )
        >>> of_big.kendall_tau.shape
        torch.Size([8])
    """
    if not isinstance(attack, AttributionAttack):
        raise BoundaryTypeError(f"attack must be an AttributionAttack, but it is {type(attack).__name__}.")
    if forward_func != attack.forward_func:
        raise BoundaryValueError(
            "The attack is made for another model, and keeps the labels of that one alone: build it with "
            "AttributionAttack(model, ...) for the model that is evaluated."
        )
    check_count("k", k, optional=True)
    with geometry(), native_recurrence(forward_func), watch_repeatability(forward_func):
        maps = attack._maps(check_inputs(inputs), target, additional_forward_args)
        k = top_count(attack.k if k is None else k, math.prod(maps.map_shape))
        box = attack._box(maps)
        points = attack._perturbed(maps, box) if perturbed is None else _as_points(perturbed, maps, box)
        seed = 1 if attack.method == "random" else 0  # the control of a random perturbation is another one
        control = random_displacement(maps, box, _CONTROL_TRIES, attack.generator, seed)
        shares = _shares_of(attribution, maps, is_tuple(inputs), additional_forward_args)
        bar = tqdm((maps.x, points, control), desc="Maps", unit="map", disable=not attack.show_progress)
        before, after, of_control = map(shares, bar)
        return AttributionRobustness(
            **_measures(maps, before, after, k),
            perturbed=format_output(is_tuple(inputs), maps.unpacked(points)),
            before=before.view(-1, *maps.map_shape),
            after=after.view(-1, *maps.map_shape),
            control=MapAgreement(**_measures(maps, before, of_control, k)),
            k=k,
        )


def _as_points(perturbed: object, maps: AttributionMaps, box: Box) -> Tensor:
    """Given perturbed inputs as points ``(N, D)`` that the attack could have returned."""
    tensors = check_inputs(perturbed)
    shapes = [tuple(tensor.shape) for tensor in maps.inputs]
    if [tuple(tensor.shape) for tensor in tensors] != shapes:
        raise BoundaryValueError(
            f"perturbed must have the shapes of inputs, {shapes}, but it has "
            f"{[tuple(tensor.shape) for tensor in tensors]}."
        )
    points = maps.rounded(pack(tensors).to(maps.x))
    excess = torch.maximum(box.lower - points, points - box.upper)
    resolution = max(torch.finfo(tensor.dtype).eps for tensor in maps.inputs)
    is_outside = (excess > _ROUNDING * (box.upper - box.lower) + resolution * points.abs()).any(dim=1)
    loses_label = maps.loses_label(maps.margin(points))
    # Both in one question, since an accelerator has to be waited for to answer it.
    any_outside, any_lost = torch.stack([is_outside.any(), loses_label.any()]).tolist()
    if any_outside:
        raise BoundaryValueError(
            "perturbed must lie within epsilon of inputs and within bounds, those of the attack, but row(s) "
            f"[{shown(is_outside)}] do not. Numbers of points further away cannot be compared with the control."
        )
    if any_lost:
        raise BoundaryValueError(
            f"perturbed must keep the predicted labels of inputs, but those of row(s) [{shown(loses_label)}] are "
            "others. A map of another decision may well be another map: give inputs there, as attacks do that fail."
        )
    return points


def _shares_of(
    attribution: Any, maps: AttributionMaps, as_tuple: bool, arguments: object
) -> Callable[[Tensor], Tensor]:
    """Maps ``(N, P)`` of points ``(N, D)``, not negative and of sum one; NaN where a method has none."""
    if attribution is None:
        return lambda points: maps.at(points).shares
    explain = getattr(attribution, "attribute", attribution)
    if not callable(explain):
        raise BoundaryTypeError(
            "attribution must be an attribution method of a model, with a method attribute(inputs, target=...), or "
            f"such a function, but it is {type(attribution).__name__}."
        )
    if isinstance(attribution, type):
        raise BoundaryTypeError(
            f"attribution must be a method of a model, but it is the class {attribution.__name__}: build it with "
            f"{attribution.__name__}(model)."
        )
    options = {} if arguments is None else {"additional_forward_args": arguments}

    def shares(points: Tensor) -> Tensor:
        inputs = tuple(tensor.clone().requires_grad_() for tensor in maps.unpacked(points))
        with torch.enable_grad(), callers_autocast():
            attributions = explain(format_output(as_tuple, inputs), target=maps.explained_target, **options)
        parts = attributions if isinstance(attributions, tuple) else (attributions,)
        came = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
        wanted = [tuple(tensor.shape) for tensor in inputs]
        if came != wanted:
            raise BoundaryValueError(
                f"attribution must return attributions of the shapes of the inputs, {wanted}, but it returned {came}."
            )
        return as_shares(maps.fold(pack(tuple(part.detach() for part in parts)).abs()))

    return shares


def _measures(maps: AttributionMaps, before: Tensor, after: Tensor, k: int) -> dict[str, Tensor]:
    shift = torch.full_like(before[:, 0], torch.nan)
    if maps.is_image:
        shift = center_shift(*(shares.view(-1, *maps.map_shape) for shares in (before, after)))
    return {
        "topk_intersection": topk_intersection(before, after, k),
        "kendall_tau": kendall_tau(before, after),
        "spearman_rho": spearman_rho(before, after),
        "cosine_similarity": cosine_similarity(before, after),
        "center_shift": shift,
    }
