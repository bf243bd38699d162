"""One name, one meaning, one place: arguments of everything public, as CONTRIBUTING has decided them."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from captum.attr import Attribution
from captum.robust import Perturbation
from torch import nn

from captum_boundary.robust.terms import StabilityTerm

PACKAGES = ("search", "attr", "layers", "llm", "smoothing", "robust", "metrics", "visualization", "datasets")
# What searches, and readers of data sets, are handed: nobody builds or configures these.
HANDED_OVER = {"Norm", "WeightedL2", "SearchProblem", "Explanations"}

# Every argument, with the type that it has wherever it stands (without None, and Tensor for tuples of them too). A name
# with several types says one thing in several forms. Whoever adds a name looks first whether there is one.
TYPES: dict[str, str | tuple[str, ...]] = {
    # the model, and what evaluates it
    "forward_func": "Callable[..., Any]",
    "model": "nn.Module",
    "layer": ("nn.Module", "nn.Module | Sequence[nn.Module]"),
    "embedding_layer": "nn.Module",
    "tokenizer": "Any",
    "smoothed": "SmoothedModel",
    "reshape_transform": "ReshapeTransform",
    "attribute_to_layer_input": "bool",
    "internal_batch_size": "int",
    "perturbations_per_eval": "int",
    "show_progress": "bool",
    "generator": "torch.Generator",
    # examples
    "inputs": "Tensor",
    "inp": "Any",
    "example_inputs": "Tensor | tuple[Any, ...]",
    "target": ("TargetType", "Tensor", "int | str", "str | Tensor | Sequence[int]"),
    "rival": "str | Tensor | Sequence[int]",
    "additional_forward_args": "object",
    "activations_and_arguments": "Any",
    "arguments": "Any",
    "kwargs": "Any",
    "baselines": ("Any", "Baselines"),
    "mask": ("Mask", "Tensor"),
    "masks": "Tensor",
    "feature_mask": "Tensor",
    "bounds": ("Bounds", "tuple[float, float]"),
    "transform": "Any",
    "std": "Sequence[float] | Tensor",
    # searches
    "search": "BoundarySearch",
    "searches": "Sequence[BoundarySearch]",
    "problem": "SearchProblem",
    "norm": "float | Norm",
    "budget": "int",
    "token_budget": "int",
    "max_distance": "float",
    "strict": "bool",
    "settings": "NearestBoundarySettings",
    "categories": "Groups",
    "fixed": "Sequence[int]",
    "n_combinations": "int",
    # attacks: steps within a ball
    "attack": ("Any", "AttributionAttack"),
    "epsilon": "float",
    "epsilons": "Sequence[float]",
    "attack_steps": "int",
    "attack_step_size": "float",
    "random_start": "bool",
    "measure": "str | Measure",
    "target_map": "Tensor",
    "perturbed": "Tensor",
    "softplus_beta": "float",
    # attributions: points of a path
    "method": ("Callable[..., Any]", "str"),
    "attribution_method": "Any",
    "attribution": ("Any", "str"),
    "score": "str",
    "n_steps": "int",
    "attack_n_steps": "int",
    "quadrature": "str",
    "multiply_by_inputs": "bool",
    "boundary": ("BoundaryNormals", "BoundaryPoints", "BoundaryPoints | Mapping[str, BoundaryPoints]"),
    "n_boundaries": "int",
    "sampling": "str",
    "weighting": "Weighting",
    "energy": "str",
    "width": "float",
    "start_point": "Tensor",
    "end_point": "Tensor",
    "return_boundary": "bool",
    "return_convergence_delta": "bool",
    "return_curves": "bool",
    "return_n_found": "bool",
    # noise
    "stdev": ("float", "float | tuple[float, ...]"),
    "stdevs": ("Sequence[float]", "float | tuple[float, ...]"),
    "n_samples": "int",
    "average": "str",
    "alpha": "float",
    "decision": "str",
    "n_selection": "int",
    "nt_type": "str",
    "nt_samples": "int",
    "nt_samples_batch_size": "int",
    # training
    "size": ("str", "str | Callable[[Tensor], Tensor]"),
    "weight": "float",
    "loss_func": "LossFunction",
    "penalty": "float",
    "power": "float",
    "warmup": "int",
    "smooth": "str",
    "terms": "Sequence[StabilityTerm]",
    "batch": "PerturbedBatch",
    "k": "int",
    "n_pairs": "int",
    "curvature": "float",
    "contrast": "bool",
    "state": "Tensor",
    # measures and pictures
    "attributions": ("Mapping[str, Tensor] | Mapping[str, Mapping[str, Tensor]]", "Tensor"),
    "first": "Tensor",
    "second": "Tensor",
    "shares": "Sequence[float]",
    "replacement": "int",
    "robustness": "AttributionRobustness",
    "plt_fig_axis": ("PanelsToUse", "tuple[Figure, Axes]"),
    "class_names": "Sequence[str]",
    "feature_names": "Sequence[str]",
    "n_features": "int",
    "unscale": "Callable[[Tensor], Tensor]",
    "example": "int",
    "direction": "Tensor",
    "extent": "float",
    "resolution": "int",
    "amplification": "float",
    "sign": "str",
    "outlier_perc": "float",
    "alpha_overlay": "float",
    "share_scale": "bool",
    "cmap": "str",
    # tokens
    "points": "Tensor",
    "embedding_weight": "Tensor",
    "metric": "str",
    "skip_tokens": "Sequence[int] | Sequence[str]",
    "phrases": "str | Sequence[str]",
    "n_candidates": "int",
    "allow_answer_tokens": "bool",
    "gen_args": "dict[str, Any]",
    # data sets
    "explainer": "Attribution",
    "dataset": ("Dataset[Any]", "str"),
    "out": "str | os.PathLike[str]",
    "parts": "Iterable[str | os.PathLike[str]]",
    "options": "Mapping[str, Any]",
    "batch_size": "int",
    "num_workers": "int",
    "device": "torch.device | str",
    "dtype": "torch.dtype",
    "seed": "int",
    "shard": "tuple[int, int]",
    "limit": "int",
    "resume": "bool",
    "verify": "bool",
    "version": "str",
    "map_size": "int | tuple[int, int]",
    "image_size": "int",
    "save_points": "bool",
    "title": "str",
    "units": "str",
}
SAME = {
    "TensorOrTupleOfTensorsGeneric": "Tensor",
    "Tensor | tuple[Tensor, ...]": "Tensor",
    "tuple[Tensor, ...]": "Tensor",
    "Tensors": "Tensor",
    "Attributions": "Tensor",
}

# Arguments that may be given by position, in this order; all others are keywords.
BY_POSITION = (
    *("forward_func", "model", "explainer", "attribution_method", "smoothed", "tokenizer", "layer", "method"),
    *("searches", "search", "problem", "score", "categories", "stdev", "dataset", "size"),
    *("points", "embedding_weight", "transform", "std", "example_inputs", "weight", "batch", "state"),
    *("inputs", "inp", "attributions", "masks", "boundary", "perturbed", "robustness", "first", "second", "k"),
    *("target", "rival", "attack", "additional_forward_args", "attribute_to_layer_input", "mask", "parts", "out"),
)
OTHER_ORDER = {
    "BoundaryAttribution.compute_convergence_delta": "as Captum's",
    "BoundaryNoiseTunnel.attribute": "as Captum's",
    "write_gallery": "of the results first, as load_explanations",
}


def public(package: str) -> Iterator[tuple[str, Any]]:
    module = importlib.import_module(f"captum_boundary.{package}")
    for name in module.__all__:
        yield name, getattr(module, name)


def is_configured(value: Any) -> bool:
    """Whether users build and call it: not so results, records and errors."""
    if not inspect.isclass(value):
        return callable(value)
    is_record = dataclasses.is_dataclass(value) and not issubclass(value, StabilityTerm)
    return not is_record and not issubclass(value, (tuple, enum.Enum, Exception))


def signatures() -> Iterator[tuple[str, inspect.Signature]]:
    for package in PACKAGES:
        for name, value in public(package):
            if not is_configured(value) or name in HANDED_OVER:
                continue
            yield name, inspect.signature(value)
            if inspect.isclass(value):
                for method, function in vars(value).items():
                    if not method.startswith("_") and inspect.isfunction(function):
                        yield f"{name}.{method}", inspect.signature(function)


SIGNATURES = dict(signatures())
everywhere = pytest.mark.parametrize("name", SIGNATURES)


def arguments_of(name: str) -> list[inspect.Parameter]:
    return [parameter for parameter in SIGNATURES[name].parameters.values() if parameter.name != "self"]


def plain(annotation: str) -> str:
    annotation = annotation.replace(" | None", "")
    return SAME.get(annotation, annotation)


@everywhere
def test_a_name_has_one_meaning(name: str) -> None:
    for argument in arguments_of(name):
        allowed = TYPES.get(argument.name)
        assert allowed is not None, f"{argument.name} is a new name: is there one for it already? Else add it to TYPES."
        assert plain(argument.annotation) in ((allowed,) if isinstance(allowed, str) else allowed), argument


def test_no_name_is_listed_that_nothing_has() -> None:
    assert set(TYPES) == {argument.name for name in SIGNATURES for argument in arguments_of(name)}


@everywhere
def test_arguments_stand_in_their_order_and_options_are_keywords(name: str) -> None:
    places = [argument.name for argument in arguments_of(name) if argument.kind == argument.POSITIONAL_OR_KEYWORD]
    if name not in OTHER_ORDER:
        assert set(places) <= set(BY_POSITION), "options are keywords"
        assert places == sorted(places, key=BY_POSITION.index)


@everywhere
def test_flags_are_off_until_they_are_asked_for(name: str) -> None:
    for argument in arguments_of(name):
        if argument.name.startswith(("return_", "show_", "save_")):
            assert argument.default is False, argument


CALLED_BY_OTHERS = (Perturbation, nn.Module)


@everywhere
@pytest.mark.parametrize("option", ["internal_batch_size", "show_progress"])
def test_batch_sizes_and_progress_are_asked_for_where_captum_does(name: str, option: str) -> None:
    """At the call; at construction of what others call through an interface that has no room for them."""
    if option not in SIGNATURES[name].parameters:
        return
    owner, _, method = name.partition(".")
    value: Callable[..., Any] = next(value for package in PACKAGES for each, value in public(package) if each == owner)
    if inspect.isclass(value):
        assert bool(method) == issubclass(value, Attribution), f"{option} of {name}"
        assert method or issubclass(value, CALLED_BY_OTHERS)


def test_the_generator_belongs_to_the_object_that_draws() -> None:
    for name, signature in SIGNATURES.items():
        if "generator" in signature.parameters:
            assert "." not in name
            assert signature.parameters["generator"].default is None


def test_pictures_go_where_captum_puts_them() -> None:
    for name, value in public("visualization"):
        verb = name.split("_")[0]
        assert verb in ("show", "compare", "plot", "describe")
        signature = inspect.signature(value)
        assert ("plt_fig_axis" in signature.parameters) == (verb != "describe")
        returned = {"describe": "list[str]", "plot": "tuple[Figure, Axes]"}.get(verb, "tuple[Figure, AxesArray]")
        assert signature.return_annotation == returned, name


def test_the_top_level_is_short_and_all_of_it_comes_from_packages() -> None:
    import captum_boundary

    modules = {name for name in captum_boundary.__all__ if inspect.ismodule(getattr(captum_boundary, name))}
    names = set(captum_boundary.__all__) - modules
    assert len(names) <= 24
    of_packages = {name for package in (*PACKAGES, "errors") for name, _ in public(package)}
    assert names <= of_packages
