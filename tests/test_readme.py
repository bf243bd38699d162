"""What the README shows must run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def text():
    return README.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def examples(text):
    """The three examples: an ImageNet network, a language model, and training."""
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return dict(zip(("network", "language", "training"), blocks, strict=True))


def run(block):
    names: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        exec(block, names)
    return names


def test_the_network_is_explained(examples, monkeypatch):
    """With a small network of the same interface, whose weights need no download."""
    models = pytest.importorskip("torchvision").models

    def small(weights):
        assert weights is models.ResNet50_Weights.DEFAULT
        layers = torch.nn.Conv2d(3, 8, 7, stride=7), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2)
        return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(32, 1000))

    monkeypatch.setattr(models, "resnet50", small)
    monkeypatch.chdir(README.parent)
    names = run(examples["network"])
    assert names["image"].shape == names["big"].shape == (1, 3, 224, 224)
    assert names["boundary"].found.all()
    assert names["big"].isfinite().all()
    assert plt.get_fignums()
    plt.close("all")


def test_the_language_model_is_explained(examples, capsys, monkeypatch):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)

    class Characters:
        """A tokenizer whose tokens are characters."""

        def __len__(self):
            return 128

        def __call__(self, text, **_):
            return {"input_ids": [ord(letter) for letter in text]}

        def encode(self, text, **_):
            return [ord(letter) for letter in text]

        def decode(self, ids, **_):
            return "".join(map(chr, ids))

        def convert_ids_to_tokens(self, ids):
            return [chr(index) for index in ids]

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda name: model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: Characters())
    result = run(examples["language"])["result"]
    assert result.token_distance.shape[-1] == len("The capital of France is")
    assert "tensor(" in capsys.readouterr().out


def test_the_training_loop_trains(examples):
    torch.manual_seed(0)
    images = torch.rand(64, 16)
    labels = (images[:, :8].sum(dim=1) > images[:, 8:].sum(dim=1)).long()
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    before = torch.nn.functional.cross_entropy(model(images), labels)
    run(examples["training"])["train"](model, [(images, labels)], n_epochs=30)
    assert torch.nn.functional.cross_entropy(model(images), labels) < before


def test_it_is_short(text):
    assert len(text.splitlines()) <= 120


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
