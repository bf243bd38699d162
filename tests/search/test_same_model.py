"""Which forward functions may be the same model, and which are certainly not."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_boundary import SmoothedModel
from captum_boundary.attr import separate_activations
from captum_boundary.errors import BoundaryValueError
from captum_boundary.search._same_model import check_same_model

MODEL = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
SMOOTHED = SmoothedModel(MODEL, 0.1)


def function(x: Tensor, scale: float = 1.0) -> Tensor:
    return scale * MODEL(x)


class Scorer:
    def score(self, x: Tensor) -> Tensor:
        return MODEL(x)

    def __call__(self, x: Tensor) -> Tensor:
        return MODEL(x)


SCORER = Scorer()

SAME: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "itself": (MODEL, MODEL),
    "its forward": (MODEL, MODEL.forward),
    "its call": (MODEL.__call__, MODEL),
    "two methods": (MODEL.forward, MODEL.forward),
    "parallel": (MODEL, nn.DataParallel(MODEL)),
    "compiled": (MODEL, torch.compile(MODEL)),
    "compiled in parallel": (nn.DataParallel(MODEL), torch.compile(MODEL.forward)),
    "compiled function": (function, torch.compile(function)),
    "partial": (functools.partial(function, scale=2.0), functools.partial(function, scale=2.0)),
    "partial of a module": (functools.partial(MODEL), MODEL),
    "function around a module": (MODEL, lambda x: MODEL(x)),
    "module inside a module": (MODEL, nn.Sequential(MODEL, nn.Softmax(dim=1))),
    "copy with the same tensors": (MODEL, separate_activations(MODEL)),
    "module without tensors": (MODEL, nn.Flatten()),
    "method of a scorer": (SCORER.score, SCORER.score),
    "call of a scorer": (SCORER, SCORER.__call__),
    "smoothed": (SMOOTHED, SMOOTHED.forward),
    "smoothed inside a module": (SMOOTHED, nn.Sequential(SMOOTHED)),
    "function around a smoothed one": (SMOOTHED, lambda x: SMOOTHED(x)),
}


@pytest.mark.parametrize("pair", SAME.values(), ids=SAME)
def test_what_may_be_the_same_model_passes(pair):
    check_same_model(*pair)
    check_same_model(*reversed(pair))


DIFFERENT: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "modules": (MODEL, nn.Linear(3, 2)),
    "copy of the weights": (MODEL, copy.deepcopy(MODEL)),
    "compiled": (MODEL, torch.compile(copy.deepcopy(MODEL))),
    "parallel": (nn.DataParallel(copy.deepcopy(MODEL)), MODEL),
    "forward": (MODEL.forward, copy.deepcopy(MODEL).forward),
    "only buffers": (nn.BatchNorm1d(3, affine=False), MODEL),
    "functions": (function, lambda x: MODEL(x)),
    "partials": (functools.partial(function), functools.partial(lambda x: -MODEL(x))),
    "scorers": (SCORER, Scorer()),
    "smoothed and not": (SMOOTHED, MODEL),
    "smoothed otherwise": (SMOOTHED, SmoothedModel(MODEL, 0.2)),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_what_is_certainly_another_model_is_refused(pair):
    for one, other in (pair, reversed(pair)):
        with pytest.raises(BoundaryValueError, match=r"searches\[1\] must look for the boundary of the model itself"):
            check_same_model(one, other, "searches[1]")


def test_the_error_names_both():
    with pytest.raises(BoundaryValueError, match=r"itself, function, .* another one, Scorer\.score\. Give the same"):
        check_same_model(function, SCORER.score)
