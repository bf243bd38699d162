"""How much noise keeps a prediction?"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from captum_boundary._core.captum_helpers import (
    TargetType,
    TensorOrTupleOfTensorsGeneric,
    format_additional_forward_args,
)
from captum_boundary._core.checks import check_inputs
from captum_boundary._core.context import geometry
from captum_boundary._core.generators import check_generator
from captum_boundary._core.margin import margin_and_rival
from captum_boundary._core.model import Model
from captum_boundary._core.oracle import MarginOracle
from captum_boundary._core.repeatability import watch_repeatability
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.smoothing.smoothed_model import SmoothedModel

__all__ = ["largest_stdev"]

_STDEVS = (0.02, 0.03, 0.04, 0.06, 0.08, 0.11, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)


def largest_stdev(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    target: TargetType = None,
    additional_forward_args: object = None,
    *,
    stdevs: Sequence[float] = _STDEVS,
    n_samples: int = 16,
    average: str = "scores",
    generator: torch.Generator | None = None,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> Tensor:
    r"""The largest noise under which the smoothed model still decides for the target.

    Where an input lies outside of its target's region of the :class:`SmoothedModel`, the boundary of that region is
    approached from outside, and Integrated Gradients from there explain something else. The noise must suit the model
    and the example.

    A decision that falls may rise again under stronger noise. So the standard deviations are tried from the
    smallest upwards until the first at which the decision falls; all up to the returned one have been seen to stand.
    For a whole batch take the ``.min()``, or a low quantile. No gradients are needed.

    Args:

        forward_func (Callable): Returns class scores ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for a binary model.
        inputs (Tensor or tuple[Tensor, ...]): Inputs, floating point, N examples. All inputs of a tuple take the noise.
        target (int, tuple, Tensor or list, optional): Class that must win, in any of Captum's forms for 2-D outputs; 0
            or None for a model with one output. Default: None, the class that ``forward_func`` predicts for each
            example.
        additional_forward_args (Any, optional): Further arguments of ``forward_func``. Tensors with N entries follow
            their examples. Default: None
        stdevs (Sequence[float], optional): Standard deviations to try, in the units of the inputs. Default: twelve from
            0.02 to 0.8, which suit inputs in [0, 1]
        n_samples (int, optional): As in :class:`SmoothedModel`, as all that follows. Default: 16
        average (str, optional): ``"scores"`` or ``"probabilities"``. Default: ``"scores"``
        generator (torch.Generator, optional): Source of the noise. Default: None, a fixed seed, that of smoothed
            models.
        internal_batch_size (int, optional): Copies that pass through the model at once. Default: None, all of them.
        show_progress (bool, optional): Show a progress bar, in standard deviations. Default: False

    Returns:

        - **stdev** (*Tensor*): One of ``stdevs`` for each example, ``(N,)``; 0 where the decision falls at the first.

    Raises:

        BoundaryTypeError: For arguments of the wrong type.
        BoundaryValueError: For ``stdevs`` that are not positive, inputs, targets and outputs of the wrong shape or
            value, and whatever :class:`SmoothedModel` refuses.

    Examples::

        >>> import torch
        >>> from captum_boundary import SmoothedModel, largest_stdev
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
        >>> inputs = torch.randn(5, 4)
        >>> stdev = largest_stdev(model, inputs)
        >>> stdev.shape
        torch.Size([5])
        >>> smoothed = SmoothedModel(model, stdev=0.02)
    """
    tensors = check_inputs(inputs)
    if not isinstance(stdevs, Sequence) or isinstance(stdevs, str):
        raise BoundaryTypeError(f"stdevs must be a sequence of numbers, but it is {type(stdevs).__name__}.")
    for stdev in stdevs:
        if isinstance(stdev, bool) or not isinstance(stdev, numbers.Real):
            raise BoundaryTypeError(f"stdevs must be numbers, but they contain {type(stdev).__name__}.")
    tried = sorted(map(float, stdevs))
    if not tried or not all(0 < stdev < math.inf for stdev in tried):
        raise BoundaryValueError(f"stdevs must be one or more positive numbers, but they are {stdevs!r}.")
    arguments = format_additional_forward_args(additional_forward_args)
    check_generator(generator)
    same_noise = _same_noise(generator)
    with geometry(), watch_repeatability(forward_func) as repeatability:
        oracle = MarginOracle(forward_func, tensors, target, arguments)
        oracle.score_noise(repeatability)
        wanted = oracle.target
        stands = torch.ones_like(wanted, dtype=torch.bool)
        largest = torch.zeros(len(wanted), device=tensors[0].device, dtype=tensors[0].dtype)
        for stdev in tqdm(tried, desc="Largest stdev", unit="stdev", disable=not show_progress):
            smoothed = SmoothedModel(
                forward_func,
                (stdev,) * len(tensors),
                n_samples=n_samples,
                average=average,
                generator=same_noise(),
                internal_batch_size=internal_batch_size,
            )
            scores = Model(smoothed, len(wanted), arguments).first_scores(tensors)
            stands &= margin_and_rival(scores, wanted)[0] > 0
            largest = torch.where(stands.to(largest.device), stdev, largest)
            if not stands.any():
                break
    return largest


def _same_noise(generator: torch.Generator | None) -> Callable[[], torch.Generator | None]:
    """For every standard deviation the noise that a model gets that is built with ``generator`` now."""
    if generator is None:
        return lambda: None
    state = generator.get_state()
    return lambda: generator.set_state(state)
