"""The copy of a model that a method may set hooks on, made anew for every call, since weights change between calls."""

from __future__ import annotations

from typing import Any

from captum.attr import Attribution
from torch import nn

from captum_boundary.attr._methods import Hooks, capabilities_of, core_of
from captum_boundary.attr._rewrite.copies import copy_model
from captum_boundary.attr._rewrite.max_pooling import pool_in_batches
from captum_boundary.attr._rewrite.separation import separate_activations
from captum_boundary.errors import BoundaryTypeError
from captum_boundary.layers import ModelFromLayer

__all__ = ["hookable_copy", "inside_parallel"]


def hookable_copy(model: nn.Module, method: Attribution, inputs: tuple[Any, ...]) -> nn.Module:
    """A copy of ``model``, verified at ``inputs``, for ``method`` to hook.

    DeepLift and guided backpropagation need every activation to be a module of its own. LRP brings rules for the
    modules that it finds and changes their weights.
    """
    can = capabilities_of(method)
    if isinstance(model, ModelFromLayer):
        raise BoundaryTypeError(
            f"{can.name} hooks the modules of a model, which a model from a layer on does not own. Use "
            "LayerBoundaryAttribution, which gives it a copy of its own."
        )
    if can.hooks is Hooks.RULES:
        return copy_model(model, share_tensors=False)
    separated = separate_activations(model, inputs)
    return pool_in_batches(separated, core_of(method).eps) if can.hooks is Hooks.MULTIPLIERS else separated


def inside_parallel(model: Any) -> Any:
    """What parallel wrappers wrap, which hooks must not meet on several devices."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return model
