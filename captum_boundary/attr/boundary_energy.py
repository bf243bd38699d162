"""Squared gradients of a score at the boundaries of noisy copies of an input: a map without signs."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
from captum.attr import GradientAttribution
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from captum_boundary._core.batch_sizes import points_at_once, slices
from captum_boundary._core.captum_helpers import TargetType, TensorOrTupleOfTensorsGeneric, format_output, is_tuple
from captum_boundary._core.checks import check_choice, check_count, check_inputs, shown
from captum_boundary._core.context import geometry
from captum_boundary._core.flat import unpack
from captum_boundary._core.generators import check_generator, seed_of
from captum_boundary._core.margin import class_weights, margin_and_rival
from captum_boundary._core.oracle import MarginOracle
from captum_boundary._core.repeatability import watch_repeatability
from captum_boundary._core.user_warnings import warn_user
from captum_boundary.attr._captum_method import BoundaryMethod, captum_method
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.smoothing._noise import check_pairs, checked_stdevs, normal_noise

__all__ = ["BoundaryEnergy"]

_ENERGIES = ("total", "common")
# Default standard deviation of the noise, as a share of the range of an example's values.
_DEFAULT_NOISE = 0.1
# In float16 numbers below 6e-8 vanish, and so would most gradients of pixels; those above 65,504 overflow.
# So scores are multiplied by a power of two that brings the largest gradient of an example near to this one.
_HALF_LARGEST, _HALF_MAX_SCALE = 16.0, 2.0**12
_RADIUS = 3  # of the window of a local average, in standard deviations


class BoundaryEnergy(BoundaryMethod, GradientAttribution):  # type: ignore[misc]
    r"""Mean squared gradients, or mean products of gradients, at the boundaries of noisy copies of the input.

    Every noisy copy ``x_i`` of an input has its own nearest boundary, which one Newton step on the margin reaches up to
    first order. There, this takes the gradient ``g_i`` of the target's score. With ``energy="total"`` the map is the
    mean squared gradient, ``mean_i g_i^2``; with ``"common"`` it is the mean product of gradients of different copies,
    ``mean_{i != j} g_i g_j``, an unbiased estimate of the squared mean gradient. By ``E[g^2] = (E g)^2 + Var g`` they
    differ by the variance of the gradient over copies. The map has no signs, and does not add up to a difference of
    outputs. It is less noisy than the gradient at the input, for three reasons.

    - The noise of gradients averages out over copies (SmoothGrad, https://arxiv.org/abs/1706.03825).
    - At the boundary the scores of two classes are equal. Far inside its region, a model whose scores saturate is
      hardly sensitive to what would matter if the decision were close.
    - The square of a mean over ``n`` copies contains the variance of the gradient over ``n``; the mean of products of
      different copies does not.

    Common energy is the more concentrated, and more of it lies on the object; total energy ranks better which pixels
    raise the score. :class:`BoundaryGradCam` multiplies either by Grad-CAM. The benchmarks have the numbers.

    Copies are antithetic pairs, and all examples share their noise: a result does not depend on the batch. As in
    :class:`SmoothedModel`, neither copies nor their boundaries are limited to the range of the data. Cost: two
    gradients a copy, ``2 * n_samples`` for each example, and one forward pass of each.

    Args:

        forward_func (Callable): Returns class scores ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for a binary model.
        stdev (float or tuple[float, ...], optional): Standard deviation of the noise, in the units of the inputs; a
            tuple gives each of several inputs its own. About a tenth of the range of the data suits ordinary networks;
            :func:`largest_stdev` is the largest that keeps a prediction. Default: None, a tenth of the range of the
            values of each example, for each input.
        generator (torch.Generator, optional): Source of the noise, asked for one number at construction. Default:
            None, a fixed seed: the same noise in all instances.

    Raises:

        BoundaryTypeError: If the model is not callable, or arguments have the wrong type.
        BoundaryValueError: If ``stdev`` is negative, infinite or zero for all inputs.

    Examples::

        >>> import torch
        >>> from captum_boundary import BoundaryEnergy
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
        >>> model = model.append(torch.nn.Linear(64, 3)).eval()
        >>> images = torch.rand(2, 1, 6, 6)
        >>> maps = BoundaryEnergy(model, stdev=0.1).attribute(images, width=1.0)
        >>> maps.shape, bool((maps >= 0).all())
        (torch.Size([2, 1, 6, 6]), True)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        stdev: float | tuple[float, ...] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if not callable(forward_func):
            raise BoundaryTypeError(f"forward_func must be callable, but it is {type(forward_func).__name__}.")
        super().__init__(forward_func)
        self._stdevs = None if stdev is None else checked_stdevs(stdev)
        check_generator(generator)
        self.stdev = stdev
        self._seed = seed_of(generator)

    @captum_method
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        n_samples: int = 24,
        energy: str = "total",
        width: float = 0.0,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> TensorOrTupleOfTensorsGeneric:
        r"""Energy of every feature of every example.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): Inputs, floating point, of N examples (dimension 0).
            target (int, tuple, Tensor or list, optional): Class to explain, as :meth:`BoundarySearch.find` takes it. A
                copy outside of the region of its target is moved to the boundary of that region. Default: None, the
                predicted class of each example.
            additional_forward_args (Any, optional): Further arguments of ``forward_func``, given after ``inputs``.
                Tensors with N entries follow their examples. Default: None
            n_samples (int, optional): Noisy copies of every example, even, and at least 4 for common energy.
                Default: 24
            energy (str, optional): ``"total"``, the mean over copies of the squared gradient, or ``"common"``, the mean
                product of the gradients of two different pairs, an estimate of the squared mean gradient that is
                unbiased, and so may be a little below zero where nothing is common. Default: ``"total"``
            width (float, optional): Standard deviation, in pixels, of a Gaussian window that averages energy over
                neighboring positions of images ``(N, C, H, W)``. Features of a network are larger than a pixel, so that
                the mean over neighbors has less noise; about a hundredth of the side of an image. Default: 0, none
            internal_batch_size (int, optional): Copies that pass through the model at once. Default:
                None, as many as fit: those that keep 256 MiB for the backward pass on a CPU, or half of what is free on
                a CUDA device.
            show_progress (bool, optional): Show a progress bar, in copies of all examples. Default: False

        Returns:

            - **attributions** (*Tensor* or *tuple[Tensor, ...]*): Energies, shaped like ``inputs``, in float32 where
              these have half precision, whose numbers are too few for squares. A warning names rows of zeros.

        Raises:

            BoundaryTypeError: For arguments of the wrong type.
            BoundaryValueError: For inputs, targets and outputs of the wrong shape or value, models without gradients,
                an odd ``n_samples``, an unknown ``energy``, and a ``width`` for inputs that are no images.
        """
        tensors = check_inputs(inputs)
        self._check(tensors, n_samples, energy, width)
        check_count("internal_batch_size", internal_batch_size, optional=True)
        with geometry():
            with watch_repeatability(self.forward_func) as repeatability:
                oracle = MarginOracle(self.forward_func, tensors, target, additional_forward_args, internal_batch_size)
                oracle.score_noise(repeatability)
                total = len(oracle) * n_samples
                with tqdm(total=total, desc="Boundary energy", unit="copy", disable=not show_progress) as bar:
                    energies = self._energies(oracle, n_samples, energy, internal_batch_size, bar.update)
            is_empty = (energies == 0).all(dim=1)
            if is_empty.any():
                warn_user(
                    f"The score has no slope at any noisy copy of row(s) [{shown(is_empty)}], whose energies are all "
                    "zero: look for saturated probabilities (use logits), dead units or rounded activations."
                )
            maps = unpack(
                energies, tuple(tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors)
            )
            maps = tuple(_local_average(part, width) for part in maps) if width > 0 else maps
        energies_of_inputs: TensorOrTupleOfTensorsGeneric = format_output(is_tuple(inputs), maps)
        return energies_of_inputs

    def _energies(
        self,
        oracle: MarginOracle,
        n_samples: int,
        energy: str,
        internal_batch_size: int | None,
        on_copies: Callable[[int], object],
    ) -> Tensor:
        """Energies ``(N, D)``."""
        stdevs = self._stdevs or (1.0,) * len(oracle.inputs)
        source = torch.Generator("cpu").manual_seed(self._seed)
        halves = oracle.pack(normal_noise(n_samples // 2, oracle.inputs, stdevs, source))
        scale = _tenth_of_range(oracle) if self._stdevs is None else None
        few = oracle.all_rows[:2]
        rows_at_once = internal_batch_size or points_at_once(
            len(oracle) * n_samples,
            tuple(tensor[:2] for tensor in oracle.inputs),
            self.forward_func,
            lambda: oracle.scores(oracle.x[few], few),
        )
        rows_at_once = int(rows_at_once)  # of NumPy's numbers too, which torch.split does not take
        pairs_at_once = max(1, min(len(halves), rows_at_once // 2))
        of_examples = []
        for examples in slices(len(oracle), max(1, rows_at_once // (2 * pairs_at_once))):
            rows = oracle.all_rows[examples]
            sums = torch.zeros_like(oracle.x[examples]), torch.zeros_like(oracle.x[examples])
            for pairs in slices(len(halves), pairs_at_once):
                noise = torch.cat([halves[pairs], -halves[pairs]])
                spread = noise if scale is None else scale[examples, None] * noise
                copies = (oracle.x[examples, None] + spread).flatten(0, 1)
                of_copies = rows.repeat_interleave(len(noise))
                # All at once, unless a model takes one row at a time.
                groups = zip(torch.split(copies, rows_at_once), torch.split(of_copies, rows_at_once), strict=True)
                gradients = torch.cat([_gradients_at_boundaries(oracle, *group) for group in groups])
                gradients = gradients.reshape(len(rows), 2, -1, oracle.x.shape[1])
                parts = gradients if energy == "total" else gradients.mean(dim=1)
                for total, part in zip(sums, (parts, parts.square()), strict=True):
                    total += part.flatten(1, -2).sum(dim=1)
                on_copies(len(copies))
            if energy == "total":
                of_examples.append(sums[1] / n_samples)
            else:  # over n means of pairs, sum_{i != j} g_i g_j = (sum_i g_i)^2 - sum_i g_i^2, of n (n - 1) products
                of_examples.append((sums[0].square() - sums[1]) / (len(halves) * (len(halves) - 1)))
        return torch.cat(of_examples)

    def _check(self, tensors: tuple[Tensor, ...], n_samples: int, energy: str, width: float) -> None:
        if self._stdevs is not None and len(tensors) != len(self._stdevs):
            raise BoundaryValueError(
                f"stdev is for {len(self._stdevs)} input(s), but there are {len(tensors)}: give one number for each."
            )
        check_pairs(n_samples)
        check_choice("energy", energy, _ENERGIES)
        if energy == "common" and n_samples < 4:
            raise BoundaryValueError(f"Common energy needs n_samples of at least 4, but it is {n_samples}.")
        if not isinstance(width, numbers.Real) or not 0 <= width < math.inf:
            raise BoundaryValueError(f"width must be a number of pixels, 0 or more, but it is {width!r}.")
        if width > 0 and any(tensor.ndim != 4 for tensor in tensors):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise BoundaryValueError(
                f"width averages over positions of images (N, C, H, W), but inputs have shape {shapes}. Leave it at 0."
            )


def _tenth_of_range(oracle: MarginOracle) -> Tensor:
    """The default standard deviations ``(N, D)``: of each input of an example, by the range of its values."""
    parts = [tensor.flatten(1) for tensor in oracle.inputs]
    ranges = [(part.amax(dim=1, keepdim=True) - part.amin(dim=1, keepdim=True)).expand_as(part) for part in parts]
    return _DEFAULT_NOISE * oracle.pack(tuple(ranges))


def _gradients_at_boundaries(oracle: MarginOracle, points: Tensor, rows: Tensor) -> Tensor:
    """Gradients ``(n, D)`` of the target's score where the linearized boundaries of ``points`` ``(n, D)`` lie."""
    target = oracle.target[rows]
    scores, vjp = oracle.scores(points, rows)
    margin, rival = margin_and_rival(scores, target)
    of_margin = class_weights(scores, target, rival)
    slope = vjp(of_margin)
    # One Newton step to where the linearized margin m vanishes: x - m g / |g|^2.
    steepness = slope.square().sum(dim=1).clamp_min(torch.finfo(slope.dtype).tiny)
    step = (margin.to(slope) / steepness)[:, None] * slope
    scores, vjp = oracle.scores(points - torch.nan_to_num(step, 0.0, 0.0, 0.0), rows)
    # The one output of a binary model is the margin, up to its sign.
    weights = of_margin if oracle.is_binary else class_weights(scores, target)
    if oracle.resolution <= torch.finfo(torch.float32).eps:
        return vjp(weights)
    largest = slope.abs().amax(dim=1, keepdim=True).clamp_min(_HALF_LARGEST / _HALF_MAX_SCALE)
    scale = torch.exp2(torch.floor(torch.log2(_HALF_LARGEST / largest)))
    return vjp(weights * scale.to(weights)) / scale


def _local_average(maps: Tensor, width: float) -> Tensor:
    """Maps ``(N, C, H, W)`` averaged in a Gaussian window; at the edges, over those positions that there are."""
    values = maps if maps.dtype == torch.float64 else maps.float()
    for dim in (2, 3):
        # Padding with zeros takes weight away at the edges, and as much from a map of ones.
        values = _windowed(values, dim, width) / _windowed(torch.ones_like(values[:1, :1]), dim, width)
    return values.to(maps.dtype)


def _windowed(values: Tensor, dim: int, width: float) -> Tensor:
    radius = min(math.ceil(_RADIUS * width), values.shape[dim] - 1)
    offsets = torch.arange(-radius, radius + 1, device=values.device, dtype=values.dtype)
    window = torch.exp(-0.5 * (offsets / width).square())
    kernel, padding = (window[:, None], (radius, 0)) if dim == 2 else (window[None], (0, radius))
    rows = values.reshape(-1, 1, *values.shape[2:])
    return functional.conv2d(rows, kernel[None, None], padding=padding).reshape(values.shape)
