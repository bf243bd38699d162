"""Training that can be killed at any moment: all that a step changes is saved, and goes on from there bit for bit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from rar_augmentation import distort
from rar_checkpoint import Checkpoint
from rar_data import Data, pixels
from rar_networks import build
from rar_settings import OBJECTIVES, Training
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_boundary.robust import RARLoss

Loss = Callable[[Tensor, Tensor], Tensor]


def make_deterministic(n_threads: int | None) -> None:
    """So that the same command trains the same network, with ``n_threads`` where they are given."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic algorithms ask of CUDA
    torch.use_deterministic_algorithms(True, warn_only=True)
    if n_threads:
        torch.set_num_threads(n_threads)


class Batches:
    """Endless training images in random order: every image once before any comes again, or distorted and all classes
    equally often."""

    def __init__(self, data: Data, settings: Training) -> None:
        n_images = settings.n_images or len(data.train_images)
        self.images, self.labels = data.train_images[:n_images], data.train_labels[:n_images]
        self.batch_size, self.augment = settings.batch_size, settings.augment
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.order = torch.empty(0, dtype=torch.long)

    def __next__(self) -> tuple[Tensor, Tensor]:
        if len(self.order) < self.batch_size:
            self.order = self._shuffled()
        rows, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        images = pixels(self.images[rows])
        if self.augment:
            images = distort(images, self.generator)
        return images, self.labels[rows]

    def _shuffled(self) -> Tensor:
        if not self.augment:
            return torch.randperm(len(self.images), generator=self.generator)
        labels = self.labels.cpu()
        weights = labels.bincount().double().reciprocal()[labels]
        return torch.multinomial(weights, len(labels), replacement=True, generator=self.generator)

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state(), "order": self.order.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
        self.order = state["order"]


class Run:
    """A network in training."""

    def __init__(self, settings: Training, data: Data, device: torch.device) -> None:
        self.settings = settings
        self.network = build(data.image_shape, data.n_classes, settings.scale, settings.seed, settings.smooth).to(
            device
        )
        self.optimizer = _optimizer(self.network, settings)
        self.batches = Batches(data.to(device), settings)
        self.generator = torch.Generator().manual_seed(settings.seed + 1)
        self.n_done = 0
        self.seconds = 0.0
        # A processor's time is that of all its threads, and does not depend on who else is at work.
        self._clock = time.process_time if device.type == "cpu" else time.perf_counter

    def step(self) -> float:
        begin = self._clock()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(self.n_done)
        images, labels = next(self.batches)
        loss = loss_function(self.network, self.settings, self.n_done, self.generator)(images, labels)
        self.optimizer.zero_grad()
        (loss * len(images) if self.settings.sum_over_batch else loss).backward()
        self.optimizer.step()
        self.n_done += 1
        value = loss.item()
        self.seconds += self._clock() - begin
        return value

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "generator": self.generator.get_state(),
            "n_done": self.n_done,
            "seconds": self.seconds,
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        self.generator.set_state(state["generator"])
        self.n_done, self.seconds = state["n_done"], state["seconds"]
        if state["threads"] != torch.get_num_threads():
            tqdm.write(
                f"Going on with {torch.get_num_threads()} threads where there were {state['threads']}: "
                "numbers may differ in their last digits."
            )


def train(run: Run, checkpoint: Checkpoint, save_seconds: float) -> None:
    """Bring ``run`` to its end, from where ``checkpoint`` left it."""
    state = checkpoint.load()
    if state is not None:
        run.load_state_dict(state)
    name, n_steps = run.settings.objective, run.settings.n_steps
    with tqdm(total=n_steps, initial=run.n_done, desc=f"Training {name}", unit="step") as bar:
        saved = time.monotonic()
        while run.n_done < n_steps:
            loss = run.step()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
            if run.n_done == n_steps or time.monotonic() - saved >= save_seconds:
                checkpoint.save(run.state_dict())
                saved = time.monotonic()
    run.network.eval()


def loss_function(network: nn.Module, settings: Training, step: int, generator: torch.Generator) -> Loss:
    """From images and labels to the mean loss of the batch."""
    size = OBJECTIVES[settings.objective]
    if size is None:
        return lambda images, labels: nn.functional.cross_entropy(network(images), labels)
    loss: Loss = RARLoss(network, size, generator=generator, **settings.loss_at(step))
    return loss


def _optimizer(network: nn.Module, settings: Training) -> torch.optim.Optimizer:
    rate = settings.learning_rate(0)
    if settings.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=rate)
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": biases}]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9)
