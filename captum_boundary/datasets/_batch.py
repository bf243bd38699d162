"""One batch explained: attributions, boundary points, and a row of numbers for each example."""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from captum.attr import Attribution
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from captum_boundary._core.captum_helpers import format_additional_forward_args
from captum_boundary._core.margin import margin_and_rival, resolve_target
from captum_boundary._core.model import Model
from captum_boundary._core.random_state import preserve_rng_state, seed_rng
from captum_boundary.attr import BoundaryDistance, BoundaryNormals
from captum_boundary.attr._calls import MethodCall, call_in_groups, sizes_that_fit
from captum_boundary.attr._methods import capabilities_of, known_arguments
from captum_boundary.datasets._examples import Example, ExampleError, Reader, message_of, seed_of
from captum_boundary.datasets._store import stored_tensors
from captum_boundary.errors import BoundaryNotFoundWarning, BoundaryTypeError, BoundaryValueError

__all__ = ["BatchExplainer", "find_spec"]

_OURS = ("inputs", "target", "boundary", "return_boundary", "return_convergence_delta")
_OUT_OF_MEMORY = ("memoryerror", "out of memory", "can't allocate memory", "not enough memory")
_N_TRIED = 16  # examples on which the model is tried before the first batch


@dataclass
class BatchExplainer:
    """Asks an attribution about batches, always in the same way and with the seeds of their examples."""

    explainer: Attribution
    settings: Mapping[str, Any]
    device: torch.device
    generators: Sequence[torch.Generator]
    strict: bool

    def __post_init__(self) -> None:
        if not isinstance(self.explainer, Attribution):
            raise BoundaryTypeError(
                "explainer must be a captum.attr.Attribution, such as BoundaryIntegratedGradients(model), but it is a "
                f"{type(self.explainer).__name__}."
            )
        known, is_open = known_arguments(self.explainer)
        options = dict.fromkeys(name for name in known if name not in _OURS)
        for name in self.settings["options"]:
            if name in _OURS:
                raise BoundaryValueError(f"options cannot hold {name!r}, which is set for every batch.")
            if not is_open and name not in options:
                raise BoundaryTypeError(
                    f"{type(self.explainer).__name__}.attribute does not know the option {name!r}. Its options are: "
                    f"{', '.join(options)}."
                )
        self.can = capabilities_of(self.explainer)
        has_one_each = not isinstance(self.explainer, BoundaryDistance)  # which has a boundary for each feature
        parameters = inspect.signature(self.explainer.attribute).parameters
        self.gives_boundary = "return_boundary" in parameters and has_one_each
        self.gives_delta = "return_convergence_delta" in parameters and bool(self.explainer.has_convergence_delta())
        if self.settings["save_points"] and not self.gives_boundary:
            raise BoundaryValueError(
                f"save_points=True needs an explainer that finds boundary points, but {self.can.name} does not. "
                "BoundaryAttribution makes one of any Captum method."
            )
        self.options = dict(self.settings["options"])
        self.arguments = format_additional_forward_args(self.options.pop("additional_forward_args", None))
        self.size: int | None = None  # examples that fit into memory, once a batch did not

    def scores(self, examples: Sequence[Example]) -> tuple[tuple[Tensor, ...], Tensor, bool]:
        """Inputs of B examples on the device, class scores ``(B, C)``, and whether the model has one output only."""
        parts = zip(*(example.inputs for example in examples), strict=True)
        inputs = tuple(torch.stack(part).to(self.device) for part in parts)
        model = Model(self.explainer.forward_func, len(examples), self.arguments)
        return inputs, model.first_scores(inputs), model.is_binary

    def __call__(self, examples: Sequence[Example]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """Rows of a batch, and tensors to store of the examples that could be explained."""
        failed = [example.facts for example in examples if not example.inputs]
        if failed and self.strict:
            raise ExampleError("Example {index} could not be read. {error}".format(**failed[0]))
        parts = [(failed, {}), *self._parts([example for example in examples if example.inputs])]
        tensors = [part for _, part in parts if part] or [{"index": torch.zeros(0, dtype=torch.int64)}]
        joined = {key: torch.cat([each[key] for each in tensors]) for key in tensors[0]}
        return [row for rows, _ in parts for row in rows], joined

    def _parts(self, examples: Sequence[Example]) -> Iterator[tuple[list[dict[str, Any]], dict[str, Tensor]]]:
        """Explain examples in whatever parts they can be: a batch that fails is halved until the fault is alone."""
        size = min(self.size or len(examples), len(examples))
        if size == len(examples) > 0:
            try:
                yield self._explain(examples)
                return
            except Exception as error:
                traceback.clear_frames(error.__traceback__)  # which hold tensors
                failure, message = error, message_of(error)
            if size == 1 and self.strict:
                raise ExampleError(f"Example {examples[0].index} could not be explained. {message}") from failure
            if size == 1:
                yield [{**examples[0].facts, "error": message}], {}
                return
            size = (size + 1) // 2
            if any(words in message.lower() for words in _OUT_OF_MEMORY):
                self.size = size
                torch.cuda.empty_cache()
        for first in range(0, len(examples), size or 1):
            yield from self._parts(examples[first : first + size])

    def _explain(self, examples: Sequence[Example]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        with preserve_rng_state(self.generators), warnings.catch_warnings():
            warnings.simplefilter("ignore", BoundaryNotFoundWarning)  # the rows tell it
            seed = seed_of(self.settings["seed"], examples[0].index)
            seed_rng(seed, self.device)
            for generator in self.generators:
                generator.manual_seed(seed)
            inputs, scores, is_binary = self.scores(examples)
            prediction, target = scores.argmax(dim=1), self._targets(examples, scores, is_binary)
            is_plain = is_binary and (not self.can.targets_are_sides or torch.equal(target, prediction))
            attributions, delta, boundary = self._attribute(inputs, examples[0].as_tuple, None if is_plain else target)
        columns = {"prediction": prediction, "target": target, "margin": margin_and_rival(scores, target)[0]}
        if boundary is not None:
            nearest = (slice(None), 0) if isinstance(boundary, BoundaryNormals) else slice(None)
            columns |= {name: getattr(boundary, name)[nearest] for name in ("adversarial", "distance", "found")}
            columns["evaluations"] = boundary.n_forward + boundary.n_gradient
        if delta is not None:
            columns["completeness_gap"] = delta.detach().reshape(len(examples), -1).double().mean(dim=1)
        facts = [example.facts for example in examples]
        for name, column in columns.items():
            for row, value in enumerate(column.tolist()):
                is_none = value != value or (name == "adversarial" and value < 0)  # there is no boundary point
                facts[row] = {**facts[row], name: None if is_none else value}
        maps = attributions if isinstance(attributions, tuple) else (attributions,)
        tensors = {"index": torch.tensor([example.index for example in examples])}
        maps = tuple(coarse(each, self.settings["map_size"]) for each in maps)
        tensors |= stored_tensors("attributions", maps, self.settings["dtype"])
        return facts, tensors | (stored_tensors("points", boundary.points) if self.settings["save_points"] else {})

    def _targets(self, examples: Sequence[Example], scores: Tensor, is_binary: bool) -> Tensor:
        if self.settings["target"] != "label":
            return resolve_target(self.settings["target"], scores, is_binary)
        labels = [example.facts["label"] for example in examples]
        if None in labels:
            raise BoundaryValueError('target="label" needs a data set with labels, but this example has none.')
        target = torch.tensor(labels, device=scores.device)
        if is_binary and ((target == 0) & (scores.argmax(dim=1) == 1)).any():
            raise BoundaryValueError(
                "A model with one output cannot be asked for the negative side of an example on the positive one, "
                "whose label is 0. Make two outputs of one: lambda x: torch.stack([0 * model(x).flatten(), "
                "model(x).flatten()], dim=1)."
            )
        return target

    def _attribute(self, inputs: tuple[Tensor, ...], as_tuple: bool, target: Tensor | None) -> tuple[Any, Any, Any]:
        """Attributions, and the convergence delta and the boundary where the explainer gives them."""
        call, size, options = MethodCall(inputs, (), target, self.arguments), len(inputs[0]), self.options
        if not self.gives_boundary:  # those that do know themselves what fits in memory
            size, options = sizes_that_fit(self.explainer, self.can, self.explainer.forward_func, call, options)
        asked = {"return_convergence_delta": True} if self.gives_delta else {}
        asked |= {"return_boundary": True} if self.gives_boundary else {}
        answer = call_in_groups(self.explainer, self.can, call, as_tuple, options | asked, size)
        attributions, *others = answer if asked else (answer,)
        boundary = others.pop() if self.gives_boundary else None
        return attributions, others.pop() if others else None, boundary


def find_spec(explain: BatchExplainer, reader: Reader, n_examples: int) -> dict[str, Any] | None:
    """What all examples are like: the first that can be read, and does not make the model fail. None without one."""
    errors: list[Exception] = []
    for example in islice(reader.readable(n_examples), _N_TRIED):
        try:
            with preserve_rng_state():
                n_classes = explain.scores([example])[1].shape[1]
        except Exception as error:
            errors.append(error)
            continue
        if isinstance(target := explain.settings["target"], int) and not 0 <= target < n_classes:
            raise BoundaryValueError(f"target must be between 0 and {n_classes - 1}, but it is {target}.")
        for tensor in example.inputs:
            coarse(tensor.new_empty((1, *tensor.shape), device="meta"), explain.settings["map_size"])
        return example.spec(n_classes)
    if not errors:
        return None
    raise BoundaryValueError(
        f"The model fails on the first {len(errors)} examples, the last of them with shapes "
        f"{example.spec(0)['shapes']}. {message_of(errors[0])}"
    ) from errors[0]


def coarse(attributions: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Attributions of images ``(N, C, H, W)`` as maps ``(N, h, w)``: sums over channels and pixels of a cell."""
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
