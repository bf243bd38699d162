r"""Do two attributions say the same? Five measures of agreement between maps of the same examples.

They are those by which attributions under attack are judged in "Interpretation of Neural Networks is Fragile"
(https://arxiv.org/abs/1710.10547) and "Robust Attribution Regularization" (https://arxiv.org/abs/1905.09957).
:func:`evaluate_attribution_robustness` makes the attack and takes all of them.

Values are compared as they are, signs included. For the papers' measures, which compare magnitudes alone, give
``attributions.abs()``: images are then compared by their sums of magnitudes over channels. None of the measures changes
when a map is multiplied by a positive number.

Where a measure divides zero by zero it is NaN, not a number that would enter an average unseen; so is every measure of
a map that contains NaN, as boundary attributions do for examples without a boundary point. ``nanmean`` leaves both out.
"""

from __future__ import annotations

from torch import Tensor

from captum_boundary._core import agreement
from captum_boundary._core.checks import check_count
from captum_boundary.metrics._maps import check_pair, flat_pair, summed_over_channels
from captum_boundary.robust.evaluation import evaluate_attribution_robustness

__all__ = [
    "center_shift",
    "cosine_similarity",
    "evaluate_attribution_robustness",
    "kendall_tau",
    "spearman_rho",
    "topk_intersection",
]

Attributions = Tensor | tuple[Tensor, ...]


def topk_intersection(first: Attributions, second: Attributions, k: int) -> Tensor:
    r"""Share of the ``k`` largest values of one map that are among the ``k`` largest of the other.

    .. math:: |\mathrm{top}_k(a) \cap \mathrm{top}_k(b)| \; / \; k

    Among equal values those that come first in the map count as larger. Two maps without any relation share ``k / D``
    of ``D`` features, and small shifts of a map cost much (https://arxiv.org/abs/2312.10534): compare with what a
    random perturbation does.

    Args:

        first (Tensor or tuple[Tensor, ...]): Attributions of N examples. Images ``(N, C, H, W)`` are summed over
            channels, all else is taken feature by feature; several inputs are one map together.
        second (Tensor or tuple[Tensor, ...]): Attributions of the same shape.
        k (int): Number of features.

    Returns:

        - **share** (*Tensor*): Between 0 and 1, shape ``(N,)``. NaN where a map is constant and has no largest values.

    Raises:

        BoundaryTypeError: If attributions are no floating-point Tensors.
        BoundaryValueError: For attributions of different shapes, infinite ones, and ``k`` larger than the map.

    Examples::

        >>> import torch
        >>> first = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
        >>> topk_intersection(first, torch.tensor([[4.0, 1.0, 2.0, 3.0]]), k=2)
        tensor([0.5000])
    """
    maps, others = _map_pair(first, second)
    check_count("k", k)
    return agreement.topk_intersection(maps, others, agreement.top_count(k, maps.shape[1]))


def kendall_tau(first: Attributions, second: Attributions) -> Tensor:
    r"""Kendall's rank correlation of two maps, tau-b.

    .. math:: \frac{P - Q}{\sqrt{(n_0 - n_1)(n_0 - n_2)}}

    with :math:`P` pairs of features in the same order in both maps, :math:`Q` in opposite orders, :math:`n_0` pairs in
    all, :math:`n_1` and :math:`n_2` with equal values in the first and in the second map. Where only one map has many
    equal values (a black background, say), even the best possible agreement stays below 1.

    Args:

        first (Tensor or tuple[Tensor, ...]): Attributions, as for :func:`topk_intersection`: images are summed over
            channels.
        second (Tensor or tuple[Tensor, ...]): Attributions of the same shape.

    Returns:

        - **tau** (*Tensor*): Between -1 and 1, shape ``(N,)``. NaN where a map is constant.

    Raises:

        BoundaryTypeError: If attributions are no floating-point Tensors.
        BoundaryValueError: For attributions of different shapes, and infinite ones.

    Examples::

        >>> import torch
        >>> first = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
        >>> kendall_tau(first, torch.tensor([[3.0, 4.0, 2.0, 1.0]]))  # one pair of six in the opposite order
        tensor([0.6667])
    """
    return agreement.kendall_tau(*_map_pair(first, second))


def spearman_rho(first: Attributions, second: Attributions) -> Tensor:
    r"""Spearman's rank correlation of two maps: Pearson's correlation of the ranks.

    Equal values share the mean of their ranks.

    Args:

        first (Tensor or tuple[Tensor, ...]): Attributions, as for :func:`topk_intersection`: images are summed over
            channels.
        second (Tensor or tuple[Tensor, ...]): Attributions of the same shape.

    Returns:

        - **rho** (*Tensor*): Between -1 and 1, shape ``(N,)``. NaN where a map is constant.

    Raises:

        BoundaryTypeError: If attributions are no floating-point Tensors.
        BoundaryValueError: For attributions of different shapes, and infinite ones.

    Examples::

        >>> import torch
        >>> first = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
        >>> spearman_rho(first, torch.tensor([[3.0, 4.0, 2.0, 1.0]]))
        tensor([0.8000])
    """
    return agreement.spearman_rho(*_map_pair(first, second))


def center_shift(first: Tensor, second: Tensor) -> Tensor:
    r"""How far the center of mass of a map moves, in pixels.

    .. math:: \Big| \sum_i p_i \, \frac{|a_i|}{\sum_j |a_j|} - \sum_i p_i \, \frac{|b_i|}{\sum_j |b_j|} \Big|_2

    for pixels at the positions :math:`p_i`. The mass of a pixel is the magnitude of its attribution.

    Args:

        first (Tensor): Attributions of images: ``(N, C, H, W)``, which are summed over channels, or maps ``(N, H, W)``.
        second (Tensor): Attributions of the same shape.

    Returns:

        - **shift** (*Tensor*): 0 or more, shape ``(N,)``. NaN where a map is zero.

    Raises:

        BoundaryTypeError: If attributions are no floating-point Tensors.
        BoundaryValueError: For attributions of different shapes or not of images, and infinite ones.

    Examples::

        >>> import torch
        >>> first, second = torch.zeros(2, 1, 8, 8).unbind()
        >>> first[0, 2, 1], second[0, 5, 5] = 1.0, 1.0
        >>> center_shift(first, second)
        tensor([5.])
    """
    (tensor,), (other,) = check_pair((first,), (second,))
    return agreement.center_shift(summed_over_channels(tensor), summed_over_channels(other))


def cosine_similarity(first: Attributions, second: Attributions) -> Tensor:
    r"""Cosine of the angle between two attributions.

    .. math:: a \cdot b \; / \; (|a|_2 \, |b|_2)

    All features count, signs and channels included: nothing is summed.

    Args:

        first (Tensor or tuple[Tensor, ...]): Attributions of N examples, ``(N, ...)``; several inputs are one vector
            together.
        second (Tensor or tuple[Tensor, ...]): Attributions of the same shape.

    Returns:

        - **cosine** (*Tensor*): Between -1 and 1, shape ``(N,)``. NaN where an attribution is zero.

    Raises:

        BoundaryTypeError: If attributions are no floating-point Tensors.
        BoundaryValueError: For attributions of different shapes, and infinite ones.

    Examples::

        >>> import torch
        >>> cosine_similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]))
        tensor([0.9600])
    """
    return agreement.cosine_similarity(*flat_pair(first, second))


def _map_pair(first: Attributions, second: Attributions) -> tuple[Tensor, Tensor]:
    """Both attributions as flat maps ``(N, D)``."""
    maps, others = map(agreement.flat_maps, check_pair(first, second))
    return maps, others
