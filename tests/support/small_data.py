"""Small models and data sets, in a module that other processes can import, and what their folders hold."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

N_CLASSES = 3


def small_model(seed: int = 0, n_outputs: int = N_CLASSES) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, n_outputs)).eval()


def image_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, N_CLASSES)).eval()


class Rows(Dataset):
    """Random rows with labels. Those of ``broken`` cannot be read, and every one takes ``seconds``."""

    def __init__(self, n_examples: int = 50, broken: tuple[int, ...] = (), seconds: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(n_examples, 4, generator=generator)
        self.labels = torch.randint(N_CLASSES, (n_examples,), generator=generator)
        self.broken = broken
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.seconds:
            time.sleep(self.seconds)
        if index in self.broken:
            raise OSError(f"example {index} is a truncated file")
        return self.inputs[index], int(self.labels[index])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but its lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
