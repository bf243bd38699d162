"""Descriptions are equal where results are, differ where results may, and can be stored."""

from __future__ import annotations

import copy
import importlib
import io
import json
import math
import sys
import threading
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import DeepLift, IntegratedGradients, LayerIntegratedGradients, NoiseTunnel, Saliency
from small_data import Rows, small_model
from torch import nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    LayerBoundaryAttribution,
    NearestBoundary,
    PGDBoundary,
)
from captum_boundary.datasets import explain_dataset
from captum_boundary.datasets._identity import Describer
from captum_boundary.search import ClosestBoundary


def describe(value):
    return Describer().describe(value)


def generators_of(value):
    describer = Describer()
    describer.describe(value)
    return describer.generators


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


class Own(nn.Module):
    """A model of one's own, with what may be changed in it."""

    def __init__(self, change=""):
        super().__init__()
        self.model = small_model()
        self.temperature = 2.0 if change == "plain attribute" else 1.0
        self.settings = {"names": ["a", "b"], "scale": 3 if change == "nested attribute" else 2}
        self.register_buffer("shift", torch.full((3,), float(change == "buffer")))
        self.register_buffer("hidden", torch.full((3,), float(change == "non-persistent buffer")), persistent=False)
        if change == "loose tensor":
            self.loose = torch.ones(2)
        if change == "layer's own attribute":
            self.model[1].inplace = True
        if change == "forward":
            self.forward = types.MethodType(lambda self, inputs: 3 * self.model(inputs), self)
        if change == "hook":
            self.model[0].register_forward_hook(lambda module, inputs, output: output * 2)
        if change == "hook before":
            self.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))

    def forward(self, inputs):
        return self.model(inputs) / self.temperature + self.shift + self.hidden


CHANGES = ["", "plain attribute", "nested attribute", "buffer", "non-persistent buffer", "loose tensor"]
CHANGES += ["layer's own attribute", "forward", "hook", "hook before"]


def test_whatever_changes_in_a_model_is_seen():
    texts = [json.dumps(describe(Own(change))) for change in CHANGES]
    assert len(set(texts)) == len(texts)
    assert texts == [json.dumps(describe(Own(change))) for change in CHANGES]
    first, second = describe(Own()), describe(Own("plain attribute"))
    assert first["attributes"][""]["temperature"] == 1.0
    assert second["attributes"][""]["temperature"] == 2.0


def test_another_layer_of_the_same_kind_is_another_explainer():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    for build in (
        lambda layer: LayerIntegratedGradients(model, layer),
        lambda layer: LayerBoundaryAttribution(model, layer),
        lambda layer: NoiseTunnel(LayerIntegratedGradients(model, layer)),
        lambda layer: LayerIntegratedGradients(lambda inputs: model(inputs), layer),
    ):
        first, second = describe(build(model[0])), describe(build(model[1]))
        assert first != second
        assert {"layer": "0"} in leaves(first)
        assert {"layer": "1"} in leaves(second)


def leaves(description):
    parts = list(description.values()) if isinstance(description, dict) else []
    return parts + [leaf for part in parts for leaf in leaves(part)]


CODE = """
import torch
from torch import nn
from helpers import helper
SCALE = 1.0
def own_helper(x):
    return x
class Base(nn.Module):
    def head(self, x):
        return x
class Model(Base):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        nn.init.ones_(self.layer.weight)
        nn.init.ones_(self.layer.bias)
    @property
    def factor(self):
        return 1
    def forward(self, x):
        return self.head(own_helper(helper(self.layer(x)))) * SCALE * self.factor
def function(x):
    return own_helper(x)[:, :3]
"""
EDITS = [
    ("* SCALE", "/ SCALE"),
    ("SCALE = 1.0", "SCALE = 1.5"),
    ("    return x\nclass Base", "    return -x\nclass Base"),
    ("        return x\nclass Model", "        return -x\nclass Model"),
    ("return 1\n", "return 2\n"),
]


def described_code(tmp_path, monkeypatch, code, helper="def helper(x):\n    return x\n"):
    (tmp_path / "own_model.py").write_text(code)
    (tmp_path / "helpers.py").write_text(helper)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_model", "helpers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("own_model")
    describer = Describer()
    description = json.dumps([describer.describe([Saliency(module.Model().eval()), Saliency(module.function)])])
    description += json.dumps(describer.code())
    for name in ("own_model", "helpers"):
        sys.modules.pop(name)
    return description


def test_code_that_was_edited_is_seen_wherever_it_is(tmp_path, monkeypatch):
    tmp_path = tmp_path / "my-packages"  # which is none of Python's own places
    tmp_path.mkdir()
    first = described_code(tmp_path, monkeypatch, CODE)
    assert described_code(tmp_path, monkeypatch, "# a comment\n\n" + CODE) == first
    for before, after in EDITS:
        assert before in CODE
        assert described_code(tmp_path, monkeypatch, CODE.replace(before, after)) != first, after
    assert described_code(tmp_path, monkeypatch, CODE, "def helper(x):\n    return 2 * x\n") != first


