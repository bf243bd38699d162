"""Models of the package transformers, from their configurations, as they come."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import LayerDeepLift, LayerGradientXActivation, LayerIntegratedGradients
from torch import Tensor, nn

from captum_boundary import LayerBoundaryAttribution, ModelFromLayer, NearestBoundary
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.layers import nearest_tokens

transformers = pytest.importorskip("transformers")

N, L, V = 4, 7, 40
IDS = torch.randint(1, V, (N, L), generator=torch.Generator().manual_seed(0))
REAL = (torch.arange(L) < torch.tensor([[7], [5], [3], [6]])).long()
IDS[REAL == 0] = 0

BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "Bert": BERT,
    "Roberta": BERT,
    "Electra": {**BERT, "embedding_size": 16},
    "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1, "use_cache": False},
}


@pytest.fixture(params=CONFIGURATIONS)
def model(request) -> nn.Module:
    options = {"vocab_size": V, "num_labels": 3, "pad_token_id": 0, **CONFIGURATIONS[request.param]}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        config = getattr(transformers, f"{request.param}Config")(**options)
        built = getattr(transformers, f"{request.param}ForSequenceClassification")(config)
        for parameter in built.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)  # larger than usual, for clear decisions
    return built.eval()


def blocks(model: nn.Module) -> nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == 2)


@pytest.mark.parametrize("at_input", [False, True])
@pytest.mark.parametrize("where", ["embeddings", "block"])
def test_the_model_from_a_layer_on(where, at_input, model):
    if where == "embeddings" and at_input:
        pytest.skip("token ids cannot be moved")

    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        return model(ids, attention_mask=mask).logits

    layer = model.get_input_embeddings() if where == "embeddings" else blocks(model)[1]
    from_layer = ModelFromLayer(logits, layer, attribute_to_layer_input=at_input)
    activations, arguments = from_layer.at(IDS, REAL)
    assert activations.shape == (N, L, 16)
    torch.testing.assert_close(from_layer(activations, *arguments), logits(IDS, REAL))
    rows = torch.tensor([2, 0, 0, 1, 3])
    selected = (value[rows] if isinstance(value, Tensor) else value for value in arguments)
    torch.testing.assert_close(from_layer(activations[rows], *selected), logits(IDS[rows], REAL[rows]))

    n_embedded = 0

    def count(*_: Any) -> None:
        nonlocal n_embedded
        n_embedded += 1

    first = blocks(model)[0]
    forward = first.forward
    first.forward = lambda *args, **kwargs: (count(), forward(*args, **kwargs))[1]
    boundary = NearestBoundary(from_layer, budget=8).find(
        activations, additional_forward_args=arguments, mask=REAL[..., None]
    )
    del first.forward
    assert boundary.found.all()
    assert torch.equal(boundary.points[REAL == 0], activations[REAL == 0])
    assert (n_embedded == 0) == (where == "block")


def test_attributions_of_tokens(model):
    embedding = model.get_input_embeddings()

    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        return model(ids, attention_mask=mask).logits

    for method in (LayerIntegratedGradients, LayerGradientXActivation):
        explainer = LayerBoundaryAttribution(logits, embedding, method, score="margin")
        maps, boundary = explainer.attribute(IDS, None, REAL, mask=REAL[..., None], return_boundary=True)
        assert maps.shape == (N, L, 16)
        assert maps.isfinite().all()
        tokens, _ = nearest_tokens(boundary.points, embedding.weight, metric="l2", mask=REAL)
        assert ((tokens[..., 0] == -1) == (REAL == 0)).all()


def gpt2(**options: Any) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=V, num_labels=3, pad_token_id=0, **{**CONFIGURATIONS["GPT2"], **options}
    )
    return transformers.GPT2ForSequenceClassification(config).eval()


def test_what_decoders_are_given_by_mistake_is_named():
    """The second argument of GPT-2 is its cache; a model of ids gets embeddings; a cache has no scores."""
    model = gpt2()
    embedding = model.get_input_embeddings()
    with pytest.raises(BoundaryTypeError, match=r"Argument 2 of GPT2ForSequenceClassification\.forward is its cache"):
        LayerBoundaryAttribution(model, embedding).attribute(IDS, additional_forward_args=REAL)
    with pytest.raises(BoundaryTypeError, match="looks numbers up, such as token ids"):
        NearestBoundary(model).find(embedding(IDS).detach())
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):  # anything else stays as it is
        NearestBoundary(lambda x: x.nothing).find(torch.zeros(1, 2))
    cached = gpt2(use_cache=True)
    with pytest.raises(BoundaryValueError, match=r"Cache besides its scores: set model\.config\.use_cache = False"):
        LayerBoundaryAttribution(cached, cached.get_input_embeddings(), LayerDeepLift).attribute(IDS)


class Loan(nn.Module):
    """A table of two categories and two numbers, of which each is mixed with others before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.work, self.city = nn.Embedding(3, 2), nn.Embedding(4, 3)
        self.mixed, self.last = nn.Linear(4, 2), nn.Linear(5, 2)

    def forward(self, numbers: Tensor, work: Tensor, city: Tensor) -> Tensor:
        early = self.mixed(torch.cat([self.work(work), numbers], dim=1))  # is called before the second embedding
        return self.last(torch.cat([early, self.city(city)], dim=1))


