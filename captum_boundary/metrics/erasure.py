r"""Which words does the decision rest on? Comprehensiveness and sufficiency.

The measures of the ERASER benchmark (DeYoung et al., https://arxiv.org/abs/1911.03429): how much of the class's
probability is lost with the tokens that are said to be the most important ones, and how much is there with them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_boundary._core.captum_helpers import TargetType
from captum_boundary._core.context import geometry
from captum_boundary._core.repeatability import watch_repeatability
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.metrics._curves import TargetScore
from captum_boundary.metrics._maps import check_attributions

__all__ = ["comprehensiveness", "sufficiency"]

_ROUNDING = 1e-9  # 0.3 of 50 tokens are 15, and not one more
SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)


def comprehensiveness(
    forward_func: Callable[..., Any],
    inputs: Tensor,
    attributions: Tensor,
    target: TargetType = None,
    additional_forward_args: object = None,
    *,
    replacement: int = 0,
    mask: Tensor | None = None,
    shares: Sequence[float] = SHARES,
    score: str = "probability",
) -> Tensor:
    r"""How much the score of the class falls when the most important tokens of a text are taken away.

    Higher is better: nothing of what the decision rests on was left. The fall is averaged over several shares of tokens
    taken away, those of highest attribution first; every share takes at least one token, and part of one as a whole.

    A token is taken away by the ``replacement`` in its place. To leave it out altogether, give the padding's id, and a
    forward function that takes padding out of sight: ``lambda ids: model(ids, attention_mask=ids != 0).logits``.

    Args:

        forward_func (Callable): The model or any function of token ids that returns class scores ``(N, C)``, or
            ``(N,)`` or ``(N, 1)`` for a binary model. It is evaluated as it is: call ``model.eval()`` first.
        inputs (Tensor): Token ids ``(N, L)``.
        attributions (Tensor): One number for each token ``(N, L)``, or for each entry of its embedding ``(N, L, E)``,
            which are summed.
        target (int, tuple, Tensor or list, optional): Class whose score is watched, in any of Captum's forms for 2-D
            outputs. Default: None, the predicted class of each example.
        additional_forward_args (Any, optional): Further arguments of ``forward_func``. Tensors with N entries follow
            their examples. Default: None
        replacement (int, optional): Token id in the place of those taken away. Default: 0
        mask (Tensor, optional): 1 for tokens that may be taken away, and 0 for padding and the like, ``(N, L)``.
            Default: None, all may.
        shares (Sequence[float], optional): Shares of these tokens to take away, between 0 and 1. Default: 1, 5, 10, 20
            and 50 %, as in ERASER
        score (str, optional): ``"probability"`` or ``"output"``, as for :func:`deletion`. Default: ``"probability"``

    Returns:
        Tensor: Mean fall of the score, ``(N,)``. NaN for examples with NaN attributions.

    Raises:

        BoundaryTypeError: For ids, attributions, targets or outputs of the wrong type.
        BoundaryValueError: For shapes that do not fit, masks without any token in some row, and shares out of range.

    Examples::

        >>> import torch
        >>> embedding = torch.nn.Embedding.from_pretrained(torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]))
        >>> model = lambda ids: embedding(ids).sum(dim=1)
        >>> comprehensiveness(model, torch.tensor([[1, 2]]), torch.tensor([[0.1, 0.9]]), shares=(0.5,), score="output")
        tensor([3.])
    """
    values, may_go = _check_tokens(inputs, attributions, shares), _check_mask(mask, inputs)
    with geometry(), watch_repeatability(forward_func):
        target_score = TargetScore(forward_func, (inputs,), target, additional_forward_args, score)
        return _mean_fall(target_score, inputs, values, may_go, replacement, shares, keeps=False)


def sufficiency(
    forward_func: Callable[..., Any],
    inputs: Tensor,
    attributions: Tensor,
    target: TargetType = None,
    additional_forward_args: object = None,
    *,
    replacement: int = 0,
    mask: Tensor | None = None,
    shares: Sequence[float] = SHARES,
    score: str = "probability",
) -> Tensor:
    r"""How much the score of the class falls when all but the most important tokens of a text are taken away.

    Lower is better: the tokens said to be important carry the decision by themselves. Everything else is as for
    :func:`comprehensiveness`.

    Args:

        forward_func (Callable): The model or any function of token ids that returns class scores.
        inputs (Tensor): Token ids ``(N, L)``.
        attributions (Tensor): One number for each token ``(N, L)``, or ``(N, L, E)``, which are summed.
        target (int, tuple, Tensor or list, optional): Class whose score is watched. Default: None, the predicted class
            of each example.
        additional_forward_args (Any, optional): Further arguments of ``forward_func``. Default: None
        replacement (int, optional): Token id in the place of those taken away. Default: 0
        mask (Tensor, optional): 1 for tokens that may be taken away, ``(N, L)``. Default: None, all may.
        shares (Sequence[float], optional): Shares of these tokens to keep. Default: 1, 5, 10, 20 and 50 %
        score (str, optional): ``"probability"`` or ``"output"``. Default: ``"probability"``

    Returns:
        Tensor: Mean fall of the score, ``(N,)``. NaN for examples with NaN attributions.

    Raises:

        BoundaryTypeError: As :func:`comprehensiveness`.
        BoundaryValueError: As :func:`comprehensiveness`.

    Examples::

        >>> import torch
        >>> embedding = torch.nn.Embedding.from_pretrained(torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]))
        >>> model = lambda ids: embedding(ids).sum(dim=1)
        >>> sufficiency(model, torch.tensor([[1, 2]]), torch.tensor([[0.1, 0.9]]), shares=(0.5,), score="output")
        tensor([1.])
    """
    values, may_go = _check_tokens(inputs, attributions, shares), _check_mask(mask, inputs)
    with geometry(), watch_repeatability(forward_func):
        target_score = TargetScore(forward_func, (inputs,), target, additional_forward_args, score)
        return _mean_fall(target_score, inputs, values, may_go, replacement, shares, keeps=True)


def _mean_fall(
    target_score: TargetScore,
    inputs: Tensor,
    values: Tensor,
    may_go: Tensor,
    replacement: int,
    shares: Sequence[float],
    keeps: bool,
) -> Tensor:
    """Mean fall ``(N,)`` of the score where shares of the tokens that may go are replaced, or all but these."""
    rank = values.masked_fill(~may_go, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    whole = target_score((inputs,))[0]
    falls = []
    for share in shares:
        n_chosen = (share * may_go.sum(dim=1, keepdim=True).double() - _ROUNDING).ceil()
        is_taken = may_go & ((rank >= n_chosen) if keeps else (rank < n_chosen))
        falls.append(whole - target_score((inputs.masked_fill(is_taken, replacement),))[0])
    target_score.check_finite()
    return torch.stack(falls).mean(dim=0).masked_fill((values.isnan() & may_go).any(dim=1), torch.nan)


def _check_tokens(inputs: Tensor, attributions: Tensor, shares: Sequence[float]) -> Tensor:
    """Attributions of tokens ``(N, L)``, if they can be those of the token ids."""
    if len(shares) == 0 or not all(0 < share <= 1 for share in shares):
        raise BoundaryValueError(f"shares must hold numbers above 0 and up to 1, but it is {tuple(shares)}.")
    if not isinstance(inputs, Tensor) or inputs.is_floating_point():
        kind = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise BoundaryTypeError(
            f"inputs must be a Tensor of token ids, but it is {kind}. For features that are numbers, see deletion and "
            "insertion."
        )
    values = check_attributions(attributions).to(inputs.device)
    if values.ndim == 3:
        values = values.sum(dim=2)
    if inputs.ndim != 2 or inputs.numel() == 0 or values.shape != inputs.shape:
        raise BoundaryValueError(
            f"inputs must be token ids (N, L) and attributions (N, L) or (N, L, E), but their shapes are "
            f"{tuple(inputs.shape)} and {tuple(attributions.shape)}."
        )
    return values


def _check_mask(mask: Tensor | None, inputs: Tensor) -> Tensor:
    if mask is None:
        return torch.ones_like(inputs, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape != inputs.shape:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise BoundaryValueError(f"mask must have the shape of inputs, {tuple(inputs.shape)}, but it is {shape}.")
    may_go = mask.detach().to(inputs.device) != 0
    empty = ~may_go.any(dim=1)
    if empty.any():
        raise BoundaryValueError(f"mask leaves no token in row(s) {empty.nonzero().flatten().tolist()}.")
    return may_go
