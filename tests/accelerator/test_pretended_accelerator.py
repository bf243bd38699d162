"""The pretended accelerator is one: it computes, differentiates, refuses and counts as a GPU would."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from device_costs import Cost, counting
from torch import Tensor, nn
from torch.nn import functional

X = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
ROWS = torch.tensor([2, 0])


@pytest.fixture
def x(pretended: str) -> Tensor:
    return X.to(pretended)


@pytest.fixture
def rows(pretended: str) -> Tensor:
    return ROWS.to(pretended)


def changed_in_place(x: Tensor, rows: Tensor) -> Tensor:
    x = x.clone()
    x[rows] = x[:2] * 3
    x[:, 1] += 2
    x[0].mul_(2)
    x[x > 0.9] = 0.0
    return x


# Operations, with how many kernels they launch and how often the host waits.
OPERATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Any], int, int]] = {
    "arithmetic": (lambda x, rows: (x * 2 - 1).abs(), 3, 0),
    "numbers": (lambda x, rows: torch.maximum(x * torch.tensor(2.0), torch.tensor(0.5)), 2, 0),
    "views": (lambda x, rows: x[:, 1:].T.unsqueeze(0).expand(3, -1, -1).select(0, 0).detach(), 0, 0),
    "parts": (lambda x, rows: (*x.split(2), *x.chunk(2, dim=1), *x.unbind(), x.diagonal()), 0, 0),
    "reshaped view": (lambda x, rows: x.reshape(2, 12), 0, 0),
    "reshaped copy": (lambda x, rows: x.T.reshape(-1), 1, 0),
    "joined": (lambda x, rows: torch.cat([x, torch.stack([x[0], x[1]])]), 2, 0),
    "factories": (
        lambda x, rows: (torch.zeros_like(x), torch.arange(3, device=x.device), torch.full((2,), 1.0, device=x.device)),
        3,
        0,
    ),
    "spaces": (lambda x, rows: (torch.eye(3, device=x.device), torch.linspace(0, 1, 5, device=x.device)), 2, 0),
    "memory": (lambda x, rows: torch.empty_like(x).shape, 0, 0),
    "dtypes": (lambda x, rows: x.double().to(x), 2, 0),
    "reductions": (lambda x, rows: (x.sum(dim=1), x.amax(dim=1), torch.linalg.vector_norm(x, dim=1)), 3, 0),
    "cumulation": (lambda x, rows: x.cumsum(dim=1), 1, 0),
    "ordering": (lambda x, rows: (*x.sort(dim=1, stable=True), *x.topk(2, dim=1), x.argsort(dim=1)), 3, 0),
    "where": (lambda x, rows: torch.where(x > 0.5, x, 0.0), 2, 0),
    "products": (lambda x, rows: (x @ x.T, x[:, None] @ x[:, :, None], torch.einsum("ij,kj->ik", x, x)), 3, 0),
    "solve": (lambda x, rows: torch.linalg.solve(x @ x.T + torch.eye(4, device=x.device), x), 5, 1),
    "taking": (lambda x, rows: (x[rows], x[rows, rows], x.gather(1, rows[:, None].repeat(2, 1))), 4, 0),
    "adding at": (lambda x, rows: torch.zeros_like(x).index_add_(0, rows, x[:2]), 2, 0),
    "putting": (lambda x, rows: x.clone().index_put_((rows,), x[:2]), 2, 0),
    "scattering": (lambda x, rows: torch.zeros_like(x).scatter_(1, rows[:, None], 1.0), 2, 0),
    "in place": (changed_in_place, 8, 0),
    "mask": (lambda x, rows: x[x > 0.5], 3, 1),
    "masked_select": (lambda x, rows: x.masked_select(x > 0.5), 2, 1),
    "nonzero": (lambda x, rows: (x > 0.5).nonzero(), 2, 1),
    "unique": (lambda x, rows: torch.unique(x), 1, 1),
    "repeats": (lambda x, rows: rows.repeat_interleave(rows), 2, 1),
    "repeats of known size": (lambda x, rows: rows.repeat_interleave(rows, output_size=2), 2, 0),
    "repeated": (lambda x, rows: x.repeat_interleave(2, dim=0), 1, 0),
    "one_hot": (lambda x, rows: functional.one_hot(rows, 5), 3, 0),
    "item": (lambda x, rows: x[0, 0].item(), 0, 1),
    "row of a tensor": (lambda x, rows: x[rows[0]], 0, 1),
    "float and int": (lambda x, rows: (float(x[0, 0]), int(rows[0])), 0, 2),
    "format": (lambda x, rows: f"{x[0, 0]:.3f}", 0, 1),
    "truth": (lambda x, rows: bool((x > 0).all()), 2, 1),
    "tolist": (lambda x, rows: x.tolist(), 0, 1),
    "to the host": (lambda x, rows: x.cpu().numpy().tolist(), 0, 1),
    "equal": (lambda x, rows: torch.equal(x, x), 1, 1),
    "allclose": (lambda x, rows: torch.allclose(x, x), 1, 1),
    "vmap": (lambda x, rows: torch.func.vmap(torch.sum)(x), 1, 0),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str, x: Tensor, rows: Tensor) -> None:
    operation, n_operations, n_synchronizations = OPERATIONS[name]
    with counting() as counts:
        result = operation(x, rows)
    assert counts.own == Cost(n_operations, n_synchronizations, copies=0)
    assert sum(counts.names.values()) == n_operations
    check_same(result, operation(X, ROWS), x.device)


def check_same(result: Any, expected: Any, device: torch.device) -> None:
    if isinstance(expected, tuple):
        for part, expected_part in zip(result, expected, strict=True):
            check_same(part, expected_part, device)
    elif isinstance(expected, Tensor):
        assert result.device == device
        torch.testing.assert_close(result.cpu(), expected)
    else:
        assert result == expected


@pytest.mark.parametrize(
    "copy_",
    [
        lambda device: X.to(device),
        lambda device: torch.tensor([1.0, 2.0], device=device),
        lambda device: torch.as_tensor(2.0, device=device),
        lambda device: torch.empty(4, 6, device=device).copy_(X),
        lambda device: torch.empty(4, 6, device=device)[ROWS],
    ],
)
def test_copies(copy_: Callable[[str], Tensor], pretended: str) -> None:
    with counting() as counts:
        result = copy_(pretended)
    assert str(result.device) == pretended
    assert (counts.own.copies, counts.own.synchronizations) == (1, 0)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + X,
        lambda x: torch.where(X > 0.5, x, x),
        lambda x: x.clamp(X, X),
        lambda x: X.clone().add_(x),
        lambda x: torch.tensor(1.0).add_(x[0, 0]),
        lambda x: torch.cat([x, X]),
        lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
        lambda x: x @ X.T,
        lambda x: x.gather(1, ROWS[:, None]),
        lambda x: x.clone().index_add_(0, ROWS, x[:2]),
        lambda x: X[ROWS.to(x.device)],
        lambda x: x.clone().index_put_((ROWS,), X[:2]),
        lambda x: nn.Linear(6, 2)(x),
        lambda x: nn.Linear(6, 2).to(x.device)(X),
        lambda x: torch.rand(3, device=x.device, generator=torch.Generator()),
        lambda x: x.clone().bernoulli_(generator=torch.Generator()),
    ],
)
def test_devices_do_not_mix(mix: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with pytest.raises(RuntimeError, match="device"):
        mix(x)


def test_numpy_sees_nothing(x: Tensor) -> None:
    with pytest.raises((RuntimeError, TypeError), match="numpy"):
        x.numpy()


def networks() -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = nn.Sequential(nn.Linear(6, 5), nn.Softplus(), nn.BatchNorm1d(5), nn.Linear(5, 3), nn.Softmax(1))
        convolutions = nn.Conv2d(1, 4, 2, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
        images = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), *convolutions, nn.Flatten(), nn.Linear(4, 3), nn.GELU())
    return {"dense": dense, "images": images}


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    """With respect to inputs and parameters, the latter through those of the inputs."""
    inputs = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(network(inputs).pow(2).sum(), inputs, create_graph=True)
    (slope.pow(2).sum() + network(inputs).sum()).backward()
    return [slope.detach(), *(parameter.grad for parameter in network.parameters())]


@pytest.mark.parametrize("name", networks())
def test_gradients(name: str, x: Tensor) -> None:
    expected, network = gradients(networks()[name], X), networks()[name].to(x.device)
    check_same(tuple(gradients(network, x)), tuple(expected), x.device)


def test_embeddings(rows: Tensor) -> None:
    embedding = nn.Embedding.from_pretrained(X, freeze=False).to(rows.device)
    embedding(rows).sum().backward()
    assert embedding.weight.grad.cpu().sum(dim=1).tolist() == [6.0, 0.0, 6.0, 0.0]


def test_copies_of_modules_are_their_own(x: Tensor) -> None:
    module = nn.Linear(6, 2).to(x.device)
    double = copy.deepcopy(module)
    with torch.no_grad():
        double.weight.mul_(2)
        double.bias.mul_(2)
    torch.testing.assert_close(double(x).cpu(), 2 * module(x).cpu())
    torch.testing.assert_close(copy.deepcopy(module).double()(x.double()).cpu(), module(x).double().cpu())


def test_random_numbers_are_the_devices_own(x: Tensor) -> None:
    def draw() -> list[Tensor]:
        return [torch.rand_like(x), torch.randn(3, device=x.device), torch.randperm(9, device=x.device), x.bernoulli()]

    state = torch.get_rng_state()
    with torch.random.fork_rng(devices=[x.device], device_type=x.device.type):
        forked = draw()
    again, later = draw(), draw()
    assert torch.equal(torch.get_rng_state(), state)
    for first, second, third in zip(forked, again, later, strict=True):
        assert torch.equal(first, second)
        assert not torch.equal(first, third)


def test_forward_and_backward_passes_are_the_models(x: Tensor) -> None:
    network = networks()["dense"].eval().to(x.device)
    inputs = x.clone().requires_grad_()
    with counting() as counts:
        scores = network(inputs)
        total = scores.sum()
        torch.autograd.grad(total, inputs, retain_graph=True)
        total.backward()
    assert (counts.forward_calls, counts.backward_calls) == (1, 2)
    assert counts.model.operations == 5
    assert counts.backward.operations >= 10
    assert counts.own == Cost(operations=1)
    assert counts.names == {"sum": 1}


def test_counting_ends(x: Tensor) -> None:
    with counting() as counts:
        x + x
    x + x
    nn.Identity()(x)
    assert counts.own == Cost(operations=1)
    assert counts.forward_calls == 0


def test_lines_of_the_package_are_named(x: Tensor) -> None:
    from captum_boundary.metrics import cosine_similarity

    with counting() as counts:
        cosine_similarity(x, x)
    assert counts.lines["operations"]["elsewhere"] == 0
    assert any(line.startswith("_core/agreement.py:") for line in counts.lines["operations"])
    for kind, lines in counts.lines.items():
        assert lines.total() == getattr(counts.own, kind)
