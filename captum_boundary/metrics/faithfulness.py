r"""Do attributions name the features that the model's decision rests on? Deletion and insertion curves.

The measures of Petsiuk et al., "RISE" (https://arxiv.org/abs/1806.07421): take the most important features away, or
bring them in, and watch the score of the class. Their areas can be compared between methods on the same model, inputs,
baselines and steps, and hardly otherwise.

Infidelity and sensitivity are Captum's own: ``captum.metrics.infidelity`` and ``captum.metrics.sensitivity_max`` take
everything of this package as it is. Attributions whose scale differs from that of the output, such as normals of unit
length, need ``infidelity(..., normalize=True)``. Inside ``sensitivity_max`` leave ``boundary`` out: it moves the
inputs, and each moved input has a boundary point of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, cast, overload

from torch import Tensor

from captum_boundary._core.captum_helpers import TargetType
from captum_boundary._core.checks import check_count, check_inputs
from captum_boundary._core.context import geometry
from captum_boundary._core.repeatability import watch_repeatability
from captum_boundary.metrics._baselines import baselines_for
from captum_boundary.metrics._curves import TargetScore, area_of_exchange, ranks

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["deletion", "insertion"]

Tensors = Tensor | tuple[Tensor, ...]
Baselines = float | Tensor | str | tuple[float | Tensor | str, ...]


class _Options(TypedDict, total=False):
    """Keywords of both measures, whichever of their results are asked for."""

    baselines: Baselines
    n_steps: int
    score: str
    perturbations_per_eval: int
    show_progress: bool


class _AreaUnderCurve(Protocol):
    """The type of both measures: with the curves or without them."""

    @overload
    def __call__(
        self,
        forward_func: Callable[..., Any],
        inputs: Tensors,
        attributions: Tensors,
        target: TargetType = ...,
        additional_forward_args: object = ...,
        *,
        return_curves: Literal[False] = ...,
        **options: Unpack[_Options],
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        forward_func: Callable[..., Any],
        inputs: Tensors,
        attributions: Tensors,
        target: TargetType = ...,
        additional_forward_args: object = ...,
        *,
        return_curves: Literal[True],
        **options: Unpack[_Options],
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def __call__(
        self,
        forward_func: Callable[..., Any],
        inputs: Tensors,
        attributions: Tensors,
        target: TargetType = ...,
        additional_forward_args: object = ...,
        *,
        return_curves: bool = ...,
        **options: Unpack[_Options],
    ) -> Any: ...


def _typed(measure: Callable[..., Any]) -> _AreaUnderCurve:
    return cast(_AreaUnderCurve, measure)


@_typed
def deletion(
    forward_func: Callable[..., Any],
    inputs: Tensors,
    attributions: Tensors,
    target: TargetType = None,
    additional_forward_args: object = None,
    *,
    baselines: Baselines = 0.0,
    n_steps: int = 100,
    score: str = "probability",
    perturbations_per_eval: int = 1,
    return_curves: bool = False,
    show_progress: bool = False,
) -> Any:
    r"""Area under the score of the class while features are deleted, those of highest attribution first.

    Lower is better: the score falls early if the features named first are those that the decision rests on. The
    features of images are pixels, whose channels go together and whose attributions are summed over channels; those of
    other inputs are single numbers. Among features of equal attribution, the one that comes first in memory goes first.

    Args:

        forward_func (Callable): The model or any function that returns class scores ``(N, C)``, or ``(N,)`` or
            ``(N, 1)`` for a binary model. It is evaluated as it is: call ``model.eval()`` first.
        inputs (Tensor or tuple[Tensor, ...]): Images ``(N, C, H, W)``, or inputs of any other shape ``(N, ...)``. The
            features of several inputs are ranked together.
        attributions (Tensor or tuple[Tensor, ...]): Attributions, shaped like ``inputs``; for images also maps ``(N, 1,
            H, W)`` or ``(N, H, W)``.
        target (int, tuple, Tensor or list, optional): Class whose score is watched, in any of Captum's forms for 2-D
            outputs. Default: None, the predicted class of each example.
        additional_forward_args (Any, optional): Further arguments of ``forward_func``, given after ``inputs``.
            Tensors with N entries follow their examples. Default: None
        baselines (float, Tensor, str or tuple, optional): What takes the place of deleted features: a number, a Tensor
            that broadcasts to the inputs (or to one of them), or ``"blur"`` for a Gaussian blur of the images (11 x 11
            pixels with deviation 5, as in RISE). For normalized images, 0 is the mean color. A tuple holds one for each
            input. Default: 0
        n_steps (int, optional): Steps from the first to the last feature, each of an equal number of features up to
            rounding; with more steps than features, one feature a step. RISE takes 224 for images of 224 x 224 pixels.
            Default: 100
        score (str, optional): ``"probability"``, the softmax of the outputs (for one output, its logistic function), or
            ``"output"``, the output itself (for one output, with the sign of the side on which the input lies).
            Default: ``"probability"``
        perturbations_per_eval (int, optional): Steps evaluated in one forward pass, of N inputs each. Default: 1
        return_curves (bool, optional): Return the curves as well. Default: False
        show_progress (bool, optional): Show a progress bar. Default: False

    Returns:
        **area**, or a tuple of **area** and **curves**:

        - **area** (*Tensor*): Area under the curve over the share of deleted features, from 0 to 1, by the trapezoid
          rule, shape ``(N,)``. NaN for examples with NaN attributions.
        - **curves** (*Tensor*, returned if return_curves=True): Score after every step, ``(N, n_steps + 1)``: from that
          of the input to that of the baseline.

    Raises:

        BoundaryTypeError: For inputs, attributions, baselines, targets or outputs of the wrong type.
        BoundaryValueError: For NaN or infinite inputs, outputs or baselines, infinite attributions, shapes that do not
            fit, targets out of range, and options that make no sense.

    Examples::

        >>> import torch
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, 1.0], [0.0, 0.0]])
        >>> inputs = torch.ones(1, 2)
        >>> deletion(model, inputs, torch.tensor([[2.0, 1.0]]), target=0, score="output", return_curves=True)
        (tensor([1.2500]), tensor([[3., 1., 0.]]))
    """
    tensors, progress = _check(inputs, n_steps, perturbations_per_eval), "Deletion" if show_progress else None
    with geometry(), watch_repeatability(forward_func):
        rank, replaced = ranks(attributions, tensors), baselines_for(tensors, baselines)
        target_score = TargetScore(forward_func, tensors, target, additional_forward_args, score)
        ends = (tensors, replaced)
        area, curves = area_of_exchange(target_score, *ends, rank, n_steps, perturbations_per_eval, progress)
    return (area, curves) if return_curves else area


@_typed
def insertion(
    forward_func: Callable[..., Any],
    inputs: Tensors,
    attributions: Tensors,
    target: TargetType = None,
    additional_forward_args: object = None,
    *,
    baselines: Baselines = "blur",
    n_steps: int = 100,
    score: str = "probability",
    perturbations_per_eval: int = 1,
    return_curves: bool = False,
    show_progress: bool = False,
) -> Any:
    r"""Area under the score of the class while features are inserted into a baseline, highest attribution first.

    Higher is better: the score rises early if the features named first are those that the decision rests on. Everything
    but the direction and the default of ``baselines`` is as for :func:`deletion`.

    Args:

        forward_func (Callable): The model or any function that returns class scores, evaluated as it is.
        inputs (Tensor or tuple[Tensor, ...]): Images ``(N, C, H, W)``, or inputs of any other shape ``(N, ...)``. The
            features of several inputs are ranked together.
        attributions (Tensor or tuple[Tensor, ...]): Attributions, shaped like ``inputs``; for images also maps ``(N, 1,
            H, W)`` or ``(N, H, W)``.
        target (int, tuple, Tensor or list, optional): Class whose score is watched. Default: None, the predicted class
            of each example (of the input, not of the baseline).
        additional_forward_args (Any, optional): Further arguments of ``forward_func``. Default: None
        baselines (float, Tensor, str or tuple, optional): What the features are inserted into: a number, a Tensor that
            broadcasts to the inputs (or to one of them), or ``"blur"`` for a Gaussian blur of the images; other
            inputs need one of the first two. Default: ``"blur"``
        n_steps (int, optional): Steps from the first to the last feature. Default: 100
        score (str, optional): ``"probability"`` or ``"output"``. Default: ``"probability"``
        perturbations_per_eval (int, optional): Steps evaluated in one forward pass, of N inputs each. Default: 1
        return_curves (bool, optional): Return the curves as well. Default: False
        show_progress (bool, optional): Show a progress bar. Default: False

    Returns:
        **area**, or a tuple of **area** and **curves**:

        - **area** (*Tensor*): Area under the curve over the share of inserted features, shape ``(N,)``. NaN for
          examples with NaN attributions.
        - **curves** (*Tensor*, returned if return_curves=True): Score after every step, ``(N, n_steps + 1)``: from that
          of the baseline to that of the input.

    Raises:

        BoundaryTypeError: As :func:`deletion`.
        BoundaryValueError: As :func:`deletion`.

    Examples::

        >>> import torch
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, 1.0], [0.0, 0.0]])
        >>> inputs = torch.ones(1, 2)
        >>> insertion(model, inputs, torch.tensor([[2.0, 1.0]]), target=0, baselines=0.0, score="output")
        tensor([1.7500])
    """
    tensors, progress = _check(inputs, n_steps, perturbations_per_eval), "Insertion" if show_progress else None
    with geometry(), watch_repeatability(forward_func):
        rank, replaced = ranks(attributions, tensors), baselines_for(tensors, baselines)
        target_score = TargetScore(forward_func, tensors, target, additional_forward_args, score)
        ends = (replaced, tensors)
        area, curves = area_of_exchange(target_score, *ends, rank, n_steps, perturbations_per_eval, progress)
    return (area, curves) if return_curves else area


def _check(inputs: Tensors, n_steps: int, perturbations_per_eval: int) -> tuple[Tensor, ...]:
    tensors = tuple(tensor.detach() for tensor in check_inputs(inputs))
    check_count("n_steps", n_steps)
    check_count("perturbations_per_eval", perturbations_per_eval)
    return tensors
