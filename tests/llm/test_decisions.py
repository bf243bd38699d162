"""Decisions between answers are those of the model on token ids, whatever the model, the lengths and the padding."""

from __future__ import annotations

import pytest
import torch
from captum.attr import LLMAttributionResult, TextTokenInput

from captum_boundary import NearestBoundary
from captum_boundary.llm import LLMBoundaryAttribution

PROMPT = "the capital of France is"
QUICK = {"token_budget": None, "n_candidates": None, "n_steps": 2}


def log_p(model, tokenizer, prompt, answer):
    """Log-probability of an answer, token after token."""
    ids, total = tokenizer.encode(prompt), 0.0
    with torch.no_grad():
        for token in tokenizer.encode(answer):
            total += float(model(torch.tensor([ids])).logits[0, -1].float().log_softmax(0)[token])
            ids = [*ids, token]
    return total


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")  # random models have unlikely answers
@pytest.mark.parametrize(
    ("target", "rival"),
    [
        ("Paris", "London"),
        ("Paris .", "London ."),
        ("Paris", "red London was it"),
        ("it was Paris", "it was London"),  # what both begin with cancels
        ("it was Paris .", "it was red"),
    ],
)
def test_scores_are_those_of_the_model(any_decoder, tokenizer, target, rival):
    result = LLMBoundaryAttribution(any_decoder, tokenizer, budget=8).attribute(PROMPT, target, rival, **QUICK)
    expected = log_p(any_decoder, tokenizer, PROMPT, target) - log_p(any_decoder, tokenizer, PROMPT, rival)
    torch.testing.assert_close(float(result.score), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(result, LLMAttributionResult)
    assert result.output_tokens == [target]
    assert result.rival_tokens == [rival]
    assert result.token_attr.shape == (1, 5)
    assert result.distance.shape == (1,)


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_each_token_of_an_answer_is_a_decision_against_its_runner_up(any_decoder, tokenizer):
    target = "it was Paris"
    result = LLMBoundaryAttribution(any_decoder, tokenizer, budget=8).attribute(PROMPT, target, **QUICK)
    prompt = PROMPT
    for place, word in enumerate(target.split()):
        with torch.no_grad():
            scores = any_decoder(torch.tensor([tokenizer.encode(prompt)])).logits[0, -1]
        own = tokenizer.encode(word)[0]
        others = scores.clone()
        others[own] = -torch.inf
        assert result.rival_tokens[place] == tokenizer.decode([int(others.argmax())])
        torch.testing.assert_close(result.score[place], scores[own] - others.max(), rtol=1e-4, atol=1e-4)
        prompt += f" {word}"
    assert result.output_tokens == target.split()
    assert result.token_attr.shape == (3, 5)
    torch.testing.assert_close(result.seq_attr, result.token_attr[result.boundary.found].sum(0))


def test_boundary_points_lie_just_beyond_the_boundary(any_decoder, tokenizer):
    result = LLMBoundaryAttribution(any_decoder, tokenizer).attribute(PROMPT, "Paris", "London", **QUICK)
    assert result.boundary.found.all()
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    embeddings = any_decoder.get_input_embeddings()(ids)
    torch.testing.assert_close((result.boundary.points - embeddings).norm(), result.distance[0])
    with torch.no_grad():
        scores = any_decoder(inputs_embeds=result.boundary.points).logits[0, -1]
    paris, london = tokenizer.encode("Paris London")
    difference = float(scores[paris] - scores[london])
    assert abs(difference) < 1e-2 * abs(float(result.score))
    assert difference * float(result.score) < 0


def test_the_default_method_integrates_from_the_boundary(any_decoder, tokenizer):
    result = LLMBoundaryAttribution(any_decoder, tokenizer).attribute(
        PROMPT, "Paris", "London", **{**QUICK, "n_steps": 50}
    )
    torch.testing.assert_close(result.token_attr.sum(), result.score[0], rtol=1e-2, atol=1e-2)


def test_a_linear_model_has_the_distances_of_its_weights(linear, tokenizer):
    """A model that takes ids alone; all that is asked for has a closed form."""
    method = LLMBoundaryAttribution(linear, tokenizer, embedding_layer=linear.tokens)
    result = method.attribute(PROMPT, "Paris", "London", n_candidates=None)
    paris, london = tokenizer.encode("Paris London")
    weight = (linear.scores.weight[paris] - linear.scores.weight[london]).detach()
    x = linear.tokens(torch.tensor(tokenizer.encode(PROMPT))).detach()
    score = linear.scores(x.sum(0)).detach()
    score = score[paris] - score[london]
    torch.testing.assert_close(result.score, score[None].float())
    alone = (score.abs() / weight.norm()).expand(1, 5)
    torch.testing.assert_close(result.token_distance, alone, rtol=1e-6, atol=0)
    torch.testing.assert_close(result.distance, alone[:, 0] / 5**0.5, rtol=1e-6, atol=0)
    torch.testing.assert_close(result.token_attr.sum(1), score[None], rtol=1e-6, atol=1e-9)
    apart = torch.cdist(x, linear.tokens.weight.detach())
    neighbors = apart.where(apart > 1e-6, torch.inf).amin(1)
    torch.testing.assert_close(result.token_closeness, neighbors / alone, rtol=1e-5, atol=0)
    assert not linear.tokens._forward_hooks


def test_decisions_that_are_nearly_open_have_a_boundary(small, tokenizer):
    """Rounding is relative to the logits, which are large here, and not to their small difference."""
    answers = ("Paris .", "London red")
    model = small.decoder("llama", tokenizer)
    method = LLMBoundaryAttribution(model, tokenizer)
    point = method.attribute(PROMPT, *answers, **QUICK).boundary.points[0]
    ids = tokenizer.encode(PROMPT)
    embedding = model.get_input_embeddings()
    with torch.no_grad():  # words at the boundary: nearly as likely, up to rounding of the last digits
        embedding.weight[ids] = torch.lerp(embedding.weight[ids], point, 0.9995)
    model.lm_head.register_forward_hook(lambda _, __, logits: logits + 500)
    result = LLMBoundaryAttribution(model, tokenizer).attribute(PROMPT, *answers, **{**QUICK, "token_budget": 10})
    assert 0 < abs(float(result.score)) < 0.05
    assert result.boundary.found.all()
    assert result.token_distance.isfinite().sum() >= 4


def test_padding_is_left_out(small, tokenizer):
    method = LLMBoundaryAttribution(small.model, tokenizer, budget=8)
    expected = method.attribute(PROMPT, "Paris", "London", **QUICK)
    padded = tokenizer(PROMPT, return_tensors="pt", padding="max_length", max_length=9)
    assert padded["input_ids"][0, 0] == tokenizer.pad_token_id
    for inp in (padded, tokenizer.encode(PROMPT, return_tensors="pt"), torch.tensor(tokenizer.encode(PROMPT))):
        result = method.attribute(inp, tokenizer.encode("Paris"), torch.tensor(tokenizer.encode("London")), **QUICK)
        torch.testing.assert_close(result.token_attr, expected.token_attr)
        torch.testing.assert_close(result.distance, expected.distance)


def test_captums_inputs_and_skipped_tokens(small, tokenizer):
    method = LLMBoundaryAttribution(small.model, tokenizer, budget=8)
    plain = method.attribute(TextTokenInput(PROMPT, tokenizer), "Paris", "London", **QUICK)
    assert plain.input_tokens == PROMPT.split()
    inp = TextTokenInput(PROMPT, tokenizer, skip_tokens=["the", "is"])
    skipping = [
        method.attribute(inp, "Paris", "London", **QUICK),
        method.attribute(PROMPT, "Paris", "London", skip_tokens=["the", "is"], **QUICK),
        method.attribute(PROMPT, "Paris", "London", skip_tokens=tokenizer.encode("the is"), **QUICK),
    ]
    for result in skipping:
        assert result.input_tokens == ["capital", "of", "France"]
        assert result.token_attr.shape == (1, 3)
        assert result.boundary.points.shape == (1, 3, 16)
        torch.testing.assert_close(result.score, plain.score)
        torch.testing.assert_close(result.token_attr, skipping[0].token_attr)
    assert skipping[0].distance > plain.distance


def test_messages_go_through_the_chat_template(small):
    tokenizer = small.words()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}it was"
    method = LLMBoundaryAttribution(small.model, tokenizer, budget=8)
    chat = method.attribute([{"role": "user", "content": PROMPT}], "Paris", "London", **QUICK)
    torch.testing.assert_close(chat.score, method.attribute(f"{PROMPT} it was", "Paris", "London", **QUICK).score)