READER = """
import functools
import torch
from torch import nn
import helpers
from helpers import helper
{top}
class Model(nn.Module):
    def forward(self, x):
        {body}
    {member}
function = torch.relu
"""
READERS = {
    "a comprehension": {"body": "return sum([helper(part) for part in [x]])"},
    "a function within": {"body": "return (lambda y: helper(y))(x)"},
    "an import within": {"body": "from helpers import helper as imported; return imported(x)"},
    "a module": {"body": "return helpers.helper(x)"},
    "a partial function": {"top": "part = functools.partial(helper)", "body": "return part(x)"},
    "a cached function": {"top": "cached = functools.lru_cache(helper)", "body": "return cached(2) * x"},
    "a function without gradients": {"top": "bare = torch.no_grad()(helper)", "body": "return bare(x)"},
    "a cached property": {"member": "factor = functools.cached_property(helper)", "body": "return self.factor"},
    "a property": {"member": "factor = property(helper)", "body": "return self.factor"},
    "a tensor of the class": {"member": "factor = helper(torch.ones(1))", "body": "return self.factor"},
    "a value of the module": {"top": "kind = (torch.bfloat16, torch.half)[helper(1) - 1]", "body": "return x.to(kind)"},
    "a long chain of calls": {
        "top": "\n".join(f"def f{n}(x): return f{n + 1}(x)" for n in range(500)) + "\nf500 = helper",
        "body": "return f0(x)",
    },
}


@pytest.mark.parametrize("name", READERS)
def test_code_is_seen_that_is_read_in_another_way(tmp_path, monkeypatch, name):
    code = READER.format(**{"top": "", "member": "", **READERS[name]})
    helpers = ["def helper(x):\n    return x\n", "def helper(x):\n    return 2 * x\n"]
    first, second = (described_code(tmp_path, monkeypatch, code, helper) for helper in helpers)
    assert first != second
    assert described_code(tmp_path, monkeypatch, code, helpers[0]) == first


def test_what_changes_from_run_to_run_is_no_code(tmp_path, monkeypatch):
    top = "import logging\nfrom os import environ\nlogger = logging.getLogger(__name__)\nlogger.setLevel(environ['L'])"
    code = READER.format(top=top, member="", body="logger.info(environ['L']); return helper(x)")
    found = []
    for level in ("INFO", "ERROR"):
        monkeypatch.setenv("L", level)
        found.append(described_code(tmp_path, monkeypatch, code))
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted_functions_are_known_by_their_code():
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def tripled(x: torch.Tensor) -> torch.Tensor:
        return 3 * x

    assert describe(torch.jit.script(doubled)) == describe(torch.jit.script(doubled))
    assert describe(torch.jit.script(doubled)) != describe(torch.jit.script(tripled))


@pytest.mark.parametrize(
    "values",
    [
        (slice(1), slice(2)),
        (range(1), range(2)),
        (b"1", b"2"),
        (1j, 2j),
        (Path("1"), Path("2")),
        (np.longdouble(1), np.longdouble(2)),
        (np.ones(1, np.longdouble), np.zeros(1, np.longdouble)),
        (np.array(["1"]), np.array(["2"])),
        (np.array([{}, 1], object), np.array([{}, 2], object)),
        (torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse()),
        ({small_model: 1}, {small_model: 2}),
    ],
)
def test_values_of_any_kind_are_told_apart(values):
    first, second = map(describe, values)
    assert first != second
    assert describe(copy.deepcopy(values[0])) == first
    assert "0x" not in json.dumps(first)


def test_what_cannot_be_described_in_full_is_described_by_its_class():
    model = Own()
    model.lock, model.file, model.itself = threading.Lock(), io.StringIO(), model
    text = json.dumps(describe(IntegratedGradients(model)))
    assert "_thread.lock" in text
    assert "0x" not in text


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
    assert [describe(np.bool_(flag)) for flag in (True, False)] == [True, False]
    assert describe(np.ones(3)) == describe(np.ones(3)) != describe(np.zeros(3))
    assert describe(torch.ones(3, dtype=torch.bfloat16)) != describe(torch.ones(3))
    selfish: list[object] = []
    selfish.append(selfish)
    assert "again" in str(describe(selfish))


def test_what_is_shown_is_no_part_of_the_identity():
    model = small_model()
    assert describe(NearestBoundary(model, show_progress=True)) == describe(NearestBoundary(model))


def test_generators_are_found_at_any_depth():
    model, generator = small_model(), torch.Generator()
    search = ClosestBoundary([NearestBoundary(model, generator=generator), PGDBoundary(model, generator=generator)])
    assert generators_of(BoundaryAttribution(model, search=search)) == [generator]
    assert generators_of(BoundaryAttribution(model)) == []
