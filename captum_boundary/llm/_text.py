"""Prompts and answers as users give them, as token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import TextTokenInput
from torch import Tensor

from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["Prompt", "answer_ids", "check_answers", "groups_of", "prompt_of", "token_texts"]


@dataclass(frozen=True)
class Prompt:
    """A prompt: its ids ``(L,)``, which of them may move ``(L,)``, their names, and its text where it is known."""

    ids: Tensor
    movable: Tensor
    tokens: list[str]
    text: str | None
    with_special_tokens: bool = True


def prompt_of(inp: Any, tokenizer: Any, skip_tokens: Sequence[int] | Sequence[str] | None, n_tokens: int) -> Prompt:
    """The prompt in any of the forms that are accepted, or what is wrong with it."""
    text, special, own_movable, tokens = None, True, None, None
    if isinstance(inp, str):
        text, ids = inp, _encoded(tokenizer, inp)
    elif isinstance(inp, TextTokenInput):
        if inp.baselines != 0:
            raise BoundaryValueError(
                f"The prompt has baselines={inp.baselines!r}, but the baseline of a boundary attribution is the "
                "nearest boundary point. Leave baselines out of TextTokenInput."
            )
        ids, tokens = inp.inp_tensor[0], list(inp.values)
        own_movable = None if inp.itp_mask is None else inp.itp_mask[0].bool()
    elif isinstance(inp, list | tuple) and inp and all(isinstance(part, Mapping) for part in inp):
        text, special = _templated(inp, tokenizer), False
        ids = _encoded(tokenizer, text, special)
    else:
        ids = _given_ids(inp)
    if ids.numel() == 0:
        raise BoundaryValueError("The prompt must have at least one token, but it is empty.")
    _check_range("The prompt", ids, n_tokens)
    movable = torch.ones(len(ids), dtype=torch.bool) if own_movable is None else own_movable
    movable = movable & ~_skipped(ids, skip_tokens, tokenizer)
    if not movable.any():
        raise BoundaryValueError("All tokens of the prompt are skipped, so that nothing may move.")
    if tokens is None or skip_tokens is not None:
        tokens = token_texts(tokenizer, ids[movable])
    if text is None:
        text = _text_of(ids, tokenizer)
    return Prompt(ids.cpu(), movable.cpu(), tokens, text, special)


def token_texts(tokenizer: Any, ids: Tensor) -> list[str]:
    """Each token as it reads."""
    return [str(tokenizer.decode([index])) for index in ids.tolist()]


def answer_ids(answer: Any, name: str, prompt: Prompt, tokenizer: Any, n_tokens: int) -> Tensor:
    """Token ids ``(T,)`` of an answer as it follows the prompt."""
    if isinstance(answer, str):
        ids = _following(answer, name, prompt, tokenizer)
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is not None and unknown in ids.tolist() and answer.strip() != getattr(tokenizer, "unk_token", None):
            raise BoundaryValueError(f"{name}={answer!r} contains a token that the tokenizer does not know.")
    elif isinstance(answer, Tensor | list | tuple):
        ids = _integers(answer, name)
    else:
        raise BoundaryTypeError(f"{name} must be a str or token ids, but it is {type(answer).__name__}.")
    if ids.numel() == 0:
        raise BoundaryValueError(f"{name} must have at least one token, but it is empty.")
    _check_range(name, ids, n_tokens)
    return ids.cpu()


def check_answers(target: Tensor, rival: Tensor, tokenizer: Any) -> None:
    """That two answers can be told apart."""
    n = min(len(target), len(rival))
    if not torch.equal(target[:n], rival[:n]):
        return
    if len(target) == len(rival):
        raise BoundaryValueError(
            f"rival must be another answer than target, but both are {tokenizer.decode(target.tolist())!r}."
        )
    raise BoundaryValueError(
        f"target {tokenizer.decode(target.tolist())!r} and rival {tokenizer.decode(rival.tolist())!r} begin alike, and "
        "one ends where the other goes on, so that the shorter is never less likely. Give the shorter one its end, "
        'such as "." or the end-of-text token.'
    )


def groups_of(phrases: str | Sequence[str] | None, prompt: Prompt, tokenizer: Any) -> tuple[Tensor, list[str]]:
    """Numbers ``(M,)`` of the groups in which the tokens that may move do so, and their texts.

    Tokens that lie between phrases form groups of their own. Skipped tokens belong to none.
    """
    ids = prompt.ids
    if phrases is None:
        return torch.arange(int(prompt.movable.sum())), prompt.tokens
    text, ends = _text_and_ends(ids, tokenizer)
    if isinstance(phrases, str):
        patterns = {"words": r"\S+", "sentences": r"[^.!?\n]+[.!?\n]*"}
        if phrases not in patterns:
            raise BoundaryValueError(f'phrases must be "words", "sentences" or a list of texts, but it is {phrases!r}.')
        cuts = [match.start() for match in re.finditer(patterns[phrases], text)]
    else:
        cuts = _cuts_of(list(phrases), text)
    # A token belongs where its last character lies: a space before a word is part of the word's token.
    place = torch.bucketize(ends - 1, torch.tensor(sorted({0, *cuts})), right=True)
    place = place[prompt.movable]
    numbers = torch.unique_consecutive(place, return_inverse=True)[1]
    moving = ids[prompt.movable]
    names = [str(tokenizer.decode(moving[numbers == group].tolist())) for group in range(int(numbers.max()) + 1)]
    return numbers, names


def _cuts_of(phrases: list[str], text: str) -> list[int]:
    cuts, end = [], 0
    for phrase in phrases:
        start = text.find(phrase, end) if phrase else -1
        start = start if start >= 0 or not phrase else text.find(phrase)  # phrases need not be in order
        if start < 0:
            raise BoundaryValueError(f"phrases must be parts of the prompt, but {phrase!r} does not occur in it.")
        end = start + len(phrase)
        cuts += [start, end]
    return cuts


def _encoded(tokenizer: Any, text: str, add_special_tokens: bool = True) -> Tensor:
    ids = tokenizer.encode(text) if add_special_tokens else tokenizer.encode(text, add_special_tokens=False)
    return torch.as_tensor(ids, dtype=torch.long).flatten()


def _templated(messages: Any, tokenizer: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    except (AttributeError, ValueError) as error:
        raise BoundaryValueError(
            "Chat messages need a tokenizer with a chat template: set tokenizer.chat_template, or give the prompt as a "
            f"text. {error}"
        ) from error


def _following(answer: str, name: str, prompt: Prompt, tokenizer: Any) -> Tensor:
    """Ids of an answer as the tokenizer splits it after the prompt, where a space may be understood."""
    alone = _encoded(tokenizer, answer, add_special_tokens=False)
    if prompt.text is None or not answer:
        return alone
    n = len(prompt.ids)
    together = _encoded(tokenizer, prompt.text + answer, prompt.with_special_tokens)
    if torch.equal(together[:n], prompt.ids) and len(together) > n:
        return together[n:]
    spaced = _encoded(tokenizer, f"{prompt.text} {answer}", prompt.with_special_tokens)
    if torch.equal(spaced[:n], prompt.ids) and torch.equal(spaced[n:], alone):
        return alone
    raise BoundaryValueError(
        f"The tokenizer splits the prompt and {name}={answer!r} otherwise together than alone: the prompt ends in "
        f"{token_texts(tokenizer, prompt.ids[-2:])}, and with the answer it becomes "
        f"{token_texts(tokenizer, together[max(0, n - 2) :])}. Begin the answer with the space, in place of ending the "
        "prompt with it, or give token ids."
    )


def _text_of(ids: Tensor, tokenizer: Any) -> str | None:
    """The text of ids, if the tokenizer makes just these of it."""
    text = str(tokenizer.decode(ids.tolist()))
    return text if torch.equal(_encoded(tokenizer, text), ids.cpu()) else None


def _given_ids(inp: Any) -> Tensor:
    """Ids of one prompt in a Tensor, or in what a tokenizer returns, without its padding."""
    mask = None
    if isinstance(inp, Mapping):
        mask, inp = inp.get("attention_mask"), inp.get("input_ids")
    if not isinstance(inp, Tensor | list | tuple):
        raise BoundaryTypeError(
            "The prompt must be a str, chat messages, a TextTokenInput, token ids or what the tokenizer returns, but "
            f"it is {type(inp).__name__}."
        )
    if not isinstance(inp, Tensor) and any(isinstance(part, str) for part in inp):
        raise BoundaryTypeError("The prompt must be one text, but it is a list of texts. Explain one after the other.")
    ids = _integers(inp, "The prompt")
    return ids if mask is None else ids[torch.as_tensor(mask).reshape(-1).bool()]


def _integers(value: Any, name: str) -> Tensor:
    try:
        ids = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise BoundaryTypeError(f"{name} must be a str or integer token ids, but: {error}") from error
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise BoundaryValueError(
            f"{name} must be token ids of shape (L,) or (1, L), but its shape is {tuple(ids.shape)}."
        )
    if ids.numel() > 0 and (ids.is_floating_point() or ids.dtype == torch.bool):
        raise BoundaryTypeError(f"{name} must hold integer token ids, but its dtype is {ids.dtype}.")
    return ids.long()


def _check_range(name: str, ids: Tensor, n_tokens: int) -> None:
    wrong = ids[(ids < 0) | (ids >= n_tokens)]
    if len(wrong) > 0:
        raise BoundaryValueError(
            f"{name} must hold token ids between 0 and {n_tokens - 1}, but it contains {int(wrong[0])}: the tokenizer "
            "may be that of another model."
        )


def _skipped(ids: Tensor, skip_tokens: Sequence[int] | Sequence[str] | None, tokenizer: Any) -> Tensor:
    """Which tokens ``(L,)`` are held: by their ids, by their names, or as a part of the prompt."""
    skipped = torch.zeros(len(ids), dtype=torch.bool)
    for token in skip_tokens or ():
        if not isinstance(token, str):
            skipped |= ids == int(token)
            continue
        found = tokenizer.convert_tokens_to_ids([token])[0]
        if found is not None and (found != getattr(tokenizer, "unk_token_id", None) or token == tokenizer.unk_token):
            skipped |= ids == found
            continue
        text, ends = _text_and_ends(ids, tokenizer)
        starts = [match.start() for match in re.finditer(re.escape(token), text)] if token else []
        if not starts:
            raise BoundaryValueError(
                f"skip_tokens must be tokens of the tokenizer or parts of the prompt, but {token!r} is none of them."
            )
        for start in starts:
            skipped |= (ends > start) & (ends <= start + len(token))
    return skipped


def _text_and_ends(ids: Tensor, tokenizer: Any) -> tuple[str, Tensor]:
    """The text of ids, and where in it each token ends, ``(L,)``."""
    texts = [str(tokenizer.decode(ids[: k + 1].tolist())) for k in range(len(ids))]
    return texts[-1], torch.tensor([len(text) for text in texts])
