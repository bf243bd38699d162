"""The points around the inputs among which an attack may choose, in the numbers that the inputs' own dtypes can hold.

Points are flat, ``(N, D)``, and moved in float32 or better. What the model and the user get is rounded to the dtypes of
the inputs. Rounded towards the inputs, no coordinate is further from its input than it was before, so that a point in
a ball around the input, or in a box, stays there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.flat import pack, unpack
from captum_boundary._core.geometry import Box, project_onto_ball

__all__ = ["Neighbourhood", "within"]

# Of the radius of an l2 ball, in units of the resolution: what the length of a move may gain by rounding. That of its
# differences in half precision is one such unit; sums over many features in float32 lose more.
_SLACK = 64


class Neighbourhood(NamedTuple):
    """A box around inputs, and where ``radius`` is given the l2 ball of that radius as well."""

    x: Tensor  # (N, D)
    templates: tuple[Tensor, ...]  # the inputs themselves, whose dtypes points are rounded to
    box: Box
    radius: float | None

    @classmethod
    def of(cls, inputs: tuple[Tensor, ...], bounds: Box, epsilon: float, norm: float) -> Neighbourhood:
        """The points of ``bounds`` whose ``norm`` from the inputs is at most ``epsilon``, as measured in their dtypes.

        For an infinite ``epsilon``, all points of ``bounds``.
        """
        x = pack(inputs)
        if norm == math.inf or epsilon == math.inf:
            return cls(x, inputs, within(epsilon, x, inputs, bounds), None)
        slack = max(_SLACK * torch.finfo(x.dtype).eps, *(torch.finfo(tensor.dtype).eps for tensor in inputs))
        return cls(x, inputs, bounds, epsilon * (1 - slack))

    def of_rows(self, rows: slice) -> Neighbourhood:
        templates = tuple(template[rows] for template in self.templates)
        return self._replace(x=self.x[rows], templates=templates, box=self.box.of(rows))

    def project(self, points: Tensor) -> Tensor:
        """Points of the neighbourhood, not rounded yet."""
        return self.box.clamp(self.x + self._shortened(points - self.x))

    def rounded(self, points: Tensor) -> Tensor:
        """Points of the neighbourhood in the inputs' own dtypes."""
        if self.radius is None:  # the limits of the box are such numbers already
            return pack(unpack(self.box.clamp(points), self.templates))
        return _displaced(self.x, self._shortened(points - self.x), self.templates, self.box)

    def _shortened(self, moves: Tensor) -> Tensor:
        if self.radius is None:
            return moves
        return project_onto_ball(moves, moves.new_full((len(moves),), self.radius), 2)


def within(epsilon: float, x: Tensor, templates: tuple[Tensor, ...], box: Box) -> Box:
    """The part of ``box`` within ``epsilon`` of ``x`` in every coordinate, its limits rounded towards ``x``.

    So points rounded to the nearest ones of the inputs' dtypes do not leave it. Where ``epsilon`` is lost in rounding,
    nothing but the input is left.
    """
    move = torch.full_like(x, epsilon, dtype=_widest(x))
    return Box(_displaced(x, -move, templates, box), _displaced(x, move, templates, box))


def _displaced(x: Tensor, moves: Tensor, templates: tuple[Tensor, ...], box: Box) -> Tensor:
    """``x + moves``, held back by ``box`` and rounded towards ``x`` to the dtypes of ``templates``."""
    wide = _widest(x)
    origin, moves, lower, upper = (values.to(wide) for values in (x, moves, box.lower, box.upper))
    ends = torch.minimum(torch.maximum(origin + moves, lower), upper)
    nearest = unpack(ends, templates)
    rounded = pack(nearest)
    nearer = pack(tuple(_next_towards(part, template) for part, template in zip(nearest, templates, strict=True)))
    is_beyond = torch.where(ends > origin, rounded > ends, rounded < ends)
    # The sum has been rounded itself, where the inputs are as wide.
    is_beyond |= (rounded.to(wide) - origin).abs() > moves.abs()
    return torch.where(is_beyond, nearer, rounded)


def _widest(x: Tensor) -> torch.dtype:
    """The dtype in which sums of narrower numbers are exact, where the device has one."""
    return x.dtype if x.device.type == "mps" else torch.float64


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _next_towards(values: Tensor, goals: Tensor) -> Tensor:
    """What ``torch.nextafter`` gives for unequal numbers; not every device has that in half precision."""
    is_up = goals > values
    bits = values.view(_INTEGERS[values.element_size()])
    stepped = torch.where(is_up == (values > 0), bits + 1, bits - 1).view(values.dtype)
    info = torch.finfo(values.dtype)
    smallest = torch.full_like(values, info.smallest_normal * info.eps)
    return torch.where(values == 0, torch.where(is_up, smallest, -smallest), stepped)
