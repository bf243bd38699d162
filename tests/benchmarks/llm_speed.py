"""What it saves to evaluate first tokens of a prompt once, those before the tokens that move.

    python tests/benchmarks/llm_speed.py [--lengths 16 32] [--budgets 5 10] [--held 64 128]

SmolLM2-135M in float32, on one thread of a CPU, with and without, in turns: distances of all tokens alone, at several
lengths and budgets; distances of four passages; and the search of the whole with 8 steps of Integrated Gradients, where
all tokens but the last quarter are held, as a chat's template and the system's message can be. Without, all rows are
searched at once that memory allows. Shares are of tokens that pass through the model, and of the process's time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from llm_models import load_smollm2
from report import print_table, save
from torch import nn

from captum_boundary.llm import LLMBoundaryAttribution, LLMBoundaryResult, _decision
from captum_boundary.llm._embedded_model import EmbeddedModel

FILLER = "The station is not far from here, and the river is wide. "
QUESTION = "The capital of France is"
N_STEPS = 8


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """Tokens that pass through the model."""
    counts = [0]

    def count(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = arguments[0] if arguments else options["inputs_embeds"]
        counts[0] += given.shape[:2].numel()

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        hook.remove()


@contextmanager
def all_evaluated() -> Iterator[None]:
    with (
        mock.patch.object(EmbeddedModel, "cache_of", return_value=None),
        mock.patch.object(_decision, "_TOKENS_ON_CPU", 2**31),
    ):
        yield


def compared(model: nn.Module, explain: Callable[[], LLMBoundaryResult]) -> dict[str, float]:
    """Shares of tokens and of seconds, and by how much distances differ."""
    tokens, seconds, distances = [], [], []
    for mode in (nullcontext, all_evaluated):
        with mode(), counted(model) as counts:
            begin = time.process_time()
            result = explain()
            seconds.append(time.process_time() - begin)
        tokens.append(counts[0])
        own = result.distance if result.token_distance is None else result.token_distance
        distances.append(own.flatten())
    kept, whole = (distance[torch.stack(distances).isfinite().all(0)] for distance in distances)
    return {
        "share of tokens": tokens[0] / tokens[1],
        "share of time": seconds[0] / seconds[1],
        "seconds": seconds[0],
        "largest difference": float((kept / whole - 1).abs().max()) if len(kept) else 0.0,
    }


def measured(lengths: list[int], held: list[int], budgets: list[int]) -> Iterator[tuple[str, dict[str, float]]]:
    model, tokenizer = load_smollm2()
    filler, question = tokenizer.encode(FILLER * 64), tokenizer.encode(QUESTION)
    answers = tokenizer.encode(" Paris"), tokenizer.encode(" London")

    def prompt_of(length: int) -> list[int]:
        return filler[: length - len(question)] + question

    def explain(budget: int, prompt: list[int], **options: Any) -> LLMBoundaryResult:
        method = LLMBoundaryAttribution(model, tokenizer, budget=budget)
        return method.attribute(prompt, *answers, n_candidates=None, **options)

    explain(1, question, token_budget=1, n_steps=1)  # what is done once
    for budget in budgets:
        for length in lengths:
            result = compared(model, lambda: explain(1, prompt_of(length), token_budget=budget, n_steps=1))  # noqa: B023
            yield f"{length} tokens alone, {budget} gradients each", result
        for length in held:
            ids = prompt_of(length)
            quarter = length // 4
            beginning = tokenizer.decode(ids[: length - quarter])
            options = {"token_budget": None, "n_steps": N_STEPS, "skip_tokens": [beginning]}
            result = compared(model, lambda: explain(4 * budget, ids, **options))  # noqa: B023
            yield f"{length} tokens, last quarter together, {4 * budget} gradients", result
            passages = [tokenizer.decode(ids[k : k + quarter]) for k in range(0, length, quarter)]
            options = {"token_budget": budget, "n_steps": 1, "phrases": passages}
            result = compared(model, lambda: explain(1, ids, **options))  # noqa: B023
            yield f"{length} tokens in 4 passages, {budget} gradients each", result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lengths", type=int, nargs="*", default=[16, 32], help="tokens of prompts, each searched alone"
    )
    parser.add_argument("--held", type=int, nargs="*", default=[64, 128], help="tokens of prompts of four parts")
    parser.add_argument("--budgets", type=int, nargs="+", default=[5, 10], help="gradients for each token")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "llm_speed.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name, row in measured(options.lengths, options.held, options.budgets):
        rows[name] = row
        print(f"{row['share of tokens']:.2f} of tokens, {row['share of time']:.2f} of time  {name}", flush=True)
        save(
            "shares",
            {"settings": {k: str(v) for k, v in vars(options).items()}, "rows": rows, "claims": []},
            options.output,
        )
    print_table(rows)


if __name__ == "__main__":
    main()
