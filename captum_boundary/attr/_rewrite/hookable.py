"""The copy of a model that a method may set hooks on, made for every call, since weights change between calls."""

from __future__ import annotations

from typing import Any

from captum.attr import Attribution
from torch import nn

from captum_boundary._core.user_warnings import warn_user
from captum_boundary.attr._methods import Hooks, capabilities_of, core_of
from captum_boundary.attr._rewrite.copies import copy_model
from captum_boundary.attr._rewrite.max_pooling import pool_in_batches
from captum_boundary.attr._rewrite.rescale import rescale_elementwise
from captum_boundary.attr._rewrite.separation import separated_copy
from captum_boundary.errors import BoundaryTypeError
from captum_boundary.layers import ModelFromLayer

__all__ = ["hookable_copy"]

_SHOWN = 4  # of the operations without a rule that a warning names


def hookable_copy(model: nn.Module, method: Attribution, inputs: tuple[Any, ...], n_attributed: int) -> nn.Module:
    """A copy of ``model``, verified at ``inputs``, for ``method`` to hook and attribute to the first of them.

    DeepLift and guided backpropagation need every activation to be a module of its own. LRP brings rules for the
    modules that it finds and changes their weights.
    """
    can = capabilities_of(method)
    if isinstance(getattr(model, "forward_func", model), ModelFromLayer):  # inside of ScoreTensor
        raise BoundaryTypeError(
            f"{can.name} hooks the modules of a model, which a model from a layer on does not own. Use "
            "LayerBoundaryAttribution, which gives it a copy of its own."
        )
    if can.hooks is Hooks.RULES:
        return copy_model(model, share_tensors=False)
    separated, unruled = separated_copy(model, inputs, n_attributed)
    if can.hooks is Hooks.GRADIENTS:
        return separated
    if unruled:
        more = f" and {len(unruled) - _SHOWN} more" if len(unruled) > _SHOWN else ""
        warn_user(
            f"{can.name} has no rule for {', '.join(unruled[:_SHOWN])}{more}. It takes gradients there, so that "
            "attributions do not add up to the difference of scores: return_convergence_delta=True tells by how much. "
            "IntegratedGradients needs no rules."
        )
    eps = core_of(method).eps
    return rescale_elementwise(pool_in_batches(separated, eps), eps)
