"""The two boundary attributions that the paper names: BSM and BIG."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from captum.attr import IntegratedGradients, Saliency

from captum_boundary.attr.boundary_attribution import BoundaryAttribution
from captum_boundary.search import BoundarySearch

__all__ = ["BoundaryIntegratedGradients", "BoundarySaliency"]


class BoundarySaliency(BoundaryAttribution):
    r"""The gradient of the model at the nearest boundary point, with its sign: a boundary-based saliency map (BSM).

    The saliency map of "Robust Models Are More Interpretable Because Attributions Look Normal"
    (https://arxiv.org/abs/2103.11257). It is a normal vector of the decision boundary for a binary model and with
    ``score="margin"``; with the default score, it is the gradient of the target's output alone, as in the paper.
    ``attribute(..., abs=True)`` returns magnitudes.

    Args:

        forward_func (Callable): Returns class scores ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for a binary model.
        search (BoundarySearch, optional): How boundary points are found. Default: None, which means
            ``NearestBoundary(forward_func)``
        score (str, optional): ``"output"`` or ``"margin"``, as for :class:`BoundaryAttribution`. Default: ``"output"``

    Examples::

        >>> import torch
        >>> from captum_boundary import BoundarySaliency
        >>> model = torch.nn.Linear(3, 2)
        >>> saliency = BoundarySaliency(model).attribute(torch.randn(5, 3), target=1)
        >>> bool(torch.allclose(saliency, model.weight[1].expand(5, 3)))
        True
    """

    _default_options = MappingProxyType({"abs": False})

    def __init__(
        self, forward_func: Callable[..., Any], search: BoundarySearch | None = None, score: str = "output"
    ) -> None:
        super().__init__(forward_func, Saliency, search, score)


class BoundaryIntegratedGradients(BoundaryAttribution):
    r"""Integrated gradients on the straight line from the nearest boundary point to the input (BIG).

    The method of "Robust Models Are More Interpretable Because Attributions Look Normal"
    (https://arxiv.org/abs/2103.11257). Attributions sum to ``f(inputs) - f(points)`` up to the convergence delta, which
    falls as ``n_steps`` grows.

    Args:

        forward_func (Callable): Returns class scores ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for a binary model.
        search (BoundarySearch, optional): How boundary points are found. Default: None, which means
            ``NearestBoundary(forward_func)``
        score (str, optional): ``"output"`` or ``"margin"``, as for :class:`BoundaryAttribution`. Default: ``"output"``

    Examples::

        >>> import torch
        >>> from captum_boundary import BoundaryIntegratedGradients
        >>> model = torch.nn.Linear(3, 2)
        >>> inputs = torch.randn(5, 3)
        >>> big = BoundaryIntegratedGradients(model)
        >>> attributions, boundary = big.attribute(inputs, target=1, return_boundary=True)
        >>> bool(torch.allclose(attributions, (inputs - boundary.points) * model.weight[1], atol=1e-5))
        True
    """

    def __init__(
        self, forward_func: Callable[..., Any], search: BoundarySearch | None = None, score: str = "output"
    ) -> None:
        super().__init__(forward_func, IntegratedGradients, search, score)
