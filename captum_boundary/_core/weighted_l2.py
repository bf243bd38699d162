"""The l2 norm of displacements whose features have units of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.flat import geometry_dtype
from captum_boundary._core.geometry import Box
from captum_boundary._core.norms import L2, Norm, project_along
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["WeightedL2"]

Scale = Tensor | tuple[Tensor, ...]


class WeightedL2(Norm):
    r"""The l2 norm of ``scale * (x' - x)``: a norm for features in different units, such as columns of a table.

    With ``scale = 1 / std``, every column counts in its standard deviations. The points are those that a search in the
    plain l2 norm finds for scaled inputs, but inputs, bounds and points stay in their own units.

    Args:

        scale (Tensor or tuple[Tensor, ...]): Positive factors of the features, which broadcast to one example: ``(D,)``
            for a table ``(N, D)``, ``(C, 1, 1)`` for the channels of an image. A tuple holds those of each input.

    Raises:

        BoundaryTypeError: If ``scale`` is no floating-point Tensor, nor a tuple of them.
        BoundaryValueError: If it is empty, or has values that are not positive and finite.

    Examples::

        >>> import torch
        >>> from captum_boundary import NearestBoundary
        >>> from captum_boundary.search import WeightedL2
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[0.3, 40.0], [0.0, 0.0]])  # the second column has large units
        >>> search = NearestBoundary(model, norm=WeightedL2(torch.tensor([0.1, 10.0])))
        >>> boundary = search.find(torch.tensor([[1.0, 0.1175]]))
        >>> boundary
        BoundaryPoints(1 x (2,), found 1/1, weighted l2 distance 1)
        >>> bool(torch.allclose(boundary.points, torch.tensor([[-5.0, 0.0375]]), rtol=1e-3))
        True
    """

    name = "weighted l2"
    has_inner_product = True

    def __init__(self, scale: Scale) -> None:
        parts = _parts(scale)
        if not parts or not all(isinstance(part, Tensor) and part.is_floating_point() for part in parts):
            raise BoundaryTypeError(
                f"scale must be a floating-point Tensor, or a tuple with one for each input, but it is {scale!r}."
            )
        if not all(part.numel() > 0 and bool(((part > 0) & torch.isfinite(part)).all()) for part in parts):
            raise BoundaryValueError(f"scale must be positive and finite everywhere, but it is {scale!r}.")
        self.scale: Any = _mapped(lambda part: part.detach().clone(), scale)

    @property
    def _flat(self) -> Tensor:
        """The factors of flat vectors, which :meth:`for_inputs` makes of those of the inputs."""
        flat: Tensor = self.scale
        return flat

    @property
    def dual(self) -> Norm:
        return self._with(1 / self._flat)

    def length(self, vectors: Tensor) -> Tensor:
        return L2.length(self._flat * vectors)

    def safe_length(self, vectors: Tensor) -> Tensor:
        return L2.safe_length(self._flat * vectors)

    def steepest(self, slope: Tensor) -> Tensor:
        # With u = scale * v, slope . v = (slope / scale) . u is largest for |u| = 1 along slope / scale.
        return L2.steepest(slope / self._flat) / self._flat

    def project_onto_ball(self, vectors: Tensor, radius: Tensor) -> Tensor:
        """Vectors shortened to the radius; the nearest ones in this norm."""
        return L2.project_onto_ball(self._flat * vectors, radius) / self._flat

    def project_onto_half_space(
        self, x: Tensor, normal: Tensor, required: Tensor, box: Box, n_steps: int = 32
    ) -> Tensor:
        # The least |scale * (x - y)|^2 under normal . (x - y) = required has x - y along normal / scale^2 (Lagrange).
        return project_along(x, normal, normal / self._flat**2, required, box, n_steps)

    def random_in_ball(self, shape: tuple[int, int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        return L2.random_in_ball(shape, generator, dtype) / self._flat.to(generator.device, dtype)

    def for_inputs(self, inputs: tuple[Tensor, ...]) -> Norm:
        parts = self.scale if isinstance(self.scale, tuple) else (self.scale,) * len(inputs)
        shapes = [tuple(tensor.shape[1:]) for tensor in inputs]
        dtype, device = geometry_dtype(inputs), inputs[0].device
        try:
            if len(parts) != len(inputs):
                raise RuntimeError
            flat = [part.expand(shape).flatten().to(device, dtype) for part, shape in zip(parts, shapes, strict=True)]
        except RuntimeError:
            raise BoundaryValueError(
                f"The scale of WeightedL2 must broadcast to examples of shapes {shapes}, but its shapes are "
                f"{[tuple(part.shape) for part in parts]}."
            ) from None
        return self._with(torch.cat(flat))

    def plain(self) -> tuple[Norm, Tensor | None]:
        return L2, self._flat

    def to(self, device: torch.device | str | int) -> WeightedL2:
        """The same on another device."""
        return self._with(_mapped(lambda part: part.to(device), self.scale))

    def _with(self, scale: Any) -> WeightedL2:
        other = copy.copy(self)
        other.scale = scale
        return other

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WeightedL2):
            return NotImplemented
        one, two = ([part.cpu() for part in _parts(norm.scale)] for norm in (self, other))
        return len(one) == len(two) and all(map(torch.equal, one, two))

    def __hash__(self) -> int:
        return hash(tuple(tuple(part.shape) for part in _parts(self.scale)))

    def __repr__(self) -> str:
        return f"WeightedL2({self.scale!r})"


def _parts(scale: Any) -> tuple[Tensor, ...]:
    return scale if isinstance(scale, tuple) else (scale,)


def _mapped(function: Callable[[Tensor], Tensor], scale: Any) -> Any:
    return tuple(map(function, scale)) if isinstance(scale, tuple) else function(scale)


# What `torch.load` may make of a file by default, with the boundary points that it is the norm of.
torch.serialization.add_safe_globals([WeightedL2])
