"""Every call in drawn combinations of contexts and kinds of models: the plain result, or one error with a sentence."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryEnergy,
    BoundaryError,
    BoundaryIntegratedGradients,
    NearestBoundary,
    metrics,
)
from captum_boundary.robust import AttributionAttack, RARLoss

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning"),
    pytest.mark.filterwarnings("ignore::captum_boundary.errors.BoundaryPrecisionWarning"),
]


@pytest.fixture(autouse=True)
def _compile_for_every_context() -> Iterator[None]:
    """After a few contexts PyTorch would run the code as it is."""
    with torch._dynamo.config.patch(cache_size_limit=1000, accumulated_cache_size_limit=10000):
        yield


# ------------------------------------------------------------------------------------------------- calls


def search(model: Callable[..., Any]) -> NearestBoundary:
    return NearestBoundary(model, budget=5)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    loss = RARLoss(model, epsilon=0.1, n_steps=4, attack_steps=2, attack_n_steps=2, random_start=False, warmup=0)
    return loss(x, torch.tensor([0, 1, 2], device=x.device)).detach()


CALLS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "search": lambda model, x: search(model).find(x).distance,
    "linf search in bounds": lambda model, x: (
        NearestBoundary(model, budget=5, norm=math.inf, bounds=(-3, 3)).find(x).distance
    ),
    "BIG": lambda model, x: BoundaryIntegratedGradients(model, search(model)).attribute(x, n_steps=4),
    "normals": lambda model, x: AggregatedBoundaryNormals(model, search(model)).attribute(x, n_boundaries=2),
    "energy": lambda model, x: BoundaryEnergy(model, 0.1).attribute(x, n_samples=4),
    "insertion": lambda model, x: metrics.insertion(model, x, x, baselines=0.0, n_steps=2),
    "loss": loss_of,
    "attack": lambda model, x: AttributionAttack(model, epsilon=0.1, n_steps=2).perturb(x),
}

# ------------------------------------------------------------------------------------------------- models


class Network(nn.Module):
    """Attention, a batch norm and a dropout that does nothing: what modes and kernels could change."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.tanh(self.first(x)).unflatten(1, (2, 4))
        mixed = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.last(self.norm((tokens + mixed).flatten(1)))


def network() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Network().eval()
        model.last.weight.data *= 4
    return model


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        doubled = x.mul_(2)
        return self.inner(doubled / 2)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False, preserve_rng_state=False)


def in_training(model: nn.Module) -> nn.Module:
    """In training mode but for its norm: nothing that shows."""
    model.train()
    model.norm.eval()
    return model


def exported() -> nn.Module:
    n = torch.export.Dim("n", min=1, max=4096)
    return torch.export.export(network(), (torch.ones(3, 6),), dynamic_shapes=({0: n},)).module()


n_compiled_runs = 0


def counting_backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
    """For ``torch.compile``: what was compiled, counted when it runs."""

    def compiled(*arguments: Any) -> Any:
        global n_compiled_runs
        n_compiled_runs += 1
        return graph.forward(*arguments)

    return compiled


def compiled() -> nn.Module:
    return torch.compile(network(), backend=counting_backend, dynamic=True)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": network,
    "in place": InPlace,
    "in training mode": lambda: in_training(network()),
    "compiled": compiled,
    "scripted": lambda: torch.jit.script(network()),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(network())),
    "exported": exported,
    "checkpointed": Checkpointed,
}
SCRIPTS = ("scripted", "frozen")
# Calls that differentiate parameters cannot have these models, and say so.
MAY_REFUSE = {(call, kind) for call in ("loss", "attack") for kind in (*SCRIPTS, "exported", "checkpointed")}


@cache
def model_of(kind: str) -> nn.Module:
    return MODELS[kind]()


