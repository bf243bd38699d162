"""The process-wide default device around a call of Captum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["default_device_of"]


@contextmanager
def default_device_of(device: torch.device) -> Iterator[None]:
    """Where the user has set a default device, let it be that of the inputs, for Captum makes tensors without one."""
    if torch.empty(0).device.type == "cpu":  # torch.get_default_device overlooks contexts in PyTorch 2.4
        yield
        return
    with device:
        yield
