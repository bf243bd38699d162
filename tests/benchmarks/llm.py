"""Benchmark of explanations of a language model: prints tables, saves JSON after every prompt.

    python tests/benchmarks/llm.py [--n-of-each 6] [--quick] [--rule]

Prompts (see llm_prompts.py) are facts, sentiment, yes or no, choice of two, and agreement of subject and verb, each
after a short sentence that has nothing to do with it. Those are explained whose right answer SmolLM2-135M prefers.
Every method gives each token one number, whose size counts. Columns:

* occlusion, resampling: rank correlation with the change of the score where a token is replaced by the mean embedding,
  and by random real tokens (mean of 4).
* cause: whether the first token is a word that decides; irrelevant: share of the first three that are of the sentence
  that cannot matter.
* comprehensiveness (higher is better) and sufficiency (lower): what the score loses without the first three tokens,
  and with them alone, relative to the score; others are replaced by the mean embedding.
* gradients, forwards: sequences that were evaluated, for each prompt.

Methods see the difference of the answers' logits, unless they say "target", which is Captum's log-probability of the
target alone. ``--rule`` explains the small decoder of known rule. Means come with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, LayerGradientXActivation, Saliency
from intervals import interval, paired_difference
from llm_models import RuleTokenizer, load_smollm2, rule_decoder, rule_texts
from llm_prompts import Case, cases
from report import print_table
from torch import Tensor, nn

from captum_boundary.llm import LLMBoundaryAttribution, LLMBoundaryResult
from captum_boundary.metrics import spearman_rho

TOP = 3
N_STEPS = 16  # of paths; half as many in the quick run
TOKEN_BUDGET = 10  # gradients for each token; half as many in the quick run
N_CANDIDATES = 64  # forward passes for substitutions; none in the quick run
SLOW = ("IG, zero, target", "GradientShap", "Shapley sampling")  # not in the quick run
Function = Callable[[Tensor], Tensor]


class Decision:
    """A prompt between two answers of one token, as functions of its embeddings; what is evaluated is counted."""

    def __init__(self, model: nn.Module, ids: Tensor, target: int, rival: int) -> None:
        self.model, self.ids, self.target, self.rival = model, ids, target, rival
        self.weight = model.get_input_embeddings().weight.detach()
        self.x = self.weight[ids][None]
        self.n_forward = self.n_gradient = 0

    def logits(self, x: Tensor) -> Tensor:
        self.n_forward += len(x)
        self.n_gradient += len(x) if x.requires_grad else 0
        return self.model(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits[:, 0]

    def score(self, x: Tensor) -> Tensor:
        logits = self.logits(x)
        return logits[:, self.target] - logits[:, self.rival]

    def log_p(self, x: Tensor) -> Tensor:
        return self.logits(x).log_softmax(1)[:, self.target]

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        return torch.cat([self.score(part) for part in x.split(16)])


def replaced(decision: Decision, keep: Tensor) -> Tensor:
    """The prompt where ``keep`` ``(N, L)``, else the mean embedding."""
    return torch.where(keep[..., None], decision.x, decision.weight.mean(0))


def occlusion(decision: Decision) -> Tensor:
    n = len(decision.ids)
    return decision.scores(decision.x) - decision.scores(replaced(decision, ~torch.eye(n, dtype=torch.bool)))


def resampling(decision: Decision, n_samples: int = 4) -> Tensor:
    n = len(decision.ids)
    numbers = torch.Generator().manual_seed(0)
    rows = decision.x.repeat(n * n_samples, 1, 1)
    tokens = torch.randint(3, len(decision.weight), (n, n_samples), generator=numbers)
    for place in range(n):
        rows[place * n_samples : (place + 1) * n_samples, place] = decision.weight[tokens[place]]
    return (decision.scores(decision.x) - decision.scores(rows)).view(n, n_samples).mean(1)


def shapley(decision: Decision, n_orders: int = 5) -> Tensor:
    n, total = len(decision.ids), 0
    for seed in range(n_orders):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        keep = torch.zeros(n + 1, n, dtype=torch.bool)
        for step, place in enumerate(order.tolist()):
            keep[step + 1 :, place] = True
        gains = decision.scores(replaced(decision, keep)).diff()
        total = total + torch.zeros(n).index_copy(0, order, gains)
    return total / n_orders


@torch.no_grad()
def rollout(decision: Decision) -> Tensor:
    """Attention rollout (https://arxiv.org/abs/2005.00928) of the last position."""
    kept = decision.model.config._attn_implementation
    decision.model.set_attn_implementation("eager")
    try:
        decision.n_forward += 1
        attentions = decision.model(inputs_embeds=decision.x, use_cache=False, output_attentions=True).attentions
    finally:
        decision.model.set_attn_implementation(kept)
    joint = torch.eye(len(decision.ids))
    for attention in attentions:
        joint = (attention[0].mean(0) + torch.eye(len(joint))) / 2 @ joint
    return joint[-1]


def over_tokens(method: Any, function: Function) -> Callable[[Decision, dict[str, Any]], Tensor]:
    return lambda decision, options: method(getattr(decision, function)).attribute(decision.x, **options).sum(2)[0]


def other_methods(decision: Decision, quick: bool) -> dict[str, Callable[[], Tensor]]:
    """What makes attributions by other methods."""
    n_steps = N_STEPS // 2 if quick else N_STEPS
    shap = {
        "baselines": decision.weight[:: max(1, len(decision.weight) // 32)][:, None].expand(-1, len(decision.ids), -1)
    }
    path = {"n_steps": n_steps, "internal_batch_size": 8}
    methods = {
        "IG, zero": lambda: over_tokens(IntegratedGradients, "score")(decision, path),
        "IG, zero, target": lambda: over_tokens(IntegratedGradients, "log_p")(decision, path),
        "IG, mean": lambda: over_tokens(IntegratedGradients, "score")(
            decision, {**path, "baselines": decision.weight.mean(0).expand_as(decision.x)}
        ),
        "input x gradient": lambda: over_tokens(InputXGradient, "score")(decision, {}),
        "input x gradient, target": lambda: over_tokens(InputXGradient, "log_p")(decision, {}),
        "gradient norm": lambda: Saliency(decision.score).attribute(decision.x).norm(dim=2)[0],
        "GradientShap": lambda: over_tokens(GradientShap, "score")(decision, {**shap, "n_samples": n_steps}),
        "occlusion": lambda: occlusion(decision),
        "Shapley sampling": lambda: shapley(decision),
        "attention rollout": lambda: rollout(decision),
        "random": lambda: torch.rand(len(decision.ids), generator=torch.Generator().manual_seed(len(decision.ids))),
    }
    if quick:
        methods = {label: method for label, method in methods.items() if label not in SLOW}
    return methods


def explained(
    decision: Decision, result: LLMBoundaryResult, quick: bool = False
) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
    """Attributions of all methods, and what they cost."""
    from_mean = (decision.x[0] - decision.weight.mean(0)).norm(dim=1)
    maps = {
        "token closeness": result.token_closeness[0],
        "1 / token distance": 1 / result.token_distance[0],
        "length / token distance": decision.x[0].norm(dim=1) / result.token_distance[0],
        "mean embedding / token distance": from_mean / result.token_distance[0],
        "BIG": result.token_attr[0],
    }
    costs: dict[str, tuple[int, int]] = {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)
        warnings.filterwarnings("ignore", message="Input Tensor 0 did not already require gradients")
        for label, method in other_methods(decision, quick).items():
            before = decision.n_forward, decision.n_gradient
            maps[label] = method().detach()
            costs[label] = decision.n_forward - before[0], decision.n_gradient - before[1]
    return maps, costs


def measured(decision: Decision, values: Tensor, references: dict[str, Tensor], case: dict[str, list[int]]) -> Any:
    """The columns of one method for one prompt."""
    size = values.abs().nan_to_num(0.0, posinf=1e9)
    first = size.topk(min(TOP, len(size))).indices
    keep = torch.ones(2, len(size), dtype=torch.bool)
    keep[0, first], keep[1] = False, False
    keep[1, first] = True
    whole = float(decision.scores(decision.x))
    without, alone = decision.scores(replaced(decision, keep)).tolist()
    row = {name: float(spearman_rho(size[None], ref.abs()[None])) for name, ref in references.items()}
    return row | {
        "cause": float(int(first[0]) in case["cause"]),
        "irrelevant": sum(int(place) in case["irrelevant"] for place in first) / len(first),
        "comprehensiveness": (whole - without) / abs(whole),
        "sufficiency": (whole - alone) / abs(whole),
    }


def places_of(text: str, case: Case, tokenizer: Any) -> dict[str, list[int]]:
    """Which tokens belong to the words that decide (where they occur first), and to the sentence that cannot."""
    ends = [len(tokenizer.decode(tokenizer.encode(text)[: k + 1])) for k in range(len(tokenizer.encode(text)))]

    def tokens_of(part: str, begin: int) -> list[int]:
        start = text.index(part, begin)
        return [k for k, end in enumerate(ends) if start < end <= start + len(part)]

    begin = len(case.irrelevant)
    return {
        "cause": [place for word in case.cause for place in tokens_of(f" {word}", begin)],
        "irrelevant": tokens_of(case.irrelevant, 0),
    }


def variants(text: str, n: int = 12) -> list[str]:
    """The prompt with typos (letters left out, doubled or exchanged, case) or other words before it."""
    source, made = random.Random(0), []
    for k in range(n):
        words = text.split(" ")
        place = source.randrange(len(words) - 1)
        word = words[place]
        at = source.randrange(max(1, len(word) - 1))
        changed = [
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
            word.swapcase(),
        ][k % 4]
        words[place] = changed
        made.append(" ".join(words) if k % 3 else f"{['Well, ', 'Note: ', 'Hello. '][k % 9 // 3]}{text}")
    return made


@torch.no_grad()
def firmness(model: nn.Module, tokenizer: Any, case: Case, target: int, rival: int) -> dict[str, float]:
    """Share of variants of the prompt that flip the decision, and two measures of certainty."""
    flips = []
    for text in variants(case.prompt):
        logits = model(torch.tensor([tokenizer.encode(text)]), use_cache=False, logits_to_keep=1).logits[0, -1]
        flips.append(float(logits[target] < logits[rival]))
    logits = model(torch.tensor([tokenizer.encode(case.prompt)]), use_cache=False, logits_to_keep=1).logits[0, -1]
    p = logits.softmax(0)
    return {
        "flips": sum(flips) / len(flips),
        "margin": float(logits[target] - logits[rival]),
        "entropy": float(-(p * p.clamp_min(1e-12).log()).sum()),
    }


def random_substitutions(decision: Decision, n: int) -> dict[str, Any]:
    """Single substitutions by random tokens, at as many forward passes."""
    numbers = torch.Generator().manual_seed(0)
    places = torch.arange(n) % len(decision.ids)
    tokens = torch.randint(3, len(decision.weight), (n,), generator=numbers)
    rows = decision.x.repeat(n, 1, 1)
    rows[torch.arange(n), places] = decision.weight[tokens]
    distance = (rows - decision.x).flatten(1).norm(dim=1)
    flips = decision.scores(rows) < 0
    return {"flipped": bool(flips.any()), "distance": float(distance[flips].min()) if flips.any() else None}


def told(result: LLMBoundaryResult) -> dict[str, Any]:
    """The nearest substitution of a result."""
    found = result.substitutions[0]
    return {
        "flipped": bool(found),
        "single": bool(found) and len(found[0].positions) == 1,
        "distance": found[0].distance if found else None,
        "log likelihood": found[0].log_likelihood_change if found else None,
        "says the rival": found[0].says == result.rival_tokens[0] if found else None,
        "text": str(found[0]) if found else None,
    }


def substitutions(
    model: nn.Module, tokenizer: Any, decision: Decision, answers: tuple[str, str, str], result: LLMBoundaryResult
) -> dict[str, dict[str, Any]]:
    """Those of the result, from the slope at the prompt itself, and random ones, at as many forward passes."""
    explain = LLMBoundaryAttribution(model, tokenizer, LayerGradientXActivation, budget=1)
    return {
        "from the boundary": told(result),
        "HotFlip": told(explain.attribute(*answers, token_budget=None, n_candidates=N_CANDIDATES)),
        "random": random_substitutions(decision, N_CANDIDATES),
    }


def of_prompt(model: nn.Module, tokenizer: Any, case: Case, quick: bool) -> dict[str, Any] | None:
    """All that is measured of one prompt; None where the model prefers the wrong answer."""
    ids = torch.tensor(tokenizer.encode(case.prompt))
    (target,), (rival,) = tokenizer.encode(case.target), tokenizer.encode(case.rival)
    decision = Decision(model, ids, target, rival)
    if float(decision.scores(decision.x)) <= 0:
        return None
    start = time.perf_counter()
    explain = LLMBoundaryAttribution(model, tokenizer, budget=20)
    answers, half = (case.prompt, case.target, case.rival), 2 if quick else 1
    result = explain.attribute(
        *answers,
        n_steps=N_STEPS // half,
        token_budget=TOKEN_BUDGET // half,
        n_candidates=None if quick else N_CANDIDATES,
    )
    seconds = time.perf_counter() - start
    maps, costs = explained(decision, result, quick)
    references = {"occlusion": maps["occlusion"], "resampling": resampling(decision, 2 if quick else 4)}
    places = places_of(case.prompt, case, tokenizer)
    return {
        "kind": case.kind,
        "prompt": case.prompt,
        "n_tokens": len(ids),
        "methods": {label: measured(decision, values, references, places) for label, values in maps.items()},
        "costs": costs,
        "token distance": dict(zip(result.input_tokens, result.token_distance[0].tolist(), strict=True)),
        "distance": float(result.distance),
        "whole": [int(result.boundary.n_forward), int(result.boundary.n_gradient)],
        "firmness": firmness(model, tokenizer, case, target, rival),
        "substitutions": {} if quick else substitutions(model, tokenizer, decision, answers, result),
        "first token near": int(result.token_distance[0].argmin()) == 0,
        "last token near": int(result.token_distance[0].argmin()) == len(ids) - 1,
        "seconds": seconds,
    }


def of_rule(n_texts: int) -> list[dict[str, Any]]:
    """The same of texts whose one deciding word is known, for the decoder that was trained to answer by it."""
    model, tokenizer = rule_decoder(), RuleTokenizer()
    explain = LLMBoundaryAttribution(model, tokenizer, budget=20)
    rows = []
    for ids, answer, place in zip(*rule_texts(n_texts), strict=True):
        rival = (answer - 4 + 1) % 4 + 4
        decision = Decision(model, ids, int(answer), int(rival))
        if float(decision.scores(decision.x)) <= 0:
            continue
        result = explain.attribute(ids, [int(answer)], [int(rival)], n_candidates=None, n_steps=N_STEPS)
        maps, costs = explained(decision, result)
        references = {"occlusion": maps["occlusion"], "resampling": resampling(decision)}
        places = {"cause": [int(place)], "irrelevant": [k for k in range(len(ids)) if k != int(place)]}
        methods = {label: measured(decision, values, references, places) for label, values in maps.items()}
        rows.append({"kind": "rule", "methods": methods, "costs": costs})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Means over prompts, with intervals."""
    labels, columns = rows[0]["methods"], next(iter(rows[0]["methods"].values()))
    table = {}
    for label in labels:
        values = {name: [row["methods"][label][name] for row in rows] for name in columns}
        table[label] = {name: shown(interval(values[name])) for name in columns}
        costs = [row["costs"].get(label) for row in rows]
        if costs[0]:
            table[label]["forwards"], table[label]["gradients"] = (
                f"{sum(c) / len(c):.0f}" for c in zip(*costs, strict=True)
            )
    print_table(table)
    print()
    best = "token closeness"
    for label in labels:
        gain = paired_difference(
            [row["methods"][best]["occlusion"] for row in rows], [row["methods"][label]["occlusion"] for row in rows]
        )
        print(f"occlusion: {best} less {label}: {shown(gain)}")
    if "firmness" not in rows[0]:
        return
    first, last = (sum(row[f"{which} token near"] for row in rows) for which in ("first", "last"))
    print(f"\nnearest token: {first} times the first, {last} times the last, of {len(rows)}")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        part = [row["methods"]["token closeness"] for row in rows if row["kind"] == kind]
        print(kind, len(part), {name: round(sum(p[name] for p in part) / len(part), 2) for name in columns})
    flips = torch.tensor([row["firmness"]["flips"] for row in rows])
    near = {
        "1 / distance": torch.tensor([1 / row["distance"] for row in rows]),
        "1 / margin": torch.tensor([1 / row["firmness"]["margin"] for row in rows]),
        "entropy": torch.tensor([row["firmness"]["entropy"] for row in rows]),
        "1 / least token distance": torch.tensor([1 / min(row["token distance"].values()) for row in rows]),
    }
    for label, values in near.items():
        print(f"rank correlation with the share of variants that flip: {label}: {resampled(values, flips)}")
    for label in rows[0]["substitutions"]:
        part = [row["substitutions"][label] for row in rows]
        flipped = interval([float(p["flipped"]) for p in part])
        distance = interval([p["distance"] for p in part])
        print(f"substitutions {label}: flipped {shown(flipped)}, distance {shown(distance)}", end="")
        if label != "random":
            print(f", log likelihood {shown(interval([p['log likelihood'] for p in part]))}", end="")
            says = [None if p["says the rival"] is None else float(p["says the rival"]) for p in part]
            print(f", says the rival {shown(interval(says))}", end="")
        print()
    forwards, gradients = zip(*(row["whole"] for row in rows), strict=True)
    print(f"whole prompts: {max(forwards)} forwards and {max(gradients)} gradients at most")


def resampled(values: Tensor, flips: Tensor) -> str:
    """Rank correlation with a bootstrap interval over prompts."""
    draws = torch.randint(len(values), (2000, len(values)), generator=torch.Generator().manual_seed(0))
    many = spearman_rho(values[draws], flips[draws])
    low, high = many[many.isfinite()].quantile(torch.tensor([0.025, 0.975])).tolist()
    return f"{float(spearman_rho(values[None], flips[None])):.2f} [{low:.2f}, {high:.2f}]"


def shown(cell: Any) -> str:
    return "-" if cell.mean is None else f"{cell.mean:.2f} [{cell.low:.2f}, {cell.high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-of-each", type=int, default=12, help="prompts of each of five kinds, at most 12")
    parser.add_argument("--quick", action="store_true", help="half the steps, fewer methods, no substitutions")
    parser.add_argument("--rule", action="store_true", help="explain the decoder of known rule")
    parser.add_argument("--n-texts", type=int, default=40, help="texts for the decoder of known rule")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / ("llm-rule.json" if options.rule else "llm.json")
    if options.rule:
        rows = of_rule(options.n_texts)
    else:
        model, tokenizer = load_smollm2()
        rows, n_wrong = [], 0
        for case in cases(options.n_of_each):
            row = of_prompt(model, tokenizer, case, options.quick)
            n_wrong += row is None
            if row is not None:
                rows.append(row)
                path.write_text(json.dumps(rows, default=str), encoding="utf-8")
                print(f"{row['seconds']:.0f} s  {case.prompt}", flush=True)
        print(f"{len(rows)} prompts; of {n_wrong} others the model prefers the wrong answer\n")
    path.write_text(json.dumps(rows, default=str), encoding="utf-8")
    show(rows)


if __name__ == "__main__":
    main()
