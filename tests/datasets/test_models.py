"""Models that a command line names, and their weights."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch
from small_data import small_model
from torch import nn
from torchvision.models import get_model_weights, squeezenet1_0

from captum_boundary.datasets._models import load_model
from captum_boundary.errors import BoundaryValueError


def test_checkpoints_hold_weights_in_several_ways(tmp_path):
    wanted = small_model(seed=1)
    for wrap in (dict, lambda state: {"state_dict": state}, lambda state: {"module." + k: v for k, v in state.items()}):
        torch.save(wrap(wanted.state_dict()), tmp_path / "weights.pt")
        model = load_model("small_data:small_model", str(tmp_path / "weights.pt"), None).model
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wanted.parameters(), strict=True))


def test_prefixes_are_stripped_only_where_they_are_not_the_models_own(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "import small_data\nfrom torch import nn\nclass Held(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.module = small_data.small_model()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    states = small_model(seed=1).state_dict()
    torch.save({"module." + name: tensor for name, tensor in states.items()}, tmp_path / "weights.pt")
    model = load_model("own:Held", str(tmp_path / "weights.pt"), None).model
    assert torch.equal(model.module[0].weight, states["0.weight"])
    monkeypatch.setattr(
        "own.Head", lambda: nn.ModuleDict({"module": small_model(), "head": nn.Linear(3, 2)}), raising=False
    )
    wanted = nn.ModuleDict({"module": small_model(seed=1), "head": nn.Linear(3, 2)})  # some of whose names have it too
    torch.save(nn.DataParallel(wanted).state_dict(), tmp_path / "weights.pt")
    model = load_model("own:Head", str(tmp_path / "weights.pt"), None).model
    assert torch.equal(model.head.weight, wanted.head.weight)
    torch.save({**states, "module.0.weight": states["0.weight"]}, tmp_path / "weights.pt")
    with pytest.raises(BoundaryValueError, match="are not those of this model"):
        load_model("small_data:small_model", str(tmp_path / "weights.pt"), None)


def test_names_of_classes_come_with_the_weights_of_torchvision(tmp_path, monkeypatch):
    """Where they are torchvision's own, which the digest in the name of its file tells."""
    torch.save(squeezenet1_0().state_dict(), tmp_path / "weights.pt")
    assert load_model("torchvision:squeezenet1_0", str(tmp_path / "weights.pt"), None).class_names is None
    digest = hashlib.sha256((tmp_path / "weights.pt").read_bytes()).hexdigest()[:8]
    entry = get_model_weights("squeezenet1_0").DEFAULT
    monkeypatch.setattr(entry, "_value_", replace(entry.value, url=f"https://nowhere/squeezenet1_0-{digest}.pth"))
    names = load_model("torchvision:squeezenet1_0", str(tmp_path / "weights.pt"), None).class_names
    assert names[:2] == ["tench", "goldfish"]
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: torch.load(tmp_path / "weights.pt"))
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: torch.load(tmp_path / "weights.pt")
    )
    loaded = load_model("torchvision:squeezenet1_0", "DEFAULT", None)
    assert loaded.class_names == names
    assert loaded.normalize[0] == pytest.approx([0.485, 0.456, 0.406])
