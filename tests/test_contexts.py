"""The model is one function, in whatever context it is called: the caller's, the geometry's, or other threads'."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from captum.attr import DeepLift, GuidedBackprop
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryEnergy,
    BoundaryGradCam,
    BoundaryIntegratedGradients,
    LayerBoundaryAttribution,
    ModelFromLayer,
    NearestBoundary,
    largest_stdev,
    metrics,
)
from captum_boundary.attr import separate_activations
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust import AttributionAttack, RARLoss

BUDGET = 6


def mlp(n_inputs: int = 6, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(n_inputs, 16, dtype=dtype), nn.Tanh(), nn.Linear(16, 3, dtype=dtype)
    return nn.Sequential(*layers).eval()


def points(n_inputs: int = 6, n: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, n_inputs, generator=torch.Generator().manual_seed(1), dtype=dtype)


def find(model: Callable[..., Any], x: Tensor, **options: Any) -> Tensor:
    return NearestBoundary(model, budget=BUDGET, **options).find(x).distance


CALLS: dict[str, Callable[[Callable[..., Any], Tensor], Tensor]] = {
    "l2": find,
    "linf": lambda model, x: find(model, x, norm=float("inf")),
    "l1": lambda model, x: find(model, x, norm=1),
    "BIG": lambda model, x: BoundaryIntegratedGradients(model, NearestBoundary(model, budget=BUDGET)).attribute(
        x, n_steps=8
    ),
    "normals": lambda model, x: AggregatedBoundaryNormals(model, NearestBoundary(model, budget=BUDGET)).attribute(
        x, n_boundaries=2
    ),
    "energy": lambda model, x: BoundaryEnergy(model, 0.1).attribute(x, n_samples=4),
    "deletion": lambda model, x: metrics.deletion(model, x, x, n_steps=3),
    "insertion": lambda model, x: metrics.insertion(model, x, x, baselines=0.0, n_steps=3),
    "largest stdev": lambda model, x: largest_stdev(model, x, stdevs=(0.1, 0.5), n_samples=4),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


# ------------------------------------------------------------------------------------------------- precision


@every_call
def test_the_callers_autocast_reaches_the_model_and_nothing_else(call):
    model, x = mlp(), points()

    def in_bfloat16(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    expected = call(in_bfloat16, x)
    with torch.autocast("cpu", torch.bfloat16):
        result = call(model, x)
        assert torch.is_autocast_enabled("cpu")
        assert model(x).dtype == torch.bfloat16
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@every_call
@pytest.mark.parametrize("n_inputs", [6, 600])
def test_another_default_dtype_changes_nothing(call, n_inputs):
    model, x = mlp(n_inputs), points(n_inputs, 2)
    expected = call(model, x)
    torch.set_default_dtype(torch.float64)
    try:
        result = call(model, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected, equal_nan=True)


@every_call
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_of_the_caller_change_nothing(call, mode):
    model, x = mlp(), points()
    expected = call(model, x)
    with mode():
        torch.testing.assert_close(call(model, x.clone()), expected, rtol=0, atol=0)


# ---------------------------------------------------------------------------------- labels and slopes of one function


class Padded(nn.Module):
    """A transformer whose padding is zeroed by the kernel that is taken where no gradient is needed."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.last(self.encoder(x, src_key_padding_mask=padding).mean(dim=1))


@contextmanager
def without_fast_path() -> Iterator[None]:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padded_transformers_have_one_boundary(is_frozen):
    torch.manual_seed(0)
    model, x = Padded().eval().requires_grad_(not is_frozen), torch.randn(6, 7, 8)
    padding = torch.zeros(6, 7, dtype=torch.bool)
    padding[:, 5:] = True
    with torch.no_grad(), without_fast_path():
        unfused = model(x, padding)
    with torch.no_grad():
        assert (model(x, padding) - unfused).abs().amax() > 1e-3  # the fault that is guarded against
    search = NearestBoundary(model, budget=20)
    boundary = search.find(x, additional_forward_args=padding)
    assert torch.backends.mha.get_fastpath_enabled()
    with without_fast_path():
        expected = search.find(x, additional_forward_args=padding)
        scores = model(boundary.points, padding)
    torch.testing.assert_close(boundary.distance, expected.distance)
    assert boundary.found.all()
    assert (scores.argmax(dim=1) == boundary.adversarial).all()
    big = BoundaryIntegratedGradients(model, search)
    _, delta = big.attribute(
        x, additional_forward_args=padding, boundary=boundary, n_steps=64, return_convergence_delta=True
    )
    assert delta.abs().amax() < 5e-3


@every_call
def test_models_may_change_their_input_in_place(call):
    model, x = mlp(), points()
    kept = x.clone()

    def in_place(v: Tensor) -> Tensor:
        v.sub_(0.5).div_(0.2)
        return model(v)

    result = call(in_place, x)
    assert torch.equal(x, kept)
    torch.testing.assert_close(result, call(lambda v: model((v - 0.5) / 0.2), x), rtol=1e-4, atol=1e-5)


