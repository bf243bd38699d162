"""Which real tokens lie nearest to a point in the space of embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_boundary._core.checks import check_choice, check_count
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["nearest_tokens"]


def nearest_tokens(
    points: Tensor, embedding_weight: Tensor, *, k: int = 1, metric: str = "cosine", mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""The tokens whose embeddings are nearest to points, such as boundary points: an aid to reading them.

    A boundary point of a text is no text: each of its vectors lies somewhere between the embeddings of tokens, mostly
    next to the one that it started from. Which token comes second tells where it is heading.

    Args:

        points (Tensor): Vectors in the space of embeddings, ``(N, L, E)`` for texts of ``L`` tokens, or ``(..., E)``.
        embedding_weight (Tensor): Embeddings of all tokens, ``(V, E)``, such as ``model.embedding.weight``.
        k (int, optional): Number of tokens for each vector. Default: 1
        metric (str, optional): ``"cosine"`` for the largest cosine of the angle to the embedding, or ``"l2"`` for the
            least Euclidean distance. Default: ``"cosine"``
        mask (Tensor, optional): 1 for vectors to look at and 0 for padding, ``(N, L)``, which gets the token -1.
            Default: None, all of them.

    Returns:

        - **tokens** (*Tensor*): Indices of the tokens ``(N, L, k)``, the nearest first.
        - **scores** (*Tensor*): Their cosines or distances ``(N, L, k)``; NaN for padding.

    Raises:

        BoundaryTypeError: If points or embeddings are not floating-point tensors.
        BoundaryValueError: For shapes that do not fit, more tokens than there are, and unknown metrics.

    Examples::

        >>> import torch
        >>> from captum_boundary.layers import nearest_tokens
        >>> embedding = torch.nn.Embedding.from_pretrained(torch.eye(3))
        >>> tokens, cosines = nearest_tokens(torch.tensor([[[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]]]), embedding.weight, k=2)
        >>> tokens
        tensor([[[0, 1],
                 [2, 1]]])
    """
    check_count("k", k)
    for name, tensor in (("points", points), ("embedding_weight", embedding_weight)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise BoundaryTypeError(f"{name} must be a floating-point Tensor, but it is {kind}.")
    if embedding_weight.ndim != 2 or points.ndim < 2 or points.shape[-1] != embedding_weight.shape[1]:
        raise BoundaryValueError(
            f"points (N, L, E) and embedding_weight (V, E) must agree in E, but their shapes are "
            f"{tuple(points.shape)} and {tuple(embedding_weight.shape)}."
        )
    if k > len(embedding_weight):
        raise BoundaryValueError(f"k must be at most the {len(embedding_weight)} tokens that there are, but it is {k}.")
    check_choice("metric", metric, ("cosine", "l2"))
    if mask is not None and mask.shape != points.shape[:-1]:
        raise BoundaryValueError(
            f"mask must have one entry for each vector, {tuple(points.shape[:-1])}, but its shape is "
            f"{tuple(mask.shape)}."
        )
    with torch.no_grad():
        vectors = points.detach().to(torch.promote_types(points.dtype, torch.float32))
        texts = vectors.reshape(-1, *points.shape[-2:])
        parts = [_nearest(text, embedding_weight.detach().to(text), k, metric) for text in texts]
    shape = (*points.shape[:-1], k)
    tokens, scores = (torch.stack(column).reshape(shape) for column in zip(*parts, strict=True))
    if mask is not None:
        padding = ~mask.to(tokens.device).bool()[..., None]
        tokens, scores = tokens.masked_fill(padding, -1), scores.masked_fill(padding, torch.nan)
    return tokens, scores


def _nearest(vectors: Tensor, embeddings: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """Of one text at a time, since the table of all vectors and all tokens is large."""
    if metric == "cosine":
        best = (F.normalize(vectors, dim=-1) @ F.normalize(embeddings, dim=-1).T).topk(k, dim=-1)
    else:
        # Not by matrix products, which lose small differences of vectors that are far from zero.
        distances = torch.cdist(vectors, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
        best = distances.topk(k, dim=-1, largest=False)
    return best.indices, best.values
