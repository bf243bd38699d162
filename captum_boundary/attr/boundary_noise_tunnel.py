"""Boundary attributions averaged over noisy copies of the inputs, those without a boundary left out."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from captum.attr import NoiseTunnel
from captum.log import log_usage
from torch import Tensor

from captum_boundary._core.arguments import of_examples
from captum_boundary._core.batch_sizes import slices
from captum_boundary._core.captum_helpers import (
    TensorOrTupleOfTensorsGeneric,
    format_additional_forward_args,
    format_output,
    is_tuple,
)
from captum_boundary._core.checks import check_choice, check_count, check_inputs, shown
from captum_boundary._core.context import geometry
from captum_boundary._core.margin import resolve_target
from captum_boundary._core.model import Model
from captum_boundary._core.repeatability import watch_repeatability
from captum_boundary._core.user_warnings import warn_user
from captum_boundary.errors import BoundaryNotFoundWarning, BoundaryTypeError, BoundaryValueError
from captum_boundary.smoothing._noise import checked_stdevs

__all__ = ["BoundaryNoiseTunnel"]

# What becomes of the mean of the attributions and the mean of their squares.
_SMOOTHED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smoothgrad": lambda mean, _: mean,
    "smoothgrad_sq": lambda _, mean_square: mean_square,
    "vargrad": lambda mean, mean_square: mean_square - mean.square(),  # E[g^2] - (E g)^2
}


class BoundaryNoiseTunnel(NoiseTunnel):  # type: ignore[misc]
    r"""Captum's NoiseTunnel for boundary attributions: one class for all copies, and only copies with a boundary.

    Captum's own averages whatever it is given. A noisy copy may be of another class than its input, and it may have no
    boundary point, which makes the whole row NaN. Here all copies are explained for the class of their input, and those
    without a boundary point are left out and counted. Each copy is searched for its own boundary.

    For a model with one output, which has no other class, every copy is explained for its own side.

    Args:

        attribution_method (Attribution): A method of this package that finds boundary points: BoundaryAttribution,
            BoundaryIntegratedGradients, BoundarySaliency or AggregatedBoundaryNormals.

    Raises:

        BoundaryTypeError: If the method finds no boundary points.

    Examples::

        >>> import torch
        >>> from captum_boundary import BoundarySaliency
        >>> from captum_boundary.attr import BoundaryNoiseTunnel
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> tunnel = BoundaryNoiseTunnel(BoundarySaliency(model))
        >>> maps, n_found = tunnel.attribute(torch.randn(2, 4), nt_samples=6, stdevs=0.1, return_n_found=True)
        >>> maps.shape, n_found
        (torch.Size([2, 4]), tensor([6, 6]))
    """

    def __init__(self, attribution_method: Any) -> None:
        attribute = getattr(attribution_method, "attribute", None)
        if attribute is None or "return_boundary" not in inspect.signature(attribute).parameters:
            raise BoundaryTypeError(
                "attribution_method must be a method that finds boundary points, such as BoundarySaliency(model), but "
                f"it is {type(attribution_method).__name__}. For other methods use captum.attr.NoiseTunnel."
            )
        super().__init__(attribution_method)

    @log_usage(part_of_slo=False)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        nt_type: str = "smoothgrad",
        nt_samples: int = 5,
        nt_samples_batch_size: int | None = None,
        stdevs: float | tuple[float, ...] = 1.0,
        *,
        return_n_found: bool = False,
        **kwargs: Any,
    ) -> Any:
        r"""Attributions of noisy copies, averaged over those with a boundary.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): Inputs, floating point, of N examples (dimension 0).
            nt_type (str, optional): ``"smoothgrad"``, the mean of the attributions, ``"smoothgrad_sq"``, the mean of
                their squares, or ``"vargrad"``, their variance. Default: ``"smoothgrad"``
            nt_samples (int, optional): Noisy copies of every example. Default: 5
            nt_samples_batch_size (int, optional): Copies of every example that are explained at once. Default: None,
                all of them.
            stdevs (float or tuple[float, ...], optional): Standard deviation of the noise, one for each input of a
                tuple. Default: 1.0
            return_n_found (bool, optional): Return the number of copies with a boundary as well. Default: False
            **kwargs (Any, optional): Arguments of the method's ``attribute``, such as ``target`` (None is the class
                predicted for the *input*), ``additional_forward_args`` and ``return_convergence_delta``.

        Returns:
            **attributions**, or a tuple of **attributions** and whatever else is returned, in this order:

            - **attributions** (*Tensor* or *tuple[Tensor, ...]*): Attributions, shaped as the method shapes them. Rows
              none of whose copies has a boundary point are NaN.
            - **delta** (*Tensor*, returned if return_convergence_delta=True): The mean convergence delta of the copies
              with a boundary, ``(N,)``.
            - **n_found** (*Tensor*, returned if return_n_found=True): How many copies have a boundary, ``(N,)``.

        Raises:

            BoundaryTypeError: For arguments of the wrong type.
            BoundaryValueError: For an unknown ``nt_type``, numbers that make no sense, a ``boundary``, which would be
                that of other inputs, and whatever the method refuses.
        """
        tensors = check_inputs(inputs)
        self._check(tensors, nt_type, nt_samples, nt_samples_batch_size, stdevs, kwargs)
        n_examples = len(tensors[0])
        arguments = format_additional_forward_args(kwargs.pop("additional_forward_args", None))
        target = self._target_of(tensors, kwargs.pop("target", None), arguments)
        totals: list[Tensor] = []  # of the maps, their squares and the delta
        n_found = torch.zeros(n_examples, dtype=torch.long, device=tensors[0].device)
        for copies in slices(nt_samples, nt_samples_batch_size or nt_samples):
            n_copies = copies.stop - copies.start
            rows = torch.arange(n_examples, device=tensors[0].device).repeat_interleave(n_copies)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", BoundaryNotFoundWarning)  # they are counted
                maps, *delta, boundary = self.attribution_method.attribute(
                    format_output(is_tuple(inputs), self._copies(tensors, n_copies, stdevs)),
                    target=None if target is None else target[rows.to(target.device)],
                    additional_forward_args=of_examples(arguments, n_examples, rows),
                    return_boundary=True,
                    **kwargs,
                )
            found = (boundary.found if boundary.found.ndim == 1 else boundary.found.any(dim=1)).to(rows.device)
            parts: tuple[Tensor, ...] = maps if is_tuple(maps) else (maps,)
            values = (*parts, *(part.square() for part in parts), *delta)
            sums = [_of_found(value, found, n_copies).sum(dim=1) for value in values]
            totals = [total + part for total, part in zip(totals, sums, strict=True)] if totals else sums
            n_found += found.view(n_examples, n_copies).sum(dim=1)
        self._report(n_found, nt_samples)
        n_maps: int = len(parts)
        means: list[Tensor] = [_mean(total, n_found) for total in totals]
        smoothed = tuple(map(_SMOOTHED[nt_type], means[:n_maps], means[n_maps : 2 * n_maps]))
        results: tuple[Any, ...] = (format_output(is_tuple(maps), smoothed), *means[2 * n_maps :])
        if return_n_found:
            results += (n_found,)
        return results if len(results) > 1 else results[0]

    def _check(
        self, tensors: tuple[Tensor, ...], nt_type: str, n: int, size: int | None, stdevs: Any, options: dict[str, Any]
    ) -> None:
        check_choice("nt_type", nt_type, _SMOOTHED)
        check_count("nt_samples", n)
        check_count("nt_samples_batch_size", size, optional=True)
        n_stdevs = len(checked_stdevs(stdevs)) if stdevs != 0 else 1
        if isinstance(stdevs, tuple) and n_stdevs != len(tensors):
            raise BoundaryValueError(
                f"stdevs holds {n_stdevs} number(s) for {len(tensors)} input(s): give one for each."
            )
        if options.get("boundary") is not None or options.get("draw_baseline_from_distrib"):
            raise BoundaryValueError(
                "boundary and draw_baseline_from_distrib cannot be given: every noisy copy has a boundary of its own."
            )

    def _target_of(self, tensors: tuple[Tensor, ...], target: Any, arguments: tuple[Any, ...]) -> Tensor | None:
        """The classes ``(N,)`` of the inputs themselves; None for a model with one output."""
        with geometry(), watch_repeatability(self.forward_func, warns=False):
            model = Model(self.forward_func, len(tensors[0]), arguments)
            scores = model.first_scores(tensors)
            return None if model.is_binary else resolve_target(target, scores, is_binary=False)

    @staticmethod
    def _copies(tensors: tuple[Tensor, ...], n_copies: int, stdevs: float | tuple[float, ...]) -> tuple[Tensor, ...]:
        """Noisy copies ``(N * n_copies, ...)``, drawn as Captum draws them."""
        each = stdevs if isinstance(stdevs, tuple) else (stdevs,) * len(tensors)
        copies = []
        for tensor, stdev in zip(tensors, each, strict=True):
            repeated = tensor.detach().repeat_interleave(n_copies, dim=0)
            scale = torch.full(repeated.shape, float(stdev), device=repeated.device)
            copies.append(repeated + torch.normal(0.0, scale).to(repeated))
        return tuple(copies)

    @staticmethod
    def _report(n_found: Tensor, n_samples: int) -> None:
        missing = n_found < n_samples
        if missing.any():
            warn_user(
                f"{int((n_samples - n_found).sum())} of {len(n_found) * n_samples} noisy copies have no boundary point "
                f"and are left out, of row(s) {shown(missing)}: return_n_found=True tells how many are left. Rows "
                "without any are NaN.",
                BoundaryNotFoundWarning,
            )


def _of_found(values: Tensor, found: Tensor, n_copies: int) -> Tensor:
    """Values ``(N, n_copies, ...)`` of copies, zero where no boundary was found."""
    kept = values.masked_fill(~found.to(values.device).view(-1, *[1] * (values.ndim - 1)), 0.0)
    return kept.view(-1, n_copies, *values.shape[1:])


def _mean(sums: Tensor, n_found: Tensor) -> Tensor:
    count = n_found.to(sums.device).view(-1, *[1] * (sums.ndim - 1))
    return (sums / count).masked_fill(count == 0, torch.nan)
