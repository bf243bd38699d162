"""A small network for scikit-learn's digits, which takes a second to train, and digits that it has not seen."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

N_TRAINING = 1400


@cache
def network_and_digits() -> tuple[nn.Module, Tensor]:
    """The network, and one new digit of each of three classes, ``(3, 1, 8, 8)`` in [0, 1]."""
    images, labels = all_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for rows in torch.randperm(N_TRAINING).repeat(8).split(100):
            optimizer.zero_grad()
            noisy = images[rows] + 0.1 * torch.randn(len(rows), 1, 8, 8)
            nn.functional.cross_entropy(model(noisy), labels[rows]).backward()
            optimizer.step()
    new = [N_TRAINING + int((labels[N_TRAINING:] == digit).nonzero()[0]) for digit in (0, 3, 4)]
    return model.eval(), images[new]


def unseen_digits() -> Tensor:
    """All digits that the network has not been trained on, ``(N, 1, 8, 8)``."""
    return all_digits()[0][N_TRAINING:]


def all_digits() -> tuple[Tensor, Tensor]:
    """Images ``(N, 1, 8, 8)`` in [0, 1], and their labels."""
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
