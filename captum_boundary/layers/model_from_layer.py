"""The model from a layer on, as an ordinary forward function of the layer's activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from captum_boundary._core.arguments import of_examples
from captum_boundary._core.captum_helpers import format_additional_forward_args
from captum_boundary._core.checks import check_examples
from captum_boundary._core.context import discarded_graph, geometry
from captum_boundary._core.modules import unwrapped
from captum_boundary._core.outputs import config_of
from captum_boundary._core.repeatability import Repeatability, watch_repeatability
from captum_boundary.errors import BoundaryError, BoundaryTypeError, BoundaryValueError
from captum_boundary.layers._origins import Origins
from captum_boundary.layers._plan import Plan, plan_of
from captum_boundary.layers._recording import as_written, copied, layers_of, names_of, record
from captum_boundary.layers._replay import Readings, replay

__all__ = ["ModelFromLayer", "n_activations_of"]


class ModelFromLayer(nn.Module):
    r"""The model from a layer on: a forward function of the layer's activations.

    Token ids cannot be moved towards a boundary, but their embeddings can; and the features of a late layer may say
    more than pixels. This makes a layer the input of the model, so that every search, attribution and metric of this
    package and of Captum can be used in the layer, as it is::

        from_layer = ModelFromLayer(model, model.embedding)
        activations, arguments = from_layer.at(token_ids)
        boundary = NearestBoundary(from_layer).find(activations, additional_forward_args=arguments)

    :meth:`at` evaluates the model at inputs, notes what its modules return before the layer begins, and checks that the
    model from the layer on reproduces its outputs. From then on these modules return what they returned, in place of
    computing it again (the layer itself included, unless its input is taken): a search costs no pass through what lies
    before the layer. Skip connections around the layer are kept, and so are attention masks and other arguments. They
    are all part of ``arguments``, whose tensors follow their examples. Operations before the layer that are not modules
    are done again. While :meth:`at` runs, it holds what all modules before the layer return, as training would; in the
    end, only what the rest of the model reads.

    The model is left as it is, but may not be used elsewhere (by another thread, say) while it is being evaluated here.
    Compiled and parallel models are evaluated as the modules within them.

    Args:

        forward_func (Callable): The model, or any function around it, whose first arguments are the inputs.
        layer (nn.Module or list[nn.Module]): A module of the model, that is called once in a pass, or several, such as
            the embeddings of a table's categorical columns, whose outputs are moved together, in this order.
        attribute_to_layer_input (bool, optional): Begin with the layer's input in place of its output: the positional
            arguments in which inputs or parameters of the model have a part, so that attention masks are kept.
            Default: False

    Raises:

        BoundaryTypeError: If ``forward_func`` is not callable, or ``layer`` is no module.
        BoundaryValueError: If ``layer`` is not a module of the model, or several are to begin with their inputs.

    Examples::

        >>> import torch
        >>> from captum_boundary import ModelFromLayer, NearestBoundary
        >>> _ = torch.manual_seed(0)
        >>> embedding = torch.nn.Embedding(50, 8)
        >>> model = torch.nn.Sequential(embedding, torch.nn.Flatten(), torch.nn.Linear(24, 2)).eval()
        >>> from_layer = ModelFromLayer(model, embedding)
        >>> activations, arguments = from_layer.at(torch.tensor([[4, 8, 15], [16, 23, 42]]))
        >>> activations.shape
        torch.Size([2, 3, 8])
        >>> boundary = NearestBoundary(from_layer).find(activations, additional_forward_args=arguments)
        >>> boundary.found
        tensor([True, True])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | Sequence[nn.Module],
        *,
        attribute_to_layer_input: bool = False,
    ) -> None:
        super().__init__()
        if not callable(forward_func):
            raise BoundaryTypeError(f"forward_func must be callable, but it is {type(forward_func).__name__}.")
        layers = layers_of(layer)
        if attribute_to_layer_input and len(layers) > 1:
            raise BoundaryValueError(
                f"attribute_to_layer_input=True begins with the input of one layer, but layer holds {len(layers)}. "
                "Take their outputs."
            )
        for name, given in (("forward_func", forward_func), *(("layer", module) for module in layers)):
            if isinstance(given, torch.jit.ScriptModule):
                raise BoundaryTypeError(
                    f"{name} was scripted, so that no part of it can be left out. Give the module that was scripted."
                )
        self.forward_func = unwrapped(forward_func)
        self.config = config_of(self.forward_func)
        if isinstance(self.forward_func, nn.Module):
            for module in set(layers) - set(self.forward_func.modules()):
                raise BoundaryValueError(
                    f"layer must be a module of the model itself, but {type(self.forward_func).__name__} does not "
                    f"contain this {type(module).__name__}."
                )
            self.training = self.forward_func.training
        self.attribute_to_layer_input = attribute_to_layer_input
        self.layers = layers  # in a tuple, not to be found twice among the modules

    def at(
        self, inputs: Tensor | tuple[Tensor, ...], additional_forward_args: object = None
    ) -> tuple[Tensor | tuple[Tensor, ...], tuple[Any, ...]]:
        r"""The layer's activations at inputs, and what the model needs besides them.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): Inputs of the model, of any dtype, of N examples (dimension 0).
            additional_forward_args (Any, optional): Further arguments of ``forward_func``. Tensors with N entries
                follow their examples; everything else is passed as it is. Default: None

        Returns:

            - **activations** (*Tensor* or *tuple[Tensor, ...]*): The floating-point tensors of the layer's output (or
              input) that the rest of the model reads, a tuple if there are several. Examples come first, ``(N, ...)``,
              wherever the layer has them.
            - **arguments** (*tuple*): Additional forward arguments of this function for these inputs.

        Raises:

            BoundaryTypeError: For inputs that are no tensors, and activations that are not floating point.
            BoundaryValueError: If the layer is not called, or several times; if inputs or its activations cannot be
                divided among the examples; and if the model from the layer on does not reproduce the model.
        """
        tensors = _checked(inputs)
        further = format_additional_forward_args(additional_forward_args)
        n_examples = len(tensors[0])
        few = torch.arange(3 if n_examples == 2 else 2, device=tensors[0].device) % n_examples

        layers, function, at_input = self.layers, self.forward_func, self.attribute_to_layer_input
        with geometry(), as_written(function), watch_repeatability(function) as repeatability:
            all_args: tuple[Any, ...] = copied((tensors, further))
            few_args = of_examples(all_args[0], n_examples, few), of_examples(all_args[1], n_examples, few)
            full_pass = record(function, layers, *all_args)
            try:
                few_pass = record(function, layers, *few_args, Origins() if at_input else None)
            except (IndexError, RuntimeError, ValueError) as error:
                if isinstance(error, BoundaryError | torch.cuda.OutOfMemoryError):
                    raise
                raise BoundaryValueError(
                    f"The model was evaluated, but cannot be evaluated for {len(few)} of the {n_examples} examples: "
                    f"{error}. Dimension 0 of inputs, and of arguments of the same length, must be that of the "
                    "examples. Wrap it in a function of such inputs, for token ids (N, L) of a bag with offsets: "
                    "lambda ids: model(ids.flatten(), offsets_of(ids))."
                ) from error
            own = (*all_args[0], *all_args[1]), (*few_args[0], *few_args[1])
            plan, rows = plan_of(full_pass, few_pass, own, (n_examples, len(few)), layers, at_input)
            if _is_repeatable(repeatability, full_pass.output, few_pass.output, few):
                plan, rows = self._verified(plan, rows, few, full_pass.output, few_pass.output)
        activations = rows[: plan.n_activations]
        return (activations if len(activations) > 1 else activations[0]), (plan, *rows[plan.n_activations :])

    def forward(self, *activations_and_arguments: Any) -> Any:
        r"""The model's output for activations of the layer, followed by the arguments that go with them."""
        plan, rows = _taken_apart(activations_and_arguments)
        output = self._replayed(plan, rows)
        if torch.is_grad_enabled():
            return output
        return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, output)

    def _verified(
        self, plan: Plan, rows: tuple[Tensor, ...], few: Tensor, expected: Any, expected_of_few: Any
    ) -> tuple[Plan, tuple[Tensor, ...]]:
        """The plan without what the rest of the model does not read, once it is seen to reproduce the model."""
        readings, n_examples = Readings(), len(rows[0])
        with readings:
            output = self._replayed(plan, rows, readings)
        self._require_same(output, expected)
        for layer, own in zip(self.layers, plan.rows_of_layers, strict=True) if len(self.layers) > 1 else ():
            if not own & readings.rows:
                raise BoundaryValueError(
                    f"The layer, {type(layer).__name__}, has no activation that the model reads where those of the "
                    "others are given: it lies before another one. Give layers side by side, of which none is computed "
                    "from another."
                )
        slim_plan, slim_rows = plan.reduced(readings.rows, readings.returned(output), rows)
        try:
            self._require_same(self._replayed(slim_plan, of_examples(slim_rows, n_examples, few)), expected_of_few)
        except Exception:  # the model looks at values in a way that was not seen: keep them all
            self._require_same(self._replayed(plan, of_examples(rows, n_examples, few)), expected_of_few)
            return plan, rows
        return slim_plan, slim_rows

    def _replayed(self, plan: Plan, rows: tuple[Tensor, ...], readings: Readings | None = None) -> Any:
        if torch.is_grad_enabled():
            return replay(plan, self.forward_func, self.layers, rows, readings)
        # Fused kernels, which are taken where no gradient is needed, would leave out modules that are filled in.
        with torch.enable_grad(), discarded_graph():
            moved = tuple(row.detach().requires_grad_() for row in rows[: plan.n_activations])
            return replay(plan, self.forward_func, self.layers, (*moved, *rows[plan.n_activations :]), readings)

    def _require_same(self, output: Any, expected: Any) -> None:
        pairs = zip(tree_flatten(output)[0], tree_flatten(expected)[0], strict=True)
        for pair in pairs:
            one, other = (getattr(leaf, "logits", leaf) for leaf in pair)
            if isinstance(other, Tensor) and other.is_floating_point() and not _is_reproduced(one, other):
                raise BoundaryValueError(
                    f"The model from the layer, {names_of(self.layers)}, on does not reproduce the model's output "
                    "at the layer's own activations. Its forward may be random or keep a state, or make a difference "
                    "between batches: choose another layer, or write what lies after it as a model of its own."
                )