@every_call
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_frozen_scripts_are_models(call):
    model, x = mlp(), points()
    frozen = torch.jit.freeze(torch.jit.script(model))
    torch.testing.assert_close(call(frozen, x), call(model, x), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning", "ignore:.*:UserWarning")
def test_quantized_activations_are_refused():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    quantized = nn.Sequential(torch.ao.quantization.quantize_dynamic(model[:2], {nn.Linear}), model[2])
    attacks = [
        lambda model, x, kind=kind: AttributionAttack(model, epsilon=0.1, attribution=kind).perturb(x)
        for kind in ("ig", "gradient")
    ]
    for call in (CALLS["l2"], CALLS["BIG"], CALLS["energy"], *attacks):
        with pytest.raises(BoundaryValueError, match="carry no gradient of its inputs"):
            call(quantized, points())


def test_functions_outside_of_torch_can_be_measured_and_not_searched():
    weight = mlp()[0].weight.detach().numpy()

    def in_numpy(x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() @ weight.T)

    x = points()
    torch_model = nn.Linear(6, 16, bias=False)
    torch_model.weight.data = torch.from_numpy(weight)
    torch.testing.assert_close(CALLS["deletion"](in_numpy, x), CALLS["deletion"](torch_model, x))
    with pytest.raises(BoundaryValueError, match="computes outside of torch"):
        find(in_numpy, x)


# ------------------------------------------------------------------------------------- training mode, chance and state


class OwnNorm(nn.Module):
    """A normalization of one's own, with statistics under a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.level += 0.1 * (x.detach().mean(dim=0) - self.level)
        return x - self.level


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, self.training)


class DropsAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.stack([x, -x, x.flip(1)], dim=1)
        return self.attention(tokens, tokens, tokens)[0].mean(dim=1)


class Channels(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.unflatten(1, (2, 4))).flatten(1)


IN_TRAINING: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: Channels(nn.BatchNorm1d(2)),
    "instance norm": lambda: Channels(nn.InstanceNorm1d(2, track_running_stats=True)),
    "spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(8, 8)),
    "norm of one's own": OwnNorm,
    "dropout": lambda: nn.Dropout(0.5),
    "functional dropout": FunctionalDropout,
    "dropout of attention": DropsAttention,
    "RReLU": nn.RReLU,
}


@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("make", IN_TRAINING.values(), ids=IN_TRAINING)
@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_training_mode_is_told_of_and_leaves_no_trace(make, as_function):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), make(), nn.Linear(8, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"training mode.*Call model\.eval\(\)") as shown:
        find((lambda x: model(x)) if as_function else model, points())
    assert [warning.filename for warning in shown if "training mode" in str(warning.message)] == [__file__]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    find(model, points())


WITHOUT_SEARCH: dict[str, Callable[[nn.Module, Tensor, Any], object]] = {
    "BIG": lambda model, x, points: BoundaryIntegratedGradients(model).attribute(x, boundary=points, n_steps=3),
    "deletion": lambda model, x, _: metrics.deletion(model, x, x, n_steps=3),
    "erasure": lambda model, x, _: metrics.comprehensiveness(Embedded(model), x.long(), x, replacement=0),
    "alignment": metrics.normal_alignment,
    "optimality": lambda model, x, points: metrics.first_order_optimality(model, x, points),
    "attack": lambda model, x, _: AttributionAttack(model, epsilon=0.1, n_steps=2).perturb(x),
}


class Embedded(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.float())


@pytest.mark.parametrize("call", WITHOUT_SEARCH.values(), ids=WITHOUT_SEARCH)
def test_what_does_not_search_leaves_buffers_as_they_are(call):
    model, x = nn.Sequential(nn.Linear(6, 8), OwnNorm(), nn.Linear(8, 3)).eval(), points()
    boundary = NearestBoundary(model, budget=BUDGET).find(x)
    model.train()
    with pytest.warns(UserWarning, match=r"training mode.*Call model\.eval\(\)"):
        call(model, x, boundary)
    assert not model[1].level.any()


def test_batch_statistics_are_named():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3)).eval()
    with pytest.raises(BoundaryValueError, match=r"normalizes by the statistics of its batch.*Call model\.eval\(\)"):
        find(model, points())


def test_dropout_that_does_nothing_is_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find(nn.Sequential(mlp(), nn.Dropout(0.0)).train(), points())


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_state_that_carries_over_between_calls_is_told_of(n):
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.state = mlp(), torch.zeros(0)

        def forward(self, x: Tensor) -> Tensor:
            if len(self.state) != len(x):
                self.state = torch.zeros(len(x), 3)
            self.state = 0.5 * self.state.detach() + self.model(x)
            return self.state

    with pytest.warns(UserWarning, match="keeps a state between calls"):
        find(Recurrent().eval(), points(n=n))


# ------------------------------------------------------------------------------------------------- other threads


class OtherThread:
    """Runs a function in a thread of its own whenever it is asked to, without a reference from here to there."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._asked, self._done, self._failed = threading.Event(), threading.Event(), []
        self._stopped = False
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[], object]) -> None:
        while self._asked.wait() and not self._stopped:
            self._asked.clear()
            try:
                work()
            except Exception as error:
                self._failed.append(error)
            self._done.set()

    def step(self) -> None:
        self._asked.set()
        assert self._done.wait(20)
        self._done.clear()

    def stop(self) -> None:
        self._stopped = True
        self._asked.set()
        assert self._failed == []