@pytest.mark.parametrize("kind", [list, tuple, nn.ModuleList])
def test_embeddings_of_several_columns_move_together(kind):
    """The model is linear in them, so that the nearest boundary point is known."""
    torch.manual_seed(0)
    model = Loan().eval()
    table = torch.randn(5, 2), torch.tensor([0, 1, 2, 1, 0]), torch.tensor([3, 2, 1, 0, 3])
    method = LayerBoundaryAttribution(model, kind([model.work, model.city]))
    maps, boundary = method.attribute(table, return_boundary=True)
    assert [part.shape for part in maps] == [(5, 2), (5, 3)]
    normal = model.last.weight[1] - model.last.weight[0]
    slopes = normal[:2] @ model.mixed.weight[:, :2], normal[2:]
    scores = model(*table)
    margin = scores.gather(1, boundary.target[:, None])[:, 0] - scores.gather(1, 1 - boundary.target[:, None])[:, 0]
    torch.testing.assert_close(boundary.distance, margin / torch.cat(slopes).norm(), rtol=1e-4, atol=1e-6)
    sign = 1 - 2 * boundary.target[:, None]
    for module, ids, point, slope in zip((model.work, model.city), table[1:], boundary.points, slopes, strict=True):
        move = sign * margin[:, None] * slope / torch.cat(slopes).square().sum()
        torch.testing.assert_close(point, module(ids) + move, rtol=1e-3, atol=1e-4)
    backwards = LayerBoundaryAttribution(model, kind([model.city, model.work])).attribute(table, boundary=None)
    torch.testing.assert_close(backwards, maps[::-1])


@pytest.mark.parametrize("kind", [list, tuple, nn.ModuleList])
def test_layers_that_cannot_move_together_are_refused(kind):
    model = Loan().eval()
    table = torch.randn(2, 2), torch.tensor([0, 1]), torch.tensor([3, 2])
    with pytest.raises(BoundaryValueError, match="does not contain this Embedding"):
        ModelFromLayer(model, kind([model.work, nn.Embedding(4, 2)]))
    with pytest.raises(BoundaryValueError, match="begins with the input of one layer, but layer holds 2"):
        ModelFromLayer(model, kind([model.work, model.city]), attribute_to_layer_input=True)
    with pytest.raises(BoundaryTypeError, match=r"hooks the layers of a model.*holds 2"):
        LayerBoundaryAttribution(model, kind([model.work, model.city]), LayerDeepLift)
    with pytest.raises(BoundaryValueError, match="at least one module, each of them once, but it holds 2"):
        ModelFromLayer(model, kind([model.work, model.work]))
    chain = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    with pytest.raises(BoundaryValueError, match=r"The layer, Linear, has no activation.*side by side"):
        ModelFromLayer(chain, kind([chain[0], chain[1]])).at(torch.randn(2, 3))
    spare = nn.Sequential(model, nn.Embedding(2, 2))[0]
    spare.spare = nn.Embedding(3, 3)
    with pytest.raises(BoundaryValueError, match="The layer, Embedding, was not called"):
        ModelFromLayer(spare, kind([spare.work, spare.spare])).at(table)


def test_a_layer_must_be_a_module():
    with pytest.raises(BoundaryTypeError, match=r"torch\.nn\.Module of the model.* or a list of them, but it is str"):
        ModelFromLayer(Loan(), ["work"])
    with pytest.raises(BoundaryValueError, match="at least one module"):
        ModelFromLayer(Loan(), [])
