"""How far two maps agree, row by row: flat maps ``(N, D)`` in, ``(N,)`` out.

Zero divided by zero is NaN here, and NaN in a map makes its row NaN: a number that means nothing is no number.
"""

from __future__ import annotations

import torch
from scipy.stats import kendalltau, rankdata
from torch import Tensor

__all__ = [
    "center_of_mass",
    "center_shift",
    "cosine_similarity",
    "flat_maps",
    "kendall_tau",
    "spearman_rho",
    "top_features",
    "topk_intersection",
]


def flat_maps(attributions: tuple[Tensor, ...]) -> Tensor:
    """Attributions side by side as maps ``(N, D)``: images ``(N, C, H, W)`` summed over channels, all else as it is."""
    parts = (part.sum(dim=1) if part.ndim == 4 else part for part in attributions)
    return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)


def top_features(maps: Tensor, k: int) -> Tensor:
    """The ``k`` largest values of every row as a mask ``(N, D)``; among equal values, those that come first."""
    largest = maps.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(maps, dtype=torch.bool).scatter_(1, largest, True)


def topk_intersection(first: Tensor, second: Tensor, k: int) -> Tensor:
    """Share of the ``k`` largest values of ``first`` that are among the ``k`` largest of ``second``."""
    shared = top_features(first, k) & top_features(second, k)
    return _nan_where_nan(shared.sum(dim=1).to(first.dtype) / k, first, second)


def kendall_tau(first: Tensor, second: Tensor) -> Tensor:
    """Kendall's tau-b, by sorting: time grows as ``D log D``, below a thousandth of a second for an image of 28x28."""
    if first.shape[1] < 2:
        return torch.full_like(first[:, 0], torch.nan)
    rows = zip(first.cpu().double().numpy(), second.cpu().double().numpy(), strict=True)
    taus = [float(kendalltau(*pair)[0]) for pair in rows]
    return _nan_where_nan(first.new_tensor(taus), first, second)


def spearman_rho(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of the ranks, equal values sharing the mean of theirs."""
    ranks = (torch.from_numpy(rankdata(maps.cpu().double().numpy(), axis=1)) for maps in (first, second))
    rho = cosine_similarity(*(rank - rank.mean(dim=1, keepdim=True) for rank in ranks))
    return _nan_where_nan(rho.to(first), first, second)


def cosine_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of the angle between two maps; they are scaled first, so that none is too small for its squares."""
    first, second = (maps / maps.abs().amax(dim=1, keepdim=True) for maps in (first, second))
    lengths = torch.linalg.vector_norm(first, dim=1) * torch.linalg.vector_norm(second, dim=1)
    cosine: Tensor = (first * second).sum(dim=1) / lengths
    return cosine.clamp(-1, 1)


def center_of_mass(maps: Tensor) -> Tensor:
    """Row and column ``(N, 2)``, in pixels, of the centre of mass of ``|maps|`` ``(N, H, W)``."""
    mass = maps.abs()
    mass = mass / mass.amax(dim=(1, 2), keepdim=True)
    row, column = (torch.arange(size, device=maps.device, dtype=maps.dtype) for size in maps.shape[1:])
    moments = [(mass.sum(dim=2) * row).sum(dim=1), (mass.sum(dim=1) * column).sum(dim=1)]
    return torch.stack(moments, dim=1) / mass.sum(dim=(1, 2))[:, None]


def center_shift(first: Tensor, second: Tensor) -> Tensor:
    """Distance in pixels between the centres of mass of maps ``(N, H, W)``."""
    shift: Tensor = torch.linalg.vector_norm(center_of_mass(first) - center_of_mass(second), dim=1)
    return shift


def _nan_where_nan(values: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return values.masked_fill((first.isnan() | second.isnan()).any(dim=1), torch.nan)
