"""The nearest point of a box that lies in several half-spaces, by a dual active-set method.

After Goldfarb and Idnani, https://doi.org/10.1007/BF02591962.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary._core.geometry import Box

__all__ = ["project_onto_half_spaces"]

# Added to the diagonal of the linear systems, relative to it: the same piece may have been linearized twice.
_RIDGE = {torch.float32: 1e-6, torch.float64: 1e-13}


def project_onto_half_spaces(
    x: Tensor,
    slopes: Tensor,
    required: Tensor,
    box: Box,
    multipliers: Tensor,
    n_steps: int,
    takes_final_step: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Nearest points ``y`` of ``{y in box : slopes_k . (x - y) >= required_k for all k}``, in the l2 norm.

    The dual is concave, and quadratic where no coordinate meets a limit or leaves one. A step takes the best of these
    multipliers: those that solve for the half-spaces in use and the one with the largest residual, together or without
    one of them; and those that differ from the present ones in a single place. The first are mostly exact, the others
    make the method converge. Half-spaces that the box does not reach are approached as far as it goes.

    Args:

        x (Tensor): Points, ``(n, D)``.
        slopes (Tensor): Slopes, ``(n, K, D)``; zeros where there is no half-space.
        required (Tensor): Decrease required along them, ``(n, K)``.
        box (Box): Limits of the coordinates.
        multipliers (Tensor): Where to start, ``(n, K)``, not negative: zeros, or the solution of a similar problem.
        n_steps (int): Newton steps.
        takes_final_step (bool): Whether a last step, for less, solves for the half-spaces in use and the one with the
            largest residual alone, where all of them stay in use.

    Returns:

        - **nearest** (*Tensor*): The points, ``(n, D)``.
        - **multipliers** (*Tensor*): Those of the last step, ``(n, K)``.
    """
    free_gram = None if box.is_limited else _gram(slopes)
    for _ in range(n_steps):
        multipliers = dual_active_set_step(multipliers, *_dual(x, slopes, required, box, multipliers, free_gram))
    if takes_final_step:
        multipliers = _final_step(multipliers, *_dual(x, slopes, required, box, multipliers, free_gram))
    return box.clamp(_moved(x, multipliers, slopes)), multipliers


def _dual(
    x: Tensor, slopes: Tensor, required: Tensor, box: Box, multipliers: Tensor, free_gram: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The dual around ``multipliers``: its matrix ``(n, K, K)``, its slope, and the right side of its system."""
    # With multipliers m and slopes S, y = x - m S. The residual of half-space k is required_k - S_k . (x - y).
    if free_gram is not None:
        residual = torch.baddbmm(required[:, :, None], free_gram, multipliers[:, :, None], alpha=-1)
        return free_gram, residual.squeeze(2), required
    unlimited = _moved(x, multipliers, slopes)
    nearest = box.clamp(unlimited)
    gram = _gram(slopes * (nearest == unlimited)[:, None])  # a coordinate at its limit does not follow the multipliers
    residual = torch.baddbmm(required[:, :, None], slopes, (x - nearest)[:, :, None], alpha=-1)
    residual = residual * (gram.diagonal(dim1=1, dim2=2) > torch.finfo(x.dtype).tiny)[:, :, None]
    wanted = torch.baddbmm(residual, gram, multipliers[:, :, None])  # gram m' = wanted where all residuals vanish
    return gram, residual.squeeze(2), wanted.squeeze(2)


def dual_active_set_step(multipliers: Tensor, gram: Tensor, residual: Tensor, wanted: Tensor) -> Tensor:
    """The best of the candidates named above: multipliers ``(n, K)`` of the largest dual objective."""
    alone = torch.addcdiv(multipliers, residual, gram.diagonal(dim1=1, dim2=2))
    if gram.shape[1] == 1:
        return alone.clamp_min(0.0)
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    is_other = identity == 0
    is_active = _active_set(multipliers, residual)
    # The rows of the inverse say how the solution changes when one half-space is left out.
    sides = torch.cat([(wanted * is_active)[:, :, None], identity.expand_as(gram)], dim=2)
    solutions = _solved(gram, is_active, sides).mT
    solved, inverse = solutions[:, :1], solutions[:, 1:]
    share = (solved.squeeze(1) / inverse.diagonal(dim1=1, dim2=2))[:, :, None]
    without = torch.addcmul(solved, share, inverse, value=-1) * is_other  # exactly zero, which rounding is not
    moved = torch.where(is_other, multipliers[:, None], alone[:, None])
    candidates = torch.cat([solved, without, moved], dim=1).clamp_min(0.0)
    change = candidates - multipliers[:, None]  # d: the dual rises by residual . d - d . gram d / 2
    rise = torch.baddbmm(residual[:, None].expand_as(change), change, gram, alpha=-0.5)
    best = torch.linalg.vecdot(rise, change).nan_to_num(-torch.inf, -torch.inf).argmax(dim=1)[:, None, None]
    return candidates.take_along_dim(best, dim=1).squeeze(1)


def _final_step(multipliers: Tensor, gram: Tensor, residual: Tensor, wanted: Tensor) -> Tensor:
    if gram.shape[1] == 1:
        return dual_active_set_step(multipliers, gram, residual, wanted)
    is_active = _active_set(multipliers, residual)
    solved = _solved(gram, is_active, wanted * is_active)
    return torch.where(solved.amin(dim=1, keepdim=True) >= 0, solved, multipliers)


def _active_set(multipliers: Tensor, residual: Tensor) -> Tensor:
    """Half-spaces that hold a point back, and the one with the largest residual."""
    largest_residual = residual.amax(dim=1, keepdim=True).clamp_min(torch.finfo(residual.dtype).tiny)
    return (multipliers > 0) | (residual >= largest_residual)


def _solved(gram: Tensor, is_active: Tensor, sides: Tensor) -> Tensor:
    """Solutions of the systems of active half-spaces, whose ``sides`` are ``(n, K)`` or ``(n, K, any)``."""
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    system = torch.where(is_active[:, :, None] & is_active[:, None], gram, identity)
    solution: Tensor = torch.linalg.solve_ex(system, sides)[0]
    return solution


def _gram(slopes: Tensor) -> Tensor:
    gram = slopes @ slopes.mT
    gram.diagonal(dim1=1, dim2=2).mul_(1 + _RIDGE[slopes.dtype]).clamp_min_(torch.finfo(slopes.dtype).tiny)
    return gram


def _moved(x: Tensor, multipliers: Tensor, slopes: Tensor) -> Tensor:
    return torch.baddbmm(x[:, None], multipliers[:, None], slopes, alpha=-1).squeeze(1)
