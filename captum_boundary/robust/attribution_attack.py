"""Attacks on explanations: perturbations that keep the label and change the attribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.robust import Perturbation
from torch import Tensor

from captum_boundary._core.agreement import kendall_tau, top_count, topk_intersection
from captum_boundary._core.bounds import Bounds, box_of
from captum_boundary._core.captum_helpers import TargetType, TensorOrTupleOfTensorsGeneric, format_output, is_tuple
from captum_boundary._core.checks import check_choice, check_count, check_inputs, check_not_negative, check_positive
from captum_boundary._core.context import geometry
from captum_boundary._core.eager_kernels import native_recurrence
from captum_boundary._core.generators import check_generator
from captum_boundary._core.geometry import Box
from captum_boundary._core.repeatability import watch_repeatability
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust._attack_descent import Objective, minimize, objective_of, random_displacement
from captum_boundary.robust._attribution_maps import AttributionMaps
from captum_boundary.robust._inner_maximization import within

__all__ = ["AttributionAttack"]

Measure = Callable[[Tensor, Tensor], Tensor]

METHODS = ("topk", "mass_center", "target", "random")
# Features nearer to the baseline than this share of epsilon count as lying at it.
_AT_BASELINE = 1e-3


class AttributionAttack(Perturbation):  # type: ignore[misc]
    r"""Small perturbations that keep the predicted label and change the explanation as much as they can.

    The attacks of "Interpretation of Neural Networks is Fragile" (https://arxiv.org/abs/1710.10547), which "Robust
    Attribution Regularization" (https://arxiv.org/abs/1905.09957) uses to measure how stable attributions are. What is
    attacked is the map of magnitudes of the attribution, summed over the channels of images ``(N, C, H, W)`` and scaled
    to a fixed sum:

    - ``"topk"``: takes attribution away from the ``k`` features that had most of it.
    - ``"mass_center"``: moves the map's center of mass, for a single input of images.
    - ``"target"``: draws attribution to the features of ``target_map``.
    - ``"random"``: no attack but the control: every feature is moved by ``epsilon`` up or down at random, with the same
      signs for every example. The first such move that keeps the label is returned, of ``attack_steps`` tries.

    Steps follow the sign of a gradient with momentum, within ``epsilon`` of the input and within ``bounds``, and shrink
    linearly to zero. The gradient needs second derivatives, which a network of ReLUs does not have: for them alone, its
    piecewise linear activations are taken as softplus. Where a feature lies at its baseline (a black pixel), the
    magnitude of its attribution has a kink, and the gradient is that of the side to which it can go: automatic
    differentiation would give zero there, and an attack hardly better than noise. Steps that come near to another label
    also move away from it.

    Every iterate is judged on the model itself. Those of another label than the input's are never kept; of the others,
    it is the one with the lowest ``measure``. The label never changes, and where nothing is gained the input itself
    comes back.

    The model is evaluated as it is: call ``model.eval()`` first. It has to be twice differentiable with respect to its
    inputs. Up to rounding, results do not depend on the other examples. A step costs ``n_steps`` gradients and at most
    10 second derivatives for each example.

    Args:

        forward_func (Callable): The model or any function that returns class scores ``(N, C)``, or ``(N,)`` or
            ``(N, 1)`` for a binary model. Logits are best. Of ``DataParallel`` and compiled models, that inside is
            attacked.
        method (str, optional): ``"topk"``, ``"mass_center"``, ``"target"`` or ``"random"``. Default: ``"topk"``
        epsilon (float): The largest change of a feature, 0 or more, in the units of the inputs.
        bounds (tuple, optional): Limits that no perturbed input leaves, in the form of a search's ``bounds``. Default:
            None, no limits.
        attribution (str, optional): ``"ig"``, Integrated Gradients as Captum computes them, or ``"gradient"``, the
            gradient of the score. Default: ``"ig"``
        baselines (Any, optional): Baselines of the Integrated Gradients, in Captum's forms: a number or a tensor of the
            shape of the input or of one example, or a tuple of these. Default: None, zero, which is black only for
            images that are not normalized.
        n_steps (int, optional): Points on the path of the Integrated Gradients. Default: 50
        k (int, optional): Number of features that are the top, for ``method="topk"`` and ``measure="topk"``.
            Features of several inputs are ranked together. Few lower the top-k intersection most, and as many as the
            object has pixels lower rank correlations most: the second paper attacks 200 pixels of MNIST and judges 100.
            Default: None, an eighth of the map.
        target_map (Tensor, optional): For ``method="target"``, where attribution is wanted: 1 there (or any positive
            weight) and 0 elsewhere, in the shape ``(H, W)`` of an image's map, that of an input without channels,
            or with one such map for each example; for several inputs, of their features side by side. Default: None
        attack_steps (int, optional): Steps of the attack. Default: 30
        attack_step_size (float, optional): Length of the first step. Default: None, half of ``epsilon``.
        measure (str or Callable, optional): Agreement with the clean map that decides which iterate is kept:
            ``"kendall"``, ``"topk"``, or a function of clean and perturbed maps, both ``(N, P)`` for ``P`` features,
            that returns ``(N,)`` numbers, the lower the better. Default: None, ``"kendall"`` for ``method="topk"``,
            and the objective for the others.
        softplus_beta (float, optional): Sharpness of the softplus activations. Default: 20
        generator (torch.Generator, optional): Source of randomness, for ``method="random"``. Default: None, a
            fixed seed: the same numbers on every call.
        show_progress (bool, optional): Show a progress bar, in steps. Default: False
        internal_batch_size (int, optional): Points that pass through the model at once, to bound memory. Default: None:
            of paths, as many as suit the caches of a CPU, 10 of larger inputs where their forward pass keeps no more
            than half a gigabyte, and on a GPU as many as keep two gigabytes; all examples at once otherwise.

    Raises:

        BoundaryValueError: For names, bounds and numbers that make no sense, and arguments that the objective does not
            use.
        BoundaryTypeError: For arguments of the wrong type.

    Examples::

        >>> import torch
        >>> from captum_boundary.robust import AttributionAttack
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)).eval()
        >>> inputs = torch.rand(4, 16)
        >>> perturbed = AttributionAttack(model, epsilon=0.1, bounds=(0, 1)).perturb(inputs)
        >>> bool((perturbed - inputs).abs().max() <= 0.1 + 1e-6)
        True
        >>> torch.equal(model(perturbed).argmax(dim=1), model(inputs).argmax(dim=1))
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        method: str = "topk",
        *,
        epsilon: float,
        bounds: Bounds = None,
        attribution: str = "ig",
        baselines: Any = None,
        n_steps: int = 50,
        k: int | None = None,
        target_map: Tensor | None = None,
        attack_steps: int = 30,
        attack_step_size: float | None = None,
        measure: str | Measure | None = None,
        softplus_beta: float = 20.0,
        generator: torch.Generator | None = None,
        show_progress: bool = False,
        internal_batch_size: int | None = None,
    ) -> None:
        if not callable(forward_func):
            raise BoundaryTypeError(f"forward_func must be callable, but it is {type(forward_func).__name__}.")
        check_choice("method", method, METHODS)
        check_choice("attribution", attribution, ("ig", "gradient"))
        check_not_negative("epsilon", epsilon)
        check_positive("attack_step_size", attack_step_size, optional=True)
        check_positive("softplus_beta", softplus_beta)
        check_count("n_steps", n_steps)
        check_count("attack_steps", attack_steps)
        check_count("k", k, optional=True)
        check_count("internal_batch_size", internal_batch_size, optional=True)
        if (target_map is None) == (method == "target"):
            raise BoundaryValueError(
                f'target_map is what method="target" needs and no other uses, but with method={method!r} it '
                f"is {'None' if target_map is None else 'given'}."
            )
        if attribution == "gradient" and baselines is not None:
            raise BoundaryValueError('baselines have no meaning for attribution="gradient": leave them out.')
        if measure is not None and not callable(measure):
            check_choice("measure", measure, ("kendall", "topk"))
        check_generator(generator)
        self.forward_func = forward_func
        self.method = method
        self.epsilon = float(epsilon)
        self.bounds = bounds
        self.attribution = attribution
        self.baselines = baselines
        self.n_steps = n_steps
        self.k = k
        self.target_map = target_map
        self.attack_steps = attack_steps
        self.attack_step_size = attack_step_size
        self.measure = measure
        self.softplus_beta = softplus_beta
        self.generator = generator
        self.show_progress = show_progress
        self.internal_batch_size = internal_batch_size

    def perturb(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
    ) -> TensorOrTupleOfTensorsGeneric:
        r"""Attack the explanation of every example.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): Inputs, floating point, of N examples (dimension 0).
            target (int, tuple, Tensor or list, optional): Class whose attribution is attacked, in any of Captum's forms
                for 2-D outputs; for a model with one output None, 0 and 1 all mean the same map. The label that is
                kept is the predicted one, whatever the target. Default: None, the predicted class of each example.
            additional_forward_args (Any, optional): Further arguments of the model, given after ``inputs``. Tensors
                with N entries follow their examples; everything else is passed as it is. Default: None

        Returns:

            - **perturbed** (*Tensor* or *tuple[Tensor, ...]*): Perturbed inputs, shaped like ``inputs``; equal to them
              where nothing was gained.

        Raises:

            BoundaryTypeError: For inputs, targets or outputs of the wrong type.
            BoundaryValueError: For NaN or infinite inputs or outputs, empty batches, inputs outside ``bounds``, targets
                out of range, outputs of the wrong shape, a ``k`` larger than the map, and inputs that are no images
                where the objective needs them.
        """
        with geometry(), native_recurrence(self.forward_func), watch_repeatability(self.forward_func):
            maps = self._maps(check_inputs(inputs), target, additional_forward_args)
            points = self._perturbed(maps, self._box(maps))
            perturbed: TensorOrTupleOfTensorsGeneric = format_output(is_tuple(inputs), maps.unpacked(points))
            return perturbed

    def _maps(self, inputs: tuple[Tensor, ...], target: TargetType, additional_forward_args: object) -> AttributionMaps:
        """The model as this attack sees it, and the maps of these inputs."""
        return AttributionMaps(
            self.forward_func,
            inputs,
            target,
            additional_forward_args,
            attribution=self.attribution,
            baselines=self.baselines,
            n_steps=self.n_steps,
            softplus_beta=self.softplus_beta,
            internal_batch_size=self.internal_batch_size,
        )

    def _box(self, maps: AttributionMaps) -> Box:
        """Where perturbed inputs may lie."""
        return within(self.epsilon, maps.x, maps.inputs, box_of(self.bounds, maps.inputs))

    def _perturbed(self, maps: AttributionMaps, box: Box) -> Tensor:
        """Perturbed inputs as points ``(N, D)``."""
        if self.method == "random":
            return random_displacement(maps, box, self.attack_steps, self.generator)
        start = maps.at(maps.x)
        clean = start.shares
        objective = objective_of(self.method, maps, clean, top_count(self.k, clean.shape[1]), self.target_map)
        return minimize(
            maps,
            start,
            box,
            objective,
            self._measure(objective, clean),
            n_steps=self.attack_steps,
            first_step=self.epsilon / 2 if self.attack_step_size is None else self.attack_step_size,
            tolerance=_AT_BASELINE * self.epsilon,
            show_progress=self.show_progress,
        )

    def _measure(self, objective: Objective, clean: Tensor) -> Callable[[Tensor], Tensor]:
        """What decides which iterate is kept, as a function of its map."""
        measure = self.measure
        if callable(measure):
            return lambda shares: _checked(measure(clean, shares), len(clean)).to(clean)
        if measure == "topk":
            k = top_count(self.k, clean.shape[1])
            return lambda shares: topk_intersection(clean, shares, k)
        if measure == "kendall" or self.method == "topk":
            return lambda shares: kendall_tau(clean, shares)
        return objective.value


def _checked(values: object, n_examples: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (n_examples,):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise BoundaryValueError(f"measure must return a Tensor of shape ({n_examples},), but it returned {shape}.")
    return values.detach()
