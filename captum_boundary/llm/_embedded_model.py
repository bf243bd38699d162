"""A causal language model as a function of embeddings: logits of the last positions."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from captum_boundary._core.outputs import score_tensor
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["EmbeddedModel"]

# Memory of the activations that are kept for one backward pass, in vectors of the hidden size, for each token and
# layer: a Llama block keeps some 14, and 4 of its intermediate size, which is about 3 times as large.
_VECTORS_PER_LAYER = 32
_MEMORY = 2**31  # bytes of one batch, in the decoder and in its logits


class EmbeddedModel:
    """Logits of a causal language model whose token embeddings are given.

    Models that take ``inputs_embeds`` are given them. Of others, and where ``layer`` says so, the embedding layer is
    made to return them, by a hook that is there for the time of one call.
    """

    def __init__(self, model: nn.Module, layer: nn.Module | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise BoundaryTypeError(
                f"model must be a torch.nn.Module, a causal language model, but it is {type(model).__name__}."
            )
        self.model = model
        self.config = getattr(model, "config", None)
        if getattr(self.config, "is_encoder_decoder", False):
            raise BoundaryValueError(
                f"{type(model).__name__} is an encoder-decoder, whose answer does not follow the prompt in one "
                "sequence. Use a decoder (AutoModelForCausalLM), or LayerBoundaryAttribution with a forward function "
                "that returns the logits of the next token."
            )
        names = inspect.signature(model.forward).parameters
        self._takes_embeddings = layer is None and "inputs_embeds" in names
        self._options = {"use_cache": False} if "use_cache" in names else {}
        # Its names in newer and in older versions of transformers.
        self._cache_name = next((name for name in ("cache", "past_key_values") if name in names), None)
        self._keeps = "logits_to_keep" in names
        self.layer = _embedding_layer_of(model) if layer is None else layer
        if not isinstance(self.layer, nn.Module):
            raise BoundaryTypeError(
                f"embedding_layer must be a torch.nn.Module of the model, but it is {type(self.layer).__name__}."
            )
        if all(module is not self.layer for module in model.modules()):
            raise BoundaryValueError(
                "embedding_layer must be a module of the model, but the model does not contain it."
            )
        self._check_layer()

    def _check_layer(self) -> None:
        """That the layer makes an embedding of a token."""
        weight = self.weight
        try:
            with torch.no_grad():
                output = self.layer(torch.zeros(1, 1, dtype=torch.long, device=weight.device))
        except Exception as error:  # whatever a layer of something else may raise
            raise BoundaryTypeError(_no_embedding(self.layer, f"raises {type(error).__name__}: {error}")) from error
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if shape != (1, 1, weight.shape[1]):
            raise BoundaryTypeError(_no_embedding(self.layer, f"returns {shape}"))

    @property
    def weight(self) -> Tensor:
        """Embeddings of all tokens, ``(V, E)``."""
        weight = getattr(self.layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise BoundaryValueError(
                f"The embedding layer must have a weight (V, E), but {type(self.layer).__name__} has none. Give the "
                "torch.nn.Embedding of the tokens as embedding_layer."
            )
        return weight.detach()

    @property
    def device(self) -> torch.device:
        """Where token ids are looked up."""
        return self.weight.device

    @property
    def max_length(self) -> int | None:
        """How many tokens the model can see, where it says so."""
        length = getattr(self.config, "max_position_embeddings", None)
        return length if isinstance(length, int) and length > 0 else None

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings ``(..., E)`` of token ids, in float32 or better, in which geometry is done."""
        with torch.no_grad():
            embeddings: Tensor = self.layer(ids.to(self.device)).detach()
        return embeddings if embeddings.dtype == torch.float64 else embeddings.float()

    def neighbor_distances(self, ids: Tensor) -> Tensor:
        """Euclidean distances ``(L,)`` of the embeddings of tokens from the nearest different ones of other tokens."""
        weight = self.weight.float()
        nearest = []
        for own in torch.split(weight[ids.to(weight.device)], 64):  # the table of all pairs is large
            few = torch.cdist(own, weight).topk(min(8, len(weight)), largest=False).indices
            exact = torch.linalg.vector_norm(weight[few] - own[:, None], dim=2)  # of which cdist is an approximation
            nearest.append(torch.where(exact > 0, exact, torch.inf).amin(dim=1))
        return torch.cat(nearest)

    def cache_of(self, embeddings: Tensor, ids: Tensor) -> Any | None:
        """What the model keeps of first tokens ``(L, E)`` for those that follow; None where it keeps nothing."""
        is_training = any(module.training for module in self.model.modules())  # dropout, which would be drawn once
        if len(ids) == 0 or is_training or self._cache_name is None or "use_cache" not in self._options:
            return None
        with torch.no_grad():
            return getattr(self._output(embeddings[None], ids, use_cache=True), self._cache_name, None)

    def logits(self, embeddings: Tensor, ids: Tensor, n_last: int, cache: Any | None = None) -> Tensor:
        """Logits ``(N, n_last, V)`` of what follows the last positions of embeddings ``(N, L, E)``.

        ``ids`` ``(L,)`` or ``(N, L)`` are those of tokens nearby, for models that look at them. ``cache`` is that of
        the same tokens before all rows; it stays as it is.
        """
        options: dict[str, Any] = {"logits_to_keep": n_last} if self._keeps else {}
        if cache is not None and self._cache_name is not None:
            rows = copy.deepcopy(cache)  # to which the model appends
            rows.batch_repeat_interleave(len(embeddings))
            options |= {self._cache_name: rows, "use_cache": True}
        return _checked(score_tensor(self._output(embeddings, ids, **options)), embeddings)[:, -n_last:]

    def _output(self, embeddings: Tensor, ids: Tensor, **options: Any) -> Any:
        own = embeddings.to(self.weight.dtype)
        options = self._options | options
        if self._takes_embeddings:
            return self.model(inputs_embeds=own, **options)
        hook = self.layer.register_forward_hook(lambda *_: own)
        try:
            return self.model(ids.to(own.device).expand(len(own), -1), **options)
        finally:
            hook.remove()

    def check(self, ids: Tensor) -> None:
        """That embeddings are all the model needs to know of tokens ``(L,)``."""
        with torch.no_grad():
            try:
                output = self.model(ids.to(self.device)[None], **self._options)
            except TypeError as error:
                raise BoundaryTypeError(
                    f"{type(self.model).__name__} must be called with token ids (N, L) alone, but: {error}"
                ) from error
            embeddings = self.embed(ids)[None]
            expected = _checked(score_tensor(output), embeddings)[:, -1].float()
            actual = self.logits(embeddings, ids, min(2, len(ids))).float()
            without_last = self.logits(embeddings[:, :-1], ids[:-1], 1).float() if len(ids) > 1 else actual
        tolerance = torch.finfo(self.weight.dtype).eps ** 0.5 * expected.abs().max().clamp_min(1e-3)
        if not (actual[:, -1] - expected).abs().max() <= tolerance:
            raise BoundaryValueError(
                f"{type(self.model).__name__} does not return the same logits for the embeddings of tokens as for the "
                "tokens. Its forward may be random (call model.eval()), or look at token ids elsewhere too. Give the "
                "module whose output is to be moved as embedding_layer."
            )
        if not (without_last[:, -1] - actual[:, 0]).abs().max() <= tolerance:
            raise BoundaryValueError(
                f"{type(self.model).__name__} returns other logits for first tokens if the last one is missing: it "
                "sees what follows a token and is no causal language model. For masked language models and classifiers "
                "use LayerBoundaryAttribution."
            )

    def rows_at_once(self, length: int, n_last: int) -> int:
        """How many sequences of a length pass through the model, forward and backward, in two gigabytes."""
        hidden = self.weight.shape[1]
        n_layers = getattr(self.config, "num_hidden_layers", 12)
        size = self.weight.element_size()
        bytes_of_row = length * hidden * n_layers * _VECTORS_PER_LAYER * size + 12 * n_last * len(self.weight)
        return max(1, int(_MEMORY // bytes_of_row))


def _embedding_layer_of(model: nn.Module) -> Any:
    try:
        layer = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        layer = None
    if layer is None:
        raise BoundaryValueError(
            f"{type(model).__name__} does not say which of its modules embeds tokens (get_input_embeddings). Give "
            "it as embedding_layer."
        )
    return layer


def _no_embedding(layer: nn.Module, came: str) -> str:
    return (
        "embedding_layer must return embeddings (N, L, E) for token ids (N, L), E as in its weight (V, E), but for one "
        f"id this {type(layer).__name__} {came}. Give the torch.nn.Embedding of the tokens, such as "
        "model.get_input_embeddings()."
    )


def _checked(logits: Tensor, embeddings: Tensor) -> Tensor:
    if logits.ndim != 3 or len(logits) != len(embeddings):
        raise BoundaryValueError(
            "A causal language model must return logits (N, L, V), but for embeddings "
            f"{tuple(embeddings.shape)} these have shape {tuple(logits.shape)}."
        )
    return logits
