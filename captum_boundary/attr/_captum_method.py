"""What makes a class an attribution of Captum's, as Captum's own wrappers and those of this package need it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from captum.attr import Attribution
from captum.log import log_usage

from captum_boundary._core.user_warnings import warn_user
from captum_boundary.attr._methods import capabilities_of

__all__ = ["BoundaryMethod", "OfCaptumMethod", "captum_method"]

Function = TypeVar("Function", bound=Callable[..., Any])


def captum_method(attribute: Function) -> Function:
    """Log usage as Captum's methods do, and let NoiseTunnel call ``__wrapped__``, which is how it calls them all."""
    logged = log_usage(part_of_slo=False)(attribute)

    @functools.wraps(attribute)
    def of_noisy_copies(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not args and kwargs.get("target") is None:
            warn_user(
                "NoiseTunnel was given no target, so that every noisy copy is explained for the class predicted for "
                "the copy. Give the target, such as model(inputs).argmax(1), or use BoundaryNoiseTunnel, which also "
                "leaves out copies without a boundary."
            )
        return attribute(self, inputs, *args, **kwargs)

    logged.__wrapped__ = of_noisy_copies
    return cast(Function, logged)


class BoundaryMethod:
    """What all attributions of this package have in common, beside Captum's base class."""

    _targets_are_sides = True  # of a model with one output, which for Captum's methods has no target

    def attribute_future(self) -> None:
        r"""This method is not implemented for boundary attributions."""
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")


class OfCaptumMethod(BoundaryMethod):
    """What boundary attributions by a method of Captum's say of themselves: what that method does."""

    _prototype: Attribution

    @property
    def multiplies_by_inputs(self) -> bool:
        r"""Whether the method multiplies by the difference of input and baseline (or by the input)."""
        return bool(self._prototype.multiplies_by_inputs)

    def has_convergence_delta(self) -> bool:
        r"""Whether the method has a convergence delta for each example."""
        return capabilities_of(self._prototype).has_delta
