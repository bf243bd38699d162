"""Three small classifiers of texts, trained within minutes on one core.

All take token ids ``(N, L)`` and a mask of real tokens ``(N, L)``, and return logits of two classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from text_data import PADDING
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 64
BATCH_SIZE = 64


class BagOfWords(nn.Module):
    """The mean of the embeddings, and two layers."""

    def __init__(self, n_words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_words, WIDTH, padding_idx=PADDING)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(_mean(self.embedding(ids), mask))


class Recurrent(nn.Module):
    """An LSTM in both directions, and the mean of what it returns."""

    def __init__(self, n_words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_words, WIDTH, padding_idx=PADDING)
        self.dropout = nn.Dropout(0.5)
        self.lstm = nn.LSTM(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.dropout(self.embedding(ids)))
        return self.head(self.dropout(_mean(outputs, mask)))


class Transformer(nn.Module):
    """BERT of two layers, from a configuration of transformers."""

    def __init__(self, n_words: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=n_words,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * WIDTH,
            max_position_embeddings=64,
            hidden_dropout_prob=0.2,
            num_labels=2,
        )
        self.bert = BertForSequenceClassification(config)

    @property
    def embedding(self) -> nn.Module:
        return self.bert.get_input_embeddings()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.bert(ids, attention_mask=mask.long()).logits


MODELS: dict[str, tuple[Callable[[int], nn.Module], int, float]] = {  # with epochs and rate of learning
    "bag of words": (BagOfWords, 10, 2e-3),
    "LSTM": (Recurrent, 6, 2e-3),
    "transformer": (Transformer, 6, 5e-4),
}


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(values)[..., None]
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


def trained(name: str, n_words: int, ids: Tensor, labels: Tensor, seed: int = 0) -> nn.Module:
    """The model of that name, trained and in evaluation mode."""
    torch.manual_seed(seed)
    build, n_epochs, rate = MODELS[name]
    model = build(n_words)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    n_steps = n_epochs * (len(ids) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=n_steps)
    for _ in range(n_epochs):
        for rows in torch.randperm(len(ids))[: len(ids) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            loss = functional.cross_entropy(model(ids[rows], ids[rows] != PADDING), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)


def accuracy(model: nn.Module, ids: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        scores = torch.cat([model(part, part != PADDING) for part in ids.split(200)])
    return float((scores.argmax(dim=1) == labels).double().mean())
