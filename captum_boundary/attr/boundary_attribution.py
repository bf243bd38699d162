"""Any Captum attribution from the decision boundary: boundary points are baselines, or replace the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, overload

import torch
from captum.attr import GradientAttribution, IntegratedGradients
from torch import Tensor

from captum_boundary._core.captum_helpers import (
    TargetType,
    TensorOrTupleOfTensorsGeneric,
    format_additional_forward_args,
    is_tuple,
)
from captum_boundary._core.checks import check_choice, check_inputs
from captum_boundary._core.context import geometry
from captum_boundary._core.mask import Mask
from captum_boundary._core.outputs import has_one_output, score_tensor
from captum_boundary._core.random_state import preserve_rng_state
from captum_boundary._core.repeatability import watch_repeatability
from captum_boundary.attr._calls import default_device_of
from captum_boundary.attr._captum_method import OfCaptumMethod, captum_method
from captum_boundary.attr._method_at_points import MethodAtPoints
from captum_boundary.errors import BoundaryValueError
from captum_boundary.search import BoundaryPoints, BoundarySearch
from captum_boundary.search._given import points_for, refuse_mask, search_for
from captum_boundary.search._same_model import check_same_model

__all__ = ["BoundaryAttribution"]


class BoundaryAttribution(OfCaptumMethod, GradientAttribution):  # type: ignore[misc]
    r"""Any Captum method, made to explain an input from its nearest decision boundary.

    Attributions compare an input with a baseline, or look at the slope of the model at some point. The choice of either
    is usually arbitrary. "Robust Models Are More Interpretable Because Attributions Look Normal"
    (https://arxiv.org/abs/2103.11257) takes it from the model itself: the closest point where its decision changes.

    If the method's ``attribute`` takes ``baselines``, the boundary points are its baselines (IntegratedGradients,
    DeepLift, DeepLiftShap, GradientShap, FeatureAblation, Occlusion, ShapleyValueSampling, ShapleyValues, Lime,
    KernelShap). If not, the method is evaluated at the boundary points in place of the inputs (Saliency,
    InputXGradient, GuidedBackprop, Deconvolution, LRP, GuidedGradCam). NoiseTunnel does as the method that it wraps.
    Where Captum would share baselines or gradients between examples, each is treated alone with its own boundary point.

    Methods that hook the layers of a model work on a copy of it, in which every activation is a module of its own, so
    that DeepLift runs on models with shared or in-place activations, such as torchvision's ResNets, as they are.

    For a model with one output, ``score="output"`` attributes that raw output, whichever side the example lies on, and
    ``score="margin"`` attributes it with the sign of the example's side.

    Args:

        forward_func (Callable): Returns class scores ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for a binary model.
        method (Callable, optional): Whatever builds a Captum attribution from a forward function: a class, a
            ``functools.partial``, or ``lambda f: NoiseTunnel(Saliency(f))``. Default: IntegratedGradients
        search (BoundarySearch, optional): How boundary points are found. Its forward function must be the same model:
            two different modules, or two different functions, are refused; a module may meet the same module in
            parallel or compiled, one that shares its parameters, or any function. Points of another model can be given
            as ``boundary``. Default: None, which means ``NearestBoundary(forward_func)``
        score (str, optional): ``"output"`` attributes the output of the target class, as the paper does; ``"margin"``
            attributes its difference to the output of the class on the other side of the boundary, whose gradient is
            the true normal of the boundary. Default: ``"output"``

    Raises:

        BoundaryTypeError: If ``method`` cannot be built or used in this way, or ``search`` is no BoundarySearch.
        BoundaryValueError: If ``score`` is neither ``"output"`` nor ``"margin"``, or ``"margin"`` with LRP, which
            redistributes the value of one output; and if ``search`` is certainly one of another model.

    Examples::

        >>> import torch
        >>> from captum.attr import DeepLift
        >>> from captum_boundary import BoundaryAttribution
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> inputs = torch.randn(2, 4)
        >>> attributions = BoundaryAttribution(model).attribute(inputs)
        >>> attributions.shape
        torch.Size([2, 4])
        >>> deep_lift = BoundaryAttribution(model, DeepLift)
        >>> attributions, delta, boundary = deep_lift.attribute(
        ...     inputs, return_convergence_delta=True, return_boundary=True
        ... )
        >>> delta.abs().max().item() < 1e-4
        True
    """

    _default_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __init__(
        self,
        forward_func: Callable[..., Any],
        method: Callable[..., Any] = IntegratedGradients,
        search: BoundarySearch | None = None,
        score: str = "output",
    ) -> None:
        super().__init__(forward_func)
        check_choice("score", score, ("output", "margin"))
        self.search = search_for(forward_func, search)
        check_same_model(forward_func, self.search.forward_func)
        self.method = method
        self.score = score
        self._at_points = MethodAtPoints(forward_func, method, score)
        self._prototype = self._at_points.prototype

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = ...,
        additional_forward_args: object = ...,
        *,
        return_boundary: Literal[False] = ...,
        return_convergence_delta: Literal[False] = ...,
        **kwargs: Any,
    ) -> TensorOrTupleOfTensorsGeneric: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = ...,
        additional_forward_args: object = ...,
        *,
        return_boundary: Literal[True],
        return_convergence_delta: Literal[False] = ...,
        **kwargs: Any,
    ) -> tuple[TensorOrTupleOfTensorsGeneric, BoundaryPoints]: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = ...,
        additional_forward_args: object = ...,
        *,
        return_boundary: Literal[False] = ...,
        return_convergence_delta: Literal[True],
        **kwargs: Any,
    ) -> tuple[TensorOrTupleOfTensorsGeneric, Tensor]: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = ...,
        additional_forward_args: object = ...,
        *,
        return_boundary: Literal[True],
        return_convergence_delta: Literal[True],
        **kwargs: Any,
    ) -> tuple[TensorOrTupleOfTensorsGeneric, Tensor, BoundaryPoints]: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = ...,
        additional_forward_args: object = ...,
        *,
        return_boundary: bool = ...,
        return_convergence_delta: bool = ...,
        **kwargs: Any,
    ) -> Any: ...

    @captum_method
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        boundary: BoundaryPoints | None = None,
        mask: Mask = None,
        return_boundary: bool = False,
        return_convergence_delta: bool = False,
        **kwargs: Any,
    ) -> Any:
        r"""Attribute the score of the target class to every input feature, from the boundary point.

        Methods that draw random numbers take them from the global random states as they stand and leave these as they
        were: the same seed gives the same attributions, and so do two calls without anything in between.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): Inputs, floating point, of N examples (dimension 0).
            target (int, tuple, Tensor or list, optional): Class to explain, as :meth:`BoundarySearch.find` takes it.
                Default: None, the predicted class of each example.
            additional_forward_args (Any, optional): Further arguments of ``forward_func``, given after ``inputs``.
                Tensors with N entries follow their examples. Default: None
            boundary (BoundaryPoints, optional): Boundary points of these inputs, found before, so that several methods
                share one search. Leave it out inside NoiseTunnel and ``sensitivity_max``, which move the inputs.
                Default: None, search for them.
            mask (Tensor or tuple[Tensor, ...], optional): 1 where the search may move a value and 0 where it is
                fixed, as for :meth:`BoundarySearch.find`. A fixed value is its own baseline. Default: None, all
                may move.
            return_boundary (bool, optional): Return the boundary points as well. Default: False
            return_convergence_delta (bool, optional): Return the convergence delta as well. Default: False
            **kwargs (Any, optional): Arguments of the method's own ``attribute``, such as ``n_steps``,
                ``sliding_window_shapes`` or ``nt_samples``. Without an ``internal_batch_size``, methods that have one
                pass as many path points through the model at once as fit: what these keep for the backward pass, as
                measured, stays below 256 MiB on a CPU and half of what is free on a CUDA device. With one, examples are
                divided too, which Captum does not do.

        Returns:
            **attributions**, or a tuple of **attributions** and whatever else is returned, in this order:

            - **attributions** (*Tensor* or *tuple[Tensor, ...]*): Attributions, shaped like ``inputs``. Rows without a
              boundary point are NaN.
            - **delta** (*Tensor*, returned if return_convergence_delta=True): For methods with baselines,
              ``sum(attributions) - (f(inputs) - f(points))`` of the score ``f`` for each example, shape ``(N,)``; for
              others, the method's own definition.
            - **boundary** (*BoundaryPoints*, returned if return_boundary=True): The boundary points.

        Raises:

            BoundaryTypeError: For arguments of the wrong type, and unknown or missing arguments of the method.
            BoundaryValueError: For inputs, targets and outputs of the wrong shape or value, a ``boundary`` of other
                inputs or targets, a convergence delta that the method does not have, and ``baselines``, whose place is
                taken.
            BoundaryNotFoundError: If the search is strict and some example has no boundary point.
        """
        options = {**self._default_options, **kwargs}
        self._at_points.check(options, return_convergence_delta)
        tensors = check_inputs(inputs)
        with (
            preserve_rng_state(),
            default_device_of(tensors[0].device),
            geometry(),
            watch_repeatability(self.forward_func, warns=boundary is not None),
            torch.enable_grad(),
        ):
            if boundary is None:
                boundary = self.search.find(inputs, target, additional_forward_args, mask=mask)
                target = None  # what it means is known from here on
            else:
                points_for(tensors, boundary)
                refuse_mask(mask)
            if boundary.found.any():
                arguments = format_additional_forward_args(additional_forward_args)
                attributions, delta = self._at_points.attribute(
                    tensors, is_tuple(inputs), target, arguments, boundary, return_convergence_delta, options
                )
            else:
                attributions, delta = inputs, boundary.margin
        results: tuple[Any, ...] = (_nan_where_missing(attributions, boundary.found),)
        if return_convergence_delta:
            results += (_nan_where_missing(delta, boundary.found),)
        if return_boundary:
            results += (boundary,)
        return results if len(results) > 1 else results[0]

    def compute_convergence_delta(
        self,
        attributions: Tensor | tuple[Tensor, ...],
        start_point: Tensor | tuple[Tensor, ...],
        end_point: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
    ) -> Tensor:
        r"""By how much the sum of attributions misses ``f(end_point) - f(start_point)``, the outputs of ``target``.

        The boundary points are the start, the inputs the end. Arguments and result ``(N,)`` are those of
        :meth:`captum.attr.GradientAttribution.compute_convergence_delta`.

        Raises:

            BoundaryValueError: With ``score="margin"``, which needs the classes on both sides of each boundary.
        """
        if self.score == "margin":
            raise BoundaryValueError(
                "compute_convergence_delta knows the outputs of one class, not the difference of two that "
                'score="margin" attributes. Ask for the delta together with the attributions: attribute(..., '
                "return_convergence_delta=True)."
            )

        def output_of_target(*arguments: Any) -> Tensor:
            output = score_tensor(self.forward_func(*arguments))
            if not has_one_output(output):
                return output
            output = output.reshape(len(output))
            return output if target is None else output[:, None].expand(-1, 2)  # the same one, whichever side is meant

        delta: Tensor = GradientAttribution(output_of_target).compute_convergence_delta(
            attributions, start_point, end_point, target, additional_forward_args
        )
        return delta


def _nan_where_missing(values: Any, found: Tensor) -> Any:
    """``values`` without their graph, NaN in the rows of examples without a boundary point."""
    if isinstance(values, tuple):
        return tuple(_nan_where_missing(value, found) for value in values)
    values = values.detach()
    return values.masked_fill(~found.to(values.device).view(-1, *[1] * (values.ndim - 1)), torch.nan)
