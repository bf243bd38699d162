"""One batch explained: attributions, boundary points, and a row of numbers for each example."""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from captum.attr import Attribution
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from captum_boundary._core.captum_helpers import format_additional_forward_args
from captum_boundary._core.margin import class_scores, margin_and_rival
from captum_boundary._core.outputs import evaluate, has_one_output
from captum_boundary.attr import BoundaryNormals
from captum_boundary.attr._calls import MethodCall, call_method, sizes_that_fit
from captum_boundary.attr._methods import capabilities_of, known_arguments
from captum_boundary.datasets._examples import (
    Example,
    ExampleError,
    ExampleSpec,
    Reader,
    message_of,
    preserve_rng_state,
    seed_everything,
)
from captum_boundary.errors import BoundaryNotFoundWarning, BoundaryTypeError, BoundaryValueError

__all__ = ["BatchExplainer", "Explained", "RetryingExplainer", "device_of", "find_spec"]

_OURS = ("inputs", "target", "boundary", "return_boundary", "return_convergence_delta")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_N_TRIED = 16  # examples on which the model is tried before the first batch


class Explained(NamedTuple):
    """What is known of B examples: their rows, and tensors with B entries."""

    rows: list[dict[str, Any]]
    attributions: tuple[Tensor, ...]
    points: tuple[Tensor, ...]


