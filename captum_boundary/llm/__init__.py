"""Which words hold the answer of a language model, how firmly, and what it would have said instead."""

from captum_boundary.llm.llm_boundary_attribution import LLMBoundaryAttribution
from captum_boundary.llm.result import LLMBoundaryResult, Substitution

__all__ = ["LLMBoundaryAttribution", "LLMBoundaryResult", "Substitution"]
