"""How far two maps agree, row by row: flat maps ``(N, D)`` in, ``(N,)`` out.

Zero divided by zero is NaN here, and NaN in a map makes its row NaN: a number that means nothing is no number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_boundary._core.flat import widest_dtype
from captum_boundary.errors import BoundaryValueError

__all__ = [
    "center_of_mass",
    "center_shift",
    "cosine_similarity",
    "flat_maps",
    "kendall_tau",
    "spearman_rho",
    "top_count",
    "top_features",
    "topk_intersection",
]

# The share of features that count as the top: 100 pixels of an image of 28x28, as in the paper on Fashion-MNIST.
_TOP_SHARE = 1 / 8


def flat_maps(attributions: tuple[Tensor, ...]) -> Tensor:
    """Attributions side by side as maps ``(N, D)``: images ``(N, C, H, W)`` summed over channels, all else as it is."""
    parts = (part.sum(dim=1) if part.ndim == 4 else part for part in attributions)
    return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)


def top_count(k: int | None, n_features: int) -> int:
    """How many of the features of a map are its top."""
    if k is None:
        return max(1, int(_TOP_SHARE * n_features))
    if k > n_features:
        raise BoundaryValueError(f"k must be at most the {n_features} features of a map, but it is {k}.")
    return k


def top_features(maps: Tensor, k: int) -> Tensor:
    """The ``k`` largest values of every row as a mask ``(N, D)``; among equal values, those that come first."""
    largest = maps.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(maps, dtype=torch.bool).scatter_(1, largest, True)


def topk_intersection(first: Tensor, second: Tensor, k: int) -> Tensor:
    """Share of the ``k`` largest values of ``first`` that are among the ``k`` largest of ``second``.

    NaN where a map is constant, unless all of its features are the top.
    """
    shared = (top_features(first, k) & top_features(second, k)).sum(dim=1).to(first.dtype) / k
    if k < first.shape[1]:
        has_no_top = (first.amax(dim=1) == first.amin(dim=1)) | (second.amax(dim=1) == second.amin(dim=1))
        shared = shared.masked_fill(has_no_top, torch.nan)
    return _nan_where_nan(shared, first, second)


def kendall_tau(first: Tensor, second: Tensor) -> Tensor:
    """Kendall's tau-b, by Knight's algorithm: time grows as ``D log D``."""
    order = second.argsort(dim=1, stable=True)
    order = order.gather(1, first.gather(1, order).argsort(dim=1, stable=True))
    sorted_first, then_second = first.gather(1, order), second.gather(1, order)
    by_second = then_second.sort(dim=1, stable=True)
    places = torch.empty_like(order).scatter_(1, by_second.indices, _positions(order).expand_as(order))
    changes = sorted_first.diff(dim=1) != 0
    n_equal_first = _equal_pairs(changes)
    n_equal_second = _equal_pairs(by_second.values.diff(dim=1) != 0)
    n_equal = _equal_pairs(changes | (then_second.diff(dim=1) != 0))
    n_pairs = first.shape[1] * (first.shape[1] - 1) // 2
    # Of n_0 pairs, P + Q = n_0 - n_1 - n_2 + n_12 are tied in neither map. Less 2 Q, which are inverted, that is P - Q.
    balance = n_pairs - n_equal_first - n_equal_second + n_equal - 2 * _inversions(places)
    wide = widest_dtype(first)
    scale = (n_pairs - n_equal_first).to(wide).sqrt() * (n_pairs - n_equal_second).to(wide).sqrt()
    tau = (balance.to(wide) / scale).clamp(-1, 1)
    return _nan_where_nan(tau.to(first.dtype), first, second)


def spearman_rho(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of the ranks, equal values sharing the mean of theirs."""
    ranks = (_mean_ranks(maps) for maps in (first, second))
    rho = cosine_similarity(*(rank - rank.mean(dim=1, keepdim=True) for rank in ranks))
    return _nan_where_nan(rho.to(first), first, second)


def cosine_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of the angle between two maps; they are scaled first, so that none is too small for its squares."""
    first, second = (maps / maps.abs().amax(dim=1, keepdim=True) for maps in (first, second))
    lengths = torch.linalg.vector_norm(first, dim=1) * torch.linalg.vector_norm(second, dim=1)
    cosine: Tensor = (first * second).sum(dim=1) / lengths
    return cosine.clamp(-1, 1)


def center_of_mass(maps: Tensor) -> Tensor:
    """Row and column ``(N, 2)``, in pixels, of the center of mass of ``|maps|`` ``(N, H, W)``."""
    mass = maps.abs()
    mass = mass / mass.amax(dim=(1, 2), keepdim=True)  # so that no sum over pixels overflows or underflows
    row, column = (torch.arange(size, device=maps.device, dtype=maps.dtype) for size in maps.shape[1:])
    moments = [(mass.sum(dim=2) * row).sum(dim=1), (mass.sum(dim=1) * column).sum(dim=1)]
    return torch.stack(moments, dim=1) / mass.sum(dim=(1, 2))[:, None]


def center_shift(first: Tensor, second: Tensor) -> Tensor:
    """Distance in pixels between the centers of mass of maps ``(N, H, W)``."""
    shift: Tensor = torch.linalg.vector_norm(center_of_mass(first) - center_of_mass(second), dim=1)
    return shift


def _mean_ranks(maps: Tensor) -> Tensor:
    """Ranks ``(N, D)`` from 0; equal values share the mean of theirs."""
    ordered = maps.sort(dim=1).values
    # Equal values take the ranks from `below`, how many are smaller, to `up_to` - 1. Their mean is that of both ends.
    below, up_to = (torch.searchsorted(ordered, maps.contiguous(), right=right) for right in (False, True))
    return (below + up_to - 1).to(widest_dtype(maps)) / 2


def _equal_pairs(changes: Tensor) -> Tensor:
    """Pairs ``(N,)`` of equal values in sorted rows, from where neighbors differ ``(N, D - 1)``."""
    positions = _positions(changes) + 1
    # A value forms a pair with each equal one before it, back to where the last change was.
    starts = torch.where(changes, positions, 0).cummax(dim=1).values if changes.shape[1] else positions
    return (positions - starts).sum(dim=1).expand(len(changes))


def _inversions(places: Tensor) -> Tensor:
    """Pairs ``(N,)`` in the wrong order in permutations ``(N, D)`` of 0 to D - 1.

    The highest bit in which two places differ tells their order. From the highest bit to the lowest, places are divided
    into blocks that agree in all higher bits, and in each block those with the bit set are counted that come before
    those without.
    """
    positions = _positions(places)
    total = torch.zeros_like(places[:, 0])
    for bit in reversed(range(max(places.shape[1] - 1, 0).bit_length())):
        starts = positions >> (bit + 1) << (bit + 1)
        is_set = places >> bit & 1
        set_before = is_set.cumsum(dim=1) - is_set
        set_before = set_before - set_before.gather(1, starts.expand_as(places))
        total = total + (set_before * (1 - is_set)).sum(dim=1)
        unset_before = positions - starts - set_before
        next_position = starts + torch.where(is_set > 0, (1 << bit) + set_before, unset_before)
        places = torch.empty_like(places).scatter_(1, next_position, places)
    return total


def _positions(rows: Tensor) -> Tensor:
    return torch.arange(rows.shape[1], device=rows.device)[None, :]


def _nan_where_nan(values: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return values.masked_fill((first.isnan() | second.isnan()).any(dim=1), torch.nan)
