r"""Real tokens in place of those of the prompt that flip a decision.

A boundary point of a prompt is no text. At the point where token :math:`i` alone has reached the boundary, the decision
is linearized, and every token :math:`v` of the vocabulary has a prediction,

.. math:: f(e_{i \to v}) \approx f(p) + \nabla f(p) \cdot (e_{i \to v} - p).

The best candidates are evaluated, all in one batch, and only what flips the decision counts. HotFlip
(https://arxiv.org/abs/1712.06751) does so with the slope at the prompt itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_boundary._core.batch_sizes import slices
from captum_boundary.llm._decision import Decision
from captum_boundary.llm._text import Prompt, token_texts
from captum_boundary.llm.result import Substitution

__all__ = ["Predictions", "Vocabulary", "find_substitutions", "predictions_at"]

# Of the candidates of a batch, the share that are single substitutions where pairs may follow.
_SINGLES = 0.75
_BEST_SINGLES = 8  # from which pairs are made


class Vocabulary:
    """All tokens, their embeddings, and which of them may stand in the place of which."""

    def __init__(self, tokenizer: Any, weight: Tensor) -> None:
        self.tokenizer = tokenizer
        n_tokens = min(len(tokenizer), len(weight))
        self.weight = weight[:n_tokens].detach().float()
        self.texts = [str(text) for text in tokenizer.convert_ids_to_tokens(list(range(n_tokens)))]
        kinds: dict[tuple[bool, ...], int] = {}
        self.kinds = torch.tensor([kinds.setdefault(_kind(text), len(kinds)) for text in self.texts])
        self._ids_of: dict[str, list[int]] = {}
        for index, text in enumerate(self.texts):
            self._ids_of.setdefault(_word(text), []).append(index)
        self._is_special = torch.zeros(n_tokens, dtype=torch.bool)
        special = {*getattr(tokenizer, "all_special_ids", ()), *getattr(tokenizer, "added_tokens_decoder", ())}
        self._is_special[[index for index in special if index < n_tokens]] = True

    def allowed(self, token: int, forbidden: set[str]) -> Tensor:
        """Which tokens ``(V,)`` may take the place of a token: others of its kind, apart from forbidden words."""
        if token >= len(self.texts):  # of a model with more embeddings than its tokenizer has tokens
            return torch.zeros_like(self._is_special)
        allowed = (self.kinds == self.kinds[token]) & ~self._is_special
        for word in {*forbidden, _word(self.texts[token])}:
            allowed[self._ids_of.get(word, [])] = False
        return allowed

    def words_of(self, ids: Tensor) -> set[str]:
        """The words of tokens, whatever their case and the spaces around them."""
        return {_word(self.texts[index]) for index in ids.tolist() if index < len(self.texts)} - {""}


def _word(text: str) -> str:
    return text.strip(" Ġ▁\n\t").lower()


def _kind(text: str) -> tuple[bool, ...]:
    """Whether a token begins a word, and whether it is made of letters or digits."""
    word = text.strip(" Ġ▁")
    return text[:1] in (" ", "Ġ", "▁"), text.startswith("##"), word.isalpha(), word.isdigit()


class Predictions(NamedTuple):
    """For each token that may move, the decision where another embedding takes its place: ``value + slope . other``."""

    value: Tensor  # (M,)
    slope: Tensor  # (M, E)

    @classmethod
    def cat(cls, parts: Sequence[Predictions]) -> Predictions:
        """Those of several parts of a prompt, one after the other."""
        return cls(*map(torch.cat, zip(*parts, strict=True)))


def predictions_at(decision: Decision, points: Tensor, groups: Tensor) -> Predictions:
    """Predictions from ``points`` ``(G, M, E)``, where each of the ``groups`` ``(M,)`` moved alone.

    Where a group could not flip the decision, that is the prompt itself.
    """
    x, numbers = decision.moving[0].float(), torch.arange(len(groups), device=groups.device)
    values, slopes = [], []
    for part in torch.split(points, decision.rows_at_once):
        with torch.inference_mode(False), torch.enable_grad():
            leaf = part.detach().clone().requires_grad_()
            score = decision.difference(leaf, _first(leaf))
            slope = torch.autograd.grad(score.sum(), leaf)[0].float()
        values.append(score.detach().float() + ((x - part.float()) * slope).sum(dim=(1, 2)))
        slopes.append(slope)
    # With g the slope at p: f(p) + g . (e - p), less what the token's own embedding has in it, g_i . e_i.
    own = torch.cat(slopes)[groups, numbers]
    return Predictions(torch.cat(values)[groups] - (own * x).sum(dim=1), own)


@dataclass
class _Search:
    """What is known about one decision."""

    decision: Decision
    sign: float
    ids: Tensor  # (M,) of the tokens that may move

    def scores(self, replacements: list[dict[int, int]]) -> Tensor:
        """Signed logits ``(R,)`` of prompts with some of their tokens replaced: ``{place: token}``."""
        parts = []
        for batch in slices(len(replacements), self.decision.rows_at_once):
            rows = torch.stack([self.embeddings(replaced) for replaced in replacements[batch]])
            with torch.no_grad():
                parts.append(self.decision.difference(rows, _first(rows)).float().cpu())
        return torch.cat(parts)

    def embeddings(self, replaced: dict[int, int]) -> Tensor:
        """Embeddings ``(M, E)`` of the tokens that may move, some of them replaced."""
        x = self.decision.moving[0].clone()
        x[list(replaced)] = self.decision.embed(torch.tensor(list(replaced.values())))
        return x


def find_substitutions(
    decision: Decision,
    predictions: Predictions,
    prompt: Prompt,
    vocabulary: Vocabulary,
    forbidden: set[str],
    n_candidates: int,
) -> list[Substitution]:
    """Substitutions that flip a decision, at most the nearest for each token, the nearest first.

    Where no single substitution flips the decision, pairs are tried.
    """
    x = decision.moving
    with torch.no_grad():
        start = float(decision.difference(x, _first(x)))
    log_p = _log_probabilities(decision, x[0])
    search = _Search(decision, -1.0 if start < 0 else 1.0, prompt.ids[prompt.movable])
    singles = _single_candidates(search, predictions, prompt, vocabulary, forbidden, log_p, n_candidates)
    n_singles = max(1, int(_SINGLES * n_candidates)) if n_candidates > 1 and len(search.ids) > 1 else n_candidates
    tried = singles[:n_singles]
    scores = search.sign * search.scores(tried) if tried else torch.zeros(0)
    if len(tried) > 0 and not (scores < 0).any() and n_candidates > len(tried):
        pairs = _pair_candidates(tried, scores, n_candidates - len(tried))
        if pairs:
            tried, scores = tried + pairs, torch.cat([scores, search.sign * search.scores(pairs)])
    elif n_candidates > len(tried) and len(singles) > len(tried):
        more = singles[len(tried) : n_candidates]
        tried, scores = tried + more, torch.cat([scores, search.sign * search.scores(more)])
    flips = [(replaced, float(score)) for replaced, score in zip(tried, scores, strict=True) if score < 0]
    return _described(search, _nearest_for_each_place(search, flips), prompt, vocabulary, log_p)


def _single_candidates(
    search: _Search,
    predictions: Predictions,
    prompt: Prompt,
    vocabulary: Vocabulary,
    forbidden: set[str],
    log_p: Tensor,
    n_candidates: int,
) -> list[dict[int, int]]:
    """The best candidates of every token in turn, so that each has its share of any number of them."""
    x = search.decision.moving[0].float()
    positions = prompt.movable.nonzero().flatten().tolist()
    weight = vocabulary.weight.to(x.device)
    ranked = []
    for place, token in enumerate(search.ids.tolist()):
        predicted = (search.sign * (predictions.value[place] + weight @ predictions.slope[place])).cpu()
        predicted[~vocabulary.allowed(token, forbidden)] = torch.inf
        distance = torch.linalg.vector_norm(weight - x[place], dim=1).cpu()
        in_context = log_p[positions[place] - 1] if positions[place] > 0 else None
        ranked.append(_ranked(predicted, distance, in_context, n_candidates))
    rounds = max(map(len, ranked), default=0)
    return [
        {place: tokens[turn]} for turn in range(rounds) for place, tokens in enumerate(ranked) if turn < len(tokens)
    ]


def _ranked(predicted: Tensor, distance: Tensor, log_p: Tensor | None, n_candidates: int) -> list[int]:
    """Tokens by turns: predicted to flip the decision most, and the nearest and the likeliest predicted to flip it."""
    n = min(n_candidates, int(predicted.isfinite().sum()))
    lists = [predicted.topk(n, largest=False).indices.tolist()]
    flips = predicted < 0
    n_flips = min(n, int(flips.sum()))
    lists.append(torch.where(flips, distance, torch.inf).topk(n_flips, largest=False).indices.tolist())
    if log_p is not None:
        lists.append(torch.where(flips, log_p[: len(predicted)], -torch.inf).topk(n_flips).indices.tolist())
    by_turns = (tokens[turn] for turn in range(n) for tokens in lists if turn < len(tokens))
    return list(dict.fromkeys(by_turns))[:n]


def _pair_candidates(tried: list[dict[int, int]], scores: Tensor, n_pairs: int) -> list[dict[int, int]]:
    """Pairs of the singles that came nearest to a flip, at different places."""
    best = [tried[row] for row in scores.argsort()[:_BEST_SINGLES].tolist()]
    pairs = [{**first, **second} for k, second in enumerate(best) for first in best[:k] if not first.keys() & second]
    return pairs[:n_pairs]


def _nearest_for_each_place(
    search: _Search, flips: list[tuple[dict[int, int], float]]
) -> list[tuple[dict[int, int], float, float]]:
    x = search.decision.moving[0]
    nearest: dict[tuple[int, ...], tuple[dict[int, int], float, float]] = {}
    for replaced, score in flips:
        distance = float(torch.linalg.vector_norm(search.embeddings(replaced) - x))
        places = tuple(sorted(replaced))
        if places not in nearest or distance < nearest[places][2]:
            nearest[places] = replaced, score, distance
    return sorted(nearest.values(), key=lambda flip: flip[2])


def _described(
    search: _Search,
    flips: list[tuple[dict[int, int], float, float]],
    prompt: Prompt,
    vocabulary: Vocabulary,
    log_p: Tensor,
) -> list[Substitution]:
    positions = prompt.movable.nonzero().flatten().tolist()
    place_of_answer = search.decision.position
    before = _log_likelihood(log_p, prompt.ids)
    tokenizer, described = vocabulary.tokenizer, []
    for replaced, score, distance in flips:
        ids, places = prompt.ids.clone(), sorted(replaced)
        where = [positions[place] for place in places]
        ids[where] = torch.tensor([replaced[place] for place in places])
        new_log_p = _log_probabilities(search.decision, search.embeddings(replaced))
        described.append(
            Substitution(
                positions=tuple(where),
                tokens=tuple(token_texts(tokenizer, prompt.ids[where])),
                replacements=tuple(token_texts(tokenizer, ids[where])),
                replacement_ids=tuple(replaced[place] for place in places),
                distance=distance,
                score=search.sign * score,
                log_likelihood_change=_log_likelihood(new_log_p, ids) - before,
                prompt=str(tokenizer.decode(ids.tolist())),
                says=str(tokenizer.decode([int(new_log_p[place_of_answer].argmax())])),
            )
        )
    return described


@torch.no_grad()
def _log_probabilities(decision: Decision, embeddings: Tensor) -> Tensor:
    """Of all tokens, after each of a prompt with some embeddings ``(M, E)``: ``(L, V)``, on the CPU."""
    return decision.all_logits(embeddings[None])[0].float().log_softmax(dim=1).cpu()


def _log_likelihood(log_p: Tensor, ids: Tensor) -> float:
    """Of the tokens of a prompt ``(L,)``, given the first."""
    return float(log_p[: len(ids) - 1].gather(1, ids[1:, None]).sum())


def _first(rows: Tensor) -> Tensor:
    """The number of a decision that is alone, for each row."""
    return torch.zeros(len(rows), dtype=torch.long, device=rows.device)