def test_a_target_is_generated(small, tokenizer):
    method = LLMBoundaryAttribution(small.model, tokenizer, budget=8)
    result = method.attribute(PROMPT, gen_args={"max_new_tokens": 2, "do_sample": False}, **QUICK)
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    expected = small.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)[0, 5:]
    assert result.output_tokens == [tokenizer.decode([index]) for index in expected.tolist()]
    assert (result.score > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_geometry_is_in_float32_or_better(small, tokenizer, dtype):
    model = small.decoder("llama", tokenizer).to(dtype)
    result = LLMBoundaryAttribution(model, tokenizer).attribute(PROMPT, "Paris", "London", n_candidates=8, n_steps=5)
    expected = LLMBoundaryAttribution(small.model, tokenizer).attribute(PROMPT, "Paris", "London", **QUICK)
    assert result.boundary.points.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert result.boundary.found.all()
    # With 8 bits of scores, a decision is known to some hundredths.
    torch.testing.assert_close(result.distance.float(), expected.distance, rtol=0.25, atol=0)


def test_settings_of_a_search_are_used(small, tokenizer):
    search = NearestBoundary(small.model, norm=float("inf"), budget=8)
    result = LLMBoundaryAttribution(small.model, tokenizer, search=search).attribute(PROMPT, "Paris", "London", **QUICK)
    assert result.boundary.norm == float("inf")
    x = small.model.get_input_embeddings()(torch.tensor([tokenizer.encode(PROMPT)]))
    torch.testing.assert_close((result.boundary.points - x).abs().amax(), result.distance[0])
    assert search.forward_func is small.model
