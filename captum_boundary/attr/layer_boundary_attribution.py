"""Any Captum attribution in a layer, from boundary points in the space of the layer's activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

from captum.attr import LayerAttribution, LayerIntegratedGradients
from torch import Tensor, nn

from captum_boundary._core.captum_helpers import TargetType
from captum_boundary._core.checks import check_choice
from captum_boundary._core.mask import Mask
from captum_boundary.attr._captum_method import OfCaptumMethod, captum_method
from captum_boundary.attr._layer_methods import build_layer_method, for_activations, hookable_from_layer
from captum_boundary.attr._methods import capabilities_of
from captum_boundary.attr.boundary_attribution import BoundaryAttribution
from captum_boundary.layers import ModelFromLayer
from captum_boundary.search import BoundaryPoints, BoundarySearch
from captum_boundary.search._given import search_for
from captum_boundary.search._same_model import check_same_model

__all__ = ["LayerBoundaryAttribution"]


class LayerBoundaryAttribution(OfCaptumMethod, LayerAttribution):  # type: ignore[misc]
    r"""Attributions in a layer, from the nearest decision boundary in the space of its activations.

    What :class:`BoundaryAttribution` does for inputs, this does for the output or input of any layer: for embeddings of
    tokens, which cannot be moved themselves, for features of a convolutional network, or for joined branches. The
    boundary is searched with :class:`ModelFromLayer`, which computes nothing that lies before the layer again.

    ``method`` may be one of Captum's layer methods (LayerIntegratedGradients, LayerDeepLift, LayerGradientShap,
    LayerGradientXActivation, LayerConductance, InternalInfluence, LayerFeatureAblation, LayerGradCam, LayerActivation)
    or a method for inputs (IntegratedGradients, Saliency, ...), applied to the activations; both forms of a method give
    the same. Its baselines are the boundary points or, if it takes none, it is evaluated at them.

    Attributions of embeddings ``(N, L, E)`` are summed to one number for each token by ``attributions.sum(-1)``, and
    those of channels ``(N, C, H, W)`` by ``attributions.sum(1, keepdim=True)``, which
    :meth:`captum.attr.LayerAttribution.interpolate` enlarges to the size of the image.

    Args:

        forward_func (Callable): The model or any function around it that returns class scores ``(N, C)``, or ``(N,)``
            or ``(N, 1)`` for a binary model. Methods that hook modules, as LayerDeepLift, need a module.
        layer (nn.Module or list[nn.Module]): A module of the model, that is called once in a pass, or several, such as
            the embeddings of a table's categorical columns: their activations are a tuple, and move together.
        method (Callable, optional): Whatever builds a Captum attribution from a forward function and a layer, or from a
            forward function alone: a class, a ``functools.partial``, or
            ``lambda f, layer: NoiseTunnel(LayerIntegratedGradients(f, layer))``. Default: LayerIntegratedGradients
        search (BoundarySearch, optional): How boundary points are found: a search of the model, whose settings are used
            in the layer. Bounds and distances are those of activations. Default: None, which means NearestBoundary
        score (str, optional): ``"output"`` or ``"margin"``, as for :class:`BoundaryAttribution`. Default: ``"output"``

    Raises:

        BoundaryTypeError: If ``method`` cannot be built or used in this way (LayerLRP cannot), ``layer`` is no module,
            or ``search`` is no BoundarySearch.
        BoundaryValueError: If ``layer`` is not part of the model, ``search`` is certainly one of another model, or
            ``score`` is unknown.

    Examples::

        >>> import torch
        >>> from captum_boundary import LayerBoundaryAttribution
        >>> _ = torch.manual_seed(0)
        >>> embedding = torch.nn.Embedding(50, 8)
        >>> model = torch.nn.Sequential(embedding, torch.nn.Flatten(), torch.nn.Linear(24, 2)).eval()
        >>> token_ids = torch.tensor([[4, 8, 15], [16, 23, 42]])
        >>> big = LayerBoundaryAttribution(model, embedding)
        >>> attributions, delta = big.attribute(token_ids, return_convergence_delta=True)
        >>> attributions.sum(-1).shape, bool(delta.abs().max() < 1e-4)
        (torch.Size([2, 3]), True)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | Sequence[nn.Module],
        method: Callable[..., Any] = LayerIntegratedGradients,
        search: BoundarySearch | None = None,
        score: str = "output",
    ) -> None:
        super().__init__(forward_func, layer)
        check_choice("score", score, ("output", "margin"))
        from_layer = ModelFromLayer(forward_func, layer)
        self.search = search_for(forward_func, search)
        check_same_model(forward_func, self.search.forward_func)
        self.method = method
        self.score = score
        self._build = for_activations(method)
        self._prototype = build_layer_method(self._build, from_layer, score)

    @overload
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = ...,
        additional_forward_args: object = ...,
        attribute_to_layer_input: bool = ...,
        *,
        return_boundary: Literal[False] = ...,
        return_convergence_delta: Literal[False] = ...,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, ...]: ...

    @overload
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = ...,
        additional_forward_args: object = ...,
        attribute_to_layer_input: bool = ...,
        *,
        return_boundary: Literal[True],
        return_convergence_delta: Literal[False] = ...,
        **kwargs: Any,
    ) -> tuple[Tensor | tuple[Tensor, ...], BoundaryPoints]: ...

    @overload
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = ...,
        additional_forward_args: object = ...,
        attribute_to_layer_input: bool = ...,
        *,
        return_boundary: Literal[False] = ...,
        return_convergence_delta: Literal[True],
        **kwargs: Any,
    ) -> tuple[Tensor | tuple[Tensor, ...], Tensor]: ...

    @overload
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = ...,
        additional_forward_args: object = ...,
        attribute_to_layer_input: bool = ...,
        *,
        return_boundary: Literal[True],
        return_convergence_delta: Literal[True],
        **kwargs: Any,
    ) -> tuple[Tensor | tuple[Tensor, ...], Tensor, BoundaryPoints]: ...

    @overload
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = ...,
        additional_forward_args: object = ...,
        attribute_to_layer_input: bool = ...,
        *,
        return_boundary: bool = ...,
        return_convergence_delta: bool = ...,
        **kwargs: Any,
    ) -> Any: ...

    @captum_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        boundary: BoundaryPoints | None = None,
        mask: Mask = None,
        return_boundary: bool = False,
        return_convergence_delta: bool = False,
        **kwargs: Any,
    ) -> Any:
        r"""Attribute the score of the target class to the activations of the layer, from their boundary points.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): Inputs of the model, of any dtype, of N examples (dimension 0).
            target (int, tuple, Tensor or list, optional): Class to explain, as :meth:`BoundarySearch.find` takes it.
                Default: None, the predicted class of each example.
            additional_forward_args (Any, optional): Further arguments of ``forward_func``, given after ``inputs``, such
                as attention masks. Tensors with N entries follow their examples. Default: None
            attribute_to_layer_input (bool, optional): Attribute to the input of the layer, in place of its output.
                Default: False
            boundary (BoundaryPoints, optional): Boundary points in this layer for these inputs, found before, so that
                several methods share one search. Default: None, search for them.
            mask (Tensor or tuple[Tensor, ...], optional): 1 where the search may move an activation and 0 where it is
                fixed, as padding should be: a tensor that broadcasts to the activations, ``attention_mask[..., None]``
                for embeddings. Default: None, all may move.
            return_boundary (bool, optional): Return the boundary points as well. Default: False
            return_convergence_delta (bool, optional): Return the convergence delta as well. Default: False
            **kwargs (Any, optional): Arguments of the method's own ``attribute``, such as ``n_steps``.

        Returns:
            **attributions**, or a tuple of **attributions** and whatever else is returned, in this order:

            - **attributions** (*Tensor* or *tuple[Tensor, ...]*): Attributions, shaped like the activations (or as the
              method shapes them), a tuple if there are several. Rows without a boundary point are NaN.
            - **delta** (*Tensor*, returned if return_convergence_delta=True): For methods with baselines,
              ``sum(attributions) - (f(activations) - f(points))`` of the score ``f`` for each example, shape ``(N,)``;
              for others, the method's own definition.
            - **boundary** (*BoundaryPoints*, returned if return_boundary=True): The boundary points, activations.

        Raises:

            BoundaryTypeError: For arguments of the wrong type, activations that are not floating point, and unknown or
                missing arguments of the method.
            BoundaryValueError: For targets and outputs of the wrong shape or value, a ``boundary`` of other inputs or
                targets, layers that a model cannot be evaluated from, and a delta that the method does not have.
            BoundaryNotFoundError: If the search is strict and some example has no boundary point.
        """
        from_layer = ModelFromLayer(self.forward_func, self.layer, attribute_to_layer_input=attribute_to_layer_input)
        activations: Any
        activations, arguments = from_layer.at(inputs, additional_forward_args)
        if boundary is None:
            boundary = self.search.with_forward_func(from_layer).find(activations, target, arguments, mask=mask)
            target = mask = None  # what they mean is known from here on
        if capabilities_of(self._prototype).hooks_modules:
            from_layer, arguments = hookable_from_layer(from_layer, self._prototype, inputs, additional_forward_args)
        return BoundaryAttribution(from_layer, self._build, score=self.score).attribute(
            activations,
            target,
            arguments,
            boundary=boundary,
            mask=mask,
            return_boundary=return_boundary,
            return_convergence_delta=return_convergence_delta,
            **kwargs,
        )
