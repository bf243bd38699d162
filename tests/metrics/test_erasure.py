"""Comprehensiveness and sufficiency against a slow replica, by hand, and what must not matter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.metrics import comprehensiveness, sufficiency
from captum_boundary.metrics.erasure import SHARES

both = pytest.mark.parametrize("measure", [comprehensiveness, sufficiency])
N, L = 5, 9
NUMBERS = torch.Generator().manual_seed(0)
IDS = torch.randint(1, 20, (N, L), generator=NUMBERS)
LENGTHS = torch.tensor([9, 7, 3, 1, 5])
REAL = torch.arange(L) < LENGTHS[:, None]
IDS[~REAL] = 0
MAPS = torch.randn(N, L, generator=NUMBERS).double()


class Texts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.last = nn.Embedding(20, 4, padding_idx=0), nn.Linear(4, 3)

    def forward(self, ids: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        real = (ids != 0)[..., None]
        mean = (self.tokens(ids) * real).sum(1) / real.sum(1).clamp_min(1)
        return self.last(torch.tanh(mean)) * scale


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return Texts().double().eval()


def replica(model: nn.Module, shares: tuple[float, ...], keeps: bool) -> Tensor:
    """Token after token, text after text."""
    falls = []
    for ids, maps, length in zip(IDS, MAPS, LENGTHS.tolist(), strict=True):
        whole = model(ids[None]).softmax(1)[0]
        label = whole.argmax()
        order = sorted(range(length), key=lambda place: -maps[place])
        total = 0.0
        for share in shares:
            chosen = order[: math.ceil(share * length)]
            changed = [0 if place >= length or (place in chosen) != keeps else int(ids[place]) for place in range(L)]
            total += whole[label] - model(torch.tensor([changed])).softmax(1)[0, label]
        falls.append(total / len(shares))
    return torch.stack(falls).detach()


@pytest.mark.parametrize("shares", [SHARES, (0.3,), (1.0, 0.4)])
def test_as_a_replica_that_goes_token_by_token(shares, model):
    fall = comprehensiveness(model, IDS, MAPS, mask=REAL, shares=shares)
    torch.testing.assert_close(fall, replica(model, shares, keeps=False))
    fall = sufficiency(model, IDS, MAPS, mask=REAL, shares=shares)
    torch.testing.assert_close(fall, replica(model, shares, keeps=True))


def test_by_hand():
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [8.0, 0.0]])
    model = lambda ids: nn.functional.embedding(ids, weight).sum(dim=1)  # noqa: E731
    ids = torch.tensor([[1, 2, 3, 4]])
    best, worst = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    options = {"shares": (0.25, 0.5), "score": "output"}
    assert comprehensiveness(model, ids, best, **options).tolist() == [(8 + 12) / 2]
    assert comprehensiveness(model, ids, worst, **options).tolist() == [(1 + 3) / 2]
    assert sufficiency(model, ids, best, **options).tolist() == [(7 + 3) / 2]
    assert sufficiency(model, ids, worst, **options).tolist() == [(14 + 12) / 2]


@both
def test_what_does_not_matter(measure, model):
    options = {"mask": REAL}
    expected = measure(model, IDS, MAPS, **options)
    wide = torch.stack([MAPS - 1, torch.ones_like(MAPS)], dim=2)
    torch.testing.assert_close(measure(model, IDS, wide, **options), expected)
    torch.testing.assert_close(measure(model, IDS, 3 * MAPS + 1, **options), expected)
    padded = MAPS.masked_fill(~REAL, 100.0)
    torch.testing.assert_close(measure(model, IDS, padded, **options), expected)
    torch.testing.assert_close(measure(model, IDS, MAPS, model(IDS).argmax(1), **options), expected)
    alone = [measure(model, IDS[[row]], MAPS[[row]], mask=REAL[[row]]) for row in range(N)]
    torch.testing.assert_close(torch.cat(alone), expected)
    scale = torch.ones(N, 1).double()
    torch.testing.assert_close(measure(model, IDS, MAPS, None, scale, **options), expected)


@both
def test_missing_attributions_are_missing_numbers(measure, model):
    maps = MAPS.clone()
    maps[1, 2] = torch.nan
    assert measure(model, IDS, maps, mask=REAL).isnan().tolist() == [False, True, False, False, False]
    padded = MAPS.masked_fill(~REAL, torch.nan)
    torch.testing.assert_close(measure(model, IDS, padded, mask=REAL), measure(model, IDS, MAPS, mask=REAL))


@both
def test_bad_arguments_say_how_to_mend_them(measure, model):
    with pytest.raises(BoundaryTypeError, match=r"token ids, but it is torch\.float32\. For features that are numbers"):
        measure(model, IDS.float(), MAPS)
    with pytest.raises(BoundaryValueError, match=r"their shapes are \(5, 9\) and \(5, 8\)"):
        measure(model, IDS, MAPS[:, :8])
    with pytest.raises(BoundaryValueError, match=r"mask must have the shape of inputs, \(5, 9\), but it is \(5, 1\)"):
        measure(model, IDS, MAPS, mask=REAL[:, :1])
    with pytest.raises(BoundaryValueError, match=r"mask leaves no token in row\(s\) \[2\]"):
        measure(model, IDS, MAPS, mask=REAL & (torch.arange(N) != 2)[:, None])
    with pytest.raises(BoundaryValueError, match="shares must hold numbers above 0 and up to 1"):
        measure(model, IDS, MAPS, shares=(0.1, 1.5))
    with pytest.raises(BoundaryValueError, match="score must be 'probability' or 'output'"):
        measure(model, IDS, MAPS, score="logit")


def test_a_share_of_tokens_is_not_one_more_for_rounding():
    """0.3 of 50 is 15, though not in single precision."""
    ids = torch.ones(1, 50, dtype=torch.long)
    count = lambda ids: ids.sum(dim=1, keepdim=True) * torch.tensor([[1.0, 0.0]])  # noqa: E731
    maps = torch.arange(50.0)[None]
    assert comprehensiveness(count, ids, maps, shares=(0.3,), score="output").item() == 15
