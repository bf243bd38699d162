"""One batch explained: attributions, boundary points, and a row of numbers for each example."""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from captum.attr import Attribution
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from captum_boundary._core.captum_helpers import format_additional_forward_args
from captum_boundary._core.margin import margin_and_rival
from captum_boundary._core.model import Model
from captum_boundary._core.random_state import preserve_rng_state, seed_rng
from captum_boundary.attr import BoundaryDistance, BoundaryNormals
from captum_boundary.attr._calls import MethodCall, call_in_groups, sizes_that_fit
from captum_boundary.attr._methods import capabilities_of, known_arguments
from captum_boundary.datasets._examples import Example, ExampleError, ExampleSpec, Reader, message_of, seed_of
from captum_boundary.datasets._store import stored_tensors
from captum_boundary.errors import BoundaryNotFoundWarning, BoundaryTypeError, BoundaryValueError

__all__ = ["BatchExplainer", "Explained", "device_of", "find_spec"]

_OURS = ("inputs", "target", "boundary", "return_boundary", "return_convergence_delta")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_N_TRIED = 16  # examples on which the model is tried before the first batch


class Explained(NamedTuple):
    """What is known of B examples: their rows and, where they could be explained, tensors with B entries to store."""

    rows: list[dict[str, Any]]
    tensors: dict[str, Tensor]


