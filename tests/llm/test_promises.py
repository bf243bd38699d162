"""What is refused, and that the caller's model stays as it was."""

from __future__ import annotations

import pytest
import torch
import transformers
from captum.attr import TextTokenInput
from torch import nn

from captum_boundary import BoundaryError
from captum_boundary.errors import BoundaryPrecisionWarning, BoundaryTypeError, BoundaryValueError
from captum_boundary.llm import LLMBoundaryAttribution

PROMPT = "the capital of France is"
QUICK = {"token_budget": None, "n_candidates": None, "n_steps": 2}


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("", "Paris"), {}, BoundaryValueError, "at least one token"),
        ((3, "Paris"), {}, BoundaryTypeError, "must be a str, chat messages, a TextTokenInput"),
        ((torch.tensor([0.5]), "Paris"), {}, BoundaryTypeError, "integer token ids"),
        ((torch.tensor([1, 999]), "Paris"), {}, BoundaryValueError, "between 0 and 21, but it contains 999"),
        (([PROMPT, PROMPT], "Paris"), {}, BoundaryTypeError, "one text, but it is a list of texts"),
        (([{"role": "user", "content": PROMPT}], "Paris"), {}, BoundaryValueError, "set tokenizer.chat_template"),
        ((torch.ones(2, 3).long(), "Paris"), {}, BoundaryValueError, r"shape is \(2, 3\)"),
        ((PROMPT, ""), {}, BoundaryValueError, "target must have at least one token"),
        ((PROMPT, []), {}, BoundaryValueError, "target must have at least one token"),
        ((PROMPT, "Lisbon"), {}, BoundaryValueError, "target='Lisbon' contains a token that the tokenizer does not"),
        ((PROMPT, 7), {}, BoundaryTypeError, "target must be a str or token ids, but it is int"),
        ((PROMPT, [99]), {}, BoundaryValueError, "contains 99"),
        ((PROMPT, "Paris", "Paris"), {}, BoundaryValueError, "another answer than target, but both are 'Paris'"),
        ((PROMPT, "Paris", "Paris ."), {}, BoundaryValueError, "one ends where the other goes on"),
        ((PROMPT, "Paris", "Oslo"), {}, BoundaryValueError, "rival='Oslo' contains"),
        ((PROMPT, "Paris"), {"skip_tokens": ["Oslo"]}, BoundaryValueError, "'Oslo' is none of them"),
        ((PROMPT, "Paris"), {"skip_tokens": PROMPT.split()}, BoundaryValueError, "nothing may move"),
        ((PROMPT, "Paris"), {"phrases": ["Spain"]}, BoundaryValueError, "'Spain' does not occur"),
        ((PROMPT, "Paris"), {"phrases": "letters"}, BoundaryValueError, '"words", "sentences" or'),
        ((PROMPT, "Paris"), {"gen_args": {}}, BoundaryValueError, "target was given"),
        ((PROMPT, "Paris"), {"token_budget": 0}, BoundaryValueError, "token_budget must be a positive integer"),
        ((PROMPT, "Paris"), {"n_candidates": -1}, BoundaryValueError, "n_candidates must be a positive integer"),
        (("the " * 32, "Paris"), {}, BoundaryValueError, "have 33 tokens, but the model sees 32 at most"),
        ((PROMPT, "Paris"), {"baselines": 0}, BoundaryError, "baselines"),
    ],
)
def test_bad_arguments_say_how_to_mend_them(small, tokenizer, arguments, options, error, message):
    with pytest.raises(error, match=message):
        LLMBoundaryAttribution(small.model, tokenizer, budget=4).attribute(*arguments, **{**QUICK, **options})


def test_baselines_of_captums_input_are_refused(small, tokenizer):
    inp = TextTokenInput(PROMPT, tokenizer, baselines=3)
    with pytest.raises(BoundaryValueError, match="nearest boundary point"):
        LLMBoundaryAttribution(small.model, tokenizer).attribute(inp, "Paris")


