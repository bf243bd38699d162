"""What is trained, how long, and how it is tested: published settings, and smaller ones for a processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from captum_boundary.robust import paper_settings

# Sizes of RARLoss; None is the plain cross-entropy.
OBJECTIVES: Mapping[str, str | None] = {
    "natural": None,
    "madry": "sum",
    "input_gradient": "norm_power",
    "ig_norm": "ig_norm",
    "ig_sum_norm": "ig_sum_norm",
}
# Whose settings in the paper a data set takes.
PAPER_NAMES = {
    "mnist": "mnist",
    "fashion_mnist": "fashion_mnist",
    "gtsrb": "gtsrb",
    "flowers102": "flower",
    "digits": "fashion_mnist",
}
PHOTOGRAPHS = ("gtsrb", "flowers102")


@dataclass(frozen=True)
class Training:
    """How a network is trained."""

    dataset: str
    objective: str
    scale: str
    seed: int
    n_steps: int
    batch_size: int
    optimizer: str
    learning_rates: tuple[tuple[int, float], ...]  # from which step on, and the rate
    smooth: bool = False  # GELUs in place of the paper's activations
    weight_decay: float = 0.0
    augment: bool = False
    sum_over_batch: bool = False
    warm_up: int = 0  # steps over which epsilon grows from 0
    n_images: int | None = None  # the first of the training images; None for all
    loss: dict[str, Any] = field(default_factory=dict)  # keyword arguments of RARLoss

    def learning_rate(self, step: int) -> float:
        return next(rate for begin, rate in reversed(self.learning_rates) if begin <= step)

    def loss_at(self, step: int) -> dict[str, Any]:
        """Keyword arguments of RARLoss at ``step``: while epsilon grows, the attack's steps grow with it."""
        share = min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0
        return {**self.loss, **{name: share * self.loss[name] for name in ("epsilon", "attack_step_size")}}


@dataclass(frozen=True)
class Evaluation:
    """How a trained network is tested; images are the first of the test images, None for all of them."""

    epsilon: float
    pgd_steps: int
    pgd_step_size: float
    attack_k: int
    k: int
    attack_steps: int
    attack_step_size: float
    n_steps: int = 100
    pgd_images: int | None = None
    attack_images: int | None = None


