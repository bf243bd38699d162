r"""The decision of a language model between two answers, as two scores of the prompt's embeddings.

For a prompt with embeddings :math:`e` and answers :math:`a` and :math:`b`, the margin is

.. math:: f(e) = \log p(a \mid e) - \log p(b \mid e),

which is positive where the model prefers :math:`a`. What both answers begin with cancels, and is part of the prompt.
Where a single token is left of both, the difference of log-probabilities is that of two logits of one position. Both
scores are kept apart, since rounding is relative to their size and not to that of the difference.

Attention is causal: what a model computes at the tokens before the first that moves is the same for all points. A
decision that keeps it (its keys and values, in the model's own cache) evaluates the other tokens alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from captum_boundary.llm._embedded_model import EmbeddedModel
from captum_boundary.search import BoundaryPoints

__all__ = ["AnswerDecision", "Decision", "TokenDecisions", "decision_between"]

# On a CPU more rows at once save little time, and the fewer there are, the more tokens come before them: groups are
# searched together that begin within so many tokens. On accelerators, memory is the limit.
_TOKENS_ON_CPU = 8
# Keys and values that are kept of a token, in memory of a token that is evaluated.
_SIZE_OF_KEPT = 1 / 8


class Decision(nn.Module):
    """Scores ``(N, 2)`` of target and rival, of the embeddings ``(N, M, E)`` of those tokens that may move.

    Several decisions about one prompt have numbers, given as an argument ``(N,)``. Captum's layer methods find the
    embeddings at the module ``embeddings``.
    """

    _n_sequences = 1  # that pass through the model for each row
    _n_last: int  # positions of which logits are needed
    _n_kept = 0  # first tokens, which are in a cache of the model
    _cache: Any | None = None
    _has_evaluated = True

    def __init__(self, embedded: EmbeddedModel, ids: Tensor, movable: Tensor, following: Tensor) -> None:
        super().__init__()
        self.model = embedded.model  # whose mode is that of this module
        self.embeddings = nn.Identity()
        self.training = embedded.model.training
        self._embedded = embedded
        self._ids = torch.cat([ids, following]).to(embedded.device)
        self._prompt_length = len(ids)
        self._movable = movable.to(embedded.device)
        self._all = embedded.embed(self._ids)

    @property
    def moving(self) -> Tensor:
        """Embeddings ``(1, M, E)`` of the tokens that may move."""
        return self._all[: self._prompt_length][self._movable][None]

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings ``(..., E)`` of token ids."""
        return self._embedded.embed(ids)

    @property
    def n_decisions(self) -> int:
        """How many decisions there are."""
        return 1

    @property
    def rows_at_once(self) -> int:
        """How many rows fit into memory."""
        return self._rows_after(self._n_kept)

    def _rows_after(self, n_kept: int) -> int:
        length = self._length + int((_SIZE_OF_KEPT - 1) * n_kept)
        return max(1, self._embedded.rows_at_once(length, self._n_last) // self._n_sequences)

    @property
    def _length(self) -> int:
        """Tokens of the longest sequence that passes through the model."""
        return len(self._ids)

    def alone(self, number: int) -> Decision:
        """The decision of that number, as the only one."""
        return self

    def parts(self, groups: Tensor) -> Iterator[tuple[Decision, Tensor]]:
        """The decision where some groups ``(M,)`` of tokens may move, first ones first, and the groups of each part.

        A part has as many groups as make good use of one pass, so that what comes before them need not be evaluated.
        """
        where, start = self._movable.nonzero().flatten(), 0
        while start < len(groups):
            n_rows = self._rows_after(int(where[start]))
            own = groups[start:] - groups[start]
            if own.device.type == "cpu":
                n_rows = min(n_rows, int(own[:_TOKENS_ON_CPU][-1]) + 1)
            stop = start + int((own < n_rows).sum())
            part = copy.copy(self)
            part._movable = torch.zeros_like(self._movable).index_fill(0, where[start:stop], True)
            yield part, groups[start:stop]
            start = stop

    def keeping_first_tokens(self) -> Decision:
        """The same decision, which evaluates what comes before the first token that moves once; itself where it cannot.

        Caches differ: scores and slopes at the prompt must be the same up to rounding.
        """
        kept = copy.copy(self)
        kept._n_kept = n = int(self._movable.nonzero()[0])
        try:
            kept._cache = self._embedded.cache_of(self._all[:n], self._ids[:n])
            if kept._cache is None or not self._is_the_same(kept):
                return self
        except Exception:  # whatever a model may raise at a cache
            return self
        # A search evaluates its inputs again: it is to see by how much the model itself says something else of them.
        kept._has_evaluated = False
        return kept

    def _is_the_same(self, other: Decision) -> bool:
        # Norms are in float32 in many models, whatever the rest is in.
        tolerance = max(torch.finfo(dtype).eps for dtype in (torch.float32, self._embedded.weight.dtype)) ** 0.5
        pairs = zip(self._linearized(), other._linearized(), strict=True)
        return all(bool((a - b).norm() <= tolerance * a.norm()) for a, b in pairs)

    def _linearized(self) -> tuple[Tensor, Tensor]:
        """Scores and slopes of the first and the last decision at the prompt."""
        leaf = self.moving.repeat(2, 1, 1).requires_grad_()
        with torch.enable_grad():
            scores = self(leaf, torch.tensor([0, self.n_decisions - 1], device=leaf.device))
            target, rival = scores.sum(dim=0)
            return scores.detach().float(), torch.autograd.grad(target - rival, leaf)[0]

    def agrees_with(self, boundary: BoundaryPoints, index: Tensor) -> bool:
        """Whether boundary points of decisions ``(N,)`` lie on the side on which they were found."""
        points: Any = boundary.points
        parts = zip(*(values.split(self.rows_at_once) for values in (points, index)), strict=True)
        with torch.no_grad():
            difference = torch.cat([self.difference(*part) for part in parts])
        return bool((difference * boundary.margin > 0)[boundary.found].all())

    def difference(self, embeddings: Tensor, index: Tensor) -> Tensor:
        """The score of the target less that of the rival, ``(N,)``, in float32 or better."""
        scores: Tensor = self(embeddings, index)
        target, rival = (scores.float() if _is_half(scores) else scores).unbind(dim=1)
        return target - rival

    @property
    def position(self) -> int:
        """After which token of the whole sequence the answers of the last decision part."""
        return len(self._ids) - 1

    def whole(self, embeddings: Tensor) -> Tensor:
        """Embeddings ``(N, L, E)`` of the prompt, held tokens among them, and of what follows it."""
        rows = self._all.expand(len(embeddings), -1, -1)
        where = self._movable.nonzero().flatten()
        return rows.index_copy(1, where, embeddings.to(rows.dtype))

    def _logits(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Logits ``(N, n_last, V)`` of the last positions of whole sequences ``(N, L, E)``."""
        n, cache = (self._n_kept, self._cache) if self._has_evaluated else (0, None)
        self._has_evaluated = True
        return self._embedded.logits(rows[:, n:], ids[..., n:], self._n_last, cache)

    def all_logits(self, embeddings: Tensor) -> Tensor:
        """Logits ``(N, L, V)`` of all positions."""
        return self._embedded.logits(self.whole(embeddings), self._ids, len(self._ids))


class TokenDecisions(Decision):
    """One token against another at some positions of an answer that follows the prompt."""

    def __init__(
        self, embedded: EmbeddedModel, ids: Tensor, movable: Tensor, following: Tensor, targets: Tensor, rivals: Tensor
    ) -> None:
        """Decisions between the last ``len(targets)`` tokens after ``following`` ``(F,)`` and their rivals."""
        super().__init__(embedded, ids, movable, following)
        self._targets, self._rivals = targets.to(embedded.device), rivals.to(embedded.device)
        self._n_last = len(targets)

    @property
    def n_decisions(self) -> int:
        return len(self._targets)

    def alone(self, number: int) -> Decision:
        if self.n_decisions == 1:
            return self
        ids, own = self._ids[: len(self._ids) - self.n_decisions + number + 1], slice(number, number + 1)
        prompt, following = ids[: self._prompt_length], ids[self._prompt_length :]
        return TokenDecisions(self._embedded, prompt, self._movable, following, self._targets[own], self._rivals[own])

    def forward(self, embeddings: Tensor, index: Tensor) -> Tensor:
        logits = self._logits(self.whole(self.embeddings(embeddings)), self._ids)
        own = logits[torch.arange(len(logits), device=logits.device), index.to(logits.device)]
        pairs = torch.stack([self._targets[index], self._rivals[index]], dim=1).to(own.device)
        return own.gather(1, pairs)


class AnswerDecision(Decision):
    """One answer of several tokens against another, of any lengths, after what both begin with."""

    _n_sequences = 2

    def __init__(
        self, embedded: EmbeddedModel, ids: Tensor, movable: Tensor, following: Tensor, target: Tensor, rival: Tensor
    ) -> None:
        super().__init__(embedded, ids, movable, following)
        length = max(len(target), len(rival))
        answers = torch.zeros(2, length, dtype=torch.long, device=embedded.device)
        self._counts = torch.zeros(2, length, device=embedded.device)
        for row, answer in enumerate((target, rival)):
            answers[row, : len(answer)] = answer
            self._counts[row, : len(answer)] = 1
        self._answers = answers
        self._n_last = length
        self._fed = embedded.embed(answers[:, :-1])  # the last token is predicted, and predicts nothing

    @property
    def _length(self) -> int:
        return len(self._ids) + self._n_last

    def forward(self, embeddings: Tensor, index: Tensor) -> Tensor:
        prompts = self.whole(self.embeddings(embeddings))
        n = len(prompts)
        # Attention is causal, so that what is padded on the right of the shorter answer changes nothing before it.
        both = [torch.cat([prompts, fed.expand(n, -1, -1)], dim=1) for fed in self._fed]
        ids = torch.cat([self._ids.expand(2, -1), self._answers[:, :-1]], dim=1)
        logits = self._logits(torch.cat(both), ids.repeat_interleave(n, dim=0))
        wide = logits.float() if _is_half(logits) else logits
        answers = self._answers.to(wide.device).repeat_interleave(n, dim=0)
        log_p = wide.log_softmax(dim=2).gather(2, answers[..., None]).squeeze(2)
        counts = self._counts.to(wide).repeat_interleave(n, dim=0)
        scores: Tensor = (log_p * counts).sum(dim=1).view(2, n).T
        return scores.to(logits.dtype)


def decision_between(
    embedded: EmbeddedModel, ids: Tensor, movable: Tensor, target: Tensor, rival: Tensor
) -> TokenDecisions | AnswerDecision:
    """The decision between two answers, of which neither begins with the other."""
    shared = 0
    while target[shared] == rival[shared]:
        shared += 1
    following, target, rival = target[:shared], target[shared:], rival[shared:]
    if len(target) == len(rival) == 1:
        return TokenDecisions(embedded, ids, movable, following, target, rival)
    return AnswerDecision(embedded, ids, movable, following, target, rival)


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)
