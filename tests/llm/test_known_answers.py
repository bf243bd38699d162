"""A decoder whose rule is known, a real language model, and the benchmark that explains both."""

from __future__ import annotations

import pytest
import torch

from captum_boundary import NearestBoundary
from captum_boundary.llm import LLMBoundaryAttribution

NAMES = ("llm_models", "llm_prompts", "llm_methods", "llm_firmness", "llm")


def test_distances_and_substitutions_name_the_word_that_decides(benchmark):
    """One of eight words decides; at random an eighth of the first tokens would be that word."""
    model, tokenizer = benchmark.llm_models.rule_decoder(), benchmark.llm_models.RuleTokenizer()
    explain = LLMBoundaryAttribution(model, tokenizer, budget=20)
    right, n_single, n_right_single = 0, 0, 0
    ids, answers, places = benchmark.llm_models.rule_texts(6)
    for text, answer, place in zip(ids, answers, places, strict=True):
        rival = (answer - 3) % 4 + 4
        result = explain.attribute(text, [int(answer)], [int(rival)], n_steps=2)
        assert result.score > 0
        right += int(result.token_closeness[0].argmax()) == int(place)
        for found in result.substitutions[0]:
            n_single += len(found.positions) == 1
            n_right_single += found.positions == (int(place),)
    assert right >= 5
    # The word that decides can be replaced by one of another answer. Others may win too: two such words in one text.
    assert n_right_single >= 5
    assert n_single < 8 * 6


def test_the_benchmark_of_the_rule(benchmark, capsys):
    with torch.random.fork_rng(devices=[]):
        rows = benchmark.llm.of_rule(2)
        benchmark.llm.show(rows)
    table = capsys.readouterr().out
    assert all(
        label in table
        for label in ("token closeness", "length / token distance", "BIG", "Captum LayerIG", "attention rollout")
    )
    for row in rows:
        assert row["methods"]["occlusion"]["occlusion"] == pytest.approx(1)
        assert row["methods"]["occlusion"]["cause first"] == 1
        assert row["methods"]["occlusion"]["cause over irrelevant"] == 1


def test_firmness_is_that_of_each_prompt_alone(benchmark):
    """Prompts of several lengths in one batch, and certainty whose area under the curve is known."""
    model, firmness = benchmark.llm_models.rule_decoder(), benchmark.llm_firmness
    texts, answers, _ = benchmark.llm_models.rule_texts(2)
    prompts = [texts[0], texts[1][2:]]
    pairs = torch.stack([answers, (answers - 3) % 4 + 4], dim=1)
    batch = firmness.PaddedDecisions(model, prompts, pairs)
    alone = [model(ids[None]).logits[0, -1, pair] for ids, pair in zip(prompts, pairs, strict=True)]
    torch.testing.assert_close(batch.forward_all(), torch.stack([scores[0] - scores[1] for scores in alone]))
    boundary = NearestBoundary(batch, budget=10).find(batch.x, None, torch.arange(2), mask=batch.mask)
    assert torch.equal(boundary.points[1, 6:], batch.x[1, 6:])
    flips = [[True, True], [False, True], [False, False]]
    table = firmness.table_of(
        {"right": [3.0, 2.0, 1.0], "none": [1.0, 1.0, 1.0], "wrong": [1.0, 2.0, 3.0]}, flips, "none"
    )
    # Of 9 pairs of a variant that flips and one that does not, 8 are of prompts in the right order, one of the same.
    assert [table[name]["AUC"][:4] for name in ("right", "none", "wrong")] == ["0.94", "0.50", "0.06"]
    assert table["right"]["less none"].startswith("0.44")


@pytest.fixture(scope="module")
def smollm2(benchmark):
    try:
        return benchmark.llm_models.load_smollm2()
    except benchmark.llm_models.ModelNotThereError as error:
        pytest.skip(str(error))


@pytest.mark.exhaustive
def test_a_real_model_says_paris_because_of_france(smollm2):
    model, tokenizer = smollm2
    prompt = "The capital of France is"
    result = LLMBoundaryAttribution(model, tokenizer, budget=20).attribute(
        prompt, " Paris", " London", token_budget=8, n_candidates=32, n_steps=5
    )
    assert result.boundary.n_gradient <= 20
    assert result.boundary.n_forward <= 40
    assert set(result.token_distance[0].argsort()[:2].tolist()) == {1, 3}  # capital, France
    assert result.distance[0] < result.token_distance[0].min()
    singles = {found.positions[0]: found for found in result.substitutions[0] if len(found.positions) == 1}
    assert 3 in singles
    ids = torch.tensor([tokenizer.encode(singles[3].prompt)])
    logits = model(ids, use_cache=False).logits[0, -1]
    paris, london = tokenizer.encode(" Paris London")
    assert logits[london] > logits[paris]
    by_captum = LLMBoundaryAttribution(model, tokenizer, budget=5).attribute(
        [{"role": "user", "content": "Say hi."}],
        gen_args={"max_new_tokens": 2, "do_sample": False},
        skip_tokens=tokenizer.all_special_ids,
        token_budget=None,
        n_candidates=None,
        n_steps=2,
    )
    assert (by_captum.score > 0).all()


@pytest.mark.exhaustive
def test_the_benchmark_of_the_real_model(smollm2, benchmark):
    case = benchmark.llm_prompts.cases(1)[0]
    places = benchmark.llm.places_of(case.prompt, case, smollm2[1])
    assert places == {"cause": [8], "irrelevant": [0, 1, 2, 3, 4]}
    for made in benchmark.llm_prompts.cases(12):
        assert len(smollm2[1].encode(made.target)) == len(smollm2[1].encode(made.rival)) == 1
        assert made.irrelevant in made.prompt
    assert len(set(benchmark.llm_firmness.typos(case.prompt))) > 8
    assert len(set(case.paraphrases)) == 7