def test_answers_that_are_split_otherwise_after_the_prompt_are_refused(small):
    """Pieces of words: with the prompt's last word, the answer makes a token of its own."""
    from tokenizers import Tokenizer, models

    vocabulary = {"[UNK]": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "cab": 5}
    model = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("c", "ab")], unk_token="[UNK]"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]")
    method = LLMBoundaryAttribution(small.model, tokenizer, budget=4)
    with pytest.raises(BoundaryValueError, match="otherwise together than alone"):
        method.attribute("cca", "b", "c", **QUICK)
    assert method.attribute("cca", "c", "a", **QUICK).output_tokens == ["c"]


class Scores(nn.Module):
    def forward(self, ids):
        return torch.zeros(len(ids), 3)


def test_models_that_cannot_be_used_are_refused(small, tokenizer):
    with pytest.raises(BoundaryTypeError, match=r"model must be a torch\.nn\.Module"):
        LLMBoundaryAttribution(lambda ids: ids, tokenizer)
    with pytest.raises(BoundaryValueError, match="does not say which of its modules embeds tokens"):
        LLMBoundaryAttribution(Scores(), tokenizer)
    with pytest.raises(BoundaryTypeError, match=r"embedding_layer must be a torch\.nn\.Module"):
        LLMBoundaryAttribution(small.model, tokenizer, embedding_layer=3)
    with pytest.raises(BoundaryValueError, match="does not contain it"):
        LLMBoundaryAttribution(small.model, tokenizer, embedding_layer=nn.Embedding(2, 3))
    with pytest.raises(BoundaryTypeError, match=r"embeddings \(N, L, E\) for token ids.*Linear raises"):
        LLMBoundaryAttribution(small.model, tokenizer, embedding_layer=small.model.lm_head)
    with pytest.raises(BoundaryValueError, match=r"must have a weight \(V, E\), but LlamaModel has none"):
        LLMBoundaryAttribution(small.model, tokenizer, embedding_layer=small.model.model)
    small.model.nonsense = nn.EmbeddingBag(5, 3)
    with pytest.raises(BoundaryTypeError, match=r"this EmbeddingBag returns \(1, 3\)"):
        LLMBoundaryAttribution(small.model, tokenizer, embedding_layer=small.model.nonsense)
    del small.model.nonsense
    with pytest.raises(BoundaryTypeError, match="must be a BoundarySearch"):
        LLMBoundaryAttribution(small.model, tokenizer, search=small.model)
    with pytest.raises(BoundaryTypeError, match=r"tokenizer must have encode and decode, .* it is NoneType"):
        LLMBoundaryAttribution(small.model, None)
    config = transformers.T5Config(vocab_size=22, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(BoundaryValueError, match="is an encoder-decoder"):
        LLMBoundaryAttribution(transformers.T5ForConditionalGeneration(config), tokenizer)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    masked = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=22, initializer_range=0.5, **sizes)).eval()
    with pytest.raises(BoundaryValueError, match="no causal language model"):
        LLMBoundaryAttribution(masked, tokenizer).attribute(PROMPT, "Paris")
    classifier = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=22, **sizes)).eval()
    with pytest.raises(BoundaryValueError, match=r"logits \(N, L, V\)"):
        LLMBoundaryAttribution(classifier, tokenizer).attribute(PROMPT, "Paris")


@pytest.mark.parametrize(("dtype", "resolution"), [(torch.bfloat16, "0.0078"), (torch.float16, "0.00098")])
def test_half_precision_says_what_it_cannot_resolve(small, tokenizer, dtype, resolution):
    """A nearly open decision: the rival's output weights are nearly those of the target."""
    model = small.decoder("llama", tokenizer)
    paris, london = tokenizer.encode("Paris London")
    with torch.no_grad():
        model.lm_head.weight[london] = model.lm_head.weight[paris] * 0.996
        model.lm_head.weight[london, 0] += 0.01
    method = LLMBoundaryAttribution(model.to(dtype), tokenizer, budget=8)
    with pytest.warns(BoundaryPrecisionWarning, match=f"relative resolution of {resolution}.*float32"):
        method.attribute(PROMPT, "Paris", "London", **QUICK)


