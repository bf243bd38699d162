"""What must be known of data and model before the first batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

from torch.utils.data import Dataset

from captum_boundary.datasets._batch import BatchExplainer
from captum_boundary.datasets._examples import Example, Form, Reader, form_of, message_of
from captum_boundary.datasets._seeds import kept_randomness
from captum_boundary.errors import BoundaryValueError

__all__ = ["class_names_of", "find_form"]

# Examples on which the model is tried.
_N_TRIED = 16


def find_form(
    explain: BatchExplainer, reader: Reader, n_examples: int, map_size: tuple[int, int] | None
) -> Form | None:
    """What all examples have in common: the form of the first that can be read. None where none can."""
    examples = reader.readable(n_examples)
    first = next(examples, None)
    if first is None:
        return None
    form = Form(*form_of(first.inputs), first.as_tuple, _n_classes(explain, first, islice(examples, _N_TRIED - 1)))
    _check_map_size(map_size, form)
    if isinstance(explain.target, int) and not 0 <= explain.target < form.n_classes:
        raise BoundaryValueError(f"target must be between 0 and {form.n_classes - 1}, but it is {explain.target}.")
    return form


def class_names_of(dataset: Dataset[Any], class_names: Sequence[str] | None, form: Form | None) -> list[str] | None:
    """Names of the model's classes: those that were given, or the data set's own."""
    names = getattr(dataset, "classes", None) if class_names is None else class_names
    if names is None or form is None:
        return None
    if len(names) != form.n_classes:
        raise BoundaryValueError(
            f"{'The data set has' if class_names is None else 'class_names holds'} {len(names)} classes, but the model "
            f"has {form.n_classes}. Labels must be classes of the model: give the data set's in its numbering, or none "
            "at all, and class_names for all of the model's classes."
        )
    return [name if isinstance(name, str) else ", ".join(map(str, name)) for name in names]


def _n_classes(explain: BatchExplainer, first: Example, others: Iterable[Example]) -> int:
    """Number of classes of the model, which may fail on some examples, but not on all that are tried."""
    errors = []
    for example in chain([first], others):
        try:
            with kept_randomness(explain.device):
                return explain.scores(explain.stack([example]), example.as_tuple)[0].shape[1]
        except Exception as error:
            errors.append(error)
    shapes, _ = form_of(first.inputs)
    raise BoundaryValueError(
        f"The model fails on the first {len(errors)} examples, beginning with shapes {shapes}. {message_of(errors[0])}"
    ) from errors[0]


def _check_map_size(map_size: tuple[int, int] | None, form: Form) -> None:
    if map_size is None:
        return
    for shape in form.shapes:
        if len(shape) != 3 or map_size[0] > shape[1] or map_size[1] > shape[2]:
            raise BoundaryValueError(
                f"map_size={map_size} needs examples that are images (C, H, W) with at least as many pixels, but their "
                f"shape is {shape}. Leave map_size out to keep attributions as they are."
            )