def training(
    dataset: str,
    objective: str,
    scale: str,
    seed: int,
    quick: bool,
    smooth: bool = False,
    weight: float | None = None,
    softplus_beta: float | None = None,
) -> Training:
    """Published settings at ``scale="paper"``, and what two cores train in minutes at ``scale="cpu"``. In between,
    ``"paper_network"`` is the published network with the attacks and paths of the small one.
    """
    size = OBJECTIVES[objective]
    loss = {} if size is None else _loss(PAPER_NAMES[dataset], size)
    if loss and weight is not None:
        loss["weight"] = weight
    if loss and softplus_beta is not None:
        loss |= {"smooth": "softplus", "softplus_beta": softplus_beta}
    if scale != "paper" and loss:
        loss |= {"attack_steps": 5, "attack_step_size": loss["epsilon"] / 2}
        if objective in ("ig_norm", "ig_sum_norm"):
            # Few nodes, so that they have to be good ones: the right sum of 5 is twice the size of the integral.
            loss |= {"n_steps": 5, "attack_n_steps": 2, "quadrature": "gausslegendre"}
    schedule = _SCHEDULES[scale](dataset, objective)
    settings = Training(dataset, objective, scale, seed, **schedule, smooth=smooth, loss=loss)
    if quick:
        settings = replace(settings, n_images=2000, n_steps=2000 // settings.batch_size, warm_up=0)
    return settings


def evaluation(dataset: str, scale: str, quick: bool) -> Evaluation:
    """The published attacks, on fewer images and with fewer steps at ``scale="cpu"``."""
    name = PAPER_NAMES[dataset]
    pgd = paper_settings(name, "sum")
    settings = Evaluation(pgd["epsilon"], pgd["attack_steps"], pgd["attack_step_size"], *_ATTACKS[dataset])
    if scale == "cpu":
        attack_steps, n_steps = (50, 20) if dataset == "mnist" else (30, 10)  # the radius of MNIST is the largest
        # Steps that shrink from the whole radius to zero: on robust networks small ones do less harm than chance does.
        settings = replace(settings, attack_steps=attack_steps, attack_step_size=settings.epsilon, n_steps=n_steps)
        settings = replace(settings, pgd_images=1000, attack_images=100)
    if quick:
        settings = replace(settings, n_steps=5, attack_steps=10, pgd_images=20, attack_images=20)
    return settings


def _loss(name: str, size: str) -> dict[str, Any]:
    if size != "norm_power":
        return paper_settings(name, size)
    # Not in the paper's experiments. One step makes it input-gradient regularization.
    return {**paper_settings(name, "ig_norm"), "n_steps": 1, "quadrature": "riemann_left"}


def _published(dataset: str, objective: str) -> dict[str, Any]:
    """The released losses are sums over the batch on MNIST and Fashion-MNIST, where Adam makes up for it, and for the
    two IG objectives on photographs, where ``sum_over_batch`` multiplies our mean by the size of the batch.
    """
    if dataset not in PHOTOGRAPHS:
        n_steps = 25_000 if objective == "natural" else 100_000
        return {"n_steps": n_steps, "batch_size": 50, "optimizer": "adam", "learning_rates": ((0, 1e-4),)}
    is_sum = objective in ("ig_norm", "ig_sum_norm")
    rate = 1e-3 if dataset == "flowers102" and is_sum else 1e-2
    return {
        "n_steps": 70_001,
        "batch_size": 16 if dataset == "flowers102" else 64,
        "optimizer": "sgd",
        "learning_rates": ((0, rate / 10), (500, rate), (60_000, rate / 10)),
        "weight_decay": 2e-4,
        "augment": True,
        "sum_over_batch": is_sum,
    }


def _small(dataset: str, objective: str) -> dict[str, Any]:
    """Every objective sees the same images under the same schedule: epsilon grows over the first half of the steps, and
    the rate falls after two thirds.
    """
    # To resist an epsilon of 0.3, as on MNIST, takes more steps than to resist 0.1 or less.
    n_steps, batch_size, rate = {
        "mnist": (2000, 64, 3e-3),
        "fashion_mnist": (800, 32, 2e-3),
        "gtsrb": (800, 32, 2e-3),
        "flowers102": (300, 16, 3e-3),
        "digits": (600, 64, 3e-3),
    }[dataset]
    return {
        "n_steps": n_steps,
        "batch_size": batch_size,
        "optimizer": "adam",
        "learning_rates": ((0, rate), (n_steps * 2 // 3, rate / 6)),
        "warm_up": n_steps // 2,
    }


def _published_network(dataset: str, objective: str) -> dict[str, Any]:
    """The schedule of the small network in as many steps as a core takes in 3 to 20 minutes."""
    schedule = _small(dataset, objective)
    n_steps = {"natural": 1500, "madry": 1000, "input_gradient": 500, "ig_norm": 320, "ig_sum_norm": 380}[objective]
    rates = ((0, 1e-3), (n_steps * 2 // 3, 1e-3 / 6))
    return {**schedule, "n_steps": n_steps, "batch_size": 50, "learning_rates": rates, "warm_up": n_steps // 2}


_SCHEDULES = {"paper": _published, "paper_network": _published_network, "cpu": _small}
# The attack's k, k of the top-k intersection, steps and their size.
_ATTACKS = {
    "mnist": (200, 100, 100, 0.01),
    "fashion_mnist": (100, 100, 100, 0.01),
    "gtsrb": (100, 100, 50, 1 / 255),
    "flowers102": (1000, 1000, 100, 1 / 255),
    "digits": (20, 10, 100, 0.01),
}
