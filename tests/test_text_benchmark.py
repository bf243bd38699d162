"""The benchmark of explanations of texts: its data, its models and its methods, in small."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

NAMES = ("text_data", "text_models", "text")


@pytest.fixture(scope="module")
def texts() -> tuple[Tensor, Tensor]:
    """Sentences of 9 words, of which 2 and 3 make the class, unless both occur; the shorter ones are padded."""
    ids = torch.randint(1, 9, (3000, 8), generator=torch.Generator().manual_seed(0))
    ids[::3, 6:] = 0
    labels = ((ids == 2).sum(1) > (ids == 3).sum(1)).long()
    return ids, labels


def test_sentences_become_tokens(benchmark):
    tokens = benchmark.text_data.tokenized("It isn't ''GOOD'', really -- is it?!")
    assert tokens == ["it", "isn't", "good", "really", "is", "it", "?", "!"]


def test_it_says_how_to_get_the_reviews(benchmark, monkeypatch, tmp_path):
    monkeypatch.setenv("CAPTUM_BOUNDARY_DATA", str(tmp_path))
    with pytest.raises(
        benchmark.text_data.DataNotSetError, match=r"pip download .* vaderSentiment==3\.3\.2 --dest .*text$"
    ):
        benchmark.text_data.load_reviews()


def test_the_reviews(benchmark):
    try:
        reviews = benchmark.text_data.load_reviews()
    except benchmark.text_data.DataNotSetError as error:
        pytest.skip(str(error))
    (train, _), (ids, labels) = reviews.train, reviews.test
    assert len(ids) == benchmark.text_data.N_TEST < len(train)
    assert ids.max() < len(reviews.words)
    assert 0.3 < labels.double().mean() < 0.7
    assert ((ids != 0).sum(1) >= 6).all()


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")  # where no word can be taken away
@pytest.mark.parametrize(
    "name", ["bag of words", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("LSTM", "transformer"))]
)
def test_models_learn_and_all_methods_explain_them(name, benchmark, texts):
    if name == "transformer":
        pytest.importorskip("transformers")
    ids, labels = texts
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(1)
        model = benchmark.text_models.trained(name, 9, ids, labels)
        assert benchmark.text_models.accuracy(model, ids, labels) > 0.7
        for label, explain in benchmark.text.methods().items():
            maps, costs = benchmark.text.explain_all(explain, model, ids[:6])
            assert maps.shape == (6, 8), label
            assert maps.isfinite().any(), label
            if label != "random":
                assert (maps[ids[:6] == 0].nan_to_num(0.0) == 0).all(), label
                assert costs["gradients"] >= 1, label
