"""Sentences of film reviews with the ratings that people gave them.

The movie snippets of Hutto and Gilbert, "VADER" (ICWSM 2014), sentences of the reviews of Pang and Lee (2004) with mean
ratings of twenty people from -4 to 4. They are part of the source distribution of vaderSentiment 3.3.2 (MIT licence):

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2 --dest $CAPTUM_BOUNDARY_DATA/text
"""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from zoo import DataNotSetError, data_folder

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

DOWNLOAD = "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2"

PADDING, UNKNOWN = 0, 1
LEAST_RATING = 1.0  # in size; sentences that people do not agree upon, or find neutral, are left out
LENGTHS = (6, 40)  # words
N_TEST = 1000


@dataclass(frozen=True)
class Reviews:
    """Token ids ``(N, L)``, padded with zeros, and labels ``(N,)``: 1 for favorable reviews."""

    words: list[str]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def snippets() -> list[tuple[str, float]]:
    """All sentences with their ratings."""
    archive = data_folder() / "text" / ARCHIVE
    if not archive.exists():
        raise DataNotSetError(f"There is no {archive}. To have it: {DOWNLOAD} --dest {archive.parent}")
    text = _extract(_extract(archive.read_bytes(), INNER), FILE).decode("utf-8", errors="replace")
    rows = (line.split("\t", 2) for line in text.splitlines() if line.count("\t") >= 2)
    return [(sentence, float(rating)) for _, rating, sentence in rows]


def tokenized(sentence: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?|[!?]", sentence.lower())


def load_reviews() -> Reviews:
    """The same division into training and test data on every call."""
    rated = [(tokenized(sentence), rating) for sentence, rating in snippets() if abs(rating) >= LEAST_RATING]
    rated = [(tokens, rating) for tokens, rating in rated if LENGTHS[0] <= len(tokens) <= LENGTHS[1]]
    order = torch.randperm(len(rated), generator=torch.Generator().manual_seed(0)).tolist()
    rated = [rated[index] for index in order]
    counts = Counter(token for tokens, _ in rated[N_TEST:] for token in tokens)
    words = ["<pad>", "<unknown>", *sorted(word for word, count in counts.items() if count > 1)]
    index = {word: position for position, word in enumerate(words)}

    def encoded(part: list[tuple[list[str], float]]) -> tuple[Tensor, Tensor]:
        ids = torch.full((len(part), LENGTHS[1]), PADDING)
        for row, (tokens, _) in enumerate(part):
            ids[row, : len(tokens)] = torch.tensor([index.get(token, UNKNOWN) for token in tokens])
        return ids, torch.tensor([int(rating > 0) for _, rating in part])

    return Reviews(words, train=encoded(rated[N_TEST:]), test=encoded(rated[:N_TEST]))


def _extract(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as files:
        file = files.extractfile(name)
        if file is None:
            raise DataNotSetError(f"The archive holds no {Path(name).name}.")
        return file.read()
