"""Robust Attribution Regularization: a training loss for models whose attributions are stable under perturbation."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_boundary._core.bounds import Bounds
from captum_boundary._core.captum_helpers import TensorOrTupleOfTensorsGeneric
from captum_boundary._core.checks import check_count, check_inputs, check_not_negative, check_positive, shown
from captum_boundary._core.flat import pack, unpack
from captum_boundary._core.generators import check_generator
from captum_boundary._core.model_modes import checkpoints_named, clone_if_inference, outside_inference_mode
from captum_boundary._core.modules import unwrapped
from captum_boundary._core.norms import Norm, norm_of
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust._gradients_in_parts import mean_over_batch
from captum_boundary.robust._inner_maximization import InnerMaximizer
from captum_boundary.robust._path_integral import AttributionNorm, InnerObjective, Quadrature
from captum_boundary.robust._pointwise_loss import (
    LossFunction,
    PerturbedBatch,
    PointwiseLoss,
    cross_entropy,
    losses_of,
)
from captum_boundary.robust._smooth_activations import check_smoothed
from captum_boundary.robust.sizes import Size
from captum_boundary.robust.terms import StabilityTerm, check_terms

__all__ = ["RARLoss", "RARParts"]


class RARLoss(nn.Module):
    r"""Loss of "Robust Attribution Regularization" (https://arxiv.org/abs/1905.09957).

    Training with it makes the Integrated Gradients of a model stable when its inputs are perturbed:

    .. math:: l(x, y) + w \max_{x' \in B(x, \epsilon)} s(\mathrm{IG}_l(x, x')),

    where :math:`\mathrm{IG}_l(x, x')` are the Integrated Gradients of the *loss* on the path from the input to a
    perturbed input, and :math:`s` is the size function:

    - ``"ig_norm"``: IG-NORM, the l1 norm.
    - ``"ig_sum_norm"``: IG-SUM-NORM, :math:`\max_{x'} l(x', y) + w\,|\mathrm{IG}_l(x, x')|_1`.
    - ``"sum"``: the plain sum, which by completeness is :math:`l(x') - l(x)`. With weight 1 this is adversarial
      training (https://arxiv.org/abs/1706.06083). It needs no path: a step costs what adversarial training costs, and
      one forward pass for the loss at the inputs.
    - ``"norm_power"``: :math:`|\mathrm{IG}|_1^q`. With ``n_steps=1`` this is input-gradient regularization,
      :math:`(\epsilon\,|\nabla_x l(x)|_1)^q` in the l-infinity ball.
    - any function of attributions, ``(N, ...) -> (N,)``: it gets them in the shape of the inputs (of the layer's output
      with ``layer``), those of several inputs flattened and joined, ``(N, D)``.

    The loss is the mean over the batch. The released code takes sums over the batch of both terms: their ratio, and so
    the weight, is the same, but a learning rate chosen for sums has to be multiplied by the batch size for plain
    gradient descent (Adam is invariant to it). The defaults train a small network from scratch in minutes;
    :func:`paper_settings` has the paper's hyper-parameters, whose step costs about 20 times as much.

    One forward pass of each call treats the model as ordinary training does: in its own mode, so that batch statistics
    are used and updated and dropout is drawn once, and through a ``DistributedDataParallel`` wrapper, where there is
    one. It is that of the loss :math:`l` above: at the perturbed inputs for ``"ig_sum_norm"`` and ``"sum"``, at the
    inputs for all others. The attack and the path see the model in evaluation mode (recurrent layers without their
    dropout), change neither its statistics nor its modes, and synchronize nothing between processes. Only what is
    random in evaluation mode too, such as ``F.dropout(x)`` without ``training=self.training``, is random for them, and
    draws from the global random state.

    Gradients of all parameters are exact for fixed perturbed inputs, to first order, and with ``create_graph=True`` to
    second order. The second order costs the memory of the ordinary graph.

    The gradient of the regularizer needs second derivatives of the loss. Second derivatives of ReLU vanish almost
    everywhere: where a perturbation switches a unit on or off, that change of slope counts in the value of the
    regularizer, through the points of the path, and not in its gradient. Training learns to exploit that.
    ``smooth="softplus"`` takes the attributions of the same network with softplus in place of its piecewise linear
    activations, for the regularizer and the attack on it, where gradients then include the kinks. The model itself, the
    loss :math:`l` above, and activations that are smooth stay as they are.

    Args:

        model (Module): The model to train. It returns logits ``(N, C)``, or ``(N,)`` or ``(N, 1)`` for a binary model,
            unless ``loss_func`` asks for something else. Of ``DistributedDataParallel``, ``DataParallel`` and compiled
            models, the forward pass of the loss goes through the wrapper, attacks and paths through the model inside,
            as it is before compilation and on one device.
        size (str or Callable, optional): Size function, as above. Default: "ig_norm"
        epsilon (float): Radius of the ball, in the units of the inputs.
        weight (float, optional): Weight of the regularizer. Default: None, 0.1 for ``"ig_sum_norm"`` and 1 for all
            others.
        norm (float or Norm, optional): Norm of the ball, ``math.inf``, 2 or an object such as
            :class:`~captum_boundary.search.WeightedL2`, over all inputs of a tuple together. Default: ``math.inf``
        bounds (tuple, optional): Limits that no perturbed input leaves, in the form of a search's ``bounds``. Default:
            None, no limits.
        loss_func (Callable, optional): Loss of each example, ``(outputs, target) -> (N,)``.
            Default: None, cross-entropy.
        n_steps (int, optional): Nodes on the path from the input to the perturbed input. Default: 5
        attack_steps (int, optional): Steps of the inner maximization. Default: 7
        attack_step_size (float, optional): Length of each, in the norm of the ball. Default: None,
            ``2.5 * epsilon / attack_steps``.
        attack_n_steps (int, optional): Nodes on the path during the attack, if less than ``n_steps``. Default: 2
        random_start (bool, optional): Start the attack at a random point of the ball; for norms of attributions on the
            side where the loss rises. Otherwise it starts one step along the loss's gradient, for ``"sum"`` at the
            input. Default: True
        penalty (float, optional): The distributional form: maximize :math:`s(\mathrm{IG}) - \mathrm{penalty}\,|x' -
            x|_2^2` in place of the ball, by gradient ascent in steps of ``1 / (2 * penalty)``. It converges where
            ``2 * penalty`` exceeds the curvature of the size. ``epsilon`` is then the radius of the random start alone.
            Default: None
        layer (Module, optional): Module of the model to whose output is attributed, along the curve that the straight
            path in the input takes there. Default: None, the input.
        warmup (int, optional): Training calls over which the radius grows linearly to ``epsilon``, and the attack's
            step size with it. Calls of the loss with gradients enabled count; all others, and :meth:`perturb`, use
            ``epsilon``. The count is part of the state dict, so that a resumed run goes on where it was. 0 is no
            warm-up: from scratch and with a large ``epsilon``, training then may never start. Default: 500
        smooth (str, optional): ``"softplus"``: regularize the attributions of the model with
            :math:`\log(1 + e^{\beta z}) / \beta` in place of ReLUs, as modules, functions and methods, and likewise of
            all other piecewise linear activations, clamps, maxima and minima of two tensors. Max pooling and ``abs``
            stay. So does ``"sum"``, which has no attributions. What cannot be smoothed, such as ``x * (x > 0)``, is
            refused. Default: None, the model as it is.
        terms (sequence of StabilityTerm, optional): What else is to be stable: :class:`AttributionCosine`,
            :class:`TopKMargin`, :class:`InputAlignment`. The perturbed inputs are the same for all. With ``weight=0``
            the terms are alone with the loss at the inputs. ``smooth`` holds for their maps too. Default: (), nothing
        internal_batch_size (int, optional): Examples times path points that pass through the model at once for the
            regularizer. Its gradient is taken for a few examples after the other, in the forward pass already, so that
            memory does not grow with ``n_steps``, and no time is lost as long as a whole path fits. With less than
            ``n_steps`` (plus one with ``layer``) the path is taken in parts, at the price of about half as much time
            again, or more where so little does not keep the machine busy. Default: None, as many as suit the caches (a
            CPU) or fill a GPU, and no less than the batch and one whole path. Gradients reach the parameters of the
            model, not those that ``loss_func`` or ``size`` may have. For functions of yours None means that the graph
            is kept until the backward pass, and gradients reach all parameters. So it is under float16 autocast, for
            the sake of ``GradScaler``.
        generator (torch.Generator, optional): Source of the random starts, from which every batch draws on. Default:
            None, a fixed seed: ``loss.generator``, of its own.
        quadrature (str, optional): Rule of integration by Captum's names of methods: "riemann_right", "riemann_left",
            "riemann_middle", "riemann_trapezoid" or "gausslegendre"; with ``layer`` one of the first two. Default:
            None, "gausslegendre", with ``layer`` "riemann_right", and for ``"norm_power"`` "riemann_left".
        power (float, optional): The exponent q of ``"norm_power"``. Default: 2
        softplus_beta (float, optional): The sharpness :math:`\beta`, an inverse temperature: the largest difference to
            a ReLU is ``log(2) / softplus_beta``, for pre-activations of nearly zero. If it is too small, the
            attributions are those of another network; if it is very large, they have kinks again. Default: 100

    Attributes:

        parts (RARParts or None): What the last call was made of, for logging.
        training_calls (int): Calls with gradients so far, which the warm-up goes by.

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
        norm: float | Norm = math.inf,
        bounds: Bounds = None,
        loss_func: LossFunction | None = None,
        n_steps: int = 5,
        attack_steps: int = 7,
        attack_step_size: float | None = None,
        attack_n_steps: int = 2,
        random_start: bool = True,
        penalty: float | None = None,
        layer: nn.Module | None = None,
        warmup: int = 500,
        smooth: str | None = None,
        terms: Sequence[StabilityTerm] = (),
        internal_batch_size: int | None = None,
        generator: torch.Generator | None = None,
        quadrature: str | None = None,
        power: float = 2.0,
        softplus_beta: float = 100.0,
    ) -> None:
        super().__init__()
        _check_model(model)
        for name, value in (("epsilon", epsilon), ("power", power), ("softplus_beta", softplus_beta)):
            check_positive(name, value)
        check_positive("attack_step_size", attack_step_size, optional=True)
        check_positive("penalty", penalty, optional=True)
        for name, count in (("n_steps", n_steps), ("attack_steps", attack_steps), ("attack_n_steps", attack_n_steps)):
            check_count(name, count)
        check_count("internal_batch_size", internal_batch_size, optional=True)
        is_whole = isinstance(warmup, numbers.Integral) and not isinstance(warmup, bool)
        if not is_whole or warmup < 0:
            raise BoundaryValueError(f"warmup must be a number of training calls, 0 or more, but it is {warmup!r}.")
        if weight is not None:
            check_not_negative("weight", weight)
        if norm_of(norm).is_sparse:
            raise BoundaryValueError(f"norm must be math.inf, 2 or a Norm such as WeightedL2, but it is {norm!r}.")
        if smooth not in (None, "softplus"):
            raise BoundaryValueError(f"smooth must be None or 'softplus', but it is {smooth!r}.")
        check_generator(generator)
        self.model = model
        self.size = size
        self._size = Size.of(size, power)
        quadrature = quadrature or self._size.quadrature or ("gausslegendre" if layer is None else "riemann_right")
        if layer is not None:
            _check_layer(model, layer, quadrature)
        self._layer = (layer,)  # in a tuple, since it belongs to the model already
        rules = Quadrature.of(quadrature, n_steps), Quadrature.of(quadrature, min(attack_n_steps, n_steps))
        self._norm, self._attack_norm = (
            None if self._size.function is None else AttributionNorm(self._size.function, rule) for rule in rules
        )
        self._maximizer = InnerMaximizer(
            epsilon=epsilon,
            norm=norm_of(norm),
            n_steps=attack_steps,
            # No two points of a ball are farther apart than 2 epsilon: all of it is in reach from a random start.
            step_size=2.5 * epsilon / attack_steps if attack_step_size is None else attack_step_size,
            penalty=penalty,
        )
        self.weight = self._size.weight if weight is None else weight
        self.bounds = bounds
        self.loss_func = cross_entropy if loss_func is None else loss_func
        self.random_start = random_start
        self.warmup = int(warmup)
        self.training_calls = 0
        self.terms = check_terms(terms)
        self.smooth = smooth
        self.softplus_beta = softplus_beta
        self.internal_batch_size = internal_batch_size
        self.generator = torch.Generator("cpu").manual_seed(0) if generator is None else generator
        self.parts: RARParts | None = None

    @property
    def epsilon(self) -> float:
        r"""Radius of the perturbations after the warm-up. May be assigned; the attack's steps change with it."""
        return self._maximizer.epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        check_positive("epsilon", value)
        self._maximizer = self._maximizer.scaled(value / self._maximizer.epsilon)._replace(epsilon=value)

    @outside_inference_mode()
    @checkpoints_named()
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
                classes out of range, models that return probabilities in place of logits, models that checkpoint
                activations in evaluation mode, and with ``smooth`` activations that it cannot smooth.
        """
        began = time.perf_counter()
        loss = self._pointwise_loss(inputs, target, additional_forward_args)
        maximizer = self._maximizer.scaled(self._share_of_epsilon())
        batch, natural = self._perturbed_batch(loss, maximizer)
        perturbed = unpack(batch.perturbed, loss.inputs)
        attacked = time.perf_counter()

        given = (part.clone() for part in (perturbed if self._size.at_perturbed else loss.inputs))
        output = self.model(*given, *loss.arguments)  # which may change its input in place
        losses = losses_of(self.loss_func, output, loss.target)
        evaluated = time.perf_counter()

        # The forward pass may have moved running statistics.
        batch = replace(batch, loss=batch.loss.with_current_state())
        total, sizes = self._total(losses, natural, batch)
        values = []
        for term in self.terms:
            at_inputs = replace(batch, loss=replace(batch.loss, layer=None))
            mean, of_examples = mean_over_batch(term, at_inputs, self._in_groups)
            total = total + term.weight * mean
            values.append(of_examples)
        _check_finite(sum(values, (losses + self.weight * sizes).detach()))
        self.parts = RARParts(
            natural_loss=natural,
            loss=losses.detach(),
            regularizer=sizes,
            perturbed=loss.unpacked(batch.perturbed),
            terms=tuple(values),
            epsilon=maximizer.epsilon,
            seconds={
                "attack": attacked - began,
                "loss": evaluated - attacked,
                "regularizer": time.perf_counter() - evaluated,
            },
        )
        if torch.is_grad_enabled():
            self.training_calls += 1
        return total

    @outside_inference_mode()
    @checkpoints_named()
    def perturb(
        self, inputs: TensorOrTupleOfTensorsGeneric, target: Tensor, additional_forward_args: object = None
    ) -> TensorOrTupleOfTensorsGeneric:
        r"""The inner maximization: perturbed inputs for which the regularizer (for ``"ig_sum_norm"`` the loss and the
        regularizer together) is large, within ``epsilon`` whatever the warm-up.

        Arguments and errors are those of :meth:`forward`.

        Returns:

            - **perturbed** (*Tensor or tuple[Tensor, ...]*): Like ``inputs``, in the ball and within the bounds.
        """
        loss = self._pointwise_loss(inputs, target, additional_forward_args)
        batch, _ = self._perturbed_batch(loss, self._maximizer)
        perturbed: TensorOrTupleOfTensorsGeneric = loss.unpacked(batch.perturbed)
        return perturbed

    @outside_inference_mode()
    @checkpoints_named()
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
        loss = self._pointwise_loss(inputs, target, additional_forward_args)
        points = tuple(map(clone_if_inference, check_inputs(perturbed)))
        if [tensor.shape for tensor in points] != [tensor.shape for tensor in loss.inputs]:
            raise BoundaryValueError(
                f"perturbed must have the shapes of inputs, {[tuple(tensor.shape) for tensor in loss.inputs]}, but "
                f"it has {[tuple(tensor.shape) for tensor in points]}."
            )
        x = self._maximizer.feasible_set(loss.inputs, self.bounds).x  # which checks the bounds
        with torch.no_grad():
            loss.at_inputs(x)  # which checks the outputs
        return self._sizes(PerturbedBatch(loss, x, pack(points), self.internal_batch_size))

    def get_extra_state(self) -> Tensor:
        """What the state dict has of the loss itself: the number of training calls, which the warm-up goes by."""
        return torch.tensor(self.training_calls, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Resume the warm-up where it was."""
        self.training_calls = int(state)

    def extra_repr(self) -> str:
        """What ``print`` shows of the loss, before its model."""
        smooth = "" if self.smooth is None else f", smooth={self.smooth!r}, softplus_beta={self.softplus_beta}"
        return f"size={self.size!r}, epsilon={self.epsilon}, weight={self.weight}{smooth}"

    def _pointwise_loss(self, inputs: object, target: object, additional_forward_args: object) -> PointwiseLoss:
        """The loss of a batch, with the activations for its attributions."""
        loss = PointwiseLoss.of(self.model, self.loss_func, inputs, target, additional_forward_args, self._layer[0])
        if self.smooth is None or (self._norm is None and not self.terms):
            return loss
        loss = loss.with_softplus(self.softplus_beta)
        one = loss.of_rows(slice(0, 1))
        check_smoothed(one.output, pack(one.inputs), self.softplus_beta)
        return loss

    def _perturbed_batch(self, loss: PointwiseLoss, maximizer: InnerMaximizer) -> tuple[PerturbedBatch, Tensor]:
        """The batch with its perturbed points, and the losses ``(N,)`` at the inputs."""
        x = pack(loss.inputs)
        feasible_set = maximizer.feasible_set(loss.inputs, self.bounds)
        # An attack needs no graph of the parameters.
        detached = loss.with_state({name: tensor.detach() for name, tensor in loss.state.items()})
        slope = None
        if self._norm is None:
            with torch.no_grad():
                natural = detached.with_softplus(None).at_inputs(x)
        else:  # norms of attributions vanish at the inputs, and so do their slopes: that of the loss leads out
            leaves = x.detach().requires_grad_()
            with torch.enable_grad():
                natural = detached.with_softplus(None).at_inputs(leaves)
                (slope,) = torch.autograd.grad(natural.sum(), leaves, materialize_grads=True)
        perturbed = maximizer.maximize(
            InnerObjective(self._attack_norm, self.weight if self._size.at_perturbed else None),
            PerturbedBatch(detached, x, x, self.internal_batch_size),
            feasible_set,
            slope,
            self.generator if self.random_start else None,
        )
        return PerturbedBatch(loss, x, perturbed, self.internal_batch_size), natural.detach()

    def _total(self, losses: Tensor, natural: Tensor, batch: PerturbedBatch) -> tuple[Tensor, Tensor]:
        """The training loss without terms, and the sizes ``(N,)`` of the attributions, without a graph."""
        if self._norm is not None:
            mean, sizes = mean_over_batch(self._norm, batch, self._in_groups)
            return losses.mean() + self.weight * mean, sizes
        if self.weight == 1:
            return losses.mean(), losses.detach() - natural
        # l(x) + w [l(x') - l(x)], with the loss at x' from the forward pass.
        sizes = self._sizes(batch)
        return (losses + (self.weight - 1) * sizes).mean(), sizes.detach()

    def _sizes(self, batch: PerturbedBatch) -> Tensor:
        """Sizes ``(N,)`` of the attributions, with their graph."""
        if self._norm is not None:
            return self._norm.values(batch)
        return batch.loss(batch.perturbed) - batch.loss(batch.x)

    @property
    def _in_groups(self) -> bool:
        """Whether gradients may be taken a few examples at a time.

        A function of the user's may have parameters of its own, which only an ordinary graph leads to.
        """
        is_ours = self.loss_func is cross_entropy and isinstance(self.size, str)
        return is_ours or self.internal_batch_size is not None

    def _share_of_epsilon(self) -> float:
        """How much of ``epsilon`` this call has."""
        if not torch.is_grad_enabled() or self.training_calls >= self.warmup:
            return 1.0
        return (self.training_calls + 1) / self.warmup


