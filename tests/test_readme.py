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


def run(block, **names):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        exec(block, names)
    return names


def python_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_example_of_a_language_model_runs(text, capsys):
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = ["[UNK]", "The", "capital", "of", "France", "is", "Paris", "London", "England", "Rome"]
    pieces = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(words), **sizes)).eval()
    result = run(python_blocks(text)[1], model=model, tokenizer=tokenizer)["result"]
    assert result.token_closeness.shape == (1, 5)
    assert "tensor(" in capsys.readouterr().out


def test_the_examples_run(text, capsys):
    attributing, _, training = python_blocks(text)
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
