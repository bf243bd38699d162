"""What it saves to evaluate first tokens of a prompt once, those before the tokens that move.

    python tests/benchmarks/llm_speed.py [--lengths 16 32 64] [--held 64 128] [--turns 4]

SmolLM2-135M in float32, on one thread of a CPU: one forward and backward pass, of the parts of a prompt whose tokens
are searched alone (of four of them, evenly), and of one row of which the last quarter of the tokens moves, as in a chat
whose beginning is held. Shares are of the same pass on all tokens, of tokens and of the process's time, the least of
some turns. A search is made of such passes, whatever its budget; checks of the cache come on top, a few passes a part.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from llm_models import load_smollm2
from report import print_table, save
from torch import Tensor

from captum_boundary.llm._decision import Decision, decision_between
from captum_boundary.llm._embedded_model import EmbeddedModel

FILLER = "The station is not far from here, and the river is wide. "
QUESTION = "The capital of France is"
N_ROWS = 8  # of a pass on all tokens
N_PARTS = 4


def seconds_of(decision: Decision, n_rows: int) -> float:
    """For each row of a forward and backward pass."""
    leaf = decision.moving.repeat(n_rows, 1, 1).requires_grad_()
    begin = time.process_time()
    score = decision.difference(leaf, torch.zeros(n_rows, dtype=torch.long))
    torch.autograd.grad(score.sum(), leaf)
    return (time.process_time() - begin) / n_rows


def shares(whole: Decision, n_rows: int, parts: list[tuple[Decision, Tensor]], turns: int) -> dict[str, float]:
    """Of the pass on all tokens of ``n_rows``."""
    kept = [(part.keeping_first_tokens(), len(groups)) for part, groups in parts]
    own, all_tokens = [float("inf")] * len(kept), float("inf")
    for _ in range(turns + 1):  # the first is that of the search's inputs, which is evaluated whole
        all_tokens = min(all_tokens, seconds_of(whole, n_rows))
        own = [min(least, seconds_of(*part)) for least, part in zip(own, kept, strict=True)]
    length = len(whole._ids)
    return {
        "share of tokens": sum(1 - part._n_kept / length for part, _ in kept) / len(kept),
        "share of time": sum(own) / len(own) / all_tokens,
        "seconds": all_tokens * n_rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="*", default=[16, 32, 64], help="tokens of prompts, each alone")
    parser.add_argument("--held", type=int, nargs="*", default=[64, 128], help="tokens, of which a quarter moves")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "llm_speed.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_smollm2()
    embedded, rows = EmbeddedModel(model), {}
    filler, question, *answers = (
        torch.tensor(tokenizer.encode(text)) for text in (FILLER * 64, QUESTION, " Paris", " London")
    )

    def decision(length: int, n_held: int = 0) -> Decision:
        ids = torch.cat([filler[: length - len(question)], question])
        return decision_between(embedded, ids, torch.arange(length) >= n_held, *answers)

    for length in options.lengths:
        whole = decision(length)
        parts = list(whole.parts(torch.arange(length)))
        some = parts[:: max(1, len(parts) // N_PARTS)]
        rows[f"{length} tokens, each alone"] = shares(whole, N_ROWS, some, options.turns)
    for length in options.held:
        held = decision(length, length - length // 4)
        rows[f"{length} tokens, the last quarter moves"] = shares(held, 1, [(held, torch.zeros(1))], options.turns)
    print_table(rows)
    settings = {"turns": options.turns, "rows": N_ROWS, "parts": N_PARTS}
    save("shares", {"settings": settings, "rows": rows, "claims": []}, options.output)


if __name__ == "__main__":
    main()