@dataclass(frozen=True)
class RARParts:
    r"""What the last call of a :class:`RARLoss` was made of, without its graph.

    Attributes:

        natural_loss (Tensor): Loss of each example at the inputs, ``(N,)``, of the model in evaluation mode, as it was
            before the call.
        loss (Tensor): Loss of each example where the training loss takes it, ``(N,)``: at the perturbed inputs for
            ``"ig_sum_norm"`` and ``"sum"``, at the inputs for all others.
        regularizer (Tensor): Size of each example's attribution, ``(N,)``, before it is multiplied by the weight. For
            ``"sum"`` with weight 1 it is ``loss - natural_loss``.
        perturbed (Tensor or tuple[Tensor, ...]): The perturbed inputs, like the inputs.
        terms (tuple[Tensor, ...]): Values of the further terms, in their order, ``(N,)`` each, before they are
            multiplied by their weights.
        epsilon (float): Radius of this call, which is less than that of the loss during the warm-up.
        seconds (Mapping[str, float]): Time of the ``"attack"``, the forward pass of the ``"loss"``, and the
            ``"regularizer"`` with all further terms. On an accelerator it is the time until the work was queued.
    """

    natural_loss: Tensor
    loss: Tensor
    regularizer: Tensor
    perturbed: Tensor | tuple[Tensor, ...]
    terms: tuple[Tensor, ...] = ()
    epsilon: float = math.nan
    seconds: Mapping[str, float] = field(default_factory=dict)


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise BoundaryTypeError(
            f"model must be a torch.nn.Module, whose parameters are trained, but it is {type(model).__name__}."
        )
    if isinstance(unwrapped(model), torch.jit.ScriptModule):
        raise BoundaryTypeError(
            "model must be the torch.nn.Module from before it was scripted or traced, since PyTorch evaluates no other "
            f"with the parameters of an earlier moment, but it is {type(model).__name__}."
        )


def _check_layer(model: nn.Module, layer: Any, quadrature: str) -> None:
    if not isinstance(layer, nn.Module) or all(module is not layer for module in model.modules()):
        raise BoundaryValueError("layer must be a module of the model, but it is none of model.modules().")
    if quadrature not in ("riemann_right", "riemann_left"):
        raise BoundaryValueError(
            "With layer, quadrature must be 'riemann_right' or 'riemann_left', whose nodes divide the path evenly, but "
            f"it is {quadrature!r}."
        )


def _check_finite(losses: Tensor) -> None:
    is_wrong = ~torch.isfinite(losses)
    if is_wrong.any():
        raise BoundaryValueError(
            f"The loss is NaN or infinite for {int(is_wrong.sum())} of {len(losses)} examples, row(s) "
            f"{shown(is_wrong)}. No parameter has been changed: look for parameters that are not finite, and lower the "
            "learning rate, weight or epsilon."
        )
