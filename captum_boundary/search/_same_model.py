"""Whether two forward functions may be the same model, as those of an attribution and of its search must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from captum_boundary._core.modules import unwrapped
from captum_boundary.errors import BoundaryValueError

__all__ = ["check_same_model"]


def check_same_model(forward_func: Callable[..., Any], searched: Callable[..., Any], name: str = "search") -> None:
    r"""Refuse a search, called ``name``, whose forward function is certainly not the model that it is wanted for.

    Parallel wrappers, partials, what ``torch.compile`` returns, and the methods ``forward`` and ``__call__`` stand for
    what is inside them. Two of these that are neither the same object nor equal are certainly not the same model if

    - both are modules with parameters or buffers and share none of them: neither holds or rewrites the other;
    - both are modules, and one that has a boundary of its own, whatever it shares, is not inside of the other; or
    - neither is a module: they are two functions, even if they are written alike.

    A function beside a module is taken at its word, for it may call the module.

    Args:

        forward_func (Callable): The model.
        searched (Callable): Forward function of the search.
        name (str, optional): What to call the search in the error. Default: ``"search"``

    Raises:

        BoundaryValueError: If the two are certainly not the same model.
    """
    wanted, given = unwrapped(forward_func, partials=True), unwrapped(searched, partials=True)
    if _certainly_differ(wanted, given):
        raise BoundaryValueError(
            f"{name} must look for the boundary of the model itself, {_describe(wanted)}, but its forward function is "
            f"another one, {_describe(given)}. Give the same object to both."
        )


def _certainly_differ(wanted: Any, given: Any) -> bool:
    if wanted is given or wanted == given:
        return False
    modules = [function for function in (wanted, given) if isinstance(function, nn.Module)]
    if len(modules) < 2:
        return not modules
    if any(_has_own_boundary(one) and one not in other.modules() for one, other in (modules, modules[::-1])):
        return True
    tensors, others = ({id(tensor) for tensor in (*m.parameters(), *m.buffers())} for m in modules)
    return bool(tensors) and bool(others) and tensors.isdisjoint(others)


def _has_own_boundary(module: nn.Module) -> bool:
    return getattr(module, "has_own_boundary", False) is True


def _describe(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))