def _is_repeatable(repeatability: Repeatability, full: Any, few: Any, rows: Tensor) -> bool:
    """Whether a few examples have the same scores by themselves as among all, or another reason than training mode."""
    if repeatability.buffers_changed():
        return False
    if not repeatability.in_training_mode:
        return True
    for again, scores in zip(tree_flatten(few)[0], tree_flatten(full)[0], strict=True):
        if isinstance(scores, Tensor) and scores.is_floating_point() and scores.ndim and len(again) == len(rows):
            again, scores = again.reshape(len(rows), -1), scores[rows.to(scores.device)].reshape(len(rows), -1)
            repeatability.noise_between(again, scores, torch.finfo(scores.dtype).eps, torch.float32)
            return not repeatability.differs
    return True


def _checked(inputs: Any) -> tuple[Tensor, ...]:
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        kinds = ", ".join(type(tensor).__name__ for tensor in tensors) or "an empty tuple"
        raise BoundaryTypeError(f"inputs must be a Tensor or a tuple of Tensors, but it is {kinds}.")
    check_examples(tensors)
    return tensors


def n_activations_of(values: tuple[Any, ...]) -> int:
    """How many of the arguments of a model from a layer on are activations: those before the plan."""
    for index, value in enumerate(values):
        if isinstance(value, Plan):
            return index
    raise BoundaryTypeError(
        "The model from a layer on needs the arguments that belong to its activations: activations, arguments = "
        "from_layer.at(inputs), then additional_forward_args=arguments."
    )


