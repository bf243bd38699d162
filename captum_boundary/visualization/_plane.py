"""A plane through an input and its boundary point, and the decisions of a model in it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.margin import margin_and_rival, rival_scores
from captum_boundary._core.norms import L2
from captum_boundary._core.oracle import MarginOracle
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["Plane", "Scene", "normal_at", "plane_through", "scores_in"]

_FINE = 400  # points of a side between which nothing is seen any more


class Plane(NamedTuple):
    """All points ``origin + first * axes[0] + second * axes[1]``, with orthonormal ``axes`` ``(2, D)``."""

    origin: Tensor
    axes: Tensor

    def at(self, coordinates: Tensor) -> Tensor:
        """The points ``(n, D)`` of ``coordinates`` ``(n, 2)``."""
        return self.origin + coordinates @ self.axes

    def coordinates(self, points: Tensor) -> Tensor:
        """The coordinates ``(n, 2)`` of ``points`` ``(n, D)``, or of their projections."""
        return (points - self.origin) @ self.axes.T

    def project(self, vectors: Tensor) -> Tensor:
        """The part ``(n, 2)`` of ``vectors`` ``(n, D)`` that lies in the plane."""
        return vectors @ self.axes.T


class Scene(NamedTuple):
    """An input, its boundary point ``(1, D)`` and the classes on either side, in the eyes of a model."""

    oracle: MarginOracle
    row: Tensor
    x: Tensor
    point: Tensor
    target: int
    adversarial: int

    def slope(self, winner: int, loser: int) -> Tensor:
        """Gradient ``(1, D)`` of one class's score over another's, at the boundary point."""
        classes = torch.tensor([[winner], [loser]], device=self.row.device)
        return self.oracle.gradient(self.point, classes[0], classes[1], self.row)


def normal_at(scene: Scene) -> Tensor:
    """Unit normal ``(1, D)`` of the boundary, pointing into the region of the target; zero where it has none."""
    return L2.steepest(scene.slope(scene.target, scene.adversarial))


def plane_through(scene: Scene, direction: object, generator: torch.Generator | None) -> Plane:
    """The plane of the input space itself if it has two dimensions, else that of the path and one more direction."""
    n_features = scene.x.shape[1]
    if n_features < 2:
        raise BoundaryValueError("A plane needs inputs of at least two features, but these have one.")
    if n_features == 2:
        if direction is not None:
            raise BoundaryValueError("Inputs of two features already lie in one plane. Leave direction out.")
        return Plane(torch.zeros_like(scene.x), torch.eye(2, dtype=scene.x.dtype, device=scene.x.device))
    first = torch.nn.functional.normalize(scene.point - scene.x, dim=1)
    if direction is not None:
        second = _orthogonal(_flat_direction(direction, scene), first)
        if not second.any():
            raise BoundaryValueError(
                "direction must lead away from the line through the input and its boundary point, but it is zero or "
                "parallel to it. Leave it out for one that the model suggests."
            )
    else:
        second = _suggested(scene, first)
        if not second.any():
            generator = generator or torch.Generator().manual_seed(0)
            noise = torch.randn(scene.x.shape, generator=generator, device=generator.device, dtype=scene.x.dtype)
            second = _orthogonal(noise.to(scene.x), first)
    return Plane(scene.x, torch.cat([first, second]))


def scores_in(
    plane: Plane, scene: Scene, corner: Tensor, side: float, resolution: int, chunk: int
) -> tuple[Tensor, Tensor]:
    """Scores of the classes that matter in a square of the plane, and which these are.

    The model is evaluated at ``resolution`` points a side, row 0 at the bottom; between them, its scores are
    interpolated. Classes that are neither first nor second anywhere are left out.
    """
    steps = torch.linspace(0, side, resolution, dtype=corner.dtype, device=corner.device)
    height, width = torch.meshgrid(steps, steps, indexing="ij")
    coordinates = corner + torch.stack([width, height], dim=-1).reshape(-1, 2)
    parts = []
    for part in torch.split(coordinates, chunk):
        points = plane.at(part)
        parts.append(scene.oracle.scores_at(points, scene.row.expand(len(points))))
    scores = torch.cat(parts)
    best = scores.argmax(dim=1)
    _, second = margin_and_rival(scores, best)
    _, rival = margin_and_rival(scores, torch.full_like(best, scene.target))
    always = torch.tensor([scene.target, scene.adversarial], device=best.device)
    classes = torch.unique(torch.cat([best, second, rival, always]))
    coarse = scores[:, classes].T.reshape(1, len(classes), resolution, resolution)
    size = max(resolution, _FINE)
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)
    return fine[0], classes


def _suggested(scene: Scene, first: Tensor) -> Tensor:
    """The direction from the boundary point to the third class there; zero if there is none but along the path."""
    scores = scene.oracle.scores_at(scene.point, scene.row)
    if scores.shape[1] < 3:
        return torch.zeros_like(first)
    others = rival_scores(scores, torch.tensor([scene.target], device=scores.device))
    others[0, scene.adversarial] = -torch.inf
    return _orthogonal(scene.slope(int(others.argmax()), scene.target), first)


def _flat_direction(direction: object, scene: Scene) -> Tensor:
    parts = direction if isinstance(direction, tuple) else (direction,)
    if not all(isinstance(part, Tensor) for part in parts):
        raise BoundaryTypeError(
            "direction must be a Tensor shaped like one example, or a tuple of them for several inputs, but it is "
            f"{direction!r}."
        )
    shapes = [tuple(part.shape[1:]) for part in scene.oracle.unpack(scene.x)]
    if [tuple(part.shape) for part in parts] != shapes:
        raise BoundaryValueError(
            f"direction must be shaped like one example, {shapes}, but its shape is {[tuple(p.shape) for p in parts]}."
        )
    flat = torch.cat([part.detach().reshape(1, -1).to(scene.x) for part in parts], dim=1)
    if not torch.isfinite(flat).all():
        raise BoundaryValueError("direction contains NaN or infinity.")
    return flat


def _orthogonal(vector: Tensor, first: Tensor) -> Tensor:
    """The unit vector of the part of ``vector`` that is orthogonal to ``first``; zero if that is but rounding."""
    vector = vector / vector.abs().max().clamp_min(torch.finfo(vector.dtype).tiny)
    rest = vector - (vector @ first.T) * first
    if rest.norm() <= 1e-4 * vector.norm():
        return torch.zeros_like(first)
    rest = rest - (rest @ first.T) * first  # once more, for what rounding has left
    return torch.nn.functional.normalize(rest, dim=1)
