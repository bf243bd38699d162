"""Sizes of attributions, which Robust Attribution Regularization makes small, and the settings of its experiments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["Size", "paper_settings"]

# Radius and step size in units of pixels in [0, 1]; GTSRB and Flower are given in units of 1/255 by the paper's code.
_ATTACKS: dict[str, dict[str, Any]] = {
    "mnist": {"epsilon": 0.3, "attack_steps": 40, "attack_step_size": 0.01, "attack_n_steps": 10},
    "fashion_mnist": {"epsilon": 0.1, "attack_steps": 20, "attack_step_size": 0.01, "attack_n_steps": 10},
    "gtsrb": {"epsilon": 8 / 255, "attack_steps": 7, "attack_step_size": 2 / 255, "attack_n_steps": 5},
    "flower": {"epsilon": 8 / 255, "attack_steps": 7, "attack_step_size": 2 / 255, "attack_n_steps": 5},
}
_WEIGHTS = {
    "ig_norm": {"mnist": 1.0, "fashion_mnist": 1.0, "gtsrb": 1.0, "flower": 0.1},
    "ig_sum_norm": {"mnist": 0.1, "fashion_mnist": 0.1, "gtsrb": 1.0, "flower": 0.1},
    "sum": {"mnist": 1.0, "fashion_mnist": 1.0, "gtsrb": 1.0, "flower": 1.0},
}


class Size(NamedTuple):
    """A size function of attributions, and the training loss that is built on it."""

    function: Callable[[Tensor], Tensor] | None  # None for the plain sum, which completeness gives without a path
    weight: float  # of the regularizer in the paper's experiments, where it has one
    at_perturbed: bool  # whether the loss itself is taken at the perturbed inputs
    quadrature: str | None = None  # where the size asks for one

    @classmethod
    def of(cls, size: str | Callable[[Tensor], Tensor], power: float) -> Size:
        """The size function that a user names, or gives."""
        named = {
            "ig_norm": cls(_l1, weight=1.0, at_perturbed=False),
            "ig_sum_norm": cls(_l1, weight=0.1, at_perturbed=True),
            "sum": cls(None, weight=1.0, at_perturbed=True),
            # The first term of the left sum is the gradient at the input itself.
            "norm_power": cls(partial(_l1_power, power=power), 1.0, at_perturbed=False, quadrature="riemann_left"),
        }
        if callable(size):
            return cls(size, weight=1.0, at_perturbed=False)
        if not isinstance(size, str):
            raise BoundaryTypeError(
                f"size must be a name or a function of attributions, but it is {type(size).__name__}."
            )
        if size not in named:
            raise BoundaryValueError(
                f"size must be one of {', '.join(map(repr, named))}, or a function of attributions, but it is {size!r}."
            )
        return named[size]


def _l1(attribution: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(attribution.reshape(len(attribution), -1), ord=1, dim=1)
    return norms


def _l1_power(attribution: Tensor, power: float) -> Tensor:
    return _l1(attribution) ** power


def paper_settings(dataset: str, size: str = "ig_norm") -> dict[str, Any]:
    r"""The paper's hyper-parameters, as keyword arguments of :class:`RARLoss`.

    They are those of the configuration files released with "Robust Attribution Regularization"
    (https://arxiv.org/abs/1905.09957), for pixels in [0, 1]. ``"sum"`` is the paper's adversarial training. Optimizers
    and learning rates are not part of them. The released code sums losses over the batch where :class:`RARLoss` takes
    their mean: weights are the same for both, learning rates of plain gradient descent are not.

    Args:

        dataset (str): "mnist", "fashion_mnist", "gtsrb" or "flower".
        size (str, optional): "ig_norm", "ig_sum_norm" or "sum". Default: "ig_norm"

    Returns:

        - **settings** (*dict*): ``epsilon``, ``weight``, ``bounds``, ``warmup`` (0: there is none), ``n_steps``,
          ``quadrature`` and the attack's ``attack_steps``, ``attack_step_size`` and ``attack_n_steps``.

    Raises:

        BoundaryValueError: For data sets and sizes that the paper does not have.

    Examples::

        >>> import torch
        >>> from captum_boundary import RARLoss
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
        >>> RARLoss(model, "ig_sum_norm", **paper_settings("mnist", "ig_sum_norm")).epsilon
        0.3
    """
    for name, value, known in (("dataset", dataset, _ATTACKS), ("size", size, _WEIGHTS)):
        if value not in known:
            raise BoundaryValueError(
                f"{name} must be one of {', '.join(map(repr, known))}, which the paper has, but it is {value!r}."
            )
    path = {"n_steps": 50, "quadrature": "riemann_right"}
    return {**_ATTACKS[dataset], "weight": _WEIGHTS[size][dataset], "bounds": (0.0, 1.0), "warmup": 0, **path}
