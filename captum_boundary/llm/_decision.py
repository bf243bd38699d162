r"""The decision of a language model between two answers, as two scores of the prompt's embeddings.

For a prompt with embeddings :math:`e` and answers :math:`a` and :math:`b`, the margin is

.. math:: f(e) = \log p(a \mid e) - \log p(b \mid e),

which is positive where the model prefers :math:`a`. What both answers begin with cancels, and is part of the prompt.
Where a single token is left of both, the difference of log-probabilities is that of two logits of one position. Both
scores are kept apart, since rounding is relative to their size and not to that of the difference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_boundary.llm._embedded_model import EmbeddedModel

__all__ = ["AnswerDecision", "Decision", "TokenDecisions", "decision_between"]


class Decision(nn.Module):
    """Scores ``(N, 2)`` of target and rival, of the embeddings ``(N, M, E)`` of those tokens that may move.

    Several decisions about one prompt have numbers, given as an argument ``(N,)``. Captum's layer methods find the
    embeddings at the module ``embeddings``.
    """

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
        raise NotImplementedError

    def difference(self, embeddings: Tensor, index: Tensor) -> Tensor:
        """The score of the target less that of the rival, ``(N,)``, in float32 or better."""
        scores: Tensor = self(embeddings, index)
        target, rival = (scores.float() if _is_half(scores) else scores).unbind(dim=1)
        return target - rival

    def positions(self, index: Tensor) -> Tensor:
        """Where in the whole sequence the answers of decisions ``(N,)`` part."""
        raise NotImplementedError

    def whole(self, embeddings: Tensor) -> Tensor:
        """Embeddings ``(N, L, E)`` of the prompt, held tokens among them, and of what follows it."""
        rows = self._all.expand(len(embeddings), -1, -1)
        where = self._movable.nonzero().flatten()
        return rows.index_copy(1, where, embeddings.to(rows.dtype))

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

    @property
    def n_decisions(self) -> int:
        return len(self._targets)

    @property
    def rows_at_once(self) -> int:
        return self._embedded.rows_at_once(len(self._ids), self.n_decisions)

    def positions(self, index: Tensor) -> Tensor:
        return len(self._ids) - self.n_decisions + index

    def forward(self, embeddings: Tensor, index: Tensor) -> Tensor:
        n = self.n_decisions
        logits = self._embedded.logits(self.whole(self.embeddings(embeddings)), self._ids, n)
        own = logits[torch.arange(len(logits), device=logits.device), index.to(logits.device)]
        pairs = torch.stack([self._targets[index], self._rivals[index]], dim=1).to(own.device)
        return own.gather(1, pairs)


class AnswerDecision(Decision):
    """One answer of several tokens against another, of any lengths, after what both begin with."""

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
        self._fed = embedded.embed(answers[:, :-1])  # the last token is predicted, and predicts nothing

    @property
    def rows_at_once(self) -> int:
        n_last = self._answers.shape[1]
        return max(1, self._embedded.rows_at_once(len(self._ids) + n_last, n_last) // 2)

    def positions(self, index: Tensor) -> Tensor:
        return torch.full_like(index, len(self._ids) - 1)

    def forward(self, embeddings: Tensor, index: Tensor) -> Tensor:
        prompts = self.whole(self.embeddings(embeddings))
        n = len(prompts)
        # Attention is causal, so that what is padded on the right of the shorter answer changes nothing before it.
        both = [torch.cat([prompts, fed.expand(n, -1, -1)], dim=1) for fed in self._fed]
        ids = torch.cat([self._ids.expand(2, -1), self._answers[:, :-1]], dim=1)
        n_last = self._answers.shape[1]
        logits = self._embedded.logits(torch.cat(both), ids.repeat_interleave(n, dim=0), n_last)
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