@dataclass
class BatchExplainer:
    """Asks an attribution about batches, always in the same way and with the seeds of their examples."""

    explainer: Attribution
    target: int | str | None
    options: Mapping[str, Any]
    device: torch.device
    seed: int
    dtype: torch.dtype
    save_points: bool
    map_size: tuple[int, int] | None
    generators: Sequence[torch.Generator]
    strict: bool

    def __post_init__(self) -> None:
        parameters = _check_options(self.explainer, self.options)
        self.can = capabilities_of(self.explainer)
        has_one_each = not isinstance(self.explainer, BoundaryDistance)  # which has a boundary for each feature
        self.gives_boundary = "return_boundary" in parameters and has_one_each
        self.gives_delta = "return_convergence_delta" in parameters and bool(self.explainer.has_convergence_delta())
        self.method_options = {**self.options}
        self.arguments = format_additional_forward_args(self.method_options.pop("additional_forward_args", None))
        self.size: int | None = None  # examples that fit into memory, once a batch did not
        if self.save_points and not self.gives_boundary:
            raise BoundaryValueError(
                f"save_points=True needs an explainer that finds boundary points, but {self.can.name} does not. "
                "BoundaryAttribution makes one of any Captum method."
            )

    def scores(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, bool]:
        """Class scores ``(B, C)`` of the model, and whether it has one output only."""
        model = Model(self.explainer.forward_func, len(inputs[0]), self.arguments)
        return model.first_scores(inputs), model.is_binary

    def stack(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        """The inputs of ``examples``, in batches on the device."""
        parts = zip(*(example.inputs for example in examples), strict=True)
        return tuple(torch.stack(part).to(self.device) for part in parts)

    def __call__(self, examples: Sequence[Example]) -> Iterator[Explained]:
        """Explain examples in whatever parts they can be: a batch that fails is halved until the fault is alone."""
        size = self.size or len(examples) or 1
        if len(examples) > size:
            for first in range(0, len(examples), size):
                yield from self(examples[first : first + size])
        elif examples:
            try:
                yield self._explain(examples)
                return
            except Exception as error:
                traceback.clear_frames(error.__traceback__)  # which hold tensors
                failure = error
            if len(examples) > 1:
                half = (len(examples) + 1) // 2
                if _is_out_of_memory(failure):
                    self.size = half
                    torch.cuda.empty_cache()
                yield from self(examples[:half])
                yield from self(examples[half:])
            elif self.strict:
                index, message = examples[0].index, message_of(failure)
                raise ExampleError(f"Example {index} could not be explained. {message}") from failure
            else:
                yield Explained([{**examples[0].facts, "error": message_of(failure)}], {})

    def _explain(self, examples: Sequence[Example]) -> Explained:
        inputs = self.stack(examples)
        with preserve_rng_state(self.generators), warnings.catch_warnings():
            warnings.simplefilter("ignore", BoundaryNotFoundWarning)  # the rows tell it
            seed = seed_of(self.seed, examples[0].index)
            seed_rng(seed, self.device)
            for generator in self.generators:
                generator.manual_seed(seed)
            scores, is_binary = self.scores(inputs)
            prediction = scores.argmax(dim=1)
            target = self._targets(examples, prediction, is_binary)
            is_plain = is_binary and (not self.can.targets_are_sides or torch.equal(target, prediction))
            attributions, delta, boundary = self._attribute(inputs, examples[0].as_tuple, None if is_plain else target)
        margin, _ = margin_and_rival(scores, target)
        columns = {"prediction": prediction.tolist(), "target": target.tolist(), "margin": margin.tolist()}
        if boundary is not None:
            columns |= _boundary_columns(boundary)
        if delta is not None:
            gaps = delta.detach().reshape(len(examples), -1).double().mean(dim=1).tolist()
            columns["completeness_gap"] = [None if gap != gap else gap for gap in gaps]  # none without a boundary point
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        maps = tuple(coarse(tensor, self.map_size) for tensor in _tensors(attributions))
        tensors = {"index": torch.tensor([example.index for example in examples])}
        tensors |= stored_tensors("attributions", maps, self.dtype)
        tensors |= stored_tensors("points", _tensors(boundary.points)) if self.save_points else {}
        return Explained([example.facts | row for example, row in zip(examples, rows, strict=True)], tensors)

    def _targets(self, examples: Sequence[Example], prediction: Tensor, is_binary: bool) -> Tensor:
        if self.target is None or (is_binary and self.target == 0):  # Captum's index of the only output
            return prediction
        if self.target != "label":
            return torch.full_like(prediction, int(self.target))
        labels = [example.facts["label"] for example in examples]
        if None in labels:
            raise BoundaryValueError('target="label" needs a data set with labels, but this example has none.')
        target = prediction.new_tensor(labels)
        if is_binary and ((target == 0) & (prediction == 1)).any():
            raise BoundaryValueError(
                "A model with one output cannot be asked for the negative side of an example on the positive one, "
                "whose label is 0. Make two outputs of one: lambda x: torch.stack([0 * model(x).flatten(), "
                "model(x).flatten()], dim=1)."
            )
        return target

    def _attribute(self, inputs: tuple[Tensor, ...], as_tuple: bool, target: Tensor | None) -> tuple[Any, Any, Any]:
        """Attributions, and the convergence delta and the boundary where the explainer gives them."""
        call, size, options = MethodCall(inputs, None, target, self.arguments), len(inputs[0]), self.method_options
        if not self.gives_boundary:  # those that do know themselves what fits in memory
            size, options = sizes_that_fit(self.explainer, self.can, self.explainer.forward_func, call, options)
        asked = {"return_convergence_delta": self.gives_delta, "return_boundary": self.gives_boundary}
        asked = {name: True for name, is_given in asked.items() if is_given}
        answer = call_in_groups(self.explainer, self.can, call, as_tuple, options | asked, size)
        attributions, *others = answer if asked else (answer,)
        boundary = others.pop() if self.gives_boundary else None
        return attributions, others[0] if others else None, boundary


def find_spec(explain: BatchExplainer, reader: Reader, n_examples: int) -> ExampleSpec | None:
    """What all examples have in common: shapes and dtypes of the first that can be read. None where none can.

    The model, which tells the number of classes, may fail on some of the first examples, but not on all.
    """
    errors: list[Exception] = []
    for example in islice(reader.readable(n_examples), _N_TRIED):
        try:
            with preserve_rng_state():
                n_classes = explain.scores(explain.stack([example]))[0].shape[1]
            shapes, dtypes, as_tuple = example.form
            spec = ExampleSpec(shapes, dtypes, as_tuple, n_classes)
            break
        except Exception as error:
            errors.append(error)
    else:
        if not errors:
            return None
        raise BoundaryValueError(
            f"The model fails on the first {len(errors)} examples, the last of them with shapes {example.form[0]}. "
            f"{message_of(errors[0])}"
        ) from errors[0]
    if isinstance(explain.target, int) and not 0 <= explain.target < spec.n_classes:
        raise BoundaryValueError(f"target must be between 0 and {spec.n_classes - 1}, but it is {explain.target}.")
    for shape in spec.shapes:
        coarse(torch.empty((1, *shape), device="meta"), explain.map_size)
    return spec


def coarse(attributions: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Attributions of images ``(N, C, H, W)`` as maps ``(N, h, w)``: sums over channels and over the pixels of a cell.

    A map keeps the sum of the attributions; where cells do not divide the image evenly, up to a little at their rims.
    """
    if size is None:
        return attributions
    shape = tuple(attributions.shape)
    if len(shape) != 4 or size[0] > shape[2] or size[1] > shape[3]:
        raise BoundaryValueError(
            f"map_size={size} needs attributions of images (N, C, H, W) with at least as many pixels, but their shape "
            f"is {shape}. Leave map_size out to keep them as they are."
        )
    maps: Tensor = adaptive_avg_pool2d(attributions.sum(dim=1), size) * (shape[2] * shape[3] / (size[0] * size[1]))
    return maps


def device_of(forward_func: object) -> torch.device:
    """Where a model is; the CPU for a function or a model without parameters."""
    tensors = [*forward_func.parameters(), *forward_func.buffers()] if isinstance(forward_func, nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")


def _check_options(explainer: object, options: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of ``attribute``, which must know all ``options``."""
    if not isinstance(explainer, Attribution):
        raise BoundaryTypeError(
            "explainer must be a captum.attr.Attribution, such as BoundaryIntegratedGradients(model), but it is a "
            f"{type(explainer).__name__}."
        )
    known, is_open = known_arguments(explainer)
    for name in options:
        if name in _OURS:
            raise BoundaryValueError(f"options cannot hold {name!r}, which is set for every batch.")
        if not is_open and name not in known:
            raise BoundaryTypeError(
                f"{type(explainer).__name__}.attribute does not know the option {name!r}. Its options are: "
                f"{', '.join(name for name in known if name not in _OURS)}."
            )
    return inspect.signature(explainer.attribute).parameters


def _boundary_columns(boundary: Any) -> dict[str, list[Any]]:
    """The nearest boundary of each example."""
    distance, adversarial, found = boundary.distance, boundary.adversarial, boundary.found
    if isinstance(boundary, BoundaryNormals):
        distance, adversarial, found = distance[:, 0], adversarial[:, 0], found[:, 0]
    return {
        "adversarial": [None if rival < 0 else rival for rival in adversarial.tolist()],
        "distance": distance.tolist(),
        "found": found.tolist(),
        "evaluations": (boundary.n_forward + boundary.n_gradient).tolist(),
    }


def _tensors(values: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().cpu() for tensor in (values if isinstance(values, tuple) else (values,)))


def _is_out_of_memory(error: Exception) -> bool:
    """Whether fewer examples at once may help."""
    told = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)
    return told or isinstance(error, MemoryError)
