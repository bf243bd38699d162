"""Descriptions are equal where results are, differ where results may, and can be stored."""

from __future__ import annotations

import copy
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import DeepLift, IntegratedGradients, NoiseTunnel, Saliency
from small_data import Rows, small_model
from torch import nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    ClosestBoundary,
    NearestBoundary,
    PGDBoundary,
)
from captum_boundary.datasets import explain_dataset
from captum_boundary.datasets._describe import describe, generators_of


def explainers():
    """Explainers that differ in one thing each."""
    model, other = small_model(), small_model(seed=1)
    gelu = nn.Sequential(*(nn.GELU() if isinstance(part, nn.ReLU) else part for part in copy.deepcopy(model)))
    bounds = (torch.full((4,), -1.0), torch.ones(4))
    return {
        "plain": IntegratedGradients(model),
        "no product": IntegratedGradients(model, multiply_by_inputs=False),
        "weights": IntegratedGradients(other),
        "architecture": IntegratedGradients(gelu),
        "training": IntegratedGradients(copy.deepcopy(model).train()),
        "function": IntegratedGradients(lambda inputs: model(inputs)),
        "function of another model": IntegratedGradients(lambda inputs: other(inputs)),
        "another function": IntegratedGradients(lambda inputs: 2 * model(inputs)),
        "partial": IntegratedGradients(partial(torch.nn.functional.linear, weight=model[0].weight)),
        "bound method": IntegratedGradients(model.forward),
        "saliency": Saliency(model),
        "noise": NoiseTunnel(Saliency(model)),
        "deeplift": DeepLift(model),
        "boundary": BoundaryAttribution(model),
        "boundary deeplift": BoundaryAttribution(model, DeepLift),
        "lambda": BoundaryAttribution(model, lambda f: NoiseTunnel(Saliency(f))),
        "score": BoundaryAttribution(model, score="margin"),
        "budget": BoundaryAttribution(model, search=NearestBoundary(model, budget=7)),
        "norm": BoundaryAttribution(model, search=NearestBoundary(model, norm=math.inf)),
        "bounds": BoundaryAttribution(model, search=NearestBoundary(model, bounds=(-1, 1))),
        "bounds in tensors": BoundaryAttribution(model, search=NearestBoundary(model, bounds=bounds)),
        "pgd": BoundaryAttribution(model, search=PGDBoundary(model)),
        "two searches": BoundaryAttribution(
            model, search=ClosestBoundary([NearestBoundary(model), PGDBoundary(model)])
        ),
        "normals": AggregatedBoundaryNormals(model),
        "normals times inputs": AggregatedBoundaryNormals(model, multiply_by_inputs=True),
    }


def test_what_differs_is_described_differently():
    texts = {name: json.dumps(describe(explainer)) for name, explainer in explainers().items()}
    assert len(set(texts.values())) == len(texts)
    assert not any("0x" in text for text in texts.values())


def test_the_same_is_described_in_the_same_way():
    first, second = explainers(), explainers()
    assert {name: describe(each) for name, each in first.items()} == {
        name: describe(each) for name, each in second.items()
    }


@pytest.mark.parametrize("name", ["noise", "deeplift", "boundary deeplift", "budget", "normals"])
def test_use_leaves_the_description_as_it_was(tmp_path, name):
    explainer = explainers()[name]
    before = describe(explainer)
    explain_dataset(explainer, Rows(4), tmp_path, batch_size=2)
    assert describe(explainer) == before


def test_plain_values():
    values = {"a": [1, 2.5, None, True, "text"], "b": (math.inf,), "c": {3}, "d": torch.float16, "e": np.float32(0.5)}
    description = describe(values)
    assert json.loads(json.dumps(description)) == description
    assert description["a"] == [1, 2.5, None, True, "text"]
    assert description["e"] == 0.5
    assert describe(np.ones(3)) == describe(np.ones(3)) != describe(np.zeros(3))
    assert describe(torch.ones(3, dtype=torch.bfloat16)) != describe(torch.ones(3))
    selfish: list[object] = []
    selfish.append(selfish)
    assert "again" in str(describe(selfish))


def test_generators_are_found_at_any_depth():
    model, generator = small_model(), torch.Generator()
    search = ClosestBoundary([NearestBoundary(model, generator=generator), PGDBoundary(model, generator=generator)])
    assert generators_of(BoundaryAttribution(model, search=search)) == [generator]
    assert generators_of(BoundaryAttribution(model)) == []
