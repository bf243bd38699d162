"""The hyper-parameters of Robust Attribution Regularization's experiments."""

from __future__ import annotations

from typing import Any

from captum_boundary.errors import BoundaryValueError

__all__ = ["paper_settings"]

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