def test_a_model_may_have_more_embeddings_than_the_tokenizer_has_tokens(small, tokenizer):
    model = small.decoder("llama", tokenizer)
    model.resize_token_embeddings(30, mean_resizing=False)
    ids = [*tokenizer.encode(PROMPT), 28]
    result = LLMBoundaryAttribution(model, tokenizer, budget=8).attribute(
        ids, "Paris", "London", token_budget=4, n_steps=2
    )
    assert len(result.input_tokens) == 6
    assert all(5 not in found.positions for found in result.substitutions[0])
    assert all(index < len(tokenizer) for found in result.substitutions[0] for index in found.replacement_ids)


class LooksAtIds(nn.Module):
    """A model that sees more of a token than its embedding."""

    def __init__(self):
        super().__init__()
        self.tokens, self.others, self.scores = nn.Embedding(22, 4), nn.Embedding(22, 4), nn.Linear(4, 22)

    def forward(self, input_ids=None, inputs_embeds=None):
        if inputs_embeds is None:
            inputs_embeds = self.tokens(input_ids) + self.others(input_ids)
        return self.scores(inputs_embeds.cumsum(1))

    def get_input_embeddings(self):
        return self.tokens


def test_models_that_see_more_than_embeddings_are_refused_or_hooked(tokenizer):
    model = LooksAtIds()
    with pytest.raises(BoundaryValueError, match="does not return the same logits"):
        LLMBoundaryAttribution(model, tokenizer).attribute(PROMPT, "Paris", "London", **QUICK)
    method = LLMBoundaryAttribution(model, tokenizer, embedding_layer=model.tokens)
    score = method.attribute(PROMPT, "Paris", "London", **QUICK).score
    paris, london = tokenizer.encode("Paris London")
    scores = model(torch.tensor([tokenizer.encode(PROMPT)]))[0, -1]
    torch.testing.assert_close(score[0], (scores[paris] - scores[london]).detach())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_state_is_as_before(small, tokenizer, mode):
    model = small.decoder("gpt2", tokenizer)
    model.transformer.wte.weight.requires_grad_(False)

    def state():
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
        values = [(p.sum().item(), p.requires_grad, p.grad, p._version) for p in model.parameters()]
        return hooks, values, torch.get_rng_state().tolist(), torch.is_grad_enabled(), model.config.to_dict()

    before = state()
    method = LLMBoundaryAttribution(model, tokenizer, budget=8)
    with mode():
        result = method.attribute(PROMPT, "Paris", "London", token_budget=4, n_candidates=8, n_steps=2)
    assert state() == before
    assert not result.token_attr.requires_grad
    again = method.attribute(PROMPT, "Paris", "London", token_budget=4, n_candidates=8, n_steps=2)
    torch.testing.assert_close(result.token_attr, again.token_attr)
    torch.testing.assert_close(result.token_distance, again.token_distance)
    with pytest.raises(NotImplementedError, match="attribute_future"):
        method.attribute_future()


def test_a_prompt_of_32_tokens_takes_at_most_30_passes(small, tokenizer):
    """At budget 20, in forward and backward passes; a forward pass alone is a third of one."""
    model = small.decoder("llama", tokenizer, max_position_embeddings=64)
    prompt = tokenizer.encode(" ".join([PROMPT, "it was"] * 5))[:32]
    assert len(prompt) == 32
    boundary = (
        LLMBoundaryAttribution(model, tokenizer, budget=20).attribute(prompt, "Paris", "London", **QUICK).boundary
    )
    assert boundary.found.all()
    n_forward, n_gradient = int(boundary.n_forward), int(boundary.n_gradient)
    assert n_gradient <= 20
    assert n_gradient + (n_forward - n_gradient) / 3 <= 30
