"""The training loss under DistributedDataParallel: gradients of several processes equal those of one."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from captum_boundary import RARLoss

SIZES = ("ig_norm", "ig_sum_norm", "sum")


def network(with_batch_norm: bool, activation: type[nn.Module] = nn.Softplus) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8) if with_batch_norm else nn.Identity(), activation(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.rand(8, 6, generator=generator, dtype=torch.float64), torch.randint(3, (8,), generator=generator))
        for _ in range(3)
    ]


def train(
    model: nn.Module, size: str, internal_batch_size: int | None, rows: slice, smooth: str | None = None
) -> dict[str, Tensor]:
    """Three steps of gradient descent; the last gradients, and the state."""
    rar = RARLoss(
        model,
        size,
        epsilon=0.2,
        bounds=(0, 1),
        n_steps=6,
        attack_steps=3,
        random_start=False,
        internal_batch_size=internal_batch_size,
        smooth=smooth,
        softplus_beta=5.0,
        warmup=0,
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for x, y in batches():
        optimizer.zero_grad()
        rar(x[rows], y[rows]).backward()
        optimizer.step()
    of = getattr(model, "module", model)
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in of.named_parameters()}
    return {**gradients, **{name: tensor.detach() for name, tensor in of.state_dict().items()}}


def cases() -> list[tuple[str, int | None, str]]:
    return list(itertools.product(SIZES, (None, 4), ("plain", "frozen statistics")))


def work(rank: int, address: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    rows = slice(4 * rank, 4 * rank + 4)
    found = {}
    for size, internal_batch_size, kind in cases():
        model = network(with_batch_norm=kind != "plain")
        if kind == "frozen statistics":
            model[1].eval()
        found[size, internal_batch_size, kind] = train(DistributedDataParallel(model), size, internal_batch_size, rows)
    # Batch statistics of each process's own examples: they differ, and must not trip the reducer. Buffers are rank 0's.
    for size in SIZES:
        found[size, "batch statistics"] = train(DistributedDataParallel(network(True)), size, None, rows)
    found["kinks"] = train(DistributedDataParallel(network(False, nn.ReLU)), "ig_norm", None, rows, "softplus")
    # The loss inside of the wrapper.
    wrapped = DistributedDataParallel(RARLoss(network(False), "ig_norm", epsilon=0.2, random_start=False, warmup=0))
    x, y = batches()[0]
    wrapped(x[rows], y[rows]).backward()
    found["inside"] = {name: parameter.grad for name, parameter in wrapped.module.model.named_parameters()}
    torch.save(found, f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("This PyTorch has no gloo.")
    folder: Path = tmp_path_factory.mktemp("distributed")
    mp.spawn(work, args=(f"file://{folder}/rendezvous", str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize(("size", "internal_batch_size", "kind"), cases())
def test_two_processes_equal_one_on_the_joined_batch(outcomes, size, internal_batch_size, kind) -> None:
    model = network(with_batch_norm=kind != "plain")
    if kind == "frozen statistics":
        model[1].eval()
    expected = train(model, size, internal_batch_size, slice(None))
    for outcome in outcomes:
        torch.testing.assert_close(outcome[size, internal_batch_size, kind], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_batch_statistics_of_each_process(outcomes, size) -> None:
    parameters = [name for name, _ in network(True).named_parameters()]
    first, second = (outcome[size, "batch statistics"] for outcome in outcomes)
    for name in parameters:
        assert torch.equal(first[f"gradient of {name}"], second[f"gradient of {name}"])
        assert first[name].isfinite().all()
    assert first["1.num_batches_tracked"] == 3


def test_kinks_are_smooth_in_each_process(outcomes) -> None:
    expected = train(network(False, nn.ReLU), "ig_norm", None, slice(None), "softplus")
    for outcome in outcomes:
        torch.testing.assert_close(outcome["kinks"], expected, rtol=1e-6, atol=1e-9)


def test_the_loss_may_sit_inside_of_the_wrapper(outcomes) -> None:
    model = network(False)
    x, y = batches()[0]
    RARLoss(model, "ig_norm", epsilon=0.2, random_start=False, warmup=0)(x, y).backward()
    for outcome in outcomes:
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(outcome["inside"][name], parameter.grad, rtol=1e-6, atol=1e-9)


def test_gradients_are_synchronized_once_a_step(tmp_path: Path) -> None:
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("This PyTorch has no gloo.")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(network(False))
        buckets = []

        def hook(state, bucket):  # PyTorch refuses annotations that are strings
            buckets.append(bucket.is_last())
            done = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        model.register_comm_hook(None, hook)
        x, y = batches()[0]
        rar = RARLoss(model, "ig_norm", epsilon=0.2, internal_batch_size=8, warmup=0)
        rar.perturb(x, y)
        assert not buckets
        rar(x, y).backward()
        assert buckets.count(True) == 1
    finally:
        dist.destroy_process_group()
