"""The randomized-smoothing version of a classifier: one fixed function, for every search and every attribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from captum_boundary._core.arguments import of_examples
from captum_boundary._core.batch_sizes import copies_at_once, slices
from captum_boundary._core.checks import check_choice, check_count, check_examples
from captum_boundary._core.failures import types_and_exports_explained
from captum_boundary._core.generators import check_generator, seed_of
from captum_boundary._core.outputs import score_tensor
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.smoothing._noise import check_pairs, checked_stdevs, noisy_copies, normal_noise

__all__ = ["SmoothedModel"]


class SmoothedModel(nn.Module):
    r"""A classifier that answers with its mean over noisy copies of every input.

    Smoothing a classifier with Gaussian noise (https://arxiv.org/abs/1902.02918) makes it robust without training:
    its boundaries lie farther away and bend less, and their normals show what the decision depends on in a whole
    neighborhood in place of one point. A smoothed model is a model like any other. Give it to a search, an attribution
    of this package or of Captum, or a measure.

    The noise is drawn once for every shape of inputs, and *all examples share it*: a copy is an input plus one of
    ``n_samples`` fixed vectors. So the smoothed model is one fixed function, which a boundary search needs: it
    compares scores at points that it has moved, selected and put in another order, and new noise, or noise that
    depends on the row, would look like a boundary. A result depends neither on the batch nor on earlier calls. The
    price is that all examples see the same directions; these say as little about one as about another.

    The vectors come in antithetic pairs, each with its negative, so that their mean is zero and a linear model remains
    what it is. Copies are not clamped to the range of the data: that would move their mean away from the input where
    this lies near a limit, hide the slope of the clamped features, and void the guarantee of
    :func:`certified_radius`. If a model must not see such values, clamp them inside of it.

    One evaluation costs ``n_samples`` of the model, and counts as one where evaluations are counted. The mean of a few
    copies is an estimate: the same model with another ``generator`` decides differently near its boundaries.

    Layers of the model can be hooked, and DeepLift works as long as all copies pass at once. The copies of an example
    follow each other: attributions of a layer have ``N * n_samples`` rows, and
    ``attributions.unflatten(0, (N, n_samples)).mean(1)`` is one for each example. Dropout and batch statistics would
    be drawn again for every evaluation: call ``model.eval()`` first.

    Args:

        forward_func (Callable): Returns class scores ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for a binary model.
        stdev (float or tuple[float, ...]): Standard deviation of the noise, in the units of the inputs. A tuple says
            that the model has as many inputs, each with its own; 0 is for one that takes no noise. Arguments after
            the inputs never do. See :func:`largest_stdev`.
        n_samples (int, optional): Number of noisy copies of every example, even. Default: 16
        average (str, optional): ``"scores"`` returns the mean of the model's scores. ``"probabilities"`` takes scores
            for logits, averages their softmax (or sigmoid, for a binary model), and returns the logarithm of the mean
            (or its log-odds), which makes the same decision and whose slope does not vanish where the model is certain.
            Default: ``"scores"``
        generator (torch.Generator, optional): Source of the noise, asked for one number at construction. Default:
            None, a fixed seed: the same noise in all models.
        internal_batch_size (int, optional): Copies that pass through the model at once, to bound memory. Where
            gradients are wanted, the passes are computed again for them one after the other: one more forward pass
            of every copy. Default: None, all of them.

    Raises:

        BoundaryTypeError: If the model is not callable, or arguments have the wrong type.
        BoundaryValueError: If ``stdev`` is negative, infinite or zero for all inputs, ``n_samples`` is odd or not
            positive, or ``average`` is unknown.

    Examples::

        >>> import torch
        >>> from captum_boundary import BoundaryIntegratedGradients, NearestBoundary, SmoothedModel
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
        >>> smoothed = SmoothedModel(model, stdev=0.5, n_samples=32)
        >>> inputs = torch.randn(2, 4)
        >>> smoothed(inputs).shape
        torch.Size([2, 3])
        >>> bool(NearestBoundary(smoothed).find(inputs).found.all())
        True
        >>> BoundaryIntegratedGradients(smoothed).attribute(inputs).shape
        torch.Size([2, 4])
    """

    has_own_boundary = True  # though it shares its parameters with the model

    def __init__(
        self,
        forward_func: Callable[..., Any],
        stdev: float | tuple[float, ...],
        *,
        n_samples: int = 16,
        average: str = "scores",
        generator: torch.Generator | None = None,
        internal_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not callable(forward_func):
            raise BoundaryTypeError(f"forward_func must be callable, but it is {type(forward_func).__name__}.")
        check_pairs(n_samples)
        check_count("internal_batch_size", internal_batch_size, optional=True)
        check_choice("average", average, ("scores", "probabilities"))
        check_generator(generator)
        self.forward_func = forward_func
        self.stdev = stdev
        self.n_samples = n_samples
        self.average = average
        self.internal_batch_size = internal_batch_size
        self.training = getattr(forward_func, "training", False)
        self._stdevs = checked_stdevs(stdev)
        self._seed = seed_of(generator)
        self._last_noise: tuple[Any, tuple[Tensor, ...]] | None = None

    def forward(self, *arguments: Any) -> Tensor:
        r"""Mean scores, of the shape that the model's own scores have.

        Args:

            arguments (Any): As many inputs as ``stdev`` has numbers, floating point, whose dimension 0 is the number of
                examples N; then further arguments of the model. Tensors with N entries follow their examples;
                everything else is passed as it is.

        Returns:

            - **scores** (*Tensor*): ``(N, C)``, ``(N,)`` or ``(N, 1)``.

        Raises:

            BoundaryTypeError: For inputs that are not floating point, and outputs that are no tensor of scores.
            BoundaryValueError: For too few inputs, and outputs of the wrong shape.
        """
        inputs, others = self._inputs_of(arguments)
        n_examples, n_copies = len(inputs[0]), self.n_samples
        rows_at_once = self.internal_batch_size or n_examples * n_copies
        n_at_once, n_copies_at_once = copies_at_once(rows_at_once, n_examples, n_copies)
        one_pass = partial(self._scores_of, inputs, self._noise_for(inputs), others)
        if rows_at_once < n_examples * n_copies and torch.is_grad_enabled():
            one_pass = partial(checkpoint, one_pass, use_reentrant=False)
        scores = [
            torch.cat([one_pass(examples, copies) for copies in slices(n_copies, n_copies_at_once)], dim=1)
            for examples in slices(n_examples, n_at_once)
        ]
        return _average_over_copies(torch.cat(scores), self.average)

    def extra_repr(self) -> str:
        """What the smoothing is, for ``print``."""
        return f"stdev={self.stdev}, n_samples={self.n_samples}, average={self.average!r}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last_noise": None}

    def _scores_of(
        self,
        inputs: tuple[Tensor, ...],
        noise: tuple[Tensor, ...],
        others: tuple[Any, ...],
        examples: slice,
        copies: slice,
    ) -> Tensor:
        """Scores ``(n, n_copies, ...)`` of some noisy copies of n examples."""
        noisy, rows = noisy_copies(inputs, noise, examples, copies)
        following = of_examples(others, len(inputs[0]), rows)
        with types_and_exports_explained(self.forward_func, noisy):
            output = self.forward_func(*noisy, *following)
        return _by_copies(output, copies.stop - copies.start, examples.stop - examples.start)

    def _inputs_of(self, arguments: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        n_inputs = len(self._stdevs)
        if len(arguments) < n_inputs:
            raise BoundaryValueError(
                f"stdev is for {n_inputs} inputs, but the smoothed model was given {len(arguments)} argument(s)."
            )
        inputs = arguments[:n_inputs]
        for index, tensor in enumerate(inputs):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                kind = str(tensor.dtype) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise BoundaryTypeError(
                    f"Input {index} must be a floating-point Tensor, to which noise can be added, but it is {kind}. "
                    "For token indices, smooth the model of embeddings."
                )
        check_examples(inputs)
        return inputs, arguments[n_inputs:]

    def _noise_for(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Noise ``(n_samples, ...)`` for each input; that of the last kind of inputs is kept."""
        kind = [(tensor.shape[1:], tensor.dtype, tensor.device) for tensor in inputs]
        last = self._last_noise  # read once: other threads may call the model with other inputs
        if last is None or last[0] != kind:
            with torch.inference_mode(False), torch.no_grad():
                source = torch.Generator("cpu").manual_seed(self._seed)
                halves = normal_noise(self.n_samples // 2, inputs, self._stdevs, source)
                last = kind, tuple(torch.stack([half, -half], dim=1).flatten(0, 1) for half in halves)
            self._last_noise = last
        return last[1]


def _by_copies(output: object, n_copies: int, n_examples: int) -> Tensor:
    """A model's output for the copies of some examples, ``(N, n_copies)`` or ``(N, n_copies, C)``."""
    output = score_tensor(output)
    if not output.is_floating_point():
        raise BoundaryTypeError(
            f"The model must return floating-point class scores, but it returned {output.dtype}. Return logits in "
            "place of predicted labels."
        )
    if output.ndim not in (1, 2) or len(output) != n_examples * n_copies:
        raise BoundaryValueError(
            f"The model must return scores of shape (N, C), or (N,) or (N, 1) for a binary model, for the N = "
            f"{n_examples * n_copies} noisy copies that it was given, but it returned shape {tuple(output.shape)}. "
            "Give arguments with one entry for each example as tensors, so that they follow their copies."
        )
    return output.reshape(n_examples, n_copies, *output.shape[1:])


def _average_over_copies(scores: Tensor, average: str) -> Tensor:
    """The mean of ``(N, n_copies, ...)`` over copies, in logarithms where it is one of probabilities."""
    if average == "scores":
        return scores.mean(dim=1)
    if scores.ndim == 3 and scores.shape[2] > 1:
        return _log_mean_exp(scores.log_softmax(dim=2))
    # The log-odds of the mean probability: log mean sigmoid(s) - log mean sigmoid(-s).
    return _log_mean_exp(functional.logsigmoid(scores)) - _log_mean_exp(functional.logsigmoid(-scores))


def _log_mean_exp(values: Tensor) -> Tensor:
    mean: Tensor = torch.logsumexp(values, dim=1) - math.log(values.shape[1])
    return mean
