"""One batch explained: attributions, boundary points, and a row of numbers for each example."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from captum.attr import Attribution
from torch import Tensor, nn

from captum_boundary._core.captum_helpers import format_additional_forward_args, format_output
from captum_boundary._core.margin import class_scores, margin_and_rival
from captum_boundary._core.outputs import evaluate, has_one_output
from captum_boundary.attr import BoundaryNormals
from captum_boundary.attr._methods import capabilities_of, known_arguments
from captum_boundary.datasets._describe import generators_of
from captum_boundary.datasets._examples import Example
from captum_boundary.datasets._seeds import kept_randomness, seed_everything
from captum_boundary.errors import BoundaryNotFoundWarning, BoundaryTypeError, BoundaryValueError

__all__ = ["BatchExplainer", "Explained", "device_of"]

_EXPECTED_WARNINGS = (
    "Input Tensor .* did not already require gradients",
    "Setting forward, backward hooks and attributes on non-linear",
    "Setting backward hooks on ReLU activations",
)
_OURS = ("inputs", "target", "boundary", "return_boundary", "return_convergence_delta")


class Explained(NamedTuple):
    """What is known of B examples: columns of B numbers (or None), and tensors with B entries."""

    columns: dict[str, list[Any]]
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
    ) -> None:
        self.explainer = explainer
        self.target = target
        self.options = dict(options)
        self.device = device
        self.seed = seed
        self.save_points = save_points
        self.generators = generators_of(explainer)
        parameters = _check_options(explainer, options)
        self.can = capabilities_of(explainer)
        self.gives_boundary = "return_boundary" in parameters
        self.gives_delta = "return_convergence_delta" in parameters and bool(explainer.has_convergence_delta())
        if save_points and not self.gives_boundary:
            raise BoundaryValueError(
                f"save_points=True needs an explainer that finds boundary points, but {type(explainer).__name__} does "
                "not. BoundaryAttribution makes one of any Captum method."
            )

    def scores(self, inputs: tuple[Tensor, ...], as_tuple: bool) -> tuple[Tensor, bool]:
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
        with kept_randomness(self.device, self.generators), warnings.catch_warnings():
            warnings.simplefilter("ignore", BoundaryNotFoundWarning)  # the rows tell it
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            seed_everything(self.seed, examples[0].index, self.device, self.generators)
            return self._explain(examples, inputs, examples[0].as_tuple)

    def _explain(self, examples: Sequence[Example], inputs: tuple[Tensor, ...], as_tuple: bool) -> Explained:
        scores, has_one_output = self.scores(inputs, as_tuple)
        prediction = scores.argmax(dim=1)
        target = self._targets(examples, prediction, has_one_output)
        margin, _ = margin_and_rival(scores, target)
        is_plain = has_one_output and (not self.can.targets_are_sides or torch.equal(target, prediction))
        attributions, delta, boundary = self._ask(inputs, as_tuple, None if is_plain else target)
        columns: dict[str, list[Any]] = {
            "index": [example.index for example in examples],
            "label": [example.label for example in examples],
            "prediction": prediction.tolist(),
            "target": target.tolist(),
            "margin": margin.tolist(),
            **_boundary_columns(boundary),
        }
        if delta is not None:
            gaps = delta.detach().reshape(len(examples), -1).double().mean(dim=1).tolist()
            # Where there is no boundary point, there is no gap.
            columns["completeness_gap"] = [None if gap != gap else gap for gap in gaps]
        points = _tensors(boundary.points) if self.save_points else ()
        return Explained(columns, _tensors(attributions), points)

    def _targets(self, examples: Sequence[Example], prediction: Tensor, has_one_output: bool) -> Tensor:
        if self.target is None or (has_one_output and self.target == 0):  # Captum's index of the only output
            return prediction
        if self.target != "label":
            return torch.full_like(prediction, int(self.target))
        labels = [example.label for example in examples]
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

    def _ask(self, inputs: tuple[Tensor, ...], as_tuple: bool, target: Tensor | None) -> tuple[Any, Any, Any]:
        """Attributions, and the convergence delta and the boundary where the explainer gives them."""
        asked = {}
        if self.gives_delta:
            asked["return_convergence_delta"] = True
        if self.gives_boundary:
            asked["return_boundary"] = True
        copies = tuple(tensor.clone().requires_grad_(self.can.needs_grad) for tensor in inputs)
        with torch.enable_grad():
            answer = self.explainer.attribute(format_output(as_tuple, copies), target=target, **asked, **self.options)
        attributions, *others = answer if asked else (answer,)
        boundary = others.pop() if self.gives_boundary else None
        return attributions, others[0] if others else None, boundary


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


def _tensors(values: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().cpu() for tensor in (values if isinstance(values, tuple) else (values,)))


def device_of(forward_func: object) -> torch.device:
    """Where a model is; the CPU for a function or a model without parameters."""
    tensors = [*forward_func.parameters(), *forward_func.buffers()] if isinstance(forward_func, nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")
