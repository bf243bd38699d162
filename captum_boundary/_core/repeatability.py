"""Models whose scores change when they are evaluated again: random ones, those with a state, and those of batches.

A boundary is the zero of one function. What makes a model more than one is found by what it does, not by the names of
its modules: buffers that an evaluation changed, and scores of the same inputs that differ by more than rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.modules import modules_of
from captum_boundary._core.user_warnings import warn_user

__all__ = ["Repeatability", "watch_repeatability"]

# The model's scores of a few inputs alone and in their batch tell how much rounding changes them. The largest change
# seen, times this, covers what is to be expected of thousands of points.
_PROBED_ROWS = 4
_SAFETY = 3.0
_MIN_NOISE, _MAX_NOISE = 2.0, 1000.0  # in units of the resolution of the numbers
# Scores that change by more than this, relative to the largest, do so for another reason than rounding.
_NOT_ROUNDING = 0.01
_NOT_ROUNDING_RESOLUTIONS = 30.0  # or this many resolutions, where numbers are coarse


class Repeatability:
    """What is known of a model after its first evaluation: whether asking again gives the same scores.

    Attributes:

        in_training_mode (bool): Whether any module is.
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        modules = [module for module in modules_of(forward_func) if getattr(module, "training", False)]
        self.in_training_mode = bool(modules)
        # Every buffer, whatever its module calls it: batch and instance norms, spectral norm, norms of one's own.
        buffers = [buffer for module in modules for buffer in module.buffers(recurse=False)]
        self._saved = [(buffer, buffer.detach().clone()) for buffer in buffers]
        self._has_warned = False
        self._change: Tensor | float = 0.0  # of scores, where it is no matter of rounding

    def score_noise(
        self, scores_of: Callable[[Tensor], Tensor], scores: Tensor, resolution: float, dtype: torch.dtype
    ) -> Tensor:
        """By how much scores change when inputs are evaluated again, relative to the largest of an example; a scalar.

        Where that is no matter of rounding, :meth:`warn` says so.

        Args:

            scores_of (Callable): Scores ``(n, C)`` of the examples ``(n,)``, given by their indices.
            scores (Tensor): Those of the first evaluation of all N examples, ``(N, C)``.
            resolution (float): Relative precision of the numbers.
            dtype (torch.dtype): That of the geometry.
        """
        if self.buffers_changed():
            self.warn()
            return torch.full((), _MIN_NOISE * resolution, dtype=dtype, device=scores.device)
        # From the last row on: a function that cuts tensors of its examples to the batch is right for the first one.
        step = max(1, len(scores) // _PROBED_ROWS)
        rows = torch.arange(len(scores) - 1, -1, -step, device=scores.device)[:_PROBED_ROWS]
        if len(rows) == 1:  # the same batch once more, and one of another size
            rows = rows.expand(3)
            again = torch.cat([scores_of(rows[:1]), scores_of(rows[1:])])
        else:
            again = torch.cat([scores_of(row) for row in torch.split(rows, 1)])
        return self.noise_between(again, scores[rows], resolution, dtype)

    def noise_between(self, again: Tensor, scores: Tensor, resolution: float, dtype: torch.dtype) -> Tensor:
        """The same, from two evaluations ``(n, C)`` of the same inputs."""
        least = torch.full((), _MIN_NOISE * resolution, dtype=dtype, device=scores.device)
        size = scores.abs().amax(dim=1).clamp_min(torch.finfo(scores.dtype).tiny)
        change = ((again - scores).abs().amax(dim=1) / size).amax().to(dtype).nan_to_num(0.0)
        is_rounding = change <= max(_NOT_ROUNDING, _NOT_ROUNDING_RESOLUTIONS * resolution)
        self._change = torch.where(is_rounding, 0.0, change)  # looked at in the end, not to wait for an accelerator
        noise = (_SAFETY * change).clamp(_MIN_NOISE * resolution, _MAX_NOISE * resolution)
        return torch.where(is_rounding, noise, least)

    @property
    def differs(self) -> bool:
        """Whether two evaluations of the same inputs were seen to differ by more than rounding."""
        return float(self._change) > 0

    def restore_buffers(self) -> None:
        """Put buffers back to what they were."""
        with torch.no_grad():
            for buffer, value in self._saved:
                buffer.copy_(value)

    def warn(self) -> None:
        """Warn once of a model that is more than one function."""
        if self._has_warned:
            return
        if self.buffers_changed():
            what = "every evaluation changes its buffers, such as running statistics"
        elif self.differs:
            what = f"scores of the same inputs, evaluated once more, changed by {self._change:.2g} of the largest"
        else:
            return
        self._has_warned = True
        if self.in_training_mode:
            reason = "The model is in training mode"
            way_out = "Call model.eval() before searching for its boundary."
        else:
            reason = (
                "The model is random, keeps a state between calls, lets examples change each other's scores or holds "
                "tensors of its examples, which are for additional_forward_args"
            )
            way_out = "Reset its state, fix its randomness, or give internal_batch_size=1, before searching for it."
        warn_user(f"{reason}: {what}. So it has no fixed boundary to find. {way_out}")

    def buffers_changed(self) -> bool:
        """Whether any buffer of a module in training mode has changed so far."""
        return not all(torch.equal(buffer, value) for buffer, value in self._saved)


@contextmanager
def watch_repeatability(forward_func: Callable[..., Any], warns: bool = True) -> Iterator[Repeatability]:
    """Look at a model's modules in training mode before it is evaluated; restore their buffers and warn in the end.

    Where a search within has warned already, nothing ``warns`` again.
    """
    found = Repeatability(forward_func)
    try:
        yield found
        if warns:
            found.warn()
    finally:
        found.restore_buffers()
