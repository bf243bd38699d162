"""Memory of an explanation of a language model, as the prompt grows.

    python tests/benchmarks/llm_memory.py [--lengths 16 64 128 256 512]

The peak of the process above what it has after a first, short prompt: the search over the whole prompt of SmolLM2-135M,
and Integrated Gradients from its end, with the float32 model on the CPU. Linux alone counts it. Lengths must grow.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from llm_models import load_smollm2
from report import peak_memory

from captum_boundary.llm import LLMBoundaryAttribution

BUDGET = 2  # more gradients take more time, and no more memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 128, 256, 512], help="tokens of the prompt")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_smollm2()
    explain = LLMBoundaryAttribution(model, tokenizer, budget=BUDGET)
    few = {"token_budget": None, "n_candidates": None, "n_steps": 2}
    filler = tokenizer.encode("The station is not far from here, and the river is wide. " * 64)
    question = tokenizer.encode("The capital of France is")  # whose boundary is near: no random lines, which take time
    answers = tokenizer.encode(" Paris"), tokenizer.encode(" London")
    explain.attribute(question, *answers, **few)  # what is built once
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
    before = peak_memory()
    for length in options.lengths:
        explain.attribute(filler[: length - len(question)] + question, *answers, **few)
        print(f"{length} tokens: {peak_memory() - before} MiB", flush=True)


if __name__ == "__main__":
    main()
