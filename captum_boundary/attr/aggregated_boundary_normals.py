"""The mean normal of several decision boundaries around an input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import torch
from captum.attr import GradientAttribution
from torch import Tensor

from captum_boundary._core.captum_helpers import TargetType, TensorOrTupleOfTensorsGeneric, format_output, is_tuple
from captum_boundary._core.checks import check_choice, check_count, check_inputs
from captum_boundary._core.context import geometry
from captum_boundary._core.flat import pack, unpack
from captum_boundary._core.mask import Mask
from captum_boundary._core.oracle import MarginOracle
from captum_boundary._core.repeatability import watch_repeatability
from captum_boundary.attr._captum_method import BoundaryMethod, captum_method
from captum_boundary.attr._weighting import Weighting, check_weighting, weigh
from captum_boundary.attr.boundary_normals import BoundaryNormals, check_given, collect, flat
from captum_boundary.search import BoundarySearch
from captum_boundary.search._given import check_same_target, refuse_mask, search_for
from captum_boundary.search._neighbors import (
    Neighbors,
    nearest_boundary,
    neighboring_classes,
    neighbors_in_random_directions,
)
from captum_boundary.search._problem import Problem
from captum_boundary.search._same_model import check_same_model

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AggregatedBoundaryNormals"]


class _Options(TypedDict, total=False):
    """Keywords of ``attribute``, whichever of its results are asked for."""

    n_boundaries: int
    sampling: str
    weighting: Weighting
    boundary: BoundaryNormals | None
    mask: Mask


class AggregatedBoundaryNormals(BoundaryMethod, GradientAttribution):  # type: ignore[misc]
    r"""The weighted mean of the unit normals of several decision boundaries near to the input.

    The normal of the nearest boundary tells what would change the decision first. Other boundaries are often hardly
    farther away, and which one is the nearest may be an accident: their mean normal tells what the decision rests on
    altogether. "Robust Models Are More Interpretable Because Attributions Look Normal"
    (https://arxiv.org/abs/2103.11257) explains why normals of nearby boundaries make good attributions.

    With one boundary this is :class:`BoundarySaliency` with ``score="margin"``, scaled to unit length, except at kinks
    and corners of the boundary: there, where gradients are up to rounding, the normal is the one nearest to the
    direction of the input. An attribution is positive where more of the feature raises the margin of the target.

    Args:

        forward_func (Callable): Returns class scores ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for a binary model.
        search (BoundarySearch, optional): How boundary points are found. :class:`NearestBoundary` spends less than half
            of its budget on each of several boundaries in many dimensions, and is needed for ``sampling="random"``.
            Default: None, which means ``NearestBoundary(forward_func)``
        multiply_by_inputs (bool, optional): Multiply by the difference of the input and the weighted mean of the
            boundary points. Default: False

    Raises:

        BoundaryTypeError: If ``search`` is no :class:`BoundarySearch`.
        BoundaryValueError: If ``search`` looks for the boundary of another model.

    Examples::

        >>> import torch
        >>> from captum_boundary import AggregatedBoundaryNormals
        >>> model = torch.nn.Linear(4, 3)
        >>> inputs = torch.randn(2, 4)
        >>> normals = AggregatedBoundaryNormals(model)
        >>> attributions, boundaries = normals.attribute(inputs, n_boundaries=2, return_boundary=True)
        >>> attributions.shape, boundaries.points.shape, boundaries.distance.shape
        (torch.Size([2, 4]), torch.Size([2, 2, 4]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        search: BoundarySearch | None = None,
        *,
        multiply_by_inputs: bool = False,
    ) -> None:
        super().__init__(forward_func)
        self.search = search_for(forward_func, search)
        check_same_model(forward_func, self.search.forward_func)
        self._multiply_by_inputs = multiply_by_inputs

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = ...,
        additional_forward_args: object = ...,
        *,
        return_boundary: Literal[False] = ...,
        **options: Unpack[_Options],
    ) -> TensorOrTupleOfTensorsGeneric: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = ...,
        additional_forward_args: object = ...,
        *,
        return_boundary: Literal[True],
        **options: Unpack[_Options],
    ) -> tuple[TensorOrTupleOfTensorsGeneric, BoundaryNormals]: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = ...,
        additional_forward_args: object = ...,
        *,
        return_boundary: bool = ...,
        **options: Unpack[_Options],
    ) -> Any: ...

    @captum_method
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        n_boundaries: int = 5,
        sampling: str = "classes",
        weighting: Weighting = "softmin",
        boundary: BoundaryNormals | None = None,
        mask: Mask = None,
        return_boundary: bool = False,
    ) -> Any:
        r"""Aggregate the normals of several boundaries of every example.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): Inputs, floating point, of N examples (dimension 0).
            target (int, tuple, Tensor or list, optional): Class to explain, as :meth:`BoundarySearch.find` takes it.
                For an input outside the region of its target, the one boundary with ``sampling="classes"`` is that of
                this region. Default: None, the predicted class of each example.
            additional_forward_args (Any, optional): Further arguments of ``forward_func``, given after ``inputs``.
                Tensors with N entries follow their examples. Default: None
            n_boundaries (int, optional): Number of boundaries, K. With 1 it is the nearest one. Default: 5
            sampling (str, optional): ``"classes"`` takes the nearest points of the regions of K other classes, those
                with the nearest linearized boundaries; a model with two classes has only one. ``"random"`` takes the
                boundary of the target's region near to K random points around the input. Default: ``"classes"``
            weighting (str or Callable, optional): ``"softmin"`` weighs by ``exp(-distance / least distance)``,
                ``"inverse"`` by ``1 / distance`` and ``"uniform"`` equally. A function takes distances ``(N, K)``,
                infinite where there is no boundary, and returns weights of this shape, none negative. Weights are
                scaled to sum to one. Default: ``"softmin"``
            boundary (BoundaryNormals, optional): Boundaries of these inputs, found before, so that several weightings,
                and attributions with and without ``multiply_by_inputs``, share one search. All of them count;
                ``n_boundaries`` and ``sampling`` are those of that search. Without a ``target`` the model is not
                evaluated at all. Default: None, search for them.
            mask (Tensor or tuple[Tensor, ...], optional): 1 where a value may move and 0 where it is fixed, as for
                :meth:`BoundarySearch.find`. Normals are those of the values that move, and zero elsewhere.
                Default: None
            return_boundary (bool, optional): Return points, normals and weights as well. Default: False

        Returns:
            **attributions**, or a tuple of **attributions** and **boundaries**:

            - **attributions** (*Tensor* or *tuple[Tensor, ...]*): Attributions, shaped like ``inputs``. Rows without
              any boundary are NaN.
            - **boundaries** (*BoundaryNormals*, returned if return_boundary=True): All boundaries.

        Raises:

            BoundaryTypeError: For arguments of the wrong type.
            BoundaryValueError: For inputs, targets, outputs and weights of the wrong shape or value, for
                ``sampling="random"`` with a search that cannot start in random directions, and for a ``boundary`` of
                other inputs or targets, or together with a ``mask``.
            BoundaryNotFoundError: If the search is strict and some example has no boundary at all.
        """
        check_count("n_boundaries", n_boundaries)
        check_choice("sampling", sampling, ("classes", "random"))
        check_weighting(weighting)
        is_given = boundary is not None
        with geometry():
            if boundary is None:
                with self.search._opened(inputs, target, additional_forward_args, mask) as problem:
                    oracle = problem.oracle
                    n_places = n_boundaries if sampling == "random" else min(n_boundaries, oracle.n_classes - 1)
                    neighbors = self._neighbors(problem, n_places, sampling)
                tensors = oracle.inputs
                boundary = collect(oracle, neighbors, n_places, weighting, self.search.norm, is_tuple(inputs))
            else:
                refuse_mask(mask)
                tensors = check_inputs(inputs)
                check_given(boundary, tensors)
                if target is not None:
                    with watch_repeatability(self.forward_func):
                        asked = MarginOracle(self.forward_func, tensors, target, additional_forward_args).target
                    check_same_target(asked, boundary.target)
                boundary = replace(boundary, weights=weigh(weighting, boundary.distance))
            attributions = format_output(is_tuple(inputs), self._aggregate(tensors, boundary))
        if not is_given:
            self.search._report(boundary.found.any(dim=1))
        return (attributions, boundary) if return_boundary else attributions

    @property
    def multiplies_by_inputs(self) -> bool:
        r"""Whether normals are multiplied by the difference of the input and its boundary points."""
        return self._multiply_by_inputs

    def _neighbors(self, problem: Problem, n_boundaries: int, sampling: str) -> Neighbors:
        if n_boundaries == 1:
            return nearest_boundary(self.search, problem)
        find = neighboring_classes if sampling == "classes" else neighbors_in_random_directions
        return find(self.search, problem, n_boundaries)

    def _aggregate(self, inputs: tuple[Tensor, ...], boundary: BoundaryNormals) -> tuple[Tensor, ...]:
        """Attributions, NaN where there is no boundary."""
        weights = boundary.weights[:, :, None]
        attributions = (weights * flat(boundary.normals)).sum(dim=1)
        if self._multiply_by_inputs:
            attributions = attributions * (pack(inputs) - (weights * flat(boundary.points)).sum(dim=1))
        return unpack(attributions.masked_fill(~boundary.found.any(dim=1, keepdim=True), torch.nan), inputs)