def test_models_trained_in_other_threads_keep_their_statistics():
    norm = nn.BatchNorm1d(4).train()
    other = OtherThread(lambda: norm(torch.randn(8, 4) + 3))
    ask, model = other.step, mlp()

    def slow(x: Tensor) -> Tensor:
        ask()
        return model(x)

    find(slow, points(n=2))
    calls = int(norm.num_batches_tracked)
    assert calls > 3
    assert (norm.running_mean > 1).all()
    other.stop()
    assert int(norm.num_batches_tracked) == calls


def test_models_used_in_other_threads_are_not_recorded():
    elsewhere = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    other = OtherThread(lambda: elsewhere(torch.ones(1, 2)))

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            other.step()
            return x

    inner = mlp()
    model = nn.Sequential(Slow(), *inner).eval()
    from_layer = ModelFromLayer(model, model[1])
    activations, arguments = from_layer.at(points())
    torch.testing.assert_close(from_layer(activations, *arguments), inner(points()))
    other.stop()


def test_layers_used_in_other_threads_are_no_calls_of_this_one():
    features = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU())
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    images = torch.rand(2, 1, 9, 9)
    other = OtherThread(lambda: features(images))

    def slow(x: Tensor) -> Tensor:
        other.step()
        return model(x)

    expected = BoundaryGradCam(model, features).attribute(images, 0, n_samples=4)
    torch.testing.assert_close(BoundaryGradCam(slow, features).attribute(images, 0, n_samples=4), expected)
    other.stop()


def test_models_used_in_other_threads_are_not_traced():
    inner, elsewhere, x = mlp(), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), points()
    expected = inner(x)

    def work() -> None:
        elsewhere(torch.ones(1, 2))
        assert torch.equal(inner(x), expected)  # with the very parameters that are traced

    other = OtherThread(work)

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, v: Tensor) -> Tensor:
            other.step()
            return self.inner(v).relu()

    separated = separate_activations(Slow().eval(), x)
    other.stop()
    assert torch.equal(separated(x), expected.relu())


@pytest.mark.parametrize("method", [DeepLift, GuidedBackprop])
def test_exported_programs_have_no_rules(method):
    n = torch.export.Dim("n", min=1, max=64)
    program = torch.export.export(mlp(), (points(),), dynamic_shapes=({0: n},)).module()
    with pytest.raises(BoundaryTypeError, match=r"exported program.* Pass the module that was exported\.$"):
        BoundaryAttribution(program, method, NearestBoundary(program, budget=BUDGET)).attribute(points())


def test_a_layer_in_checkpointed_activations_is_named():
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False, preserve_rng_state=False)

    model = Checkpointed().eval()
    with pytest.raises(BoundaryValueError, match=r"checkpoints activations.*Switch checkpointing off"):
        LayerBoundaryAttribution(model, model.inner[0]).attribute(points(), n_steps=3)


def test_layers_on_another_device_than_the_default():
    model, x = mlp(), points()
    expected = LayerBoundaryAttribution(model, model[0]).attribute(x, n_steps=3)
    with torch.device("meta"):
        result = LayerBoundaryAttribution(model, model[0]).attribute(x, n_steps=3)
    torch.testing.assert_close(result, expected)


def test_no_flag_of_the_process_is_touched(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a flag of the whole process was set")

    model = Padded().eval()
    x, padding = torch.randn(2, 7, 8), torch.zeros(2, 7, dtype=torch.bool)
    monkeypatch.setattr(torch.backends.mha, "set_fastpath_enabled", refuse)
    monkeypatch.setattr(torch.compiler, "set_stance", refuse, raising=False)
    monkeypatch.setattr(nn.modules.module, "register_module_forward_pre_hook", refuse)
    monkeypatch.setattr(nn.modules.module, "register_module_forward_hook", refuse)
    from_layer = ModelFromLayer(model, model.encoder)
    activations, arguments = from_layer.at(x, padding)
    NearestBoundary(from_layer, budget=2).find(activations, additional_forward_args=arguments)
    NearestBoundary(lambda x: model(x, None), budget=2).find(x)
    for name in ("enable_flash_sdp", "enable_mem_efficient_sdp", "enable_math_sdp", "enable_cudnn_sdp"):
        monkeypatch.setattr(torch.backends.cuda, name, refuse)
    loss = RARLoss(model, epsilon=0.1, n_steps=2, attack_steps=1, warmup=0)
    loss(x, torch.tensor([0, 1]), padding).backward()
    AttributionAttack(model, epsilon=0.1, n_steps=2).perturb(x, additional_forward_args=padding)
