"""What a boundary attribution of a language model returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from captum.attr import LLMAttributionResult
from torch import Tensor

from captum_boundary.errors import BoundaryValueError
from captum_boundary.search import BoundaryPoints

__all__ = ["LLMBoundaryResult", "Substitution"]


@dataclass(frozen=True)
class Substitution:
    r"""Tokens of a prompt replaced by others, with which the model prefers the rival.

    Attributes:

        positions (tuple[int, ...]): Which tokens of the prompt were replaced, counted from 0 in all of its tokens.
        tokens (tuple[str, ...]): What they were.
        replacements (tuple[str, ...]): What they are now.
        replacement_ids (tuple[int, ...]): The same as token ids.
        distance (float): Euclidean distance of the replaced embeddings.
        score (float): Log-probability of the target less that of the rival with the new prompt, as it was evaluated.
        log_likelihood_change (float): By how much the log-probability of the prompt, given its first token, has
            changed: the lower, the less it reads like text.
        prompt (str): The new prompt.
        says (str): The token that the new prompt makes most likely where the answers part.
    """

    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    replacements: tuple[str, ...]
    replacement_ids: tuple[int, ...]
    distance: float
    score: float
    log_likelihood_change: float
    prompt: str
    says: str

    def __str__(self) -> str:
        changes = ", ".join(
            f"{old.strip()} -> {new.strip()}" for old, new in zip(self.tokens, self.replacements, strict=True)
        )
        return f"{changes}: it says {self.says.strip()!r}"


class LLMBoundaryResult(LLMAttributionResult):  # type: ignore[misc]
    r"""Attributions of the decisions of a language model, with their distances from the boundary.

    An ``LLMAttributionResult`` of Captum, whose ``plot_token_attr`` and ``plot_seq_attr`` work. There are D decisions:
    one for each output token, or one between two whole answers. The prompt has M features: its tokens that may move, or
    groups of them.

    Args:

        input_tokens (list[str]): The features of the prompt, M.
        output_tokens (list[str]): What each decision is for, D.
        rival_tokens (list[str]): What each decision is against, D.
        seq_attr (Tensor): Sum of ``token_attr`` over the decisions that have a boundary point, ``(M,)``.
        token_attr (Tensor): Attributions of each decision, ``(D, M)``; positive values support the output token. Those
            of a decision without a boundary point are NaN.
        score (Tensor): Log-probability of the output less that of the rival, ``(D,)``.
        distance (Tensor): Smallest change of the embeddings of all features together that flips each decision, in
            Euclidean distance, ``(D,)``; infinity where none was found.
        token_distance (Tensor): The same where one feature alone may move, ``(D, M)``; None if it was not asked for.
        neighbor_distance (Tensor): Euclidean distance of the embeddings of each feature from those of the nearest other
            real tokens, ``(M,)``: the unit in which ``token_distance`` is near or far.
        substitutions (list): For each decision, real tokens that flip it, the nearest first.
        boundary (BoundaryPoints): Boundary points of the decisions, embeddings ``(D, T, E)`` of the T tokens that may
            move.
        inp (TextTokenInput, optional): The prompt, if it was given so. Default: None

    Attributes:

        Those of the arguments, and ``token_closeness``.

    Examples::

        >>> import torch
        >>> from captum_boundary.llm import LLMBoundaryResult
        >>> result = LLMBoundaryResult(
        ...     input_tokens=["The", " capital"],
        ...     output_tokens=[" Paris"],
        ...     rival_tokens=[" London"],
        ...     seq_attr=torch.tensor([1.0, 2.0]),
        ...     token_attr=torch.tensor([[1.0, 2.0]]),
        ...     score=torch.tensor([3.0]),
        ...     distance=torch.tensor([0.5]),
        ...     token_distance=torch.tensor([[2.0, float("inf")]]),
        ...     neighbor_distance=torch.tensor([3.0, 3.0]),
        ...     substitutions=[[]],
        ...     boundary=None,
        ... )
        >>> result.token_closeness
        tensor([[1.5000, 0.0000]])
    """

    def __init__(
        self,
        *,
        input_tokens: list[str],
        output_tokens: list[str],
        rival_tokens: list[str],
        seq_attr: Tensor,
        token_attr: Tensor,
        score: Tensor,
        distance: Tensor,
        token_distance: Tensor | None,
        neighbor_distance: Tensor,
        substitutions: list[list[Substitution]],
        boundary: BoundaryPoints,
        inp: Any = None,
    ) -> None:
        super().__init__(
            seq_attr=seq_attr, token_attr=token_attr, input_tokens=input_tokens, output_tokens=output_tokens
        )
        self.rival_tokens = rival_tokens
        self.score = score
        self.distance = distance
        self.token_distance = token_distance
        self.neighbor_distance = neighbor_distance
        self.substitutions = substitutions
        self.boundary = boundary
        self.inp = inp

    @property
    def token_closeness(self) -> Tensor | None:
        r"""Distance of the nearest other real token over ``token_distance``, ``(D, M)``: an attribution without signs.

        Above 1, a feature flips the decision before it comes as far as the next token; 0 means that it cannot flip it
        alone. Distances themselves compare embeddings of different lengths and surroundings.
        """
        return None if self.token_distance is None else self.neighbor_distance / self.token_distance

    def __repr__(self) -> str:
        decisions = "; ".join(
            f"{output.strip()!r} against {rival.strip()!r} at distance {distance:.3g}"
            for output, rival, distance in zip(
                self.output_tokens, self.rival_tokens, self.distance.tolist(), strict=True
            )
        )
        return f"{type(self).__name__}({decisions})"

    def plot_token_distance(self, decision: int = 0, show: bool = False) -> Any:
        r"""Bars of how easily each feature alone flips a decision, with the nearest substitution of each.

        Args:

            decision (int, optional): Number of the decision. Default: 0
            show (bool, optional): Show the picture, in place of returning it. Default: False

        Returns:

            - **picture** (*tuple* or *None*): Figure and axes of matplotlib, or None if it is shown.

        Raises:

            BoundaryValueError: If there is no ``token_distance``.
        """
        import matplotlib.pyplot as plt

        from captum_boundary.visualization._panels import as_plain_text

        if self.token_closeness is None:
            raise BoundaryValueError(
                "plot_token_distance needs the distances of single features, which token_budget=None leaves out. Give "
                "attribute a token_budget."
            )
        values = self.token_closeness[decision].cpu()
        figure, axes = plt.subplots(figsize=(7, 1.2 + 0.3 * len(values)), layout="constrained")
        axes.barh(range(len(values)), values.tolist(), color="#4772b3")
        axes.set_yticks(range(len(values)), [repr(token)[1:-1] for token in self.input_tokens])
        axes.invert_yaxis()
        axes.set_xlabel("distance of the next token / distance to the flip, where this token alone moves")
        axes.set_title(
            f"{self.output_tokens[decision]!r} against {self.rival_tokens[decision]!r}: distance "
            f"{float(self.distance[decision]):.3g}"
        )
        told = "\n".join(str(substitution) for substitution in self.substitutions[decision][:4])
        axes.text(0.98, 0.02, told, ha="right", va="bottom", transform=axes.transAxes, fontsize="small")
        as_plain_text(axes)
        if show:
            plt.show()
            return None
        return figure, axes
