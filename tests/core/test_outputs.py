"""What a model returns, taken as it comes where there is no doubt."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from captum_boundary import ModelFromLayer, NearestBoundary
from captum_boundary._core.margin import class_scores
from captum_boundary._core.outputs import has_one_output, output_of, score_tensor
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

SCORES = torch.tensor([[1.0, 4.0, 2.5], [0.0, -1.0, -3.0]])
TOKENS = torch.zeros(2, 5, 3)
InceptionOutputs = namedtuple("InceptionOutputs", ["logits", "aux_logits"])


@dataclass
class Answer:
    logits: Tensor
    embedding: Tensor


WELCOME = {
    "tensor": SCORES,
    "mapping": {"logits": SCORES},
    "mapping with more": OrderedDict(loss=torch.tensor(0.3), logits=SCORES, hidden_states=(TOKENS,), pooled=SCORES + 1),
    "dataclass": Answer(SCORES, SCORES + 1),
    "named tuple": InceptionOutputs(SCORES, SCORES + 1),
    "object": SimpleNamespace(logits=SCORES),
    "tuple of one": (SCORES,),
    "list of one": [SCORES],
    "tuple with hidden states": (SCORES, (TOKENS, TOKENS)),
    "tuple with an attention map": (SCORES, TOKENS),
    "tuple with labels": (SCORES, SCORES.argmax(dim=1)),
    "tuple with a number": (SCORES, torch.tensor(0.1)),
    "tuple with None": (SCORES, None),
}


@pytest.mark.parametrize("output", WELCOME.values(), ids=WELCOME)
def test_scores_are_found_where_there_is_no_doubt(output):
    assert score_tensor(output) is SCORES
    assert class_scores(output, 2) is SCORES
    assert score_tensor(output_of(lambda x: output, (torch.zeros(2, 1),), ())) is SCORES


@pytest.mark.parametrize("scores", [SCORES[:, 0], SCORES[:, :1]])
def test_one_output_may_be_wrapped_as_well(scores):
    assert score_tensor((scores,)) is scores
    assert has_one_output(scores)
    assert not has_one_output(SCORES)


def test_hugging_face_outputs_are_taken_as_they_come():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    assert score_tensor(outputs.SequenceClassifierOutput(logits=SCORES)) is SCORES
    assert score_tensor(outputs.SequenceClassifierOutput(loss=torch.tensor(0.5), logits=SCORES)) is SCORES
    with pytest.raises(BoundaryTypeError, match="'start_logits', 'end_logits', none of them a Tensor called 'logits'"):
        score_tensor(outputs.QuestionAnsweringModelOutput(start_logits=SCORES, end_logits=SCORES))


REFUSED = {
    "loss first": (
        (torch.tensor(0.3), SCORES),
        r"tuple \(Tensor of shape \(\), Tensor of shape \(2, 3\)\): its first entry is a single number, probably a "
        r"loss \(leave the labels out\)\. Wrap it .* lambda x: model\(x\)\[1\]\.$",
    ),
    "embedding beside the scores": (
        (SCORES, torch.zeros(2, 16)),
        r"tuple \(Tensor of shape \(2, 3\), Tensor of shape \(2, 16\)\): several entries could be these\. "
        r"Wrap it .* lambda x: model\(x\)\[0\]\.$",
    ),
    "losses first": ((torch.zeros(2), SCORES), "several entries could be these"),
    "of other examples": ((SCORES, torch.zeros(7, 3)), "several entries could be these"),
    "scores in second place": (
        (TOKENS, SCORES),
        r"Tensor of shape \(2, 5, 3\), Tensor of shape \(2, 3\)\): its first entry is not\. .*model\(x\)\[1\]",
    ),
    "labels": ((SCORES.argmax(dim=1),), r"its first entry is not"),
    "nothing": ((), r"returned tuple \(\): its first entry is not"),
    "words": (["yes", None], r"returned list \(str, None\): its first entry is not"),
    "other names": (
        {"probs": SCORES},
        r"dict with 'probs', none of them a Tensor called 'logits'.*model\(x\)\['probs'\]",
    ),
    "logits of several kinds": ({"logits": (SCORES, SCORES)}, r"dict with 'logits', none of them a Tensor"),
    "empty mapping": ({}, r"dict with nothing in it, none of them"),
    "segmentation": (
        OrderedDict(out=torch.zeros(2, 3, 4, 4), aux=torch.zeros(2, 3, 4, 4)),
        r"OrderedDict with 'out', 'aux', as segmentation models do\..* model\(x\)\[\"out\"\]\[:, :, row, column\]",
    ),
    "detection": (
        [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}] * 2,
        r"returned list of dictionaries, as detection models do\. Choose a decision, .*the score of its box less",
    ),
    "None": (None, r"returned NoneType\. Wrap it so that it returns the scores alone"),
    "a number": (0.5, r"returned float"),
}


@pytest.mark.parametrize(("output", "message"), REFUSED.values(), ids=REFUSED)
def test_doubt_is_an_error_that_shows_the_way(output, message):
    with pytest.raises(BoundaryTypeError, match=rf"^The model must return one Tensor of class scores, but .*{message}"):
        class_scores(output, 2)


SHAPES = {
    "pixels": ((2, 3, 8, 8), r"segmentation that of one pixel, say: lambda x: model\(x\)\[:, :, row, column\]"),
    "tokens": ((2, 5, 3), r"time step that of one position, say: lambda x: model\(x\)\[:, position\]"),
    "one example too few": ((1, 3), r"Wrap it in a function that returns such scores"),
}


@pytest.mark.parametrize(("shape", "message"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("wrap", [lambda scores: scores, lambda scores: {"logits": scores}], ids=["plain", "logits"])
def test_outputs_of_other_shapes_name_the_way(shape, message, wrap):
    with pytest.raises(BoundaryValueError, match=rf"must return scores of shape \(N, C\).*{message}"):
        class_scores(wrap(torch.zeros(shape)), 2)


class HuggingFaceLike(nn.Module):
    """A model that knows what problem it solves."""

    def __init__(self, problem_type: str | None) -> None:
        super().__init__()
        self.config = SimpleNamespace(problem_type=problem_type)
        self.layer = nn.Identity()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layer(x)}


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("multi_label_classification", r"labels that do not exclude each other.*logits\[:, label\]"),
        ("regression", r"no boundary until there is a decision.*logits\[:, 0\] - threshold"),
    ],
)
def test_a_model_that_says_it_solves_another_problem_is_refused(problem, message):
    with pytest.raises(BoundaryValueError, match=message):
        output_of(HuggingFaceLike(problem), (SCORES,), ())
    model = HuggingFaceLike(problem)
    assert torch.equal(output_of(lambda x: model(x)["logits"][:, 1], (SCORES,), ()), SCORES[:, 1])


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: ModelFromLayer(model, model.layer)])
def test_it_is_refused_within_other_models_and_with_a_mask(wrap):
    model = HuggingFaceLike("multi_label_classification")
    from_layer = ModelFromLayer(model, model.layer)
    inputs, arguments = from_layer.at(SCORES)
    wrapped = wrap(model)
    further = arguments if isinstance(wrapped, ModelFromLayer) else None
    for mask in (None, torch.tensor([1, 1, 0])):
        with pytest.raises(BoundaryValueError, match=r"labels that do not exclude each other.*logits\[:, label\]"):
            NearestBoundary(wrapped).find(inputs, None, further, mask=mask)


@pytest.mark.parametrize("problem", [None, "single_label_classification"])
def test_classification_is_what_is_asked_for(problem):
    assert score_tensor(output_of(HuggingFaceLike(problem), (SCORES,), ())) is SCORES


def test_scores_keep_their_graph():
    leaf = SCORES.clone().requires_grad_()
    score_tensor({"logits": leaf * 2}).sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(SCORES, 2.0))
