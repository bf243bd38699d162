"""Attributions of the answers of a language model, from their nearest boundary in the space of embeddings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum.attr import Attribution, IntegratedGradients, LayerIntegratedGradients, TextTokenInput
from captum.log import log_usage
from torch import Tensor, nn

from captum_boundary._core.checks import check_count
from captum_boundary.attr import BoundaryDistance, LayerBoundaryAttribution
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.llm._decision import Decision, TokenDecisions, decision_between
from captum_boundary.llm._embedded_model import EmbeddedModel
from captum_boundary.llm._substitutions import Predictions, Vocabulary, find_substitutions, predictions_at
from captum_boundary.llm._text import Prompt, answer_ids, check_answers, groups_of, prompt_of, token_texts
from captum_boundary.llm.result import LLMBoundaryResult, Substitution
from captum_boundary.search import BoundaryPoints, BoundarySearch, NearestBoundary

__all__ = ["LLMBoundaryAttribution"]

# Captum's own, for targets that are generated.
_GEN_ARGS = {"max_new_tokens": 25, "do_sample": False, "temperature": None, "top_p": None}


class LLMBoundaryAttribution(Attribution):  # type: ignore[misc]
    r"""Which words hold the answer of a language model, how firmly, and what it would have said instead.

    The decision is between what the model says and what it might have said, its rival: the log-probability of the
    target less that of the rival. Its boundary is searched in the space of the prompt's embeddings. The distance of the
    boundary tells how firm the answer is; attributions are Captum's, with the boundary point as their baseline; the
    distance where one token alone may move tells how easily that token flips the answer; and substitutions are real
    tokens that do.

    Models are causal language models: those of transformers, and any module that returns logits ``(N, L, V)`` for token
    ids ``(N, L)``. They are used in the mode that they are in, in any precision; geometry is done in float32. Their
    cache keeps what comes before the tokens that move, if that changes nothing.

    Cost, for each decision: the search (``budget`` gradients), the method's own gradients (50 for
    LayerIntegratedGradients), ``token_budget`` gradients for each token of the prompt, and ``n_candidates`` forward
    passes. A target of many tokens has as many decisions; ``token_budget=None`` leaves the largest part out.

    Args:

        model (nn.Module): The language model.
        tokenizer (Any): Its tokenizer, one of transformers.
        method (Callable, optional): What builds a Captum attribution from a forward function, or from one and a layer,
            as for :class:`LayerBoundaryAttribution`. Default: LayerIntegratedGradients
        search (BoundarySearch, optional): A search whose settings are used in the space of embeddings, for whole
            prompts and for tokens. Default: None, which means NearestBoundary
        budget (int, optional): Gradients of the default search for each decision. Default: 40
        embedding_layer (nn.Module, optional): The module whose output is moved, for models that do not say which it is.
            Default: None, ``model.get_input_embeddings()``

    Raises:

        BoundaryTypeError: For models, tokenizers and searches of the wrong type.
        BoundaryValueError: For encoder-decoders, and models whose embeddings cannot be found.

    Examples::

        >>> import pytest
        >>> _ = pytest.importorskip("transformers")
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from captum_boundary.llm import LLMBoundaryAttribution
        >>> class Letters:  # a tokenizer
        ...     def __len__(self):
        ...         return 26
        ...     def encode(self, text, add_special_tokens=True):
        ...         return [ord(letter) - 97 for letter in text]
        ...     def decode(self, ids):
        ...         return "".join(chr(97 + index) for index in ids)
        ...     def convert_ids_to_tokens(self, ids):
        ...         return [chr(97 + index) for index in ids]
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=26, **sizes)).eval()
        >>> result = LLMBoundaryAttribution(model, Letters(), budget=10).attribute("hell", "o", "p")
        >>> result.token_attr.shape, result.token_distance.shape
        (torch.Size([1, 4]), torch.Size([1, 4]))
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        method: Callable[..., Any] = LayerIntegratedGradients,
        *,
        search: BoundarySearch | None = None,
        budget: int = 40,
        embedding_layer: nn.Module | None = None,
    ) -> None:
        super().__init__(model)
        if search is not None and not isinstance(search, BoundarySearch):
            raise BoundaryTypeError(
                f"search must be a BoundarySearch, such as NearestBoundary(model), but it is {type(search).__name__}."
            )
        check_count("budget", budget)
        if not all(callable(getattr(tokenizer, name, None)) for name in ("encode", "decode")):
            raise BoundaryTypeError(
                "tokenizer must have encode and decode, as those of transformers have, but it is "
                f"{type(tokenizer).__name__}."
            )
        self._embedded = EmbeddedModel(model, embedding_layer)
        self.model = model
        self.tokenizer = tokenizer
        self.method = method
        self.search = search
        self.budget = budget

    @log_usage(part_of_slo=False)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inp: Any,
        target: str | Tensor | Sequence[int] | None = None,
        rival: str | Tensor | Sequence[int] | None = None,
        *,
        gen_args: dict[str, Any] | None = None,
        skip_tokens: Sequence[int] | Sequence[str] | None = None,
        phrases: str | Sequence[str] | None = None,
        token_budget: int | None = 10,
        n_candidates: int | None = 64,
        allow_answer_tokens: bool = False,
        **kwargs: Any,
    ) -> LLMBoundaryResult:
        r"""Attribute an answer to the tokens of its prompt, from the boundary's point of view.

        Args:

            inp (str, list[dict], TextTokenInput, Tensor or dict): The prompt: a text, messages for the tokenizer's chat
                template, Captum's ``TextTokenInput``, token ids, or what the tokenizer returns (padding is left out).
            target (str, Tensor or list[int], optional): What the model says, or is to say, after the prompt. Without a
                rival, each of its tokens is a decision. Default: None, generated.
            rival (str, Tensor or list[int], optional): What it might have said. There is then one decision, between the
                two answers, which may have different lengths. Default: None, for each token of the target the other
                token that is most likely in its place.
            gen_args (dict, optional): Arguments of ``model.generate``, if the target is generated. Default: None, those
                of Captum: greedy, at most 25 tokens.
            skip_tokens (list[int] or list[str], optional): Tokens that are held and left out of the result, such as
                ``tokenizer.all_special_ids``, or parts of the prompt, such as the system's message. What comes before
                the first token that moves is evaluated once. Default: None, all tokens may move.
            phrases (str or list[str], optional): Tokens that move together, as one feature of the result:
                ``"words"``, ``"sentences"``, or parts of the prompt, such as retrieved passages. What lies between
                those is a feature of its own. Default: None, each token is a feature.
            token_budget (int, optional): Gradients of the default search for each feature alone. Default: 10. None:
                leave ``token_distance`` out.
            n_candidates (int, optional): Forward passes for substitutions, for each decision. Default: 64. None: leave
                them out.
            allow_answer_tokens (bool, optional): Whether substitutions may be words of the answers. Default: False
            **kwargs (Any, optional): Arguments of the method's own ``attribute``, such as ``n_steps``.

        Returns:

            - **result** (*LLMBoundaryResult*): Attributions, distances, substitutions and boundary points.

        Raises:

            BoundaryTypeError: For prompts and answers of the wrong type.
            BoundaryValueError: For empty prompts and answers, equal ones, tokens that the model or tokenizer does not
                know, prompts that are too long, baselines, and answers that the tokenizer splits otherwise after the
                prompt.
            BoundaryNotFoundError: If the search is strict and some decision has no boundary point.
        """
        check_count("token_budget", token_budget, optional=True)
        check_count("n_candidates", n_candidates, optional=True)
        embedded = self._embedded
        n_tokens = len(embedded.weight)
        prompt = prompt_of(inp, self.tokenizer, skip_tokens, n_tokens)
        groups, names = groups_of(phrases, prompt, self.tokenizer)
        if target is not None and gen_args is not None:
            raise BoundaryValueError("gen_args are for targets that are generated, but target was given.")
        self._check_length(prompt, 1)
        target_ids = (
            self._generated(prompt, gen_args)
            if target is None
            else answer_ids(target, "target", prompt, self.tokenizer, n_tokens)
        )
        rival_ids = None if rival is None else answer_ids(rival, "rival", prompt, self.tokenizer, n_tokens)
        if rival_ids is not None:
            check_answers(target_ids, rival_ids, self.tokenizer)
        self._check_length(prompt, max(len(target_ids), 0 if rival_ids is None else len(rival_ids)))
        with torch.inference_mode(False):
            embedded.check(prompt.ids)
            if rival_ids is None:
                rival_ids = self._runners_up(prompt, target_ids)
                decision: Decision = TokenDecisions(
                    embedded, prompt.ids, prompt.movable, target_ids[:-1], target_ids, rival_ids
                )
                outputs, rivals = (token_texts(self.tokenizer, ids) for ids in (target_ids, rival_ids))
            else:
                decision = decision_between(embedded, prompt.ids, prompt.movable, target_ids, rival_ids)
                outputs, rivals = ([str(self.tokenizer.decode(ids.tolist()))] for ids in (target_ids, rival_ids))
            words = set() if allow_answer_tokens else self._vocabulary.words_of(torch.cat([target_ids, rival_ids]))
            return self._explained(
                decision, prompt, groups.to(embedded.device), names, outputs, rivals, token_budget, n_candidates, words,
                inp if isinstance(inp, TextTokenInput) else None, kwargs,
            )  # fmt: skip

    def attribute_future(self) -> None:
        r"""This method is not implemented for boundary attributions."""
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")

    def _explained(
        self,
        decision: Decision,
        prompt: Prompt,
        groups: Tensor,
        names: list[str],
        outputs: list[str],
        rivals: list[str],
        token_budget: int | None,
        n_candidates: int | None,
        forbidden: set[str],
        inp: TextTokenInput | None,
        options: dict[str, Any],
    ) -> LLMBoundaryResult:
        n = decision.n_decisions
        index = torch.arange(n, device=decision.moving.device)
        x = decision.moving.repeat(n, 1, 1)
        boundary, kept = self._found(decision, index, self.budget, lambda search: search.find(x, 0, index))
        if self.method in (LayerIntegratedGradients, IntegratedGradients):
            options = {"internal_batch_size": max(n, kept.rows_at_once), **options}
        else:
            kept = decision  # methods that hook modules see all tokens
        method = LayerBoundaryAttribution(kept, kept.embeddings, self.method, score="margin")
        attributions = method.attribute(x, 0, index, boundary=boundary, **options)
        token_attr = _summed(attributions.sum(dim=2), groups, len(names))
        distances: list[Tensor] = []
        substitutions: list[list[Substitution]] = []
        for number in range(n):  # one after the other, since the points of all features take memory
            single = decision.alone(number)
            distance, predictions = self._alone(single, groups, token_budget, n_candidates is not None)
            distances.append(distance)
            if n_candidates is None or predictions is None:
                substitutions.append([])
            else:
                given = predictions, prompt, self._vocabulary, forbidden, n_candidates
                substitutions.append(find_substitutions(single, *given))
        with torch.no_grad():
            score = decision.difference(x, index).float()
        found, neighbors = boundary.found, self._embedded.neighbor_distances(prompt.ids[prompt.movable])
        return LLMBoundaryResult(
            input_tokens=names,
            output_tokens=outputs,
            rival_tokens=rivals,
            seq_attr=token_attr[found].sum(dim=0) if found.any() else torch.full_like(token_attr[0], torch.nan),
            token_attr=token_attr,
            score=score,
            distance=boundary.distance,
            token_distance=None if token_budget is None else torch.stack(distances),
            neighbor_distance=_summed(neighbors.square()[None].to(token_attr), groups, len(names))[0].sqrt(),
            substitutions=substitutions,
            boundary=boundary,
            inp=inp,
        )

    def _alone(
        self, decision: Decision, groups: Tensor, token_budget: int | None, predicts: bool
    ) -> tuple[Tensor, Predictions | None]:
        """Distances ``(G,)`` where each group alone moves, and what its points predict of other tokens."""
        if token_budget is None:
            here = predictions_at(decision, decision.moving, torch.zeros_like(groups)) if predicts else None
            return torch.empty(0), here
        distances, predictions = [], []
        for part, numbers in decision.parts(groups):
            numbers = numbers - numbers[0]

            def find(search: BoundarySearch, part: Decision = part, numbers: Tensor = numbers) -> BoundaryPoints:
                method, first = BoundaryDistance(search.forward_func, search), numbers.new_zeros(1)
                mask = numbers[None, :, None]
                return method.attribute(part.moving, 0, first, feature_mask=mask, return_boundary=True)[1]

            rows = numbers.new_zeros(int(numbers[-1]) + 1)
            boundary, kept = self._found(part, rows, token_budget, find)
            distances.append(boundary.distance)
            if predicts:
                points: Any = boundary.points
                predictions.append(predictions_at(kept, points, numbers))
        return torch.cat(distances), Predictions.cat(predictions) if predicts else None

    def _found(
        self, decision: Decision, index: Tensor, budget: int, find: Callable[[BoundarySearch], BoundaryPoints]
    ) -> tuple[BoundaryPoints, Decision]:
        """Boundary points of decisions ``(N,)``, and the one in which they were found: that keeps first tokens or not.

        What was found with kept tokens is checked by the model on all of them, since rounding differs.
        """
        kept = decision.keeping_first_tokens()
        boundary = find(self._search(kept, budget))
        if kept is decision or decision.agrees_with(boundary, index):
            return boundary, kept
        return find(self._search(decision, budget)), decision

    def _search(self, decision: Decision, budget: int) -> BoundarySearch:
        if self.search is not None:
            return self.search.with_forward_func(decision)
        return NearestBoundary(decision, budget=budget, internal_batch_size=decision.rows_at_once)

    def _check_length(self, prompt: Prompt, n_answer: int) -> None:
        length, limit = len(prompt.ids) + n_answer, self._embedded.max_length
        if limit is not None and length > limit:
            raise BoundaryValueError(
                f"The prompt and the answer have {length} tokens, but the model sees {limit} at most. Shorten "
                "the prompt."
            )

    def _generated(self, prompt: Prompt, gen_args: dict[str, Any] | None) -> Tensor:
        generate = getattr(self.model, "generate", None)
        if not callable(generate):
            raise BoundaryValueError(f"{type(self.model).__name__} cannot generate: give the target.")
        ids = prompt.ids[None].to(self._embedded.device)
        with torch.no_grad():
            output = generate(input_ids=ids, attention_mask=torch.ones_like(ids), **(gen_args or _GEN_ARGS))
        answer: Tensor = output[0, ids.shape[1] :].cpu()
        if len(answer) == 0:
            raise BoundaryValueError("The model generated nothing: give the target.")
        return answer

    def _runners_up(self, prompt: Prompt, target: Tensor) -> Tensor:
        """The likeliest other token in the place of each token of the target."""
        ids = torch.cat([prompt.ids, target[:-1]])
        with torch.no_grad():
            logits = self._embedded.logits(self._embedded.embed(ids)[None], ids, len(target))[0]
        others = logits.scatter(1, target[:, None].to(logits.device), -torch.inf)
        return others.argmax(dim=1).cpu()

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer, self._embedded.weight)


def _summed(values: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Sums ``(D, G)`` over the groups of values ``(D, M)``."""
    return values.new_zeros(len(values), n_groups).index_add_(1, groups.to(values.device), values)
