"""Robust Attribution Regularization: a training loss whose minimisers have attributions that hold still."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_boundary._core.bounds import Bounds
from captum_boundary._core.captum_helpers import (
    TensorOrTupleOfTensorsGeneric,
    format_additional_forward_args,
    format_output,
    is_tuple,
)
from captum_boundary._core.checks import check_inputs
from captum_boundary._core.flat import pack, unpack
from captum_boundary.errors import BoundaryValueError
from captum_boundary.robust._checks import (
    as_target,
    check_classification,
    check_finite,
    check_layer,
    check_loss_options,
    check_positive,
    check_smooth,
)
from captum_boundary.robust._inner_maximizer import InnerMaximizer
from captum_boundary.robust._inner_problem import worst_points
from captum_boundary.robust._model_modes import ordinary, outside_inference_mode
from captum_boundary.robust._path_gradients import Quadrature
from captum_boundary.robust._pointwise_loss import LossFunction, PointwiseLoss, cross_entropy, losses_of
from captum_boundary.robust._problem import Problem
from captum_boundary.robust._rar_parts import RARParts
from captum_boundary.robust._regularizer import Regularizer
from captum_boundary.robust._sizes import size_of
from captum_boundary.robust.stability_terms import StabilityTerm, check_terms, term_mean

__all__ = ["RARLoss", "RARParts"]


class RARLoss(nn.Module):
    r"""Loss of "Robust Attribution Regularization" (https://arxiv.org/abs/1905.09957).

    Training with it makes the Integrated Gradients of a model hold still when its inputs are perturbed:

    .. math:: l(x, y) + w \max_{x' \in B(x, \epsilon)} s(\mathrm{IG}_l(x, x')),

    where :math:`\mathrm{IG}_l(x, x')` are the Integrated Gradients of the *loss* on the way from the input to a
    perturbed input, and :math:`s` is the size function:

    - ``"ig_norm"``: IG-NORM, the l1 norm.
    - ``"ig_sum_norm"``: IG-SUM-NORM, :math:`\max_{x'} l(x', y) + w\,|\mathrm{IG}_l(x, x')|_1`.
    - ``"sum"``: the plain sum, which by completeness is :math:`l(x') - l(x)`. With weight 1 this is adversarial
      training (https://arxiv.org/abs/1706.06083), and it needs no path.
    - ``"norm_power"``: :math:`|\mathrm{IG}|_1^q`. With ``n_steps=1`` this is input-gradient regularisation,
      :math:`(\epsilon\,|\nabla_x l(x)|_1)^q` in the l-infinity ball.
    - any function of attributions, ``(N, ...) -> (N,)``: it gets them in the shape of the inputs (of the layer's output
      with ``layer``), those of several inputs flattened and joined, ``(N, D)``.

    The loss is the mean over the batch. The released code takes sums over the batch of both terms: their ratio, and so
    the weight, is the same, but a learning rate chosen for sums has to be multiplied by the batch size for plain
    gradient descent (Adam does not mind). :func:`paper_settings` has the paper's hyper-parameters.

    One forward pass of each call treats the model as ordinary training does: in its own mode, so that batch statistics
    are used and updated and dropout is drawn once, and through a ``DistributedDataParallel`` wrapper, where there is
    one. It is that of the loss :math:`l` above: at the perturbed inputs for ``"ig_sum_norm"`` and ``"sum"``, at the
    inputs for all others. The attack and the path see the model in evaluation mode (recurrent layers without their
    dropout), change neither its statistics nor its modes, and synchronise nothing between processes. Only what is
    random in evaluation mode too, such as ``F.dropout(x)`` without ``training=self.training``, is random for them, and
    draws from the global random state. The gradients of all parameters are exact.

    The gradient of the regulariser needs second derivatives of the loss. In a network of ReLUs these see how the loss
    bends, and how slopes depend on the weights, but not the kinks: where a perturbation switches a unit on or off, that
    change of slope counts in the value of the regulariser, through the points of the path, and not in its gradient.
    Training learns to make use of that. ``smooth="softplus"`` takes the attributions of the same network with softplus
    in the place of its piecewise linear activations, for the regulariser and the attack on it, where gradients then see
    all. The model itself, the loss :math:`l` above, and activations that are smooth as they are stay as they are.

    Args:

        model (Module): The model to train. It returns logits ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for a binary model,
            unless ``loss_func`` asks for something else. ``DistributedDataParallel``, ``DataParallel`` and compiled
            models are welcome: the forward pass of the loss goes through them, attacks and paths through the model
            inside, as it is before compilation and on one device.
        size (str or Callable, optional): Size function, as above. Default: "ig_norm"
        epsilon (float): Radius of the ball, in the units of the inputs.
        weight (float, optional): Weight of the regulariser. Default: None, 0.1 for ``"ig_sum_norm"`` and 1 for all
            others.
        norm (float, optional): Norm of the ball, ``math.inf`` or 2, over all inputs of a tuple together.
            Default: ``math.inf``
        bounds (tuple, optional): Limits that no perturbed input leaves: a pair ``(lower, upper)`` of numbers or of
            tensors that broadcast to an input, or a tuple of such pairs (or None), one for each input.
            Default: None, no limits.
        loss_func (Callable, optional): Loss of each example, ``(outputs, target) -> (N,)``.
            Default: None, cross-entropy.
        n_steps (int, optional): Nodes on the path from the input to the perturbed input. Default: 50
        attack_steps (int, optional): Steps of the inner maximisation. Default: 7
        attack_step_size (float, optional): Length of each, in the norm of the ball. Default: None,
            ``2.5 * epsilon / attack_steps``.
        attack_n_steps (int, optional): Nodes on the path during the attack, if less than ``n_steps``. Default: 10
        random_start (bool, optional): Start the attack at a random point of the ball, on the side where the loss
            rises, rather than one step along the loss's gradient. Default: True
        penalty (float, optional): The distributional form: maximise :math:`s(\mathrm{IG}) - \mathrm{penalty}\,|x' -
            x|_2^2` in place of the ball, by gradient ascent in steps of ``1 / (2 * penalty)``. It converges where
            ``2 * penalty`` exceeds the curvature of the size. ``epsilon`` is then the radius of the random start alone.
            Default: None
        layer (Module, optional): Module of the model to whose output is attributed, along the curve that the straight
            path in the input takes there. Default: None, the input.
        internal_batch_size (int, optional): Examples times path points that pass through the model at once for the
            regulariser. Its gradient is taken for a few examples after the other, in the forward pass already, so that
            memory does not grow with ``n_steps``, and no time is lost as long as a whole path fits. With less than
            ``n_steps`` (plus one with ``layer``) the path is taken in parts, at the price of about half as much time
            again, or more where so little does not keep the machine busy. Default: None, as many as suit the caches (a
            CPU) or fill a GPU, and no less than the batch and one whole path. Gradients reach the parameters of the
            model, not those that ``loss_func`` or ``size`` may have. For functions of yours None means that the graph
            is kept until the backward pass, and gradients reach all parameters. So it is under float16 autocast, for
            the sake of ``GradScaler``.
        generator (torch.Generator, optional): Source of the random starts. Default: None, one of its own with a fixed
            seed, ``loss.generator``.
        method (str, optional): Quadrature by Captum's names: "riemann_right", "riemann_left", "riemann_middle",
            "riemann_trapezoid" or "gausslegendre"; with ``layer`` one of the first two. Default: None, the paper's
            "riemann_right", and "riemann_left" for ``"norm_power"``.
        power (float, optional): The exponent q of ``"norm_power"``. Default: 2
        smooth (str, optional): ``"softplus"``: regularise the attributions of the model with
            :math:`\log(1 + e^{\beta z}) / \beta` in the place of ReLUs, as modules, functions and methods, and likewise
            of leaky_relu, prelu, relu6, hardtanh and hardsigmoid. Other kinks (max pooling, ``abs``) stay. So does
            ``"sum"``, which has no attributions. Default: None, the model as it is.
        softplus_beta (float, optional): The sharpness :math:`\beta`, an inverse temperature: the largest difference to
            a ReLU is ``log(2) / softplus_beta``, for pre-activations of nearly zero. With little of it the attributions
            are those of another network, with very much of it they have kinks again. Default: 100
        terms (sequence of StabilityTerm, optional): What else is to hold still: :class:`AttributionCosine`,
            :class:`TopKMargin`, :class:`InputAlignment`. The perturbed inputs are the same for all. With ``weight=0``
            the terms are alone with the loss at the inputs. ``smooth`` holds for their maps too. Default: (), nothing

    Attributes:

        parts (RARParts or None): What the last call was made of, for logging.

    Raises:

        BoundaryValueError: For sizes, norms and numbers that make no sense.
        BoundaryTypeError: For arguments of the wrong type.

    Examples::

        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> rar = RARLoss(model, "ig_norm", epsilon=0.1, bounds=(0, 1))
        >>> x, y = torch.rand(16, 4), torch.randint(3, (16,))
        >>> loss = rar(x, y)
        >>> loss.backward()
        >>> optimizer.step()
        >>> rar.parts.regularizer.shape
        torch.Size([16])
    """

    def __init__(
        self,
        model: nn.Module,
        size: str | Callable[[Tensor], Tensor] = "ig_norm",
        *,
        epsilon: float,
        weight: float | None = None,
        norm: float = math.inf,
        bounds: Bounds = None,
        loss_func: LossFunction | None = None,
        n_steps: int = 50,
        attack_steps: int = 7,
        attack_step_size: float | None = None,
        attack_n_steps: int = 10,
        random_start: bool = True,
        penalty: float | None = None,
        layer: nn.Module | None = None,
        internal_batch_size: int | None = None,
        generator: torch.Generator | None = None,
        method: str | None = None,
        power: float = 2.0,
        smooth: str | None = None,
        softplus_beta: float = 100.0,
        terms: Sequence[StabilityTerm] = (),
    ) -> None:
        super().__init__()
        check_loss_options(
            model,
            norm,
            generator,
            positive={
                "epsilon": epsilon,
                "attack_step_size": attack_step_size,
                "penalty": penalty,
                "power": power,
                "softplus_beta": softplus_beta,
            },
            counts={
                "n_steps": n_steps,
                "attack_steps": attack_steps,
                "attack_n_steps": attack_n_steps,
                "internal_batch_size": internal_batch_size,
            },
            weight=weight,
        )
        if smooth not in (None, "softplus"):
            raise BoundaryValueError(f"smooth must be None or 'softplus', but it is {smooth!r}.")
        self._size = size_of(size, power)
        method = method or self._size.method
        self._rule = Quadrature.of(method, n_steps)
        self._attack_rule = Quadrature.of(method, min(attack_n_steps, n_steps))
        if layer is not None:
            check_layer(model, layer, method)
        self._maximizer = InnerMaximizer(
            epsilon=epsilon,
            norm=norm,
            n_steps=attack_steps,
            step_size=2.5 * epsilon / attack_steps if attack_step_size is None else attack_step_size,
            penalty=penalty,
        )
        self.model = model
        self.size = size
        self.weight = self._size.weight if weight is None else weight
        self.bounds = bounds
        self.loss_func = cross_entropy if loss_func is None else loss_func
        self.random_start = random_start
        self.terms = check_terms(terms)
        self.smooth = smooth
        self.softplus_beta = softplus_beta
        self.internal_batch_size = internal_batch_size
        self.generator = torch.Generator("cpu").manual_seed(0) if generator is None else generator
        self.parts: RARParts | None = None
        self._layer = (layer,)  # in a tuple, since it belongs to the model already

    @property
    def epsilon(self) -> float:
        r"""Radius of the perturbations. Assign it to let it grow in training; the attack's steps grow with it."""
        return self._maximizer.epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        check_positive("epsilon", value)
        step_size = self._maximizer.step_size * value / self._maximizer.epsilon
        self._maximizer = self._maximizer._replace(epsilon=value, step_size=step_size)

    @outside_inference_mode()
    def forward(
        self, inputs: TensorOrTupleOfTensorsGeneric, target: Tensor, additional_forward_args: object = None
    ) -> Tensor:
        r"""The training loss, and :attr:`parts` for logging.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): Inputs, floating point, of N examples.
            target (Tensor): Classes, ``(N,)`` integers, or whatever ``loss_func`` takes for N examples.
            additional_forward_args (Any, optional): Further arguments of the model, given after ``inputs``. Tensors
                with N entries follow their examples. Default: None

        Returns:

            - **loss** (*Tensor*): Mean over the batch, a scalar.

        Raises:

            BoundaryTypeError: For inputs, targets or outputs of the wrong type.
            BoundaryValueError: For NaN or infinite inputs, outputs or losses, empty batches, inputs outside ``bounds``,
                classes out of range, and models that return probabilities in place of logits.
        """
        problem = self._problem(inputs, target, additional_forward_args)
        ends = self._worst_points(problem)
        perturbed = unpack(ends, problem.inputs)

        output = self.model(*(perturbed if self._size.at_perturbed else problem.inputs), *problem.loss.arguments)
        loss = losses_of(self.loss_func, output, problem.loss.target)
        problem = problem.as_of_now()  # the forward pass may have moved the running statistics
        regularizer = self._regularizer(self._rule)
        if self._size.of is None:
            # l(x) + w [l(x') - l(x)], with the loss at x' from the forward pass above.
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight != 1):
                sizes = regularizer.of_examples(problem, ends)
            total = (loss + (self.weight - 1) * sizes if self.weight != 1 else loss).mean()
        else:
            mean, sizes = regularizer.mean(problem, ends)
            total = loss.mean() + self.weight * mean
        in_groups = regularizer.in_groups
        means = [term_mean(term, problem, ends, self.internal_batch_size, in_groups) for term in self.terms]
        total = total + sum(term.weight * mean for term, (mean, _) in zip(self.terms, means, strict=True))
        of_terms = tuple(values for _, values in means)
        check_finite(sum(of_terms, (loss + self.weight * sizes).detach()))

        natural = loss.detach()
        if self._size.at_perturbed:
            with torch.no_grad():
                natural = problem.loss(problem.x)
        points = format_output(problem.as_tuple, perturbed)
        self.parts = RARParts(natural, loss.detach(), sizes.detach(), points, of_terms)
        return total

    @outside_inference_mode()
    def perturb(
        self, inputs: TensorOrTupleOfTensorsGeneric, target: Tensor, additional_forward_args: object = None
    ) -> TensorOrTupleOfTensorsGeneric:
        r"""The inner maximisation: perturbed inputs for which the regulariser (for ``"ig_sum_norm"`` the loss and the
        regulariser together) is large.

        Arguments and errors are those of :meth:`forward`.

        Returns:

            - **perturbed** (*Tensor or tuple[Tensor, ...]*): Like ``inputs``, in the ball and within the bounds.
        """
        problem = self._problem(inputs, target, additional_forward_args)
        return format_output(problem.as_tuple, unpack(self._worst_points(problem), problem.inputs))

    @outside_inference_mode()
    def regularizer(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        perturbed: TensorOrTupleOfTensorsGeneric,
        target: Tensor,
        additional_forward_args: object = None,
    ) -> Tensor:
        r"""Size of the Integrated Gradients of the loss from ``inputs`` to ``perturbed``.

        Gradients reach the parameters of the model, and ``perturbed`` where it requires them. Other arguments and
        errors are those of :meth:`forward`.

        Returns:

            - **sizes** (*Tensor*): Of each example, ``(N,)``.
        """
        problem = self._problem(inputs, target, additional_forward_args)
        ends = tuple(map(ordinary, check_inputs(perturbed)))
        if [tensor.shape for tensor in ends] != [tensor.shape for tensor in problem.inputs]:
            raise BoundaryValueError(
                f"perturbed must have the shapes of inputs, {[tuple(tensor.shape) for tensor in problem.inputs]}, but "
                f"it has {[tuple(tensor.shape) for tensor in ends]}."
            )
        return self._regularizer(self._rule).of_examples(problem, pack(ends))

    def _problem(self, inputs: Any, target: Any, additional_forward_args: object) -> Problem:
        tensors = tuple(ordinary(tensor).detach() for tensor in check_inputs(inputs))
        arguments = tuple(map(ordinary, format_additional_forward_args(additional_forward_args) or ()))
        loss = PointwiseLoss.of(
            self.model, self.loss_func, tensors, as_target(target, tensors), arguments, self._layer[0]
        )
        has_maps = self._size.of is not None or len(self.terms) > 0
        problem = Problem(
            self._maximizer.neighbourhood(tensors, self.bounds),
            loss,
            is_tuple(inputs),
            softplus_beta=self.softplus_beta if self.smooth is not None and has_maps else None,
        )
        if self.loss_func is cross_entropy:
            check_classification(loss, problem.x[:1])
        if problem.softplus_beta is not None:
            check_smooth(problem.path_loss, problem.x[:1])
        return problem

    def _regularizer(self, rule: Quadrature) -> Regularizer:
        # A function of the user's may have parameters of its own, which only an ordinary graph leads to.
        is_ours = self.loss_func is cross_entropy and isinstance(self.size, str)
        in_groups = is_ours or self.internal_batch_size is not None
        return Regularizer(self._size, rule, self.internal_batch_size, in_groups)

    def _worst_points(self, problem: Problem) -> Tensor:
        regularizer = self._regularizer(self._attack_rule)
        generator = self.generator if self.random_start else None
        return worst_points(problem, regularizer, self._maximizer, self.weight, generator)

    def extra_repr(self) -> str:
        """What ``print`` shows of the loss, before its model."""
        smooth = "" if self.smooth is None else f", smooth={self.smooth!r}, softplus_beta={self.softplus_beta}"
        return f"size={self.size!r}, epsilon={self.epsilon}, weight={self.weight}{smooth}"
