"""Searches to compare: ours and Foolbox's attacks, run as they come, with all their model evaluations counted."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from captum_boundary.search import BoundarySearch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # foolbox imports a deprecated name of scipy
    from foolbox import PyTorchModel
    from foolbox.attacks import L2PGD, DDNAttack, L2CarliniWagnerAttack, L2DeepFoolAttack
    from foolbox.attacks.base import MinimizationAttack

# The radii of the pipeline that was released with the boundary attribution paper, https://arxiv.org/abs/2103.11257.
RELEASED_RADII = (36 / 255, 64 / 255, 0.3, 0.5, 0.7, 0.9, 1.1)
RELEASED_STEPS = 40

ATTACKS = {
    "Foolbox DeepFool": L2DeepFoolAttack(),
    "Foolbox DDN-100": DDNAttack(steps=100),
    "Foolbox DDN-1000": DDNAttack(steps=1000),
    "Foolbox CW": L2CarliniWagnerAttack(stepsize=1e-2, steps=100),
}


@dataclass(frozen=True)
class Run:
    """Points a search returned for ``(N, ...)`` images, and what they cost."""

    points: Tensor
    seconds: float
    forwards: float  # per image
    gradients: float  # per image

    @property
    def evaluations(self) -> float:
        """Per image, a gradient counted as two forwards; its own forward is among the forwards."""
        return self.forwards + 2 * self.gradients


class CountingModel(nn.Module):
    """Passes images on to ``model`` and counts those that go forwards and those that come back."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.gradients = 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        scores = self.model(images)
        if scores.requires_grad:
            scores.register_hook(self._count_gradients)
        return scores

    def _count_gradients(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)


def run_ours(make_search: Callable[[nn.Module], BoundarySearch], model: nn.Module, images: Tensor) -> Run:
    return _measure(lambda counter: make_search(counter).perturb(images), model, images)


def run_minimization(attack: MinimizationAttack, model: nn.Module, images: Tensor, labels: Tensor) -> Run:
    def perturb(counter: CountingModel) -> Tensor:
        return attack(PyTorchModel(counter, bounds=(0, 1)), images, labels, epsilons=None)[1]

    return _measure(perturb, model, images)


def run_released_pgd(model: nn.Module, images: Tensor, labels: Tensor) -> Run:
    """All radii one after the other, the first success kept as it is: beyond the boundary, not on it.

    The released code passed its step size, 2 radius / steps, as one relative to the radius. Here it is what it was
    meant to be.
    """
    attack = L2PGD(rel_stepsize=2 / RELEASED_STEPS, steps=RELEASED_STEPS, random_start=True)

    def perturb(counter: CountingModel) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _, found, success = attack(PyTorchModel(counter, bounds=(0, 1)), images, labels, epsilons=RELEASED_RADII)
        points = images.clone()
        for points_in_ball, is_success in zip(reversed(found), reversed(success), strict=True):
            points[is_success] = points_in_ball[is_success]
        return points

    return _measure(perturb, model, images)


def nearest_of(first: Run, second: Run, distance: Callable[[Run], Tensor]) -> Run:
    """Image by image the nearer of two runs, at the cost of both."""
    is_second = distance(second) < distance(first)
    points = first.points.clone()
    points[is_second] = second.points[is_second]
    return replace(
        first,
        points=points,
        seconds=first.seconds + second.seconds,
        forwards=first.forwards + second.forwards,
        gradients=first.gradients + second.gradients,
    )


def _measure(perturb: Callable[[CountingModel], Tensor], model: nn.Module, images: Tensor) -> Run:
    counter = CountingModel(model).eval()
    begin = time.perf_counter()
    points = perturb(counter).detach()
    seconds = time.perf_counter() - begin
    return Run(points, seconds, counter.forwards / len(images), counter.gradients / len(images))
