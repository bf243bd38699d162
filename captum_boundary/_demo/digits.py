"""Handwritten digits, which scikit-learn brings along, and a small network that learns them in seconds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm.auto import tqdm

__all__ = ["Digits", "accuracy", "choose", "load", "train"]


class Digits(NamedTuple):
    """Images ``(N, 1, 8, 8)`` in [0, 1] and their classes ``(N,)``."""

    images: Tensor
    labels: Tensor


def load(seed: int) -> tuple[Digits, Digits]:
    """Digits to train with, and digits to test with."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.25, stratify=labels, random_state=seed)
    train_images, test_images = (torch.as_tensor(part).float().view(-1, 1, 8, 8) for part in parts[:2])
    train_labels, test_labels = (torch.as_tensor(part).long() for part in parts[2:])
    return Digits(train_images, train_labels), Digits(test_images, test_labels)


def train(digits: Digits, epochs: int, seed: int) -> nn.Module:
    """A trained network that returns ten logits. Noise on its inputs keeps the decision boundary smooth."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _network()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        with tqdm(range(epochs), desc="Training", unit="epoch") as bar:
            for _ in bar:
                losses = []
                for rows in torch.split(torch.randperm(len(digits.images)), 64):
                    images = digits.images[rows] + 0.15 * torch.randn_like(digits.images[rows])
                    loss = nn.functional.cross_entropy(model(images), digits.labels[rows])
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
                    losses.append(loss.item())
                bar.set_postfix(loss=f"{sum(losses) / len(losses):.3f}")
    return model.eval()


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Share of ``digits`` that the model classifies correctly."""
    with torch.no_grad():
        return float((model(digits.images).argmax(dim=1) == digits.labels).float().mean())


def choose(digits: Digits, n_examples: int) -> Digits:
    """The first ``n_examples`` in an order in which the ten classes take turns."""
    turns = torch.zeros_like(digits.labels)
    for label in torch.unique(digits.labels):
        turns[digits.labels == label] = torch.arange(int((digits.labels == label).sum()))
    rows = (10 * turns + digits.labels).argsort()[:n_examples]
    return Digits(digits.images[rows], digits.labels[rows])


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
