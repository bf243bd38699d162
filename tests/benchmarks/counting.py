"""A model that counts what passes through it, even through copies of it that attribution methods make."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Counter:
    """Images that went forwards and came back. Copies are the counter itself."""

    def __init__(self) -> None:
        self.forwards = self.gradients = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Counter:
        return self

    def count_gradients(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)


class CountedModel(nn.Module):
    def __init__(self, model: nn.Module, counter: Counter) -> None:
        super().__init__()
        self.model = model
        self.counter = counter

    def forward(self, inputs: Tensor, *arguments: Any) -> Tensor:
        self.counter.forwards += len(inputs)
        scores = self.model(inputs, *arguments)
        if scores.requires_grad:
            scores.register_hook(self.counter.count_gradients)
        return scores
