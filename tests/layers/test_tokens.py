"""Which real tokens lie nearest to points in the space of embeddings."""

from __future__ import annotations

import pytest
import torch

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.layers import nearest_tokens

WEIGHT = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
POINTS = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_as_a_loop_over_all_vectors_and_tokens(metric):
    tokens, scores = nearest_tokens(POINTS, WEIGHT, k=3, metric=metric)
    assert tokens.shape == scores.shape == (3, 4, 3)
    for n in range(3):
        for place in range(4):
            point = POINTS[n, place]
            if metric == "cosine":
                expected = torch.stack([torch.cosine_similarity(point, row, dim=0) for row in WEIGHT])
                order = expected.argsort(descending=True)[:3]
            else:
                expected = torch.stack([(point - row).norm() for row in WEIGHT])
                order = expected.argsort()[:3]
            assert tokens[n, place].tolist() == order.tolist()
            torch.testing.assert_close(scores[n, place], expected[order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_an_embedding_is_nearest_to_its_own_token(metric, dtype):
    ids, weight = torch.tensor([[3, 7], [0, 29]]), WEIGHT.to(dtype)
    tokens, _ = nearest_tokens(weight[ids], weight, metric=metric)
    assert torch.equal(tokens[..., 0], ids)


def test_padding_has_no_token():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    tokens, scores = nearest_tokens(POINTS, WEIGHT, k=2, mask=mask)
    assert ((tokens == -1) == (mask[..., None] == 0)).all()
    assert (scores.isnan() == (mask[..., None] == 0)).all()
    assert torch.equal(tokens[mask == 1], nearest_tokens(POINTS, WEIGHT, k=2)[0][mask == 1])


def test_one_text_alone():
    tokens, _ = nearest_tokens(POINTS[0], WEIGHT, k=2)
    assert torch.equal(tokens, nearest_tokens(POINTS, WEIGHT, k=2)[0][0])


def test_a_common_offset_changes_no_l2_neighbor():
    embeddings = 0.1 * torch.randn(200, 64, generator=torch.Generator().manual_seed(0)) + 30
    points = (embeddings + 0.01 * torch.randn(200, 64, generator=torch.Generator().manual_seed(1)))[None]
    tokens, distance = nearest_tokens(points, embeddings, k=1, metric="l2")
    assert torch.equal(tokens[0, :, 0], torch.arange(200))
    exact = torch.linalg.vector_norm(points[0].double() - embeddings.double(), dim=1)
    torch.testing.assert_close(distance[0, :, 0].double(), exact, rtol=1e-4, atol=0)


def test_bad_arguments_say_how_to_mend_them():
    with pytest.raises(BoundaryTypeError, match=r"points must be a floating-point Tensor, but it is torch\.int64"):
        nearest_tokens(torch.ones(2, 3, 5, dtype=torch.long), WEIGHT)
    with pytest.raises(
        BoundaryTypeError, match="embedding_weight must be a floating-point Tensor, but it is Embedding"
    ):
        nearest_tokens(POINTS, torch.nn.Embedding(3, 5))
    with pytest.raises(BoundaryValueError, match=r"must agree in E, but their shapes are \(3, 4, 5\) and \(5, 30\)"):
        nearest_tokens(POINTS, WEIGHT.T)
    with pytest.raises(BoundaryValueError, match="at most the 30 tokens"):
        nearest_tokens(POINTS, WEIGHT, k=31)
    with pytest.raises(BoundaryValueError, match="k must be a positive integer"):
        nearest_tokens(POINTS, WEIGHT, k=0)
    with pytest.raises(BoundaryValueError, match="metric must be 'cosine' or 'l2'"):
        nearest_tokens(POINTS, WEIGHT, metric="dot")
    with pytest.raises(BoundaryValueError, match=r"one entry for each vector, \(3, 4\), but its shape is \(3,\)"):
        nearest_tokens(POINTS, WEIGHT, mask=torch.ones(3))
