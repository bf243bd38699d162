"""A small network for scikit-learn's digits, which takes a second to train, and digits that it has not seen."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


@cache
def network_and_digits() -> tuple[nn.Module, Tensor]:
    """The network, and one new digit of each of three classes, ``(3, 1, 8, 8)`` in [0, 1]."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for rows in torch.randperm(1400).repeat(8).split(100):
            optimizer.zero_grad()
            noisy = images[rows] + 0.1 * torch.randn(len(rows), 1, 8, 8)
            nn.functional.cross_entropy(model(noisy), labels[rows]).backward()
            optimizer.step()
    new = [1400 + int((labels[1400:] == digit).nonzero()[0]) for digit in (0, 3, 4)]
    return model.eval(), images[new]
