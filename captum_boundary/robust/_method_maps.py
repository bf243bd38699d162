"""Maps of any attribution method, in the form in which an attack has those that it is made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.captum_helpers import format_output
from captum_boundary._core.flat import pack
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust._attribution_maps import AttributionMaps, as_shares

__all__ = ["MethodMaps"]


class MethodMaps(NamedTuple):
    """A method, and the attack's view of the examples: their classes, inputs, channels and pixels."""

    explain: Callable[..., Any]
    maps: AttributionMaps
    as_tuple: bool
    additional_forward_args: object

    @classmethod
    def of(cls, attribution: Any, maps: AttributionMaps, as_tuple: bool, arguments: object) -> MethodMaps:
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
        return cls(explain, maps, as_tuple, arguments)

    def shares(self, points: Tensor) -> Tensor:
        """The maps ``(N, P)`` at ``points`` ``(N, D)``, not negative and of sum one; NaN where the method has none."""
        inputs = tuple(tensor.clone().requires_grad_() for tensor in self.maps.unpacked(points))
        options = (
            {} if self.additional_forward_args is None else {"additional_forward_args": self.additional_forward_args}
        )
        with torch.enable_grad():
            attributions = self.explain(
                format_output(self.as_tuple, inputs), target=self.maps.explained_target, **options
            )
        return as_shares(self.maps.fold(pack(self._checked(attributions, inputs)).abs()))

    def _checked(self, attributions: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        parts = attributions if isinstance(attributions, tuple) else (attributions,)
        came = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
        wanted = [tuple(tensor.shape) for tensor in inputs]
        if came != wanted:
            raise BoundaryValueError(
                f"attribution must return attributions of the shapes of the inputs, {wanted}, but it returned {came}."
            )
        return tuple(part.detach() for part in parts)
