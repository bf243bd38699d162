"""Does a measure of certainty predict which answers change when the prompt is put otherwise?"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from llm_prompts import Case
from numpy.typing import NDArray
from torch import Tensor, nn

from captum_boundary import NearestBoundary

ROWS = 20  # at once
N_TYPOS = 12
N_RESAMPLES = 2000


def typos(text: str) -> list[str]:
    """The prompt with a letter left out, doubled or exchanged with the next one, or the case of a word changed."""
    source, made = random.Random(0), []
    for k in range(N_TYPOS):
        words = text.split(" ")
        place = source.randrange(len(words) - 1)
        word = words[place]
        at = source.randrange(max(1, len(word) - 1))
        words[place] = [
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
            word.swapcase(),
        ][k % 4]
        made.append(" ".join(words))
    return made


class PaddedDecisions(nn.Module):
    """Two scores ``(N, 2)`` for prompts of several lengths, padded on the right, after what matters.

    Rounding is relative to their size, and not to that of their difference, which may be small.
    """

    def __init__(self, model: nn.Module, prompts: list[Tensor], answers: Tensor) -> None:
        super().__init__()
        self.model = model
        self.answers = answers  # (N, 2)
        self.last = torch.tensor([len(ids) - 1 for ids in prompts])
        ids = nn.utils.rnn.pad_sequence(prompts, batch_first=True)
        self.x = model.get_input_embeddings()(ids).detach()
        self.mask = (torch.arange(ids.shape[1]) <= self.last[:, None])[..., None].float()

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        hidden = self.model.model(inputs_embeds=x, use_cache=False).last_hidden_state
        logits: Tensor = self.model.lm_head(hidden[torch.arange(len(rows)), self.last[rows]])
        return logits

    def forward_all(self) -> Tensor:
        """The differences of the scores, ``(N,)``."""
        scores = torch.cat([self(self.x[part], part) for part in torch.arange(len(self.x)).split(ROWS)])
        return scores[:, 0] - scores[:, 1]

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        return self.logits(x, rows).gather(1, self.answers[rows])


def firmness(model: nn.Module, tokenizer: Any, some: list[Case], budget: int) -> list[dict[str, Any]]:
    """Of each prompt: its nearest boundary, other measures of certainty, and which of its variants flip the decision.

    The decision is between the two answers, for the one that the model prefers.
    """
    prompts = [torch.tensor(tokenizer.encode(case.prompt)) for case in some]
    answers = torch.tensor([[tokenizer.encode(text)[0] for text in (case.target, case.rival)] for case in some])
    rows = torch.arange(len(some))
    with torch.no_grad():
        is_right = PaddedDecisions(model, prompts, answers).forward_all() > 0
    preferred = torch.where(is_right[:, None], answers, answers.flip(1))
    decisions = PaddedDecisions(model, prompts, preferred)
    boundary = NearestBoundary(decisions, budget=budget).find(decisions.x, None, rows, mask=decisions.mask)
    leaf = decisions.x.clone().requires_grad_()
    logits = decisions.logits(leaf, rows)
    margin = logits.gather(1, preferred)
    margin = margin[:, 0] - margin[:, 1]
    (slope,) = torch.autograd.grad(margin.sum(), leaf)
    log_p = logits.detach().log_softmax(1)
    measures = []
    for row, case in enumerate(some):
        texts = [*typos(case.prompt), *case.paraphrases]
        variants = [torch.tensor(tokenizer.encode(text)) for text in texts]
        others = PaddedDecisions(model, variants, preferred[row].expand(len(variants), 2))
        with torch.no_grad():
            flips = (others.forward_all() < 0).tolist()
        measures.append(
            {
                "kind": case.kind,
                "prompt": case.prompt,
                "right": bool(is_right[row]),
                "typos": flips[:N_TYPOS],
                "paraphrases": flips[N_TYPOS:],
                "distance": float(boundary.distance[row]),
                "margin": float(margin[row].detach()),
                "slope": float((slope[row] * decisions.mask[row]).norm()),
                "entropy": float(-(log_p[row].exp() * log_p[row]).sum()),
                "costs": [int(boundary.n_forward[row]), int(boundary.n_gradient[row])],
                "point": boundary.points[row, : len(prompts[row])].tolist(),
            }
        )
    return measures


def auc(scores: NDArray[np.float64], flips: list[list[bool]], rows: NDArray[np.int64]) -> float:
    """That a variant that flips is of a prompt with a higher score than one that does not, of some prompts."""
    n_flips = np.array([sum(row) for row in flips])[rows]
    n_others = np.array([len(row) - sum(row) for row in flips])[rows]
    own = scores[rows]
    order = (own[:, None] > own).astype(float) + 0.5 * (own[:, None] == own)
    return float(n_flips @ order @ n_others / max(1, n_flips.sum() * n_others.sum()))


def table_of(measures: dict[str, list[float]], flips: list[list[bool]], reference: str) -> dict[str, dict[str, str]]:
    """AUC of each measure, and its difference from that of the reference, with bootstrap intervals over prompts."""
    source = np.random.default_rng(0)
    draws = [np.arange(len(flips)), *source.integers(len(flips), size=(N_RESAMPLES, len(flips)))]
    values = {
        label: np.array([auc(np.array(scores), flips, rows) for rows in draws]) for label, scores in measures.items()
    }
    return {
        label: {"AUC": _shown(own), f"less {reference}": _shown(own - values[reference])}
        for label, own in values.items()
    }


def _shown(values: NDArray[np.float64]) -> str:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return f"{values[0]:.2f} [{low:.2f}, {high:.2f}]"
