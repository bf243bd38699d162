"""A lower end for the distance to the boundary, with a guarantee: that of randomized smoothing."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from captum_boundary._core.batch_sizes import copies_at_once, slices
from captum_boundary._core.captum_helpers import TensorOrTupleOfTensorsGeneric
from captum_boundary._core.checks import check_choice, check_count, check_inputs
from captum_boundary._core.context import geometry
from captum_boundary._core.flat import geometry_dtype
from captum_boundary._core.generators import check_generator, seed_of
from captum_boundary._core.margin import refuse_not_finite
from captum_boundary._core.model import Model
from captum_boundary._core.oracle import MarginOracle
from captum_boundary._core.repeatability import watch_repeatability
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.smoothing._noise import noisy_copies, normal_noise
from captum_boundary.smoothing.smoothed_model import SmoothedModel

__all__ = ["CertifiedRadius", "certified_radius"]

_DECISIONS = ("votes", "probabilities")
# Not the noise that smoothed models are made of: points that a search has found with that depend on it.
_OWN_STREAM = 0x5EED
_BLOCK = 32  # copies whose noise is drawn together, always as many, so that it does not depend on the batch


@dataclass(frozen=True)
class CertifiedRadius:
    r"""What is known for certain, but for a probability ``alpha``, of the smoothed decision at N examples.

    Attributes:

        radius (Tensor): L2 distance within which the decision does not change, ``(N,)``; 0 where abstained.
        target (Tensor): Class that the smoothed classifier decides for, ``(N,)`` integers; for a model with one output
            1 for its positive side and 0 for its negative side. Not certain where abstained.
        abstained (Tensor): Whether no class is certain to have more than half of the votes, ``(N,)`` booleans.
        p_lower (Tensor): Lower confidence bound of the share of votes for ``target``, ``(N,)``.
    """

    radius: Tensor
    target: Tensor
    abstained: Tensor
    p_lower: Tensor


def certified_radius(
    smoothed: SmoothedModel,
    inputs: TensorOrTupleOfTensorsGeneric,
    additional_forward_args: object = None,
    *,
    n_samples: int = 1000,
    alpha: float = 0.001,
    decision: str = "votes",
    n_selection: int = 100,
    generator: torch.Generator | None = None,
    show_progress: bool = False,
) -> CertifiedRadius:
    r"""The distance within which the smoothed decision cannot change, with probability ``1 - alpha``.

    A search finds a point beyond the boundary: the boundary is no farther away. This tells, with "Certified Adversarial
    Robustness via Randomized Smoothing" (https://arxiv.org/abs/1902.02918), that it is no nearer. Every noisy copy of
    the input votes for a class. A few votes select the class, ``n_samples`` new ones give the lower Clopper-Pearson
    bound :math:`p` of its share, and the decision holds within :math:`\sigma \, \Phi^{-1}(p)` in the l2 norm. Where
    ``p`` is at most a half, the certificate abstains.

    **Which classifier is certified.** The one that decides by *all* noise, not by the ``n_samples`` fixed vectors of
    ``smoothed``, of which this takes only the model, ``stdev`` and ``internal_batch_size``. With ``decision="votes"``
    each copy votes for its class of highest score, and the certified classifier is the majority vote.
    With ``"probabilities"`` each votes for a class drawn from the softmax (or sigmoid) of its scores: the certified
    classifier decides by the mean probability, which is what
    ``SmoothedModel(..., average="probabilities")`` estimates with finitely many copies. Nothing of the kind is known
    for a mean of scores, which have no limits.

    So the distance that a search finds for ``smoothed`` may be less than this radius, without a contradiction: a few
    fixed copies have boundaries of their own near to the input, the more so in many dimensions. To bracket the distance
    of the certified classifier, certify the far end as well: a point for which this function decides for another class
    without abstaining lies beyond the boundary.

    The guarantee holds for one example at a time, since all share their noise. Cost: ``n_selection + n_samples``
    forward passes for an example, no gradients.

    Args:

        smoothed (SmoothedModel): The smoothed model. All inputs with noise must have the same ``stdev``, and there must
            be no input without.
        inputs (Tensor or tuple[Tensor, ...]): Inputs, floating point, N examples. The radius is in their units, over
            all of a tuple together.
        additional_forward_args (Any, optional): Further arguments of the model. Tensors with N entries follow their
            examples. Default: None
        n_samples (int, optional): Votes that are counted. However certain the model is, ``p`` is at most
            ``alpha ** (1 / n_samples)``, and the radius at most 2.46 standard deviations with the defaults.
            Default: 1000
        alpha (float, optional): Probability, between 0 and 1, that the guarantee is wrong. Default: 0.001
        decision (str, optional): ``"votes"`` or ``"probabilities"``, see above. Default: ``"votes"``
        n_selection (int, optional): Votes that select the class. Default: 100
        generator (torch.Generator, optional): Source of the noise, asked for one number. Default: None, a fixed seed:
            the same noise on every call.
        show_progress (bool, optional): Show a progress bar, in votes of an example. Default: False

    Returns:

        - **certificate** (*CertifiedRadius*): Radius, class, bound, and where it abstained.

    Raises:

        BoundaryTypeError: If ``smoothed`` is no :class:`SmoothedModel`, and for inputs or outputs of the wrong type.
        BoundaryValueError: For counts that are not positive, ``alpha`` outside of (0, 1), too few ``n_samples`` to
            certify anything, an unknown ``decision``, unequal ``stdev``, and for inputs or outputs of the wrong shape
            or value.

    Examples::

        >>> import torch
        >>> from captum_boundary import SmoothedModel, certified_radius
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
        >>> certificate = certified_radius(SmoothedModel(model, stdev=0.1), torch.randn(3, 4))
        >>> certificate.radius.shape, certificate.abstained.dtype
        (torch.Size([3]), torch.bool)
    """
    tensors = check_inputs(inputs)
    stdev = _check(smoothed, len(tensors), n_samples, alpha, decision, n_selection, generator)
    source = torch.Generator("cpu").manual_seed(seed_of(generator) ^ _OWN_STREAM)
    with (
        geometry(),
        watch_repeatability(smoothed.forward_func) as repeatability,
        tqdm(total=n_selection + n_samples, desc="Certified radius", unit="vote", disable=not show_progress) as bar,
    ):
        model = Model(smoothed.forward_func, len(tensors[0]), additional_forward_args)
        voters = _Voters(smoothed, tensors, model, decision == "probabilities", bar.update)
        if repeatability.in_training_mode:
            oracle = MarginOracle(smoothed.forward_func, tensors, None, additional_forward_args)
            oracle.score_noise(repeatability)
        target = voters.tally(n_selection, source).argmax(dim=1)
        for_target = voters.tally(n_samples, source).gather(1, target[:, None]).squeeze(1).numpy()
    from scipy.stats import beta  # which takes longer to import than the rest of the package

    # Clopper and Pearson: with k of n votes, the alpha quantile of Beta(k, n - k + 1).
    lower = beta.ppf(alpha, for_target, n_samples - for_target + 1)  # NaN without any vote
    p_lower = torch.from_numpy(lower).nan_to_num(0.0)
    abstained = p_lower <= 0.5
    # Theorem 1 of the paper, where no other class has more than 1 - p: sigma / 2 [Phi^-1(p) - Phi^-1(1 - p)].
    radius = stdev * torch.special.ndtri(p_lower).masked_fill(abstained, 0.0)
    device, dtype = tensors[0].device, geometry_dtype(tensors)
    return CertifiedRadius(
        radius.to(dtype).to(device), target.to(device), abstained.to(device), p_lower.to(dtype).to(device)
    )


class _Voters(NamedTuple):
    """Noisy copies of the inputs, which the model makes vote for classes."""

    smoothed: SmoothedModel
    inputs: tuple[Tensor, ...]
    model: Model
    draws: bool  # whether a vote is drawn from the probabilities of a copy
    on_votes: Callable[[int], object]

    def tally(self, n_samples: int, source: torch.Generator) -> Tensor:
        """Votes ``(N, C)`` for each class, on the CPU."""
        blocks = slices(n_samples, _BLOCK)
        return _total(self._of_block(block.stop - block.start, source) for block in blocks)

    def _of_block(self, n_copies: int, source: torch.Generator) -> Tensor:
        n_examples = len(self.inputs[0])
        noise = normal_noise(n_copies, self.inputs, self.smoothed._stdevs, source)
        draws = torch.rand(n_copies, generator=source, device="cpu", dtype=torch.float32)
        rows_at_once = self.smoothed.internal_batch_size or n_examples * self.smoothed.n_samples
        n_at_once, n_copies_at_once = copies_at_once(rows_at_once, n_examples, n_copies)
        votes = torch.cat(
            [
                _total(self._votes(noise, draws, examples, copies) for copies in slices(n_copies, n_copies_at_once))
                for examples in slices(n_examples, n_at_once)
            ]
        )
        self.on_votes(n_copies)
        return votes

    def _votes(self, noise: tuple[Tensor, ...], draws: Tensor, examples: slice, copies: slice) -> Tensor:
        """Votes ``(n, C)`` of some copies of n examples."""
        noisy, rows = noisy_copies(self.inputs, noise, examples, copies)
        scores = self.model.scores(noisy, rows)
        refuse_not_finite(scores)
        columns, n_examples = scores.cpu().double(), examples.stop - examples.start
        if self.draws:
            # The first class whose cumulated probability exceeds a uniform number; rounding may leave the last below 1.
            below = columns.softmax(dim=1).cumsum(dim=1) <= draws[copies].repeat(n_examples)[:, None]
            chosen = below.sum(dim=1).clamp_max(columns.shape[1] - 1)
        else:
            chosen = columns.argmax(dim=1)
        votes: Tensor = (
            functional.one_hot(chosen, columns.shape[1]).reshape(n_examples, -1, columns.shape[1]).sum(dim=1)
        )
        return votes


def _total(votes: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, votes)


def _check(
    smoothed: object, n_inputs: int, n_samples: int, alpha: float, decision: str, n_selection: int, generator: object
) -> float:
    """The one standard deviation of all inputs, where the arguments make sense."""
    if not isinstance(smoothed, SmoothedModel):
        raise BoundaryTypeError(
            f"smoothed must be a SmoothedModel, whose model and stdev are certified, but it is "
            f"{type(smoothed).__name__}. Wrap the model: SmoothedModel(model, stdev)."
        )
    check_count("n_samples", n_samples)
    check_count("n_selection", n_selection)
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real) or not 0 < alpha < 1:
        raise BoundaryValueError(f"alpha must be a number between 0 and 1, exclusive, but it is {alpha!r}.")
    fewest = math.floor(-math.log2(alpha)) + 1  # n votes of n give the bound alpha^(1 / n), which must exceed 1/2
    if n_samples < fewest:
        raise BoundaryValueError(
            f"n_samples must be at least {fewest} to certify anything at alpha={alpha!r}, but it is {n_samples}: so "
            "few votes abstain even where all are for one class."
        )
    check_choice("decision", decision, _DECISIONS)
    check_generator(generator)
    if len(smoothed._stdevs) != n_inputs:
        raise BoundaryValueError(
            f"stdev is for {len(smoothed._stdevs)} input(s), but there are {n_inputs}: give the others as "
            "additional_forward_args."
        )
    if len(set(smoothed._stdevs)) > 1:
        raise BoundaryValueError(
            f"Only noise of one standard deviation on all inputs gives a radius, but stdev is {smoothed.stdev!r}. "
            "Scale the inputs, or pass those without noise as additional_forward_args."
        )
    return smoothed._stdevs[0]
