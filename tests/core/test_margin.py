"""From the outputs of a model to the margin of a class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captum_boundary._core.margin import class_scores, margin_and_rival, resolve_target, rival_scores
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

SCORES = torch.tensor([[1.0, 4.0, 2.5], [0.0, -1.0, -3.0]])


def test_scores_of_several_classes_come_as_they_are():
    assert class_scores(SCORES, 2) is SCORES


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_single_output_becomes_two_columns(shape):
    scores = class_scores(torch.tensor([3.0, -2.0]).reshape(shape), 2)
    assert scores.tolist() == [[0.0, 3.0], [0.0, -2.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_widened(dtype):
    scores = class_scores(SCORES.to(dtype), 2)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, SCORES)


def test_double_precision_is_kept():
    assert class_scores(SCORES.double(), 2).dtype == torch.float64


def test_the_gradient_passes_through_a_single_output():
    output = torch.tensor([3.0, -2.0], requires_grad=True)
    class_scores(output, 2)[:, 1].sum().backward()
    assert output.grad.tolist() == [1.0, 1.0]


BAD_OUTPUTS = {
    "tuple": ((SCORES, SCORES), BoundaryTypeError, "returned tuple"),
    "dict": ({"scores": SCORES}, BoundaryTypeError, "returned dict"),
    "labels": (SCORES.argmax(dim=1), BoundaryTypeError, r"returned torch\.int64"),
    "pixels": (SCORES[:, :, None], BoundaryValueError, r"shape \(2, 3, 1\)"),
    "number": (torch.tensor(1.0), BoundaryValueError, r"shape \(\)"),
    "other batch": (SCORES[:1], BoundaryValueError, r"N = 2 .*shape \(1, 3\)"),
    "no class": (SCORES[:, :0], BoundaryValueError, r"shape \(2, 0\)"),
    "NaN": (SCORES * torch.nan, BoundaryValueError, "NaN or infinite"),
    "masked": (SCORES - torch.inf, BoundaryValueError, "masked classes"),
}


@pytest.mark.parametrize(("output", "error", "message"), BAD_OUTPUTS.values(), ids=BAD_OUTPUTS)
def test_bad_outputs_are_refused(output, error, message):
    with pytest.raises(error, match=message):
        class_scores(output, 2)


def test_the_margin_is_the_lead_over_the_strongest_other_class():
    margin, rival = margin_and_rival(SCORES, torch.tensor([1, 0]))
    assert margin.tolist() == [1.5, 1.0]
    assert rival.tolist() == [2, 1]


def test_the_margin_is_negative_outside_the_region():
    margin, rival = margin_and_rival(SCORES, torch.tensor([0, 2]))
    assert margin.tolist() == [-3.0, -3.0]
    assert rival.tolist() == [1, 0]


def test_the_margin_agrees_with_its_definition():
    scores = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    target = torch.arange(50) % 7
    margin, rival = margin_and_rival(scores, target)
    for row, index in enumerate(target.tolist()):
        others = [scores[row, other].item() for other in range(7) if other != index]
        assert margin[row].item() == pytest.approx(scores[row, index].item() - max(others))
        assert scores[row, rival[row]].item() == max(others)


def test_the_target_is_no_rival_of_itself():
    rivals = rival_scores(SCORES, torch.tensor([1, 0]))
    assert rivals.argmax(dim=1).tolist() == [2, 1]
    assert torch.isinf(rivals).sum() == 2


def test_the_margin_of_a_single_output_is_its_score_on_either_side():
    scores = class_scores(torch.tensor([3.0, -2.0]), 2)
    target = resolve_target(None, scores, is_binary=True)
    assert target.tolist() == [1, 0]
    assert margin_and_rival(scores, target)[0].tolist() == [3.0, 2.0]


@pytest.mark.parametrize(
    "target", [2, (2,), [2, 2], [(2,), (2,)], torch.tensor(2), torch.tensor([2]), torch.tensor([2, 2]), np.int32(2)]
)
def test_every_form_of_target(target):
    resolved = resolve_target(target, SCORES, is_binary=False)
    assert resolved.tolist() == [2, 2]
    assert resolved.dtype == torch.long


def test_a_list_of_targets_is_one_for_each_example():
    assert resolve_target([0, (2,)], SCORES, is_binary=False).tolist() == [0, 2]
    assert resolve_target(torch.tensor([2, 1], dtype=torch.uint8), SCORES, is_binary=False).tolist() == [2, 1]


def test_no_target_is_the_predicted_class():
    assert resolve_target(None, SCORES, is_binary=False).tolist() == [1, 0]


@pytest.mark.parametrize("target", [None, 0, [0, 0], torch.tensor([0, 0])])
def test_the_only_output_is_the_side_of_each_example(target):
    scores = torch.tensor([[0.0, 3.0], [0.0, -2.0]])
    assert resolve_target(target, scores, is_binary=True).tolist() == [1, 0]


SIDES = torch.tensor([[0.0, 3.0], [0.0, -2.0]])


@pytest.mark.parametrize("target", [1, (1,), [1, 1], torch.tensor(1), torch.tensor([1, 1])])
def test_one_is_the_positive_side_of_the_only_output(target):
    assert resolve_target(target, SIDES, is_binary=True).tolist() == [1, 1]


@pytest.mark.parametrize("target", [[1, 0], torch.tensor([1, 0])])
def test_the_sides_of_the_examples_themselves_are_a_target(target):
    assert resolve_target(target, SIDES, is_binary=True).tolist() == [1, 0]


def test_a_row_of_a_target_of_sides_is_read_alike_in_every_batch():
    scores = torch.randn(6, 1, generator=torch.Generator().manual_seed(0))
    scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
    target = resolve_target(None, scores, is_binary=True)
    assert set(target.tolist()) == {0, 1}
    target[int((target == 0).nonzero()[0])] = 1  # the positive side, from the negative one
    together = resolve_target(target, scores, is_binary=True)
    alone = [resolve_target(target[[row]], scores[[row]], is_binary=True) for row in range(6)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, target)


@pytest.mark.parametrize("target", [[0, 1], torch.tensor([0, 1])])
def test_a_target_that_can_be_read_in_two_ways_is_refused(target):
    message = r"holds 0 for row\(s\) \[0\], whose inputs lie on the positive side, and 1 for others.*torch\.stack"
    with pytest.raises(BoundaryValueError, match=message):
        resolve_target(target, SIDES, is_binary=True)


@pytest.mark.parametrize("target", [2, -1, [0, 2]])
def test_a_single_output_has_no_third_side(target):
    with pytest.raises(BoundaryValueError, match="None, 0 or 1, as the model has one output, but it contains"):
        resolve_target(target, SIDES, is_binary=True)


BAD_TARGETS = {
    "too large": (3, BoundaryValueError, "between 0 and 2, but it contains 3"),
    "negative": ([0, -1], BoundaryValueError, "contains -1"),
    "short": ([0], BoundaryValueError, "each of the 2 examples, but it has 1"),
    "column": (torch.zeros(2, 1).long(), BoundaryValueError, r"but it has shape \(2, 1\)"),
    "float": (0.5, BoundaryTypeError, r"0\.5 of type float"),
    "floats": (torch.zeros(2), BoundaryTypeError, r"torch\.float32"),
    "bools": (torch.zeros(2).bool(), BoundaryTypeError, r"torch\.bool"),
    "complex": (torch.zeros(2, dtype=torch.complex64), BoundaryTypeError, r"torch\.complex64"),
    "text": ("1", BoundaryTypeError, "'1' of type str"),
    "pair": ([(0, 1), (0, 1)], BoundaryTypeError, r"\(0, 1\) of type tuple"),
    "array": (np.array([0, 1]), BoundaryTypeError, r"type ndarray\. Convert it with torch\.as_tensor\(target\)\.$"),
}


@pytest.mark.parametrize(("target", "error", "message"), BAD_TARGETS.values(), ids=BAD_TARGETS)
def test_bad_targets_are_refused(target, error, message):
    with pytest.raises(error, match=message):
        resolve_target(target, SCORES, is_binary=False)
