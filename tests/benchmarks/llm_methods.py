"""What gives each token of a prompt one number: distances of tokens alone, and methods of Captum's.

Those of Captum's LLMGradientAttribution and LLMAttribution are told as such: the log-probability of the target alone,
with token 0 as the baseline of Integrated Gradients and of FeatureAblation. All others see the difference of the two
answers' logits, as contrastive explanations do (https://arxiv.org/abs/2202.10419).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, Saliency
from torch import Tensor, nn

from captum_boundary.llm import LLMBoundaryAttribution, LLMBoundaryResult
from captum_boundary.llm._substitutions import Predictions
from captum_boundary.search import BoundaryPoints, BoundarySearch, Proposal, SearchProblem

BUDGET = 20  # gradients of the search over a whole prompt


@dataclass(frozen=True)
class Settings:
    """How much is spent on a prompt, which the real model allows less of."""

    token_budget: int  # gradients for each token alone
    n_steps: int  # of BIG, after the search
    n_path_steps: int  # of other paths


REAL = Settings(token_budget=6, n_steps=8, n_path_steps=BUDGET + 8)
RULE = Settings(token_budget=10, n_steps=16, n_path_steps=16)
ROWS = 16  # at once


class Decision:
    """A prompt between two answers of one token, as functions of its embeddings; what is evaluated is counted."""

    def __init__(self, model: nn.Module, ids: Tensor, target: int, rival: int) -> None:
        self.model, self.ids, self.target, self.rival = model, ids, target, rival
        self.weight = model.get_input_embeddings().weight.detach()
        self.mean = self.weight.mean(0)
        self.x = self.weight[ids][None]
        self.whole = float(self.scores(self.x))

    def logits(self, x: Tensor) -> Tensor:
        return self.model(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits[:, 0]

    def score(self, x: Tensor) -> Tensor:
        logits = self.logits(x)
        return logits[:, self.target] - logits[:, self.rival]

    def log_p(self, x: Tensor) -> Tensor:
        return self.logits(x).log_softmax(1)[:, self.target]

    @torch.no_grad()
    def scores(self, x: Tensor, function: str = "score") -> Tensor:
        return torch.cat([getattr(self, function)(part) for part in x.split(ROWS)])

    def replaced(self, keep: Tensor, baseline: Tensor | None = None) -> Tensor:
        """The prompt where ``keep`` ``(N, L)``, else the baseline, which is the mean embedding."""
        return torch.where(keep[..., None], self.x, self.mean if baseline is None else baseline)


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """Sequences that are evaluated without and with a gradient."""
    counts = [0, 0]

    def count(_: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> None:
        x = kwargs.get("inputs_embeds")
        counts[int(x is not None and x.requires_grad)] += 1 if x is None else len(x)

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


class KnownPoint(BoundarySearch):
    """What was found before."""

    def __init__(self, forward_func: nn.Module, point: Tensor) -> None:
        super().__init__(forward_func)
        self.point = point

    def propose(self, problem: SearchProblem) -> Proposal:
        return Proposal(self.point[None], is_final=True)


class RecordingAttribution(LLMBoundaryAttribution):
    """Takes the boundary point of the whole prompt ``(L, E)`` as found before, and searches for tokens alone.

    What their boundary points predict is kept, and the forwards and gradients that they cost.
    """

    point: Tensor
    predictions: Predictions
    costs: list[int]

    def _search(self, decision: Any, budget: int) -> BoundarySearch:
        if budget == self.budget:
            return KnownPoint(decision, self.point)
        search = super()._search(decision, budget)
        find = search.find

        def recorded(*args: Any, **kwargs: Any) -> BoundaryPoints:
            points = find(*args, **kwargs)
            self.costs[0] += int(points.n_forward.sum())
            self.costs[1] += int(points.n_gradient.sum())
            return points

        search.find = recorded
        return search

    def _alone(self, *args: Any) -> tuple[Tensor, Predictions]:
        self.costs = [0, 0]
        distance, self.predictions = super()._alone(*args)
        return distance, self.predictions


def occlusion(decision: Decision, function: str = "score", baseline: Tensor | None = None) -> Tensor:
    keep = ~torch.eye(len(decision.ids), dtype=torch.bool)
    return decision.scores(decision.x, function) - decision.scores(decision.replaced(keep, baseline), function)


def resampling(decision: Decision, n_samples: int = 4) -> Tensor:
    """Mean loss where a token is replaced by random real ones."""
    n = len(decision.ids)
    rows = decision.x.repeat(n * n_samples, 1, 1)
    numbers = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, len(decision.weight), (n, n_samples), generator=numbers)
    for place in range(n):
        rows[place * n_samples : (place + 1) * n_samples, place] = decision.weight[tokens[place]]
    return (decision.whole - decision.scores(rows)).view(n, n_samples).mean(1)


def shapley(decision: Decision, n_orders: int = 5) -> Tensor:
    n, total = len(decision.ids), 0
    for seed in range(n_orders):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        keep = torch.zeros(n + 1, n, dtype=torch.bool)
        for step, place in enumerate(order.tolist()):
            keep[step + 1 :, place] = True
        gains = decision.scores(decision.replaced(keep)).diff()
        total = total + torch.zeros(n).index_copy(0, order, gains)
    return total / n_orders


@torch.no_grad()
def rollout(decision: Decision) -> Tensor:
    """Attention rollout (https://arxiv.org/abs/2005.00928) of the last position."""
    kept = decision.model.config._attn_implementation
    decision.model.set_attn_implementation("eager")
    try:
        attentions = decision.model(inputs_embeds=decision.x, use_cache=False, output_attentions=True).attentions
    finally:
        decision.model.set_attn_implementation(kept)
    joint = torch.eye(len(decision.ids))
    for attention in attentions:
        joint = (attention[0].mean(0) + torch.eye(len(joint))) / 2 @ joint
    return joint[-1]


def sensitivity(decision: Decision, n_directions: int = 8) -> Tensor:
    """How much the embedding of each token moves the logits as a whole: norm of the slope of random sums of them."""
    x = decision.x.repeat(n_directions, 1, 1).requires_grad_()
    logits = decision.logits(x)
    numbers = torch.Generator().manual_seed(0)
    directions = torch.randn(logits.shape, generator=numbers) / logits.shape[1] ** 0.5
    (slope,) = torch.autograd.grad(((logits - logits.mean(1, keepdim=True)) * directions).sum(), x)
    return slope.square().sum(2).mean(0).sqrt()


def of_distances(
    decision: Decision, result: LLMBoundaryResult, predictions: Predictions
) -> dict[str, Callable[[], Tensor] | Tensor]:
    """Attributions made of token distances: plain ones, and corrected for tokens to which everything is sensitive."""
    distance, length = result.token_distance[0], (decision.x[0] - decision.mean).norm(dim=1)
    general = sensitivity(decision)
    value, slope = predictions  # of the score, with another token in the place of each
    return {
        "token closeness": result.token_closeness[0],
        "1 / token distance": 1 / distance,
        "length / token distance": decision.x[0].norm(dim=1) / distance,
        "mean embedding / token distance": length / distance,
        "1 / (token distance x sensitivity)": 1 / (distance * general),
        "closeness / sensitivity": result.token_closeness[0] / (general * length),
        "real tokens beyond the boundary": ((value[:, None] + slope @ decision.weight.T) < 0).float().mean(1),
        "slope at own point": decision.whole - value - slope @ decision.mean,
    }


def other_methods(decision: Decision, point: Tensor, settings: Settings) -> dict[str, Callable[[], Tensor]]:
    """What makes attributions by other methods."""
    n = len(decision.ids)
    zero_token = decision.weight[0]

    def over_tokens(method: Any, function: str, **options: Any) -> Callable[[], Tensor]:
        make = method(getattr(decision, function))
        return lambda: make.attribute(decision.x, **options).sum(2)[0]

    path = {"n_steps": settings.n_path_steps, "internal_batch_size": ROWS}
    some = decision.weight[:: max(1, len(decision.weight) // 32)][:, None].expand(-1, n, -1)
    mean = decision.mean.expand_as(decision.x).contiguous()
    return {
        "IG, zero": over_tokens(IntegratedGradients, "score", **path),
        "IG, mean": over_tokens(IntegratedGradients, "score", **path, baselines=mean),
        "GradientShap": over_tokens(GradientShap, "score", baselines=some, n_samples=settings.n_path_steps),
        "Shapley sampling": lambda: shapley(decision),
        "BIG": over_tokens(IntegratedGradients, "score", **path | {"n_steps": settings.n_steps}, baselines=point[None]),
        "Captum LayerIG": over_tokens(
            IntegratedGradients, "log_p", **path, baselines=zero_token.expand_as(decision.x).contiguous()
        ),
        "Captum GradientXActivation": over_tokens(InputXGradient, "log_p"),
        "input x gradient": over_tokens(InputXGradient, "score"),
        "gradient norm": lambda: Saliency(decision.score).attribute(decision.x).norm(dim=2)[0],
        "occlusion": lambda: occlusion(decision),
        "Captum FeatureAblation": lambda: occlusion(decision, "log_p", zero_token),
        "attention rollout": lambda: rollout(decision),
        "random": lambda: torch.rand(n, generator=torch.Generator().manual_seed(int(decision.ids.sum()))),
    }


def others(decision: Decision, point: Tensor, settings: Settings) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Attributions from the boundary ``point`` ``(L, E)`` of the prompt and by other methods, and what they cost."""
    maps, costs = {}, {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)
        warnings.filterwarnings("ignore", message="Input Tensor 0 did not already require gradients")
        for label, method in other_methods(decision, point, settings).items():
            with counted(decision.model) as costs[label]:
                maps[label] = method().detach()
    return maps, costs
