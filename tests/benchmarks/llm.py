"""Benchmark of explanations of a language model: prints tables, saves JSON after every prompt, goes on where it was.

    python tests/benchmarks/llm.py [--n-of-each 12] [--rule] [--show]

Prompts (see llm_prompts.py) are facts, sentiment, yes or no, choice of two, and agreement of subject and verb, each
after a short sentence that has nothing to do with it. Those are explained whose right answer SmolLM2-135M prefers.
Every method (see llm_methods.py) gives each token one number, whose size counts. Columns:

* occlusion, resampling: rank correlation with the change of the score where a token is replaced by the mean embedding,
  and by random real tokens (mean of 4).
* cause first: whether the first token is a word that decides; cause over irrelevant: how often a word that decides has
  a larger number than one of the sentence that cannot matter; irrelevant: share of the first three that are of it.
* comprehensiveness (higher is better) and sufficiency (lower): what the score loses without the first three tokens,
  and with them alone, relative to the score; others are replaced by the mean embedding.
* gradients, forwards: sequences that were evaluated, for each prompt.

Then: does the distance predict which answers flip under typos and paraphrases (see llm_firmness.py), on all prompts,
for the answer that the model prefers? And which share of prompts do substitutions flip? ``--rule`` explains the small
decoder of known rule. ``--show`` prints what is stored. Means come with 95 % bootstrap intervals over prompts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import llm_firmness
import torch
from captum.attr import LayerGradientXActivation
from intervals import interval, paired_difference
from llm_methods import (
    BUDGET,
    REAL,
    RULE,
    Decision,
    RecordingAttribution,
    Settings,
    of_distances,
    others,
    resampling,
)
from llm_models import RuleTokenizer, load_smollm2, rule_decoder, rule_texts
from llm_prompts import Case, cases
from report import print_table
from torch import Tensor

from captum_boundary import NearestBoundary
from captum_boundary.llm import LLMBoundaryResult
from captum_boundary.metrics import spearman_rho

TOP = 3
N_CANDIDATES = 64  # forward passes for substitutions


def of_decision(
    decision: Decision,
    point: Tensor,
    explain: RecordingAttribution,
    arguments: tuple[Any, ...],
    places: dict[str, Any],
    settings: Settings,
) -> tuple[dict[str, Any], LLMBoundaryResult]:
    """All attributions of one prompt, what they cost and how good they are, and the result about its tokens alone."""
    explain.point = point
    result = explain.attribute(*arguments, token_budget=settings.token_budget, n_candidates=N_CANDIDATES)
    maps = of_distances(decision, result, explain.predictions)
    costs = dict.fromkeys(maps, explain.costs)
    other_maps, other_costs = others(decision, point, settings)
    maps.update(other_maps)
    costs.update(other_costs)
    costs["BIG"][1] += BUDGET
    references = {"occlusion": maps["occlusion"], "resampling": resampling(decision)}
    row = {
        "n_tokens": len(decision.ids),
        "maps": {label: values.tolist() for label, values in maps.items()},
        "resampling": references["resampling"].tolist(),
        "methods": measured(decision, maps, references, places),
        "costs": costs,
        "token distance": result.token_distance[0].tolist(),
        "places": places,
    }
    return row, result


def measured(
    decision: Decision, maps: dict[str, Tensor], references: dict[str, Tensor], places: dict[str, list[int]]
) -> dict[str, dict[str, float]]:
    """The columns of all methods for one prompt."""
    sizes = torch.stack([values.abs().nan_to_num(0.0, posinf=1e9) for values in maps.values()])
    first = sizes.topk(min(TOP, sizes.shape[1])).indices
    alone = torch.zeros_like(sizes, dtype=torch.bool).scatter_(1, first, True)
    lost = (decision.whole - decision.scores(decision.replaced(torch.cat([~alone, alone])))) / abs(decision.whole)
    rows = {}
    for k, (label, size) in enumerate(zip(maps, sizes, strict=True)):
        apart = size[places["cause"]][:, None] - size[places["irrelevant"]]
        rows[label] = {name: float(spearman_rho(size[None], ref.abs()[None])) for name, ref in references.items()} | {
            "cause first": float(int(first[k, 0]) in places["cause"]),
            "cause over irrelevant": float(((apart > 0).float() + 0.5 * (apart == 0)).mean()),
            "irrelevant": sum(int(place) in places["irrelevant"] for place in first[k]) / first.shape[1],
            "comprehensiveness": float(lost[k]),
            "sufficiency": float(lost[k + len(maps)]),
        }
    return rows


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
    """The nearest substitution of a result, and whether any is of a single token or says the rival."""
    found = result.substitutions[0]
    return {
        "flipped": bool(found),
        "single": any(len(each.positions) == 1 for each in found),
        "distance": found[0].distance if found else None,
        "log likelihood": max(each.log_likelihood_change for each in found) if found else None,
        "says the rival": any(each.says == result.rival_tokens[0] for each in found),
        "text": [str(each) for each in found],
    }


def of_prompt(explain: RecordingAttribution, case: Case, point: list[list[float]]) -> dict[str, Any]:
    """All that is measured of one prompt with its boundary point."""
    start = time.process_time()
    answers, tokenizer = (case.target, case.rival), explain.tokenizer
    decision = Decision(
        explain.model, torch.tensor(tokenizer.encode(case.prompt)), *(tokenizer.encode(answer)[0] for answer in answers)
    )
    places = places_of(case.prompt, case, tokenizer)
    row, result = of_decision(decision, torch.tensor(point), explain, (case.prompt, *answers), places, REAL)
    at_prompt = explain.attribute(case.prompt, *answers, token_budget=None, n_candidates=N_CANDIDATES)
    flips = {
        "from the boundary": told(result),
        "HotFlip": told(at_prompt),
        "random": random_substitutions(decision, N_CANDIDATES),
    }
    seconds = time.process_time() - start
    return {"kind": case.kind, "prompt": case.prompt} | row | {"substitutions": flips, "seconds": seconds}


def of_rule(n_texts: int) -> list[dict[str, Any]]:
    """The same of texts whose one deciding word is known, for the decoder that was trained to answer by it."""
    model, tokenizer = rule_decoder(), RuleTokenizer()
    explain = RecordingAttribution(model, tokenizer, LayerGradientXActivation, budget=1)
    rows = []
    for ids, answer, place in zip(*rule_texts(n_texts), strict=True):
        rival = (answer - 4 + 1) % 4 + 4
        decision = Decision(model, ids, int(answer), int(rival))
        if decision.whole > 0:
            places = {"cause": [int(place)], "irrelevant": [k for k in range(len(ids)) if k != int(place)]}
            point = NearestBoundary(decision.score, budget=BUDGET).find(decision.x).points[0]
            row, _ = of_decision(decision, point, explain, (ids, [int(answer)], [int(rival)]), places, RULE)
            rows.append({"kind": "rule"} | row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Means over prompts, with intervals."""
    columns = next(iter(rows[0]["methods"].values()))
    table = {}
    for label in rows[0]["methods"]:
        own = [row["methods"][label] for row in rows]
        table[label] = {name: shown(interval([values[name] for values in own])) for name in columns}
        forwards, gradients = zip(*(row["costs"][label] for row in rows), strict=True)
        table[label]["forwards"] = f"{sum(forwards) / len(own):.0f}"
        table[label]["gradients"] = f"{sum(gradients) / len(own):.0f}"
    print(f"{len(rows)} prompts")
    print_table(table)
    print("\ntoken closeness less others")
    print_table({label: differences(rows, "token closeness", label, list(columns)) for label in table})
    nearest = [min(range(row["n_tokens"]), key=row["token distance"].__getitem__) for row in rows]
    last = sum(place == row["n_tokens"] - 1 for place, row in zip(nearest, rows, strict=True))
    print(f"\nnearest token: {nearest.count(0)} times the first, {last} times the last, of {len(nearest)}")
    if rows[0]["kind"] != "rule":
        show_kinds(rows)
        show_substitutions([row for row in rows if "substitutions" in row])


