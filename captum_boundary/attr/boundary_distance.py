"""How easily each feature, or group of features, flips the decision by itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, overload

import torch
from captum.attr import GradientAttribution
from torch import Tensor

from captum_boundary._core.arguments import of_examples, target_of_examples
from captum_boundary._core.captum_helpers import (
    TargetType,
    TensorOrTupleOfTensorsGeneric,
    format_additional_forward_args,
    format_output,
    is_tuple,
)
from captum_boundary._core.checks import check_inputs
from captum_boundary.attr._captum_method import BoundaryMethod, captum_method
from captum_boundary.errors import BoundaryNotFoundWarning, BoundaryTypeError, BoundaryValueError
from captum_boundary.search import BoundaryPoints, BoundarySearch
from captum_boundary.search._given import search_for
from captum_boundary.search._same_model import check_same_model

__all__ = ["BoundaryDistance"]

# Values of the inputs that are searched at once, unless the search says how many examples: a search holds some 35
# vectors of the size of an input for each example, so that this is about half a gigabyte.
_VALUES_AT_ONCE = 2**22


class BoundaryDistance(BoundaryMethod, GradientAttribution):  # type: ignore[misc]
    r"""One over the distance of the decision boundary where one feature alone, or one group of features, may move.

    Each group of ``feature_mask`` (a token, a word, a column of a table, a segment of an image) is moved alone, all
    other values stay as they are to the last bit, and the nearest boundary is searched. A group that flips the decision
    by a small change gets a large value; one that cannot flip it gets 0. Occlusion asks what happens when a group is
    replaced by a baseline; this asks for the smallest change that matters, and needs no baseline. A feature that flips
    the decision easily need not be one on which it rests: to rank causes, FeatureAblation is as good, and cheaper.

    Groups are searched as rows of one batch. Cost: that of one search for each group of each example. Values of groups
    of different sizes are comparable as distances are: a large group moves more easily than each of its parts.

    Args:

        forward_func (Callable): Returns class scores ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for a binary model.
        search (BoundarySearch, optional): How boundary points are found, with bounds, norm and budget. Its
            ``internal_batch_size`` is the number of groups that are searched at once; the default bounds the memory of
            the search. Default: None, which means ``NearestBoundary(forward_func)``

    Raises:

        BoundaryTypeError: If ``forward_func`` is not callable, or ``search`` is no BoundarySearch.
        BoundaryValueError: If ``search`` is certainly one of another model.

    Examples::

        >>> import torch
        >>> from captum_boundary import BoundaryDistance
        >>> model = torch.nn.Linear(3, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[2.0, 0.0, -0.5]]), torch.tensor([-1.0])
        >>> x = torch.tensor([[1.0, 1.0, 1.0]])  # its logit is 0.5
        >>> attributions, boundary = BoundaryDistance(model).attribute(x, return_boundary=True)
        >>> boundary.distance  # of each column alone; the second cannot flip the decision
        tensor([0.2500,    inf, 1.0000])
        >>> boundary.points[[0, 2], [0, 2]]  # to what value
        tensor([0.7500, 2.0000])
        >>> torch.equal(attributions, 1 / boundary.distance[None])
        True
    """

    def __init__(self, forward_func: Callable[..., Any], search: BoundarySearch | None = None) -> None:
        super().__init__(forward_func)
        self.search = search_for(forward_func, search)
        check_same_model(forward_func, self.search.forward_func)

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = ...,
        additional_forward_args: object = ...,
        *,
        feature_mask: Tensor | tuple[Tensor, ...] | None = ...,
        return_boundary: Literal[False] = ...,
    ) -> TensorOrTupleOfTensorsGeneric: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = ...,
        additional_forward_args: object = ...,
        *,
        feature_mask: Tensor | tuple[Tensor, ...] | None = ...,
        return_boundary: Literal[True],
    ) -> tuple[TensorOrTupleOfTensorsGeneric, BoundaryPoints]: ...

    @overload
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = ...,
        additional_forward_args: object = ...,
        *,
        feature_mask: Tensor | tuple[Tensor, ...] | None = ...,
        return_boundary: bool = ...,
    ) -> Any: ...

    @captum_method
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        feature_mask: Tensor | tuple[Tensor, ...] | None = None,
        return_boundary: bool = False,
    ) -> Any:
        r"""One over the distance at which each group of features alone flips the decision.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): Inputs, floating point, of N examples (dimension 0).
            target (int, tuple, Tensor or list, optional): Class whose region is left, in any of Captum's forms for 2-D
                outputs; for a model with one output as :meth:`BoundarySearch.find` takes it. An input outside of the
                region of its target enters it. Default: None, the predicted class of each example.
            additional_forward_args (Any, optional): Further arguments of ``forward_func``, given after ``inputs``.
                Tensors with N entries follow their examples. Default: None
            feature_mask (Tensor or tuple[Tensor, ...], optional): Which group each value belongs to, as in Captum's
                FeatureAblation: integers that broadcast to ``inputs``, one tensor for each input. The same number
                anywhere is the same group. Default: None, each value is a group of its own.
            return_boundary (bool, optional): Return the boundary points as well. Default: False

        Returns:
            **attributions**, or a tuple of **attributions** and **boundary**:

            - **attributions** (*Tensor* or *tuple[Tensor, ...]*): One over the distance of each value's group, in the
              norm of the search, shaped like ``inputs``; 0 where the group alone cannot flip the decision.
            - **boundary** (*BoundaryPoints*, returned if return_boundary=True): The boundary points of all ``N * G``
              pairs of an example and a group. Row ``n * G + g`` is that of example ``n`` and the group with the
              ``g``-th smallest number, so that ``boundary.distance.view(N, G)`` are the distances.

        Raises:

            BoundaryTypeError: For arguments of the wrong type.
            BoundaryValueError: For inputs, targets and masks of the wrong shape or value.
            BoundaryNotFoundError: If the search is strict and some group cannot flip the decision.
        """
        tensors = check_inputs(inputs)
        if any(tensor.ndim == 1 for tensor in tensors):
            raise BoundaryValueError(
                f"inputs must hold features of each example, (N, D) for instance, but their shape is "
                f"{tuple(tensors[0].shape)}. Add a batch dimension: inputs[None]."
            )
        n_examples = len(tensors[0])
        groups, n_groups = _groups_of(feature_mask, tensors)
        arguments = format_additional_forward_args(additional_forward_args)
        parts, distances = [], []
        with torch.inference_mode(False), torch.no_grad():
            for pairs in self._batches(tensors, arguments, n_groups):
                part = self._of_pairs(pairs, tensors, groups, n_groups, target, arguments, is_tuple(inputs))
                distances.append(part.distance)
                if return_boundary:  # points take memory
                    parts.append(part)
            closeness = torch.cat(distances).reciprocal().view(n_examples, n_groups)
            maps = tuple(
                closeness.to(tensor).gather(1, ids.to(tensor.device).expand(tensor.shape).flatten(1)).view(tensor.shape)
                for ids, tensor in zip(groups, tensors, strict=True)
            )
        attributions = format_output(is_tuple(inputs), maps)
        return (attributions, BoundaryPoints.cat(parts)) if return_boundary else attributions

    def _batches(self, tensors: tuple[Tensor, ...], arguments: tuple[Any, ...], n_groups: int) -> Iterator[Tensor]:
        """The pairs of an example and a group, example by example, as many at once as fit."""
        n_examples = len(tensors[0])
        n_values = sum(tensor[0].numel() for tensor in tensors)
        size = self.search.internal_batch_size or max(1, _VALUES_AT_ONCE // n_values)
        # An argument that is the same for all examples must not be taken for one with an entry for each row.
        lengths = {len(a) for a in arguments if isinstance(a, Tensor) and a.ndim > 0} - {n_examples}
        pairs = torch.arange(n_examples * n_groups, device=tensors[0].device)
        while len(pairs) > 0:
            n_rows = min(size, len(pairs))
            while n_rows > 1 and n_rows in lengths:
                n_rows -= 1
            yield pairs[:n_rows]
            pairs = pairs[n_rows:]

    def _of_pairs(
        self,
        pairs: Tensor,
        tensors: tuple[Tensor, ...],
        groups: tuple[Tensor, ...],
        n_groups: int,
        target: TargetType,
        arguments: tuple[Any, ...],
        as_tuple: bool,
    ) -> BoundaryPoints:
        """Boundary points of some pairs."""
        n_examples = len(tensors[0])
        rows, numbers = pairs // n_groups, pairs % n_groups

        def moves(ids: Tensor, tensor: Tensor) -> Tensor:
            own = ids.expand(n_examples, *ids.shape[1:])[rows.to(ids.device)]
            return own.to(tensor.device) == numbers.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1))

        masks = tuple(moves(ids, tensor) for ids, tensor in zip(groups, tensors, strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BoundaryNotFoundWarning)  # an infinite distance is an answer here
            return self.search.find(
                format_output(as_tuple, of_examples(tensors, n_examples, rows)),
                target_of_examples(target, n_examples, rows),
                of_examples(arguments, n_examples, rows),
                mask=masks if len(masks) > 1 else masks[0],
            )


def _groups_of(feature_mask: Any, tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], int]:
    """Numbers from 0 to G - 1 of the groups, shaped ``(1 or N, ...)`` for each input, and G."""
    if feature_mask is None:
        sizes = [tensor[0].numel() for tensor in tensors]
        numbers = torch.split(torch.arange(sum(sizes), device=tensors[0].device), sizes)
        return tuple(n.view(1, *t.shape[1:]) for n, t in zip(numbers, tensors, strict=True)), sum(sizes)
    masks = feature_mask if isinstance(feature_mask, tuple) else (feature_mask,)
    if len(masks) != len(tensors):
        raise BoundaryValueError(
            f"feature_mask holds {len(masks)} tensor(s) for {len(tensors)} input(s): give one for each."
        )
    shaped = [_shaped(mask, tensor) for mask, tensor in zip(masks, tensors, strict=True)]
    device = tensors[0].device
    values, numbers = torch.unique(torch.cat([mask.flatten().to(device) for mask in shaped]), return_inverse=True)
    parts = torch.split(numbers, [mask.numel() for mask in shaped])
    return tuple(part.view(mask.shape) for part, mask in zip(parts, shaped, strict=True)), len(values)


def _shaped(mask: Any, tensor: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise BoundaryTypeError(f"feature_mask must hold the integer number of each value's group, but it is {kind}.")
    for n_rows in (1, len(tensor)):
        try:
            return mask.detach().broadcast_to(n_rows, *tensor.shape[1:])
        except RuntimeError:
            continue
    raise BoundaryValueError(
        f"feature_mask of shape {tuple(mask.shape)} does not broadcast to inputs of shape {tuple(tensor.shape)}. "
        "Groups of tokens (N, L) for their embeddings (N, L, E) have shape (N, L, 1): feature_mask[..., None]."
    )