class BatchExplainer:
    """Asks an attribution about batches, always in the same way and with the seeds of their examples."""

    def __init__(
        self,
        explainer: Attribution,
        target: int | str | None,
        options: Mapping[str, Any],
        device: torch.device,
        seed: int,
        save_points: bool,
        map_size: tuple[int, int] | None,
        generators: Sequence[torch.Generator],
    ) -> None:
        self.explainer = explainer
        self.target = target
        self.options = dict(options)
        self.device = device
        self.seed = seed
        self.save_points = save_points
        self.map_size = map_size
        self.generators = generators
        parameters = _check_options(explainer, options)
        self.can = capabilities_of(explainer)
        self.gives_boundary = "return_boundary" in parameters
        self.gives_delta = "return_convergence_delta" in parameters and bool(explainer.has_convergence_delta())
        if save_points and not self.gives_boundary:
            raise BoundaryValueError(
                f"save_points=True needs an explainer that finds boundary points, but {type(explainer).__name__} does "
                "not. BoundaryAttribution makes one of any Captum method."
            )

    def scores(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, bool]:
        """Class scores ``(B, C)`` of the model, and whether it has one output only."""
        arguments = format_additional_forward_args(self.options.get("additional_forward_args"))
        output = evaluate(self.explainer.forward_func, inputs, arguments)
        scores = class_scores(output, len(inputs[0]))
        return scores, has_one_output(output)

    def stack(self, examples: Sequence[Example]) -> tuple[Tensor, ...]:
        """The inputs of ``examples``, in batches on the device."""
        parts = zip(*(example.inputs for example in examples), strict=True)
        return tuple(torch.stack(part).to(self.device) for part in parts)

    def __call__(self, examples: Sequence[Example]) -> Explained:
        inputs = self.stack(examples)
        with preserve_rng_state(self.device, self.generators), warnings.catch_warnings():
            warnings.simplefilter("ignore", BoundaryNotFoundWarning)  # the rows tell it
            seed_everything(self.seed, examples[0].index, self.device, self.generators)
            return self._explain(examples, inputs, examples[0].as_tuple)

    def _explain(self, examples: Sequence[Example], inputs: tuple[Tensor, ...], as_tuple: bool) -> Explained:
        scores, has_one_output = self.scores(inputs)
        prediction = scores.argmax(dim=1)
        target = self._targets(examples, prediction, has_one_output)
        margin, _ = margin_and_rival(scores, target)
        is_plain = has_one_output and (not self.can.targets_are_sides or torch.equal(target, prediction))
        attributions, delta, boundary = self._attribute(inputs, as_tuple, None if is_plain else target)
        columns = {
            "prediction": prediction.tolist(),
            "target": target.tolist(),
            "margin": margin.tolist(),
            **_boundary_columns(boundary),
        }
        if delta is not None:
            gaps = delta.detach().reshape(len(examples), -1).double().mean(dim=1).tolist()
            # Where there is no boundary point, there is no gap.
            columns["completeness_gap"] = [None if gap != gap else gap for gap in gaps]
        rows = [
            {**example.facts, **{name: column[number] for name, column in columns.items()}}
            for number, example in enumerate(examples)
        ]
        maps = tuple(_coarse(tensor, self.map_size) for tensor in _tensors(attributions))
        return Explained(rows, maps, _tensors(boundary.points) if self.save_points else ())

    def _targets(self, examples: Sequence[Example], prediction: Tensor, has_one_output: bool) -> Tensor:
        if self.target is None or (has_one_output and self.target == 0):  # Captum's index of the only output
            return prediction
        if self.target != "label":
            return torch.full_like(prediction, int(self.target))
        labels = [example.facts["label"] for example in examples]
        if None in labels:
            raise BoundaryValueError('target="label" needs a data set with labels, but this example has none.')
        target = prediction.new_tensor(labels)
        if has_one_output and ((target == 0) & (prediction == 1)).any():
            raise BoundaryValueError(
                "A model with one output cannot be asked for the negative side of an example on the positive one, "
                "whose label is 0. Make two outputs of one: lambda x: torch.stack([0 * model(x).flatten(), "
                "model(x).flatten()], dim=1)."
            )
        return target

    def _attribute(self, inputs: tuple[Tensor, ...], as_tuple: bool, target: Tensor | None) -> tuple[Any, Any, Any]:
        """Attributions, and the convergence delta and the boundary where the explainer gives them."""
        options = {name: value for name, value in self.options.items() if name != "additional_forward_args"}
        arguments = format_additional_forward_args(self.options.get("additional_forward_args"))
        call, size = MethodCall(inputs, None, target, arguments), len(inputs[0])
        if not self.gives_boundary:  # those that do know themselves what fits in memory
            size, options = sizes_that_fit(self.explainer, self.can, self.explainer.forward_func, call, options)
        asked = {"return_convergence_delta": self.gives_delta, "return_boundary": self.gives_boundary}
        options |= {name: True for name, is_given in asked.items() if is_given}
        groups = [call.rows(slice(first, first + size)) for first in range(0, len(inputs[0]), size)]
        answer = _joined([call_method(self.explainer, self.can, group, as_tuple, options) for group in groups])
        attributions, *others = answer if any(asked.values()) else (answer,)
        boundary = others.pop() if self.gives_boundary else None
        return attributions, others[0] if others else None, boundary


class RetryingExplainer:
    """Explains batches in whatever parts they can be, and remembers how many examples fit into memory.

    A batch that fails is halved until the example that makes it fail is alone. With ``strict``, its error is raised.
    """

    def __init__(self, explain: BatchExplainer, strict: bool) -> None:
        self.explain = explain
        self.strict = strict
        self.size: int | None = None

    def __call__(self, examples: Sequence[Example]) -> tuple[list[Explained], list[Example]]:
        if not examples:
            return [], []
        size = len(examples) if self.size is None else self.size
        parts = [examples[first : first + size] for first in range(0, len(examples), size)]
        if len(parts) == 1:
            try:
                return [self.explain(examples)], []
            except Exception as error:
                traceback.clear_frames(error.__traceback__)  # which hold tensors
                if len(examples) == 1:
                    if self.strict:
                        raise ExampleError(
                            f"Example {examples[0].index} could not be explained. {message_of(error)}"
                        ) from error
                    return [], [examples[0].failed(error)]
                half = (len(examples) + 1) // 2
                parts = [examples[:half], examples[half:]]
                if _is_out_of_memory(error):
                    self.size = half
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
        outcomes = [self(part) for part in parts]
        return [each for done, _ in outcomes for each in done], [each for _, failed in outcomes for each in failed]


