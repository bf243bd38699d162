"""What a model returns, as the one Tensor of scores that is meant: a Tensor, or what holds it without any doubt.

Explaining the wrong tensor is worse than an error. So scores are taken out of a container only where nothing else in
it could be scores as well: under the name ``logits``, or as the first entry of a tuple or list in which no other entry
is a floating-point Tensor of one or two dimensions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from captum_boundary._core.modules import unwrapped
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["call_model", "config_of", "has_one_output", "output_of", "score_tensor"]

_NEEDED = "The model must return one Tensor of class scores, but"
_WRAP = "Wrap it so that it returns the scores alone, for instance"

# What the cache is called among the arguments of decoders of transformers.
_CACHES = ("past_key_values", "cache")
# What Hugging Face models say of themselves, where their outputs are no scores of classes that exclude each other.
_OTHER_PROBLEMS = {
    "multi_label_classification": (
        "has labels that do not exclude each other. Each is a decision of its own: explain lambda *inputs: "
        "model(*inputs).logits[:, label], which is positive where the model sees the label."
    ),
    "regression": (
        "predicts numbers, which have no boundary until there is a decision: explain lambda *inputs: "
        "model(*inputs).logits[:, 0] - threshold."
    ),
}


def output_of(forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], arguments: tuple[Any, ...]) -> object:
    """What the model returns, as it is, whatever it wraps scores in.

    Raises:

        BoundaryValueError: If a Hugging Face model says of itself that it solves another problem.
    """
    problem = getattr(config_of(forward_func), "problem_type", None)
    if isinstance(problem, str) and problem in _OTHER_PROBLEMS:
        raise BoundaryValueError(
            f'The model, whose config.problem_type is "{problem}", {_OTHER_PROBLEMS[problem]} If its outputs are '
            "scores of classes after all, wrap it in a function that returns them."
        )
    return call_model(forward_func, inputs, arguments)


def call_model(forward_func: Callable[..., Any], inputs: tuple[Any, ...], arguments: tuple[Any, ...]) -> Any:
    """What the function returns, or an error that names what language models are often given by mistake."""
    # Captum's own helper reads the signature of the function at every call, which takes longer than a small model does.
    given = (*inputs, *arguments)
    try:
        return forward_func(*given)
    except (AttributeError, TypeError, RuntimeError) as error:
        mistake = _mistake(forward_func, given, error)
        if mistake is None:
            raise
        raise BoundaryTypeError(mistake) from error


def _mistake(forward_func: Any, given: tuple[Any, ...], error: Exception) -> str | None:
    model = unwrapped(forward_func)
    name = type(model).__name__
    if isinstance(error, RuntimeError):
        if "argument #1 'indices'" not in str(error) or not getattr(given[0], "is_floating_point", bool)():
            return None
        return (
            "The model looks numbers up, such as token ids, but it was given floating-point inputs. For embeddings, "
            "wrap it: lambda embeddings: model(inputs_embeds=embeddings).logits[:, -1]; for ids, search in the layer "
            "of embeddings, with ModelFromLayer, LayerBoundaryAttribution or LLMBoundaryAttribution."
        )
    try:
        names = list(inspect.signature(getattr(model, "forward", model)).parameters)
    except (TypeError, ValueError):
        return None
    for place, value in zip(names, given, strict=False):
        if place in _CACHES and isinstance(value, Tensor):
            return (
                f"Argument {names.index(place) + 1} of {name}.forward is its cache ({place}), but a Tensor was given. "
                "Arguments are given by position: wrap the model in a function, such as lambda ids, mask: "
                "model(ids, attention_mask=mask, use_cache=False).logits."
            )
    return None


def config_of(forward_func: Any) -> Any:
    """What a Hugging Face model says of itself, also within a wrapper; None for other functions."""
    return getattr(unwrapped(forward_func), "config", None)


def score_tensor(output: object) -> Tensor:
    """The scores in the output of a model, with their graph; their shape and values are not looked at.

    Raises:

        BoundaryTypeError: If there are none, or several tensors that could be: it shows how to get at them.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return _of_mapping(output)
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(output, (tuple, list)):
        return _of_sequence(output)
    raise BoundaryTypeError(f"{_NEEDED} it returned {type(output).__name__}. {_WRAP} lambda x: model(x).scores.")


def has_one_output(scores: Tensor) -> bool:
    """Whether scores that have the right shape are the one output of a binary model."""
    return scores.ndim == 1 or scores.shape[1] == 1


def _of_mapping(output: Mapping[Any, Any]) -> Tensor:
    logits = output.get("logits")
    if isinstance(logits, Tensor):
        return logits
    names = ", ".join(repr(name) for name in output)
    if isinstance(output.get("out"), Tensor):
        raise BoundaryTypeError(
            f"{_NEEDED} it returned {type(output).__name__} with {names}, as segmentation models do. Choose a "
            'decision, such as that of one pixel: lambda x: model(x)["out"][:, :, row, column].'
        )
    key = next((name for name, value in output.items() if isinstance(value, Tensor)), "scores")
    raise BoundaryTypeError(
        f"{_NEEDED} it returned {type(output).__name__} with {names or 'nothing in it'}, none of them a Tensor called "
        f"'logits'. {_WRAP} lambda x: model(x)[{key!r}], if these are the scores."
    )


def _of_sequence(output: tuple[Any, ...] | list[Any]) -> Tensor:
    kind = type(output).__name__
    if output and all(isinstance(entry, Mapping) for entry in output):
        raise BoundaryTypeError(
            f"{_NEEDED} it returned {kind} of dictionaries, as detection models do. Choose a decision, such as whether "
            "an object is found: a function that returns one number for each image, the score of its box less a "
            "threshold."
        )
    candidates = [index for index, entry in enumerate(output) if _may_be_scores(entry)]
    if candidates == [0]:
        scores: Tensor = output[0]
        return scores
    index = candidates[0] if candidates else 0
    fault = (
        "several entries could be these"
        if len(candidates) > 1
        else "its first entry is a single number, probably a loss (leave the labels out)"
        if output and isinstance(output[0], Tensor) and output[0].ndim == 0
        else "its first entry is not"
    )
    raise BoundaryTypeError(
        f"{_NEEDED} it returned {kind} ({', '.join(map(_described, output))}): {fault}. {_WRAP} "
        f"lambda x: model(x)[{index}]."
    )


def _may_be_scores(entry: object) -> bool:
    """Whether an entry could be scores, of any number of examples: what is refused must not depend on the batch."""
    return isinstance(entry, Tensor) and entry.is_floating_point() and entry.ndim in (1, 2)


def _described(entry: object) -> str:
    if isinstance(entry, Tensor):
        return f"Tensor of shape {tuple(entry.shape)}"
    return "None" if entry is None else type(entry).__name__
