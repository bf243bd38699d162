"""Small language models, from configurations and of known weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TEXT = "the a of is capital France England Spain Paris London Madrid red blue green keys cabinet . ? it was"
WORDS = TEXT.split()


def word_tokenizer(words: list[str] = WORDS) -> transformers.PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[PAD]", *words])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="[UNK]", pad_token="[PAD]", padding_side="left"
    )


SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CONFIGS = {
    "llama": lambda n: transformers.LlamaConfig(vocab_size=n, **SIZES, max_position_embeddings=32),
    "qwen2": lambda n: transformers.Qwen2Config(vocab_size=n, **SIZES, tie_word_embeddings=True),
    "gpt2": lambda n: transformers.GPT2Config(vocab_size=n, n_embd=16, n_layer=2, n_head=2, n_positions=32),
    "gemma": lambda n: transformers.GemmaConfig(vocab_size=n, head_dim=8, **SIZES),
    # Windows shorter than prompts: in every layer, and in every second one.
    "mistral": lambda n: transformers.MistralConfig(vocab_size=n, head_dim=8, sliding_window=4, **SIZES),
    "gemma2": lambda n: transformers.Gemma2Config(
        vocab_size=n, head_dim=8, query_pre_attn_scalar=8, sliding_window=4, **SIZES
    ),
}


def decoder(kind: str, tokenizer: transformers.PreTrainedTokenizerFast, **options: object) -> nn.Module:
    config = CONFIGS[kind](len(tokenizer))
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    for name, value in options.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:  # scores apart, and attention that matters
                nn.init.normal_(parameter, std=0.4)
    return model


class SumOfWords(nn.Module):
    """A language model without attention: what follows depends on the sum of the embeddings so far."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        numbers = torch.Generator().manual_seed(0)
        self.tokens = nn.Embedding(n_tokens, 6)
        self.scores = nn.Linear(6, n_tokens)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=numbers)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        return self.scores(self.tokens(ids).cumsum(dim=1))


@pytest.fixture(scope="session")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture(scope="session", params=list(CONFIGS))
def any_decoder(request: pytest.FixtureRequest, tokenizer: transformers.PreTrainedTokenizerFast) -> nn.Module:
    return decoder(request.param, tokenizer)


@pytest.fixture(scope="session")
def small(tokenizer: transformers.PreTrainedTokenizerFast) -> SimpleNamespace:
    """One decoder, and what builds others."""
    return SimpleNamespace(model=decoder("llama", tokenizer), decoder=decoder, words=word_tokenizer)


@pytest.fixture(scope="session")
def linear(tokenizer: transformers.PreTrainedTokenizerFast) -> SumOfWords:
    return SumOfWords(len(tokenizer))