def find_spec(explain: BatchExplainer, reader: Reader, n_examples: int) -> ExampleSpec | None:
    """What all examples have in common: shapes and dtypes of the first that can be read. None where none can.

    The model, which tells the number of classes, may fail on some of the first examples, but not on all.
    """
    examples: list[Example] = []
    errors: list[Exception] = []
    for example in islice(reader.readable(n_examples), _N_TRIED):
        examples.append(example)
        try:
            with preserve_rng_state(explain.device):
                n_classes = explain.scores(explain.stack([example]))[0].shape[1]
            shapes, dtypes, as_tuple = examples[0].form
            spec = ExampleSpec(shapes, dtypes, as_tuple, n_classes)
            break
        except Exception as error:
            errors.append(error)
    else:
        if not errors:
            return None
        raise BoundaryValueError(
            f"The model fails on the first {len(errors)} examples, beginning with shapes {examples[0].form[0]}. "
            f"{message_of(errors[0])}"
        ) from errors[0]
    if isinstance(explain.target, int) and not 0 <= explain.target < spec.n_classes:
        raise BoundaryValueError(f"target must be between 0 and {spec.n_classes - 1}, but it is {explain.target}.")
    size = explain.map_size
    if size is not None and any(len(each) != 3 or size[0] > each[1] or size[1] > each[2] for each in spec.shapes):
        raise BoundaryValueError(
            f"map_size={size} needs examples that are images (C, H, W) with at least as many pixels, but their shapes "
            f"are {spec.shapes}. Leave map_size out to keep attributions as they are."
        )
    return spec


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
    """The nearest boundary of each example; nothing where the explainer tells of none."""
    if boundary is None:
        return {}
    distance, adversarial, found = boundary.distance, boundary.adversarial, boundary.found
    if isinstance(boundary, BoundaryNormals):
        distance, nearest = distance.min(dim=1)
        adversarial = adversarial.gather(1, nearest[:, None]).squeeze(1)
        found = found.any(dim=1)
    return {
        "adversarial": [None if rival < 0 else rival for rival in adversarial.tolist()],
        "distance": distance.tolist(),
        "found": found.tolist(),
        "evaluations": (boundary.n_forward + boundary.n_gradient).tolist(),
    }


def _joined(answers: list[Any]) -> Any:
    """What a method answers about groups of examples, as if they had been one."""
    if len(answers) == 1:
        return answers[0]
    if isinstance(answers[0], tuple):
        return tuple(_joined(list(parts)) for parts in zip(*answers, strict=True))
    return torch.cat(answers)


def _tensors(values: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().cpu() for tensor in (values if isinstance(values, tuple) else (values,)))


def _coarse(attributions: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Attributions of images ``(N, C, H, W)`` as maps ``(N, h, w)``: sums over channels and over the pixels of a cell.

    A map keeps the sum of the attributions; where cells do not divide the image evenly, up to a little at their rims.
    """
    if size is None:
        return attributions
    if attributions.ndim != 4 or any(
        cells > pixels for cells, pixels in zip(size, attributions.shape[2:], strict=True)
    ):
        raise BoundaryValueError(
            f"map_size={size} needs attributions of images (N, C, H, W) with at least as many pixels, but their shape "
            f"is {tuple(attributions.shape)}. Leave map_size out to keep them as they are."
        )
    pixels_in_a_cell = attributions.shape[2] * attributions.shape[3] / (size[0] * size[1])
    maps: Tensor = adaptive_avg_pool2d(attributions.sum(dim=1), size) * pixels_in_a_cell
    return maps


def _is_out_of_memory(error: Exception) -> bool:
    """Whether fewer examples at once may help."""
    told = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)
    return told or isinstance(error, MemoryError)


def device_of(forward_func: object) -> torch.device:
    """Where a model is; the CPU for a function or a model without parameters."""
    tensors = [*forward_func.parameters(), *forward_func.buffers()] if isinstance(forward_func, nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")
