"""Models made ready for methods that hook modules: a copy in which every activation can be hooked by itself."""

from captum_boundary.attr._rewrite.copies import copy_model
from captum_boundary.attr._rewrite.hookable import hookable_copy
from captum_boundary.attr._rewrite.separation import separate_activations

__all__ = ["copy_model", "hookable_copy", "separate_activations"]
