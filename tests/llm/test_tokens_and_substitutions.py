"""Distances of tokens alone, phrases, and real tokens that flip an answer."""

from __future__ import annotations

import matplotlib as mpl
import pytest
import torch

from captum_boundary import NearestBoundary
from captum_boundary.errors import BoundaryValueError
from captum_boundary.llm import LLMBoundaryAttribution, LLMBoundaryResult

PROMPT = "the capital of France is"
QUICK = {"n_steps": 2, "n_candidates": None}


def scores(model, tokenizer, ids, answers=("Paris", "London")):
    """Signed logit and logits after ids."""
    with torch.no_grad():
        output = model(torch.tensor([ids]))
        logits = getattr(output, "logits", output)[0].float()
    first, second = (tokenizer.encode(answer)[0] for answer in answers)
    return float(logits[-1, first] - logits[-1, second]), logits


def test_token_distances_are_those_of_searches_with_masks(small, tokenizer):
    result = LLMBoundaryAttribution(small.model, tokenizer).attribute(
        PROMPT, "Paris", "London", token_budget=20, **QUICK
    )
    paris, london = tokenizer.encode("Paris London")

    def decision(embeddings):
        logits = small.model(inputs_embeds=embeddings, use_cache=False).logits[:, -1]
        return logits[:, [paris, london]]

    x = small.model.get_input_embeddings()(torch.tensor([tokenizer.encode(PROMPT)])).detach()
    for place in range(5):
        mask = torch.zeros(1, 5, 1)
        mask[:, place] = 1
        alone = NearestBoundary(decision, budget=20).find(x, 0, mask=mask)
        torch.testing.assert_close(result.token_distance[0, place], alone.distance[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("phrases", "expected"),
    [
        (None, ["the", "capital", "of", "France", "is", ".", "it", "was", "?"]),
        ("words", ["the", "capital", "of", "France", "is", ".", "it", "was", "?"]),
        ("sentences", ["the capital of France is .", "it was ?"]),
        (["France is", "it"], ["the capital of", "France is", ".", "it", "was ?"]),
    ],
)
def test_phrases_move_together(small, tokenizer, phrases, expected):
    method = LLMBoundaryAttribution(small.model, tokenizer)
    prompt = "the capital of France is . it was ?"
    result = method.attribute(prompt, "Paris", "London", phrases=phrases, **QUICK)
    assert result.input_tokens == expected
    assert result.token_attr.shape == result.token_distance.shape == (1, len(expected))
    plain = method.attribute(prompt, "Paris", "London", token_budget=None, **QUICK)
    torch.testing.assert_close(result.token_attr.sum(), plain.token_attr.sum(), rtol=1e-4, atol=1e-4)
    assert plain.token_distance is None


def test_more_tokens_flip_more_easily(linear, tokenizer):
    method = LLMBoundaryAttribution(linear, tokenizer, embedding_layer=linear.tokens)
    whole = method.attribute(PROMPT, "Paris", "London", phrases=["capital of France"], **QUICK)
    alone = method.attribute(PROMPT, "Paris", "London", **QUICK)
    torch.testing.assert_close(whole.token_distance[0, 1], alone.token_distance[0, 0] / 3**0.5, rtol=1e-6, atol=0)


def test_substitutions_flip_the_decision_of_the_model(small, tokenizer):
    result = LLMBoundaryAttribution(small.model, tokenizer).attribute(PROMPT, "Paris", "London", n_steps=2)
    ids = tokenizer.encode(PROMPT)
    before, logits = scores(small.model, tokenizer, ids)
    likelihood = logits[:-1].log_softmax(1).gather(1, torch.tensor(ids)[1:, None]).sum()
    weight = small.model.get_input_embeddings().weight.detach()
    assert result.substitutions[0]
    for found in result.substitutions[0]:
        new = tokenizer.encode(found.prompt)
        after, logits = scores(small.model, tokenizer, new)
        assert after * before < 0
        assert after == pytest.approx(found.score, rel=1e-3, abs=1e-4)
        assert [i for i in range(5) if new[i] != ids[i]] == list(found.positions)
        assert tuple(new[i] for i in found.positions) == found.replacement_ids
        assert not {"Paris", "London"} & set(found.replacements)
        moved = weight[new] - weight[ids]
        assert found.distance == pytest.approx(float(moved.norm()), rel=1e-5)
        assert found.says == tokenizer.decode([int(logits[-1].argmax())])
        new_likelihood = logits[:-1].log_softmax(1).gather(1, torch.tensor(new)[1:, None]).sum()
        assert found.log_likelihood_change == pytest.approx(float(new_likelihood - likelihood), rel=1e-3, abs=1e-3)
        assert str(found).endswith(f"it says {found.says!r}")
    distances = [found.distance for found in result.substitutions[0]]
    assert distances == sorted(distances)


def brute_force(model, tokenizer, n_moved, answers):
    """Whether any prompt with that many words of its kind replaced flips the decision."""
    ids = tokenizer.encode(PROMPT)
    words = [i for i in range(2, len(tokenizer)) if tokenizer.decode([i]).isalpha()]
    words = [i for i in words if tokenizer.decode([i]) not in answers]
    before, _ = scores(model, tokenizer, ids, answers)
    singles = [(place, word) for place in range(5) for word in words]
    for first in singles:
        for second in singles if n_moved == 2 else [first]:
            new = list(ids)
            new[first[0]], new[second[0]] = first[1], second[1]
            if scores(model, tokenizer, new, answers)[0] * before < 0:
                return True
    return False


@pytest.mark.parametrize("rival", ["London", "Madrid", "red", "cabinet", "green"])
def test_a_single_is_found_where_there_is_one(linear, tokenizer, rival):
    """For a linear model the prediction is exact, so that 64 candidates find what brute force finds."""
    method = LLMBoundaryAttribution(linear, tokenizer, embedding_layer=linear.tokens)
    found = method.attribute(PROMPT, "Paris", rival, n_steps=2).substitutions[0]
    if brute_force(linear, tokenizer, 1, ("Paris", rival)):
        assert found
        assert all(len(each.positions) == 1 for each in found)
    else:
        assert all(len(each.positions) == 2 for each in found)


def test_pairs_follow_where_no_single_flips(linear, tokenizer):
    """The score is that of one sum, so that two words move it further than one."""
    method = LLMBoundaryAttribution(linear, tokenizer, embedding_layer=linear.tokens)
    pairs = 0
    for rival in ("a", "England", "Spain", "Madrid", "red", "blue", "keys", "it", "was", "."):
        found = method.attribute(PROMPT, "Paris", rival, n_steps=2).substitutions[0]
        pairs += sum(len(each.positions) == 2 for each in found)
        if not brute_force(linear, tokenizer, 1, ("Paris", rival)):
            assert bool(found) <= brute_force(linear, tokenizer, 2, ("Paris", rival))
    assert pairs > 0


def test_answers_are_substituted_only_if_asked(linear, tokenizer):
    method = LLMBoundaryAttribution(linear, tokenizer, embedding_layer=linear.tokens)
    options = {"n_steps": 2, "n_candidates": 400, "token_budget": None}
    without = method.attribute(PROMPT, "Paris", "London", **options).substitutions[0]
    words = {word for each in without for word in each.replacements}
    assert not {"Paris", "London"} & words
    result = method.attribute("France", "Paris", "London", allow_answer_tokens=True, **options)
    assert all(len(each.positions) == 1 for each in result.substitutions[0])


def test_pictures(small, tokenizer):
    result = LLMBoundaryAttribution(small.model, tokenizer, budget=8).attribute(PROMPT, "it was", n_steps=2)
    with mpl.rc_context({"backend": "agg"}):
        for figure, _ in (result.plot_token_attr(), result.plot_seq_attr(), result.plot_token_distance(1)):
            figure.canvas.draw()
            mpl.pyplot.close(figure)
    assert set(result.seq_attr_dict) == set(result.input_tokens)
    assert "against" in repr(result)


def test_a_picture_shows_tokens_as_they_are_and_needs_distances():
    one, two = torch.ones(1), torch.ones(2)
    result = LLMBoundaryResult(
        input_tokens=["$5", "$\\frac{"], output_tokens=["$"], rival_tokens=["$$x"], seq_attr=two, token_attr=two[None],
        score=one, distance=one, token_distance=torch.tensor([[2.0, 4.0]]), neighbor_distance=two,
        substitutions=[[]], boundary=None,
    )  # fmt: skip
    with mpl.rc_context({"backend": "agg"}):
        figure, axes = result.plot_token_distance()
        figure.canvas.draw()
        assert [bar.get_width() for bar in axes.patches] == [0.5, 0.25]
        assert next(label.get_text() for label in axes.get_yticklabels()) == "$5"
        mpl.pyplot.close(figure)
    result.token_distance = None
    with pytest.raises(BoundaryValueError, match="token_budget=None leaves out"):
        result.plot_token_distance()
