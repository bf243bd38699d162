"""First tokens that stay are evaluated once, and results are those of evaluating all tokens every time."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from captum_boundary.llm import LLMBoundaryAttribution
from captum_boundary.llm._embedded_model import EmbeddedModel

PROMPT = "it was red . it was blue . the capital of France is"
FIRST = ["it was red ."]
QUICK = {"token_budget": 3, "n_candidates": 8, "n_steps": 4}


@contextmanager
def all_evaluated():
    """The same package, which finds no cache in any model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbeddedModel, "cache_of", lambda *_: None)
        yield


@contextmanager
def counted(model):
    """Rows and tokens of each row, of all evaluations of a model."""
    counts = []

    def count(_, args, options):
        given = (*args, options.get("input_ids"), options.get("inputs_embeds"))
        counts.append(next(value for value in given if value is not None).shape[:2])

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        hook.remove()


def both(model, tokenizer, *answers, layer=None, **options):
    """Results and tokens evaluated, where first tokens are kept and where they are not."""
    results = []
    for mode in (warnings.catch_warnings, all_evaluated):
        with mode(), counted(model) as counts:
            explain = LLMBoundaryAttribution(model, tokenizer, budget=5, embedding_layer=layer)
            result = explain.attribute(PROMPT, *answers, **{**QUICK, **options})
        results.append((result, sum(n * length for n, length in counts)))
    (kept, few), (whole, many) = results
    return kept, whole, few, many


def assert_same(kept, whole, rtol):
    for name in ("score", "distance", "token_attr", "token_distance"):
        if getattr(whole, name) is None:
            continue
        torch.testing.assert_close(getattr(kept, name), getattr(whole, name), rtol=rtol, atol=rtol, equal_nan=True)
    for some, others in zip(kept.substitutions, whole.substitutions, strict=True):
        assert [each.replacement_ids for each in some] == [each.replacement_ids for each in others]


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")  # random models have unlikely answers
@pytest.mark.parametrize(
    ("answers", "options"),
    [
        (("it was",), {}),
        (("Paris .", "red London was it"), {"skip_tokens": FIRST}),
    ],
)
def test_results_are_those_of_evaluating_all_tokens(any_decoder, small, tokenizer, answers, options):
    model = small.decoder(any_decoder.config.model_type, tokenizer).double()
    kept, whole, few, many = both(model, tokenizer, *answers, **options)
    assert few < 0.9 * many
    assert_same(kept, whole, 1e-6)


def test_a_held_beginning_is_evaluated_once(small, tokenizer):
    """Of the 13 tokens of a prompt, 8 are held; a tokenizer pads it on the left."""
    padded = tokenizer(PROMPT, return_tensors="pt", padding="max_length", max_length=20)
    beginning = "it was red . it was blue ."
    few = {"token_budget": None, "n_candidates": None}
    explain = LLMBoundaryAttribution(small.model, tokenizer, budget=8)
    with counted(small.model) as counts:
        held = explain.attribute(padded, "Paris", "London", skip_tokens=[beginning], **few, n_steps=20)
    assert held.input_tokens == ["the", "capital", "of", "France", "is"]
    short = [n for n, length in counts if length == 5]
    assert sum(length != 5 for _, length in counts) < 20  # checks at the prompt and at boundary points
    assert sum(short) > 25
    with all_evaluated():
        assert_same(
            held, explain.attribute(PROMPT, "Paris", "London", skip_tokens=[beginning], **few, n_steps=20), 1e-3
        )


def test_bfloat16_has_the_labels_of_the_model(small, tokenizer):
    model = small.decoder("llama", tokenizer).to(torch.bfloat16)
    explain = LLMBoundaryAttribution(model, tokenizer, budget=8)
    result = explain.attribute(PROMPT, "Paris", "London", skip_tokens=FIRST, **QUICK)
    x = model.get_input_embeddings()(torch.tensor([tokenizer.encode(PROMPT)]))
    x[:, 4:] = result.boundary.points.to(x.dtype)
    logits = model(inputs_embeds=x).logits[0, -1].float().detach()
    paris, london = tokenizer.encode("Paris London")
    assert float(logits[paris] - logits[london]) * float(result.score) < 0


class OtherCache(nn.Module):
    """A decoder whose cache is not as it should be."""

    def __init__(self, model, fault):
        super().__init__()
        self.model, self.fault = model, fault
        self.config = model.config
        self.n_kept = 0

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def forward(self, input_ids=None, inputs_embeds=None, cache=None, use_cache=None):
        output = self.model(input_ids=input_ids, inputs_embeds=inputs_embeds, cache=cache, use_cache=use_cache)
        if cache is not None:
            self.n_kept += 1
            output.logits = self.fault(output.logits, inputs_embeds)
        return output


def refuse(*_):
    raise NotImplementedError("no rows after a cache")


def wrong_elsewhere():
    """Right at the prompt and with the right slope there, so that it is refused at boundary points alone."""
    prompts = []

    def fault(logits, x):
        prompts.append(x[:1].detach())
        return logits - 1e6 * logits * (x - prompts[0]).square().sum(dim=(1, 2), keepdim=True)

    return fault


@pytest.mark.parametrize(
    ("fault", "used"),
    [
        (refuse, 1),
        (lambda logits, _: logits * 1.01, 1),
        (lambda logits, _: logits.detach(), 1),
        (wrong_elsewhere(), 10),
    ],
)
def test_models_whose_cache_is_another_function_are_evaluated_whole(small, tokenizer, fault, used):
    model = OtherCache(small.decoder("llama", tokenizer), fault).eval().double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept, whole, _, _ = both(model, tokenizer, "Paris", "London", skip_tokens=FIRST, token_budget=None)
    assert model.n_kept >= used
    assert_same(kept, whole, 1e-6)


def test_models_in_training_mode_and_those_without_a_cache_are_evaluated_whole(small, linear, tokenizer):
    model = small.decoder("llama", tokenizer).train()
    explain = LLMBoundaryAttribution(model, tokenizer, budget=4)
    with counted(model) as counts:
        explain.attribute(PROMPT, "Paris", "London", skip_tokens=FIRST, **QUICK)
    assert {length for _, length in counts} == {12, 13}
    kept, whole, few, many = both(linear, tokenizer, "Paris", "London", layer=linear.tokens, skip_tokens=FIRST)
    assert few == many
    assert_same(kept, whole, 1e-12)