def _taken_apart(values: tuple[Any, ...]) -> tuple[Plan, tuple[Tensor, ...]]:
    """The plan among the arguments, and its rows: the activations before it and the tensors after it."""
    index = n_activations_of(values)
    plan: Plan = values[index]
    rows = (*values[:index], *values[index + 1 :])
    sizes = {len(row) for row in rows if isinstance(row, Tensor) and row.ndim}
    if index != plan.n_activations or len(rows) != plan.n_rows or len(sizes) != 1:
        shapes = [tuple(row.shape) if isinstance(row, Tensor) else type(row).__name__ for row in rows]
        raise BoundaryValueError(
            f"The model from a layer on takes {plan.n_activations} tensor(s) of activations and {plan.n_rows - index} "
            f"of other arguments, one row for each example, but it was given {shapes}. Give both as at(inputs) returns "
            "them, for the same inputs."
        )
    return plan, rows


def _is_reproduced(one: Any, other: Tensor) -> bool:
    if not isinstance(one, Tensor) or one.shape != other.shape:
        return False
    finite = torch.isfinite(other)
    change = (one - other)[finite].abs()
    scale = other[finite].abs()
    # Half of the digits: rounding in another order costs a few of them, what is really another function costs more.
    tolerance = torch.finfo(other.dtype).eps ** 0.5
    return not len(change) or bool(change.amax() <= tolerance * scale.amax().clamp_min(1e-3))
