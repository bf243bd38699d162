"""What a training step costs, in evaluations of the model, and how far a batch walks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import captum_boundary
from captum_boundary import RARLoss

PACKAGE = Path(captum_boundary.__file__).parent


def paper_network() -> nn.Module:
    """That of https://arxiv.org/abs/1905.09957 for MNIST."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_inputs, n_outputs in ((1, 32), (32, 64)):
        layers += [nn.Conv2d(n_inputs, n_outputs, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(3136, 1024), nn.ReLU(), nn.Linear(1024, 10))


def batch(n_examples: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n_examples, 1, 28, 28, generator=generator), torch.randint(10, (n_examples,), generator=generator)


class Counter:
    """Examples that pass through a model forward and backward."""

    def __init__(self, model: nn.Module) -> None:
        self.n_forward = self.n_backward = 0
        model.register_forward_hook(self._forward)

    def _forward(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.n_forward += len(output)
        if output.requires_grad:
            output.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self.n_backward += len(gradient)


def adversarial_training(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, n_steps: int) -> Tensor:
    """Written by hand, as in https://arxiv.org/abs/1706.06083."""
    perturbed = (x + epsilon * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(n_steps):
        leaves = perturbed.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaves), y), leaves)
        perturbed = leaves.detach() + 2.5 * epsilon / n_steps * gradient.sign()
        perturbed = torch.minimum(torch.maximum(perturbed, x - epsilon), x + epsilon).clamp(0, 1)
    return F.cross_entropy(model(perturbed), y)


@pytest.mark.parametrize("n_steps", [7, 10])
@pytest.mark.parametrize("with_noise", [False, True])
def test_sum_costs_what_adversarial_training_costs(n_steps, with_noise) -> None:
    (x, y), counts = batch(), []
    for ours in (False, True):
        model = paper_network()
        if with_noise:
            model.insert(1, nn.BatchNorm2d(32))
        rar = RARLoss(model, "sum", epsilon=0.3, bounds=(0, 1), attack_steps=n_steps)
        counter = Counter(model)
        (rar(x, y) if ours else adversarial_training(model, x, y, 0.3, n_steps)).backward()
        counts.append((counter.n_forward, counter.n_backward))
    assert counts[0] == ((n_steps + 1) * len(x), (n_steps + 1) * len(x))
    assert counts[1] == ((n_steps + 2) * len(x), (n_steps + 1) * len(x))  # one forward pass for the natural loss
    assert sum(counts[1]) <= 1.1 * sum(counts[0])


def test_ig_norm_costs_its_nodes() -> None:
    (x, y), model = batch(), paper_network()
    rar = RARLoss(model, "ig_norm", epsilon=0.3, bounds=(0, 1), attack_steps=3, attack_n_steps=2, n_steps=5)
    counter = Counter(model)
    rar(x, y).backward()
    at_inputs, one_to_measure = 2 * len(x), 1
    assert counter.n_forward == at_inputs + one_to_measure + (3 * 2 + 5) * len(x)


@pytest.mark.parametrize("size", ["ig_norm", "ig_sum_norm", "sum"])
@pytest.mark.parametrize("smooth", [None, "softplus"])
def test_a_batch_walks_through_few_files(size, smooth) -> None:
    (x, y), model = batch(), paper_network()
    rar = RARLoss(model, size, epsilon=0.3, bounds=(0, 1), attack_steps=2, smooth=smooth)
    files: set[str] = set()

    def note(frame, event, argument) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            files.add(str(Path(frame.f_code.co_filename).relative_to(PACKAGE)))

    sys.setprofile(note)
    try:
        rar(x, y).backward()
    finally:
        sys.setprofile(None)
    assert "robust/_inner_maximization.py" in files
    assert len([file for file in files if file.startswith("robust/")]) <= 7, sorted(files)