# ------------------------------------------------------------------------------------------------- contexts


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class Elsewhere(Network):
    """Code of its own: PyTorch counts how often code is compiled, whosoever does it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@contextmanager
def other_thread(unseen: tuple[str, ...] = ()) -> Iterator[None]:
    """A thread that trains and attends to its own, and sees what it saw before, but for flags that are ``unseen``."""

    def seen() -> dict[str, Any]:
        return {name: flag for name, flag in flags_of_process().items() if name not in unseen}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model, norm, x = Elsewhere().eval(), nn.BatchNorm1d(6).train(), torch.randn(4, 6)
    compiled = torch.compile(model, backend="eager", dynamic=True)
    expected, flags = model(x), seen()
    compiled(x)
    stop, at_work, failed, n_calls = threading.Event(), threading.Event(), [], [0]

    def work() -> None:
        try:
            while not stop.wait(1e-3):
                torch.testing.assert_close(compiled(x), expected)
                norm(x)
                n_calls[0] += 1
                assert torch.is_grad_enabled()
                assert not torch.is_autocast_enabled("cpu")
                assert seen() == flags
                at_work.set()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        assert at_work.wait(30) or failed
        yield
    finally:
        stop.set()
        thread.join(30)
    assert not failed, failed[0]
    assert int(norm.num_batches_tracked) == n_calls[0]


CONTEXTS: dict[str, Callable[[], Any]] = {
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "default dtype": default_dtype,
    "default device": lambda: torch.device("meta"),
    "other thread": other_thread,
}

# ------------------------------------------------------------------------------------------------- what must not change


GLOBAL_HOOKS = [
    name for name, value in vars(nn.modules.module).items() if name.startswith("_global_") and isinstance(value, dict)
]


def flags_of_process() -> dict[str, Any]:
    cuda = torch.backends.cuda
    return {
        "sdp": (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "stance": str(getattr(torch._dynamo.eval_frame, "_stance", None)),
        "default dtype": torch.get_default_dtype(),
        "hooks": [len(getattr(nn.modules.module, name)) for name in GLOBAL_HOOKS],
    }


def state_of(model: nn.Module, x: Tensor) -> dict[str, Any]:
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    own = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    return {
        **flags_of_process(),
        "modes of the thread": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
            str(torch.get_default_device()),
        ),
        "random state": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),  # noqa: NPY002
        "input": (x.tolist(), x.requires_grad, x.grad),
        "values": [tensor.tolist() for tensor in [*model.parameters(), *model.buffers()]],
        "gradients": [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()],
        "training": [getattr(module, "training", None) for module in modules],
        "attributes of modules": [sorted(vars(module)) for module in own],
        "hooks of modules": [
            len(getattr(module, name, ()))
            for module in own
            for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        ],
    }


def run(call: str, kind: str, contexts: list[str]) -> Tensor:
    model, x = model_of(kind), inputs()
    with ExitStack() as stack:
        for context in contexts:
            # Scripts attend with kernels that are a setting of the process: a thread beside them sees it change.
            sees_kernels_change = context == "other thread" and call == "attack" and kind in SCRIPTS
            stack.enter_context(other_thread(unseen=("sdp",)) if sees_kernels_change else CONTEXTS[context]())
        before, n_before = state_of(model, x), n_compiled_runs
        try:
            return CALLS[call](model, x)
        finally:
            after = state_of(model, x)
            assert [name for name in before if before[name] != after[name]] == []
            if kind == "compiled" and call != "attack":  # which needs second derivatives, that compiled code has not
                assert n_compiled_runs > n_before


def inputs() -> Tensor:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(3))


@cache
def plain(call: str, autocast: tuple[str, ...]) -> Tensor:
    return run(call, "plain", list(autocast))


def check(call: str, kind: str, contexts: list[str]) -> None:
    autocast = [name for name in contexts if name.startswith("autocast")][-1:]
    outermost = [name for name in contexts if name == "other thread"]  # its own results are plain
    # The default dtype is one for all threads: whoever changes it beside another thread is not told of here.
    left_out = {*outermost, "default dtype"} if outermost else set()
    others = [name for name in contexts if not name.startswith("autocast") and name not in left_out]
    expected = plain(call, tuple(autocast))
    try:
        result = run(call, kind, outermost + autocast + others)
    except BoundaryError as error:
        sentence, result = str(error).rstrip(), None
    if result is None:
        # A script that has run under one autocast cannot be differentiated under another.
        is_of_autocast = kind in SCRIPTS and autocast and "cannot be differentiated under this autocast" in sentence
        assert (call, kind) in MAY_REFUSE or is_of_autocast, sentence
        assert sentence.endswith(".")
        assert len(sentence) > 40
        return
    assert result.dtype == expected.dtype
    tolerance = 2e-2 if autocast else 1e-4
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


combinations = given(
    call=st.sampled_from(list(CALLS)),
    kind=st.sampled_from(list(MODELS)),
    contexts=st.lists(st.sampled_from(list(CONTEXTS)), min_size=1, max_size=3, unique=True),
)
slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=slow)
@combinations
def test_results_are_those_of_the_plain_call(call, kind, contexts):
    check(call, kind, contexts)


@pytest.mark.parametrize("kind", SCRIPTS)
@pytest.mark.parametrize("call", ["search", "BIG", "normals", "energy"])
def test_scripts_are_differentiated_under_one_autocast_or_name_it(call, kind):
    model, x, answers = MODELS[kind](), inputs(), []
    for dtype in ("bfloat16", "float16"):
        with CONTEXTS[f"autocast {dtype}"]():
            try:
                result = CALLS[call](model, x)
            except BoundaryError as error:
                answers.append(str(error))
            else:
                expected = plain(call, (f"autocast {dtype}",))
                torch.testing.assert_close(result, expected, rtol=2e-2, atol=2e-2, equal_nan=True)
    assert all("from before it was scripted" in answer for answer in answers)
    torch.testing.assert_close(CALLS[call](model, x), plain(call, ()), rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.exhaustive
@settings(max_examples=2000, deadline=None, database=None, suppress_health_check=slow)
@combinations
def test_results_are_those_of_the_plain_call_in_many_combinations(call, kind, contexts):
    check(call, kind, contexts)
