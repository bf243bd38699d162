"""What a batch asks of robust training: its inputs, where they may go, and the loss there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from captum_boundary.robust._neighbourhood import Neighbourhood
from captum_boundary.robust._pointwise_loss import PointwiseLoss

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """One call's inputs, checked, and the loss around them."""

    near: Neighbourhood
    loss: PointwiseLoss
    as_tuple: bool
    softplus_beta: float | None = None  # of the activations on the path; None for those that the model has

    @property
    def x(self) -> Tensor:
        """The inputs as flat points ``(N, D)``."""
        return self.near.x

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.loss.templates

    @cached_property
    def path_loss(self) -> PointwiseLoss:
        """The loss whose Integrated Gradients are taken."""
        if self.softplus_beta is None:
            return self.loss
        return replace(self.loss, softplus_beta=self.softplus_beta)

    def of_rows(self, rows: slice) -> Problem:
        return replace(self, near=self.near.of_rows(rows), loss=self.loss.of_rows(rows))

    def with_state(self, state: Mapping[str, Tensor]) -> Problem:
        """The same problem for other values of some of the model's parameters."""
        return replace(self, loss=replace(self.loss, state={**self.loss.state, **state}))

    def detached(self) -> Problem:
        """The same problem without the parameters' graph: what an attack needs."""
        return replace(self, loss=self.loss.detached())

    def as_of_now(self) -> Problem:
        """The same problem of the model in its present state."""
        return replace(self, loss=self.loss.as_of_now())

    def slope(self) -> Tensor:
        """The gradient ``(N, D)`` of the loss at the inputs."""
        leaves = self.x.clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.loss(leaves).sum(), leaves, materialize_grads=True)
        return slope
