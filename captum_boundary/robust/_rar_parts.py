"""What a training loss was made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["RARParts"]


@dataclass(frozen=True)
class RARParts:
    r"""What the last call of a :class:`RARLoss` was made of, without its graph.

    Attributes:

        natural_loss (Tensor): Loss of each example at the inputs, ``(N,)``.
        loss (Tensor): Loss of each example where the training loss takes it, ``(N,)``: at the perturbed inputs for
            ``"ig_sum_norm"`` and ``"sum"``, at the inputs for all others.
        regularizer (Tensor): Size of each example's attribution, ``(N,)``, before it is multiplied by the weight.
        perturbed (Tensor or tuple[Tensor, ...]): The perturbed inputs, like the inputs.
        terms (tuple[Tensor, ...]): Values of the further terms, in their order, ``(N,)`` each, before they are
            multiplied by their weights.
    """

    natural_loss: Tensor
    loss: Tensor
    regularizer: Tensor
    perturbed: Tensor | tuple[Tensor, ...]
    terms: tuple[Tensor, ...] = ()
