"""Derivatives of gradients through the training loss, and models that checkpoint activations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from captum_boundary import RARLoss
from captum_boundary.errors import BoundaryValueError
from captum_boundary.robust import AttributionAttack, AttributionCosine


def network(activation: type[nn.Module] = nn.Softplus) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), activation(), nn.Linear(7, 3)).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 5, generator=generator, dtype=torch.float64), torch.randint(3, (6,), generator=generator)


def at_fixed_points(model: nn.Module, perturbed: Tensor, **options: object) -> RARLoss:
    """A loss whose perturbed points are given, since those of an attack move with the parameters."""
    rar = RARLoss(model, epsilon=0.3, weight=0.7, warmup=0, **options)
    original = rar._perturbed_batch

    def fixed(loss, maximizer):
        found, natural = original(loss, maximizer)
        return replace(found, perturbed=perturbed), natural

    rar._perturbed_batch = fixed
    return rar


CASES = {
    "whole": {},
    "groups": {"internal_batch_size": 12},
    "parts of paths": {"internal_batch_size": 3},
    "layer in parts": {"internal_batch_size": 3, "with_layer": True},
    "loss at perturbed": {"size": "ig_sum_norm", "internal_batch_size": 12},
    "power": {"size": "norm_power", "internal_batch_size": 2},
    "sum": {"size": "sum"},
    "smooth": {"smooth": "softplus", "softplus_beta": 5.0, "internal_batch_size": 12, "activation": nn.ReLU},
    "term": {"terms": [AttributionCosine(2.0)], "internal_batch_size": 12},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_hessian_vector_products_are_right(options) -> None:
    options = dict(options)
    model, (x, y) = network(options.pop("activation", nn.Softplus)), batch()
    layer = model[1] if options.pop("with_layer", False) else None
    perturbed = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rar = at_fixed_points(model, perturbed, layer=layer, n_steps=4, **options)
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]

    def gradients(create_graph: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(rar(x, y), parameters, create_graph=create_graph, materialize_grads=True)

    torch.testing.assert_close(gradients(True), gradients(False))
    along = sum((g * d).sum() for g, d in zip(gradients(True), direction, strict=True))
    products = torch.autograd.grad(along, parameters, materialize_grads=True)
    ends = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for parameter, move in zip(parameters, direction, strict=True):
                parameter.add_(move, alpha=step)
        ends.append(gradients(False))
        with torch.no_grad():
            for parameter, move in zip(parameters, direction, strict=True):
                parameter.sub_(move, alpha=step)
    for product, above, below in zip(products, *ends, strict=True):
        torch.testing.assert_close(product, (above - below) / 2e-5, rtol=1e-5, atol=1e-7)


def test_memory_is_that_of_first_order_unless_the_second_is_asked_for() -> None:
    """No graph of the regularizer is kept until the backward pass."""
    model, (x, y) = network(), batch()
    kept: list[int] = []
    for create_graph in (False, True):
        passes = 0

        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal passes
            passes += 1

        rar = RARLoss(model, epsilon=0.3, warmup=0)
        loss = rar(x, y)
        handle = model.register_forward_pre_hook(count)
        torch.autograd.grad(loss, list(model.parameters()), create_graph=create_graph)
        handle.remove()
        kept.append(passes)
    assert kept[0] == 0
    assert kept[1] > 0


class Checkpointed(nn.Module):
    """Recomputes its first layer in the backward pass, in training mode alone if asked to."""

    def __init__(self, use_reentrant: bool, in_training_alone: bool = False) -> None:
        super().__init__()
        self.body = network(nn.ReLU)
        self.use_reentrant, self.in_training_alone = use_reentrant, in_training_alone

    def forward(self, x: Tensor) -> Tensor:
        if self.in_training_alone and not self.training:
            return self.body(x)
        hidden = checkpoint(lambda z: self.body[1](self.body[0](z)), x, use_reentrant=self.use_reentrant)
        return self.body[2](hidden)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("options", [{}, {"smooth": "softplus"}, {"size": "sum"}], ids=["plain", "smooth", "sum"])
def test_checkpointed_models_are_refused_in_words(use_reentrant, options) -> None:
    x, y = batch()
    rar = RARLoss(Checkpointed(use_reentrant), epsilon=0.1, **options)
    for call in (lambda: rar(x, y), lambda: rar.perturb(x, y)):
        with pytest.raises(BoundaryValueError, match=r"checkpoints activations .* Switch checkpointing off"):
            call()
    with pytest.raises(BoundaryValueError, match="Switch checkpointing off"):
        AttributionAttack(Checkpointed(use_reentrant), epsilon=0.1, n_steps=5).perturb(x)


@pytest.mark.parametrize("size", ["ig_norm", "sum"])
def test_models_that_checkpoint_in_training_alone_train_as_they_are(size) -> None:
    x, y = batch()
    gradients = []
    for model in (Checkpointed(use_reentrant=False, in_training_alone=True), network(nn.ReLU)):
        RARLoss(model.train(), size, epsilon=0.1, smooth="softplus", warmup=0)(x, y).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_hooks_of_the_users_on_saved_tensors_are_kept() -> None:
    """Offloading of activations packs what the graph saves."""
    x, y = batch()
    packed = []
    model, alike = network(), network()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        RARLoss(model, epsilon=0.1, warmup=0)(x, y).backward()
    RARLoss(alike, epsilon=0.1, warmup=0)(x, y).backward()
    assert packed
    for parameter, same in zip(model.parameters(), alike.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, same.grad)