def differences(rows: list[dict[str, Any]], label: str, other: str, columns: list[str]) -> dict[str, str]:
    pairs = {name: [[row["methods"][each][name] for row in rows] for each in (label, other)] for name in columns}
    return {name: shown(paired_difference(*pair)) for name, pair in pairs.items()}


def show_kinds(rows: list[dict[str, Any]]) -> None:
    for label in ("token closeness", "occlusion"):
        print(f"\n{label}, by kind")
        table = {}
        for kind in dict.fromkeys(row["kind"] for row in rows):
            part = [row["methods"][label] for row in rows if row["kind"] == kind]
            table[f"{kind} ({len(part)})"] = {name: shown(interval([p[name] for p in part])) for name in part[0]}
        print_table(table)


def show_firmness(firm: list[dict[str, Any]]) -> None:
    measures = {
        "1 / distance": [1 / f["distance"] for f in firm],
        "1 / margin": [1 / f["margin"] for f in firm],
        "entropy": [f["entropy"] for f in firm],
        "norm of the slope / margin": [f["slope"] / f["margin"] for f in firm],
    }
    for variants in ("typos", "paraphrases"):
        flips = [f[variants] for f in firm]
        share = sum(map(sum, flips)) / sum(map(len, flips))
        print(f"\n{len(firm)} prompts, {variants}: {share:.0%} flip; AUC of")
        print_table(llm_firmness.table_of(measures, flips, "1 / margin"))
    forwards, gradients = zip(*(f["costs"] for f in firm), strict=True)
    print(f"whole prompts: {max(forwards)} forwards and {max(gradients)} gradients at most\n")


