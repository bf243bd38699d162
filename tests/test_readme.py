"""What the README shows must run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def text():
    return README.read_text(encoding="utf-8")


def run(block):
    names: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        exec(block, names)
    return names


def test_the_examples_run(text, capsys):
    attributing, training = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = run(attributing)
    assert names["maps"].shape == names["inputs"].shape
    assert names["delta"].abs().max() < 1e-2
    assert "tensor(" in capsys.readouterr().out
    names = run(training)
    assert names["rar"].parts.regularizer.shape == (128,)
    assert names["result"].topk_intersection.shape == (8,)


@pytest.mark.parametrize("marker", ["demo-command", "test-command"])
def test_commands_stand_on_one_line(text, marker):
    (command,) = re.findall(rf"<!-- {marker} -->\n```\n(.*?)\n```", text, flags=re.DOTALL)
    assert "\n" not in command
    assert command.startswith("python3 -m venv .venv && ")


def test_links_and_pictures_exist(text):
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    local = [target for target in targets if not target.startswith("http")]
    assert "docs/images/digits.png" in local
    assert all((README.parent / target).exists() for target in local)