def show_substitutions(rows: list[dict[str, Any]]) -> None:
    table = {}
    for label in rows[0]["substitutions"]:
        part = [row["substitutions"][label] for row in rows]
        table[label] = {
            name: shown(interval([None if p.get(name) is None else float(p[name]) for p in part]))
            for name in ("flipped", "single", "says the rival", "distance", "log likelihood")
        }
    print("\nsubstitutions")
    print_table(table)


def shown(cell: Any) -> str:
    return "-" if cell.mean is None else f"{cell.mean:.2f} [{cell.low:.2f}, {cell.high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-of-each", type=int, default=12, help="prompts of each of five kinds, at most 12")
    parser.add_argument("--rule", action="store_true", help="explain the decoder of known rule")
    parser.add_argument("--n-texts", type=int, default=40, help="texts for the decoder of known rule")
    parser.add_argument("--show", action="store_true", help="print what is stored, and measure nothing")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.rule:
        rows = stored(options.output / "llm-rule.json") if options.show else of_rule(options.n_texts)
        store(rows, options.output / "llm-rule.json")
    else:
        firm_path, path = options.output / "llm-firmness.json", options.output / "llm.json"
        firm, rows = stored(firm_path), stored(path)
        if not options.show:
            measure(cases(options.n_of_each), firm, rows, firm_path, path)
        show_firmness(firm)
    show(rows)


def measure(some: list[Case], firm: list[Any], rows: list[Any], firm_path: Path, path: Path) -> None:
    """What is not yet stored."""
    model, tokenizer = load_smollm2()
    for start in range(len(firm), len(some), llm_firmness.ROWS):
        firm += llm_firmness.firmness(model, tokenizer, some[start : start + llm_firmness.ROWS], BUDGET)
        store(firm, firm_path)
        print(f"{len(firm)} boundary points", flush=True)
    explain = RecordingAttribution(model, tokenizer, LayerGradientXActivation, budget=1)
    known = {row["prompt"] for row in rows}
    for case, measures in zip(some, firm, strict=True):
        if measures["right"] and case.prompt not in known:
            rows.append(of_prompt(explain, case, measures["point"]))
            store(rows, path)
            print(f"{rows[-1]['seconds']:.0f} s  {case.prompt}", flush=True)


def stored(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def store(rows: list[dict[str, Any]], path: Path) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
