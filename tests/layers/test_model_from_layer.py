"""The model from a layer on: the same outputs, nothing computed twice, and nothing of the user's changed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import DeepLift, FeatureAblation, IntegratedGradients, LayerIntegratedGradients, NoiseTunnel, Saliency
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryIntegratedGradients,
    BoundarySaliency,
    ModelFromLayer,
    NearestBoundary,
    metrics,
)
from captum_boundary._core.outputs import score_tensor
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

N = 4


class Counted(nn.Linear):
    """Counts the rows that it computes."""

    n_rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_rows += len(x)
        return super().forward(x)


class Residual(nn.Module):
    """Skip connections around layers, a shared in-place activation, and functions that change tensors in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.last = Counted(6, 8), Counted(8, 8), Counted(16, 8), Counted(8, 3)
        self.act = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor, shift: Tensor | None = None, scale: float = 1.0) -> Tensor:
        early = self.norm(self.first(x))
        early += 0.5
        early = self.act(early)
        middle = self.act(self.second(early) * scale)
        late = self.third(torch.cat([middle, early], dim=1))
        late.add_(middle)
        if shift is not None:
            late = late + shift
        return self.last(self.act(late))


class Tagger(nn.Module):
    """Token ids with a mask: embeddings with positions, a sequence-first LSTM, and the mean over real tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(20, 6), nn.Embedding(10, 6)
        self.lstm, self.last = nn.LSTM(6, 5), nn.Linear(5, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        embedded = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        outputs, (hidden, _) = self.lstm(embedded.transpose(0, 1))
        mean = (outputs.transpose(0, 1) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.last(mean + hidden[0])


class Pair(nn.Module):
    """Returns a tuple with entries of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x: Tensor, name: str = "pair") -> tuple[Tensor, str, Tensor, Tensor]:
        return self.left(x), name, self.right(x), x.argmax(dim=1)


class OfPairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.merge = Pair(), Merge()

    def forward(self, x: Tensor) -> Tensor:
        left, name, right, index = self.pair(x)
        assert name == "pair"
        return self.merge(left, right, index=index)


class Merge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, left: Tensor, right: Tensor, index: Tensor) -> Tensor:
        return torch.tanh(self.left(left)) + torch.tanh(self.right(right)) * (1 + index[:, None] % 2)


def built(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return kind().double().eval()


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(N, 6, generator=torch.Generator().manual_seed(2)).double()


@pytest.fixture
def model() -> Residual:
    return built(Residual)


IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0], [8, 9, 0, 0], [10, 11, 12, 13]])  # as many tokens as texts
REAL = (IDS > 0).double()


def close(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def rows_of(arguments: tuple[Any, ...], rows: Tensor) -> tuple[Any, ...]:
    return tuple(value[rows] if isinstance(value, Tensor) else value for value in arguments)


CASES = [
    (Residual, name, at_input) for name in ("first", "norm", "second", "third", "last") for at_input in (False, True)
]


@pytest.mark.parametrize(("kind", "name", "at_input"), CASES)
def test_outputs_and_gradients_are_those_of_the_model(kind, name, at_input, inputs):
    model = built(kind)
    layer, shift = getattr(model, name), torch.randn(N, 8).double()
    from_layer = ModelFromLayer(model, layer, attribute_to_layer_input=at_input)
    activations, arguments = from_layer.at(inputs, (shift, 0.7))
    close(from_layer(activations, *arguments), model(inputs, shift, 0.7))
    for rows in (torch.tensor([2]), torch.tensor([3, 0, 0, 1, 2, 3])):
        close(from_layer(activations[rows], *rows_of(arguments, rows)), model(inputs[rows], shift[rows], 0.7))

    # A change of the activations, made by a hook on the layer in the whole model.
    change = 0.1 * torch.randn_like(activations)

    def changed(_: nn.Module, values: Any, output: Any = None) -> Any:
        return (values[0] + change,) if output is None else output + change

    hook = layer.register_forward_pre_hook(changed) if at_input else layer.register_forward_hook(changed)
    expected = model(inputs, shift, 0.7)
    hook.remove()
    moved = (activations + change).requires_grad_()
    output = from_layer(moved, *arguments)
    close(output, expected)
    (gradient,) = torch.autograd.grad(output.sum(), moved)
    assert torch.autograd.gradcheck(lambda a: from_layer(a, *arguments), moved)
    assert (gradient != 0).any()


@pytest.mark.parametrize(("name", "before"), [("second", ["first"]), ("third", ["first", "second"])])
@pytest.mark.parametrize("at_input", [False, True])
def test_a_search_computes_nothing_that_lies_before_the_layer(name, before, at_input, model, inputs):
    from_layer = ModelFromLayer(model, getattr(model, name), attribute_to_layer_input=at_input)
    activations, arguments = from_layer.at(inputs)
    counted = {label: module for label, module in model.named_modules() if isinstance(module, Counted)}
    for module in counted.values():
        module.n_rows = 0
    boundary = NearestBoundary(from_layer, budget=8).find(activations, additional_forward_args=arguments)
    total = int(boundary.n_forward.sum())
    assert all(counted[label].n_rows == 0 for label in before)
    assert counted[name].n_rows == (total if at_input else 0)
    assert counted["last"].n_rows == total > 0


def test_a_search_finds_what_it_finds_in_the_upper_half_as_a_model(inputs):
    lower, upper = nn.Linear(6, 5), nn.Sequential(nn.Tanh(), nn.Linear(5, 3))
    model = nn.Sequential(lower, upper).double()
    from_layer = ModelFromLayer(model, lower)
    activations, arguments = from_layer.at(inputs)
    boundary = NearestBoundary(from_layer).find(activations, additional_forward_args=arguments)
    expected = NearestBoundary(upper).find(lower(inputs).detach())
    assert torch.equal(boundary.points, expected.points)
    assert torch.equal(boundary.distance, expected.distance)


class Nested(nn.Module):
    """A U-net in small: what two halves of the encoder return is used again."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)) for _ in range(3))
        self.last = nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(one)
        return self.last(torch.cat([one, two, self.three(two)], dim=1))


def test_only_what_the_rest_of_the_model_reads_is_kept(inputs):
    model = built(Nested)
    for layer, at_input, n_kept in ((model.one[0], False, 0), (model.two, False, 1), (model.three[2], True, 2)):
        from_layer = ModelFromLayer(model, layer, attribute_to_layer_input=at_input)
        activations, arguments = from_layer.at(inputs)
        assert len(arguments) == 1 + n_kept
        close(from_layer(activations, *arguments), model(inputs))


@pytest.mark.parametrize("name", ["tokens", "lstm"])
def test_token_ids_masks_and_a_batch_as_large_as_a_text_is_long(name):
    model = built(Tagger)
    from_layer = ModelFromLayer(model, getattr(model, name))
    activations, arguments = from_layer.at(IDS, REAL)
    shapes = {"tokens": [(N, 4, 6)], "lstm": [(N, 4, 5), (N, 1, 5)]}  # examples first, and no state that nothing reads
    assert [tuple(part.shape) for part in as_tuple(activations)] == shapes[name]
    rows = torch.tensor([1, 3])
    parts = as_tuple(activations)
    close(from_layer(*(part[rows] for part in parts), *rows_of(arguments, rows)), model(IDS[rows], REAL[rows]))
    mask = REAL[..., None] if name == "tokens" else (REAL[..., None], torch.zeros(1))
    boundary = NearestBoundary(from_layer).find(activations, additional_forward_args=arguments, mask=mask)
    assert boundary.found.all()
    assert torch.equal(as_tuple(boundary.points)[0][REAL == 0], parts[0][REAL == 0])


@pytest.mark.filterwarnings("ignore:.*nested tensor:UserWarning")
@pytest.mark.parametrize(
    "path", ["tokens", "encoder.layers.0", "encoder.layers.1.linear1", "encoder.layers.1.self_attn"]
)
def test_transformers_of_pytorch_whose_layers_are_fused_otherwise(path):
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.last = nn.Embedding(20, 6), nn.Linear(6, 3)
            layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            encoded = self.encoder(self.tokens(ids), src_key_padding_mask=mask == 0)
            return self.last(encoded[:, 0])

    model = built(Encoder).requires_grad_(False)
    is_fused = torch.backends.mha.get_fastpath_enabled()
    from_layer = ModelFromLayer(model, model.get_submodule(path))
    activations, arguments = from_layer.at(IDS, REAL)
    parts = as_tuple(activations)
    rows = torch.tensor([2, 3])
    close(from_layer(*(part[rows] for part in parts), *rows_of(arguments, rows)), model(IDS[rows], REAL[rows]))
    boundary = NearestBoundary(from_layer).find(activations, additional_forward_args=arguments)
    assert boundary.found.all()
    assert torch.backends.mha.get_fastpath_enabled() == is_fused


def test_a_layer_of_positions_has_nothing_to_move():
    model = built(Tagger)
    with pytest.raises(BoundaryTypeError, match=r"output of the layer, Embedding, is the same for all examples"):
        ModelFromLayer(model, model.positions).at(IDS, REAL)


def test_tuples_keep_their_other_entries(inputs):
    model = built(OfPairs)
    for layer, at_input in ((model.pair, False), (model.merge, True)):
        from_layer = ModelFromLayer(model, layer, attribute_to_layer_input=at_input)
        activations, arguments = from_layer.at(inputs)
        assert [tuple(part.shape) for part in activations] == [(N, 4), (N, 2)]
        close(from_layer(*activations, *arguments), model(inputs))
        boundary = NearestBoundary(from_layer).find(activations, additional_forward_args=arguments)
        assert boundary.found.all()
        assert isinstance(boundary.points, tuple)
        alone = [
            NearestBoundary(from_layer).find(
                tuple(part[[row]] for part in activations),
                additional_forward_args=rows_of(arguments, torch.tensor([row])),
            )
            for row in range(N)
        ]
        close(boundary.distance, torch.cat([one.distance for one in alone]), 1e-6)


class Recurrent(nn.Module):
    """An LSTM of whose three tensors some are read, as may be its state, and another that is only returned."""

    def __init__(self, reads_state: bool = False, returns_state: bool = False) -> None:
        super().__init__()
        self.tokens, self.lstm, self.last = nn.Embedding(20, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)
        self.reads_state, self.returns_state = reads_state, returns_state

    def forward(self, ids: Tensor) -> Any:
        outputs, (hidden, state) = self.lstm(self.tokens(ids))
        scores = self.last(torch.tanh(outputs.mean(1) + (hidden[0] if self.reads_state else 0)))
        return (scores, {"state": state}) if self.returns_state else scores


@pytest.mark.parametrize("returns_state", [False, True])
@pytest.mark.parametrize("reads_state", [False, True])
def test_what_the_rest_of_the_model_does_not_read_is_no_activation(reads_state, returns_state):
    model = built(lambda: Recurrent(reads_state, returns_state))
    from_layer = ModelFromLayer(model, model.lstm)
    activations, arguments = from_layer.at(IDS)
    shapes = [(N, 4, 5), (N, 1, 5)] if reads_state else [(N, 4, 5)]
    assert [tuple(part.shape) for part in as_tuple(activations)] == shapes
    close(from_layer(*as_tuple(activations), *arguments), model(IDS))  # the state that is returned as well
    boundary = NearestBoundary(from_layer).find(activations, additional_forward_args=arguments)
    assert boundary.found.all()
    moved = tuple(part.clone().requires_grad_() for part in as_tuple(activations))
    scores = score_tensor(from_layer(*moved, *arguments))
    assert all((part != 0).any() for part in torch.autograd.grad(scores[:, 0].sum(), moved))


def test_a_layer_that_nothing_reads_is_told_of_by_the_search(inputs):
    class Ignored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(6, 4), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.layer(x)
            return self.last(x)

    model = built(Ignored)
    from_layer = ModelFromLayer(model, model.layer)
    activations, arguments = from_layer.at(inputs)
    assert activations.shape == (N, 4)
    with pytest.raises(BoundaryValueError, match=r"carry no gradient of its inputs.*does not look at its inputs"):
        NearestBoundary(from_layer).find(activations, additional_forward_args=arguments)


class Masked(nn.Module):
    """A layer that is given a mask, of some kind, and a state of zeros by position."""

    def __init__(self, mask_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.tokens, self.block, self.last = nn.Embedding(20, 6), Attention(), nn.Linear(6, 3)
        self.mask_of = mask_of

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        hidden = self.tokens(ids)
        mask = self.mask_of(ids, real, hidden)
        return self.last(self.block(hidden, mask, hidden.new_zeros(len(ids), 6)).mean(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Linear(6, 6)

    def forward(self, hidden: Tensor, mask: Tensor, state: Tensor) -> Tensor:
        weights = (hidden @ self.keys(hidden).mT + mask[:, None]).softmax(-1)
        return torch.tanh(weights @ hidden + state[:, None])


MASKS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "argument": lambda ids, real, hidden: real - 1,
    "additive": lambda ids, real, hidden: (1 - real) * torch.finfo(real.dtype).min,
    "of the ids": lambda ids, real, hidden: torch.where(ids > 0, 0.0, -1e4).to(hidden),
    "filled": lambda ids, real, hidden: torch.zeros_like(hidden[..., 0]).masked_fill(ids == 0, -1e4),
    "cast": lambda ids, real, hidden: (real.long() - 1).type_as(hidden) * 1e4,
}


@pytest.mark.parametrize("mask_of", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("is_frozen", [False, True])
def test_masks_at_the_input_of_a_layer_are_kept(mask_of, is_frozen):
    model = built(lambda: Masked(mask_of)).requires_grad_(not is_frozen)
    from_layer = ModelFromLayer(model, model.block, attribute_to_layer_input=True)
    activations, arguments = from_layer.at(IDS, REAL)
    assert isinstance(activations, Tensor)
    assert torch.equal(activations, model.tokens(IDS))
    close(from_layer(activations, *arguments), model(IDS, REAL))
    boundary = NearestBoundary(from_layer).find(activations, None, arguments, mask=REAL[..., None])
    assert boundary.found.all()


@pytest.mark.parametrize(
    "bias_of",
    [
        lambda model, ids, hidden: model.bias(ids).squeeze(-1),
        lambda model, ids, hidden: hidden.sum(-1),
        lambda model, ids, hidden: _written_into(hidden),
    ],
    ids=["module", "function", "in-place"],
)
def test_what_the_model_has_computed_is_moved_at_the_input_of_a_layer(bias_of):
    class Biased(Masked):
        def __init__(self) -> None:
            super().__init__(lambda ids, _, hidden: bias_of(self, ids, hidden))
            self.bias = nn.Embedding(20, 1)

    model = built(Biased)
    activations, _ = ModelFromLayer(model, model.block, attribute_to_layer_input=True).at(IDS, REAL)
    assert [tuple(part.shape) for part in activations] == [(N, 4, 6), (N, 4)]


def _written_into(hidden: Tensor) -> Tensor:
    sums = hidden.new_zeros(hidden.shape[:2])
    sums[:, 0] = hidden[:, 0].sum(-1)
    return sums


class Impatient(nn.Module):
    """Changes what it is given before it looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Counted(6, 6), Counted(6, 3)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        x.add_(1)
        shift.mul_(2)
        return self.last(torch.tanh(self.first(x)) + x * shift)


def test_models_that_change_their_inputs_in_place(inputs):
    model, shift = built(Impatient), torch.ones(1, 6).double()
    before, expected = inputs.clone(), model(inputs.clone(), shift.clone())
    from_layer = ModelFromLayer(model, model.first)
    activations, arguments = from_layer.at(inputs, shift)
    for _ in range(2):
        close(from_layer(activations, *arguments), expected)
    assert torch.equal(inputs, before)
    assert torch.equal(shift, torch.ones(1, 6).double())


class Folded(nn.Module):
    """Two windows of each example pass through a layer as rows of their own, before and after another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.window, self.mix, self.again = Counted(3, 4), Counted(8, 6), Counted(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        windows = self.window(x.reshape(-1, 3))
        mixed = self.mix(windows.reshape(len(x), 8))
        return self.again(torch.tanh(mixed).reshape(-1, 3)).reshape(len(x), 2)


def test_modules_that_see_several_rows_an_example_are_computed_again(inputs):
    model = built(Folded)
    from_layer = ModelFromLayer(model, model.mix)
    activations, arguments = from_layer.at(inputs)
    rows = torch.tensor([3, 1, 1])
    close(from_layer(activations[rows], *rows_of(arguments, rows)), model(inputs[rows]))
    with pytest.raises(BoundaryValueError, match=r"output of the layer, Counted, cannot be divided among the examples"):
        ModelFromLayer(model, model.window).at(inputs)


class Shared(nn.Module):
    """One activation before, in and after the layer, and one module that is called before and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.both = nn.Tanh(), Counted(6, 6)
        self.layer = nn.Sequential(Counted(6, 6), self.act, Counted(6, 6))
        self.last = Counted(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.both(self.act(x)))
        x = self.act(self.layer(x))
        return self.last(self.act(self.both(x)))


@pytest.mark.parametrize("at_input", [False, True])
def test_modules_that_are_called_again_after_the_layer_are_evaluated_there(at_input, inputs):
    model = built(Shared)
    from_layer = ModelFromLayer(model, model.layer, attribute_to_layer_input=at_input)
    activations, arguments = from_layer.at(inputs)
    close(from_layer(activations, *arguments), model(inputs))
    model.both.n_rows = 0
    other = from_layer(activations + 1, *arguments)
    assert model.both.n_rows == N  # after the layer, not before it
    both, act = model.both, model.act
    lower = activations + 1 if not at_input else model.layer(activations + 1)
    close(other, model.last(act(both(act(lower)))))


def test_a_layer_that_is_called_twice_or_never_is_refused(inputs):
    model = built(Shared)
    with pytest.raises(BoundaryValueError, match="The layer, Tanh, is called several times in one pass"):
        ModelFromLayer(model, model.act).at(inputs)
    idle = nn.ModuleDict({"used": nn.Linear(6, 3), "idle": nn.Linear(6, 3)}).double()
    with pytest.raises(BoundaryValueError, match=r"The layer, Linear, was not called .*, the one that is called"):
        ModelFromLayer(lambda x: idle["used"](x), idle["idle"]).at(inputs)


def test_a_function_around_the_model(model, inputs):
    from_layer = ModelFromLayer(lambda x: F.log_softmax(model(x) / 2, dim=1), model.second)
    activations, arguments = from_layer.at(inputs)
    boundary = NearestBoundary(from_layer).find(activations, additional_forward_args=arguments)
    direct = ModelFromLayer(model, model.second)
    points = NearestBoundary(direct).find(activations, additional_forward_args=direct.at(inputs)[1])
    close(boundary.distance, points.distance, 1e-3)


def test_inputs_of_a_tuple_and_one_output(inputs):
    model = nn.Bilinear(6, 6, 4).double()
    last = nn.Linear(4, 1).double()

    def binary(first: Tensor, second: Tensor) -> Tensor:
        return last(model(first, second)).flatten()

    from_layer = ModelFromLayer(binary, model)
    activations, arguments = from_layer.at((inputs, inputs.flip(0)))
    boundary = NearestBoundary(from_layer).find(activations, additional_forward_args=arguments)
    exact = binary(inputs, inputs.flip(0)).abs() / last.weight.norm()
    close(boundary.distance, exact.detach(), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype, inputs):
    model = built(Residual).to(dtype)
    from_layer = ModelFromLayer(model, model.second)
    activations, arguments = from_layer.at(inputs.to(dtype))
    assert activations.dtype == dtype
    assert NearestBoundary(from_layer).find(activations, additional_forward_args=arguments).found.all()


# ------------------------------------------------------------------------------------------- everything on top of it


def test_every_method_of_captum_and_of_ours_works_in_the_layer(model, inputs):
    from_layer = ModelFromLayer(model, model.second)
    activations, arguments = from_layer.at(inputs)
    target = model(inputs).argmax(1)
    options = {"target": target, "additional_forward_args": arguments}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of hooks, by Captum's DeepLift
        for method in (IntegratedGradients, Saliency, FeatureAblation, BoundaryIntegratedGradients, BoundarySaliency):
            assert method(from_layer).attribute(activations, **options).isfinite().all()
    assert AggregatedBoundaryNormals(from_layer).attribute(activations, **options).isfinite().all()
    smooth = NoiseTunnel(IntegratedGradients(from_layer))
    assert smooth.attribute(activations, nt_samples=3, stdevs=0.1, **options).shape == activations.shape
    big = BoundaryIntegratedGradients(from_layer, NearestBoundary(from_layer, budget=4))
    maps = big.attribute(activations, **options)
    assert sensitivity_max(big.attribute, activations, n_perturb_samples=2, **options).shape == (N,)

    def nudge(x: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.01 * torch.randn_like(x)
        return noise, x - noise

    unfaithful = infidelity(
        from_layer, nudge, activations, maps, additional_forward_args=arguments, target=target, n_perturb_samples=3
    )
    assert unfaithful.isfinite().all()
    areas = metrics.deletion(from_layer, activations, maps, target, additional_forward_args=arguments)
    assert areas.shape == (N,)


def test_integrated_gradients_are_captums_layer_integrated_gradients(model, inputs):
    target = model(inputs).argmax(1)
    from_layer = ModelFromLayer(model, model.second)
    activations, arguments = from_layer.at(inputs)
    baseline = from_layer.at(torch.zeros_like(inputs))[0]

    def linear_in_skips(x: Tensor) -> Tensor:  # Captum's path moves the skip connection as well, so leave none
        return model.last(torch.tanh(model.second(model.first(x))))

    plain = ModelFromLayer(linear_in_skips, model.second)
    activations, arguments = plain.at(inputs)
    baseline = plain.at(torch.zeros_like(inputs))[0]
    ours = IntegratedGradients(plain).attribute(activations, baseline, target, arguments)
    captums = LayerIntegratedGradients(linear_in_skips, model.second).attribute(
        inputs, torch.zeros_like(inputs), target=target
    )
    close(ours, captums, 1e-8)


@pytest.mark.filterwarnings("ignore::UserWarning:captum")  # of hooks and gradients
def test_deep_lift_of_captum_hooks_the_rest_of_the_model(inputs):
    model = built(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softplus())
    )
    from_layer = ModelFromLayer(model, model[2])
    activations, arguments = from_layer.at(inputs)
    baselines = torch.zeros_like(activations)
    maps = DeepLift(from_layer).attribute(activations, baselines, 1, arguments)
    expected = DeepLift(nn.Sequential(*model[3:])).attribute(activations, baselines, 1)
    close(maps, expected)


# ------------------------------------------------------------------------------------------------ the state of things


def fingerprint(model: nn.Module) -> list[Any]:
    of_modules = [
        (
            name,
            sorted(vars(m).keys() - {"n_rows", "calls_left"}),
            m.training,
            len(m._forward_hooks),
            len(m._forward_pre_hooks),
            len(m._backward_hooks),
        )
        for name, m in model.named_modules()
    ]
    tensors = [(t.detach().clone().tolist(), t.requires_grad, t.grad) for t in (*model.parameters(), *model.buffers())]
    hooks = nn.modules.module
    return [
        of_modules,
        tensors,
        len(hooks._global_forward_hooks),
        len(hooks._global_forward_pre_hooks),
        torch.is_grad_enabled(),
    ]


class Fuse(nn.Module):
    calls_left = 10**6

    def forward(self, x: Tensor) -> Tensor:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise OverflowError("blown")
        return x


def test_the_model_is_as_before_also_after_exceptions(inputs):
    fuse = Fuse()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), fuse, nn.Linear(8, 3)).double()
    model[0].weight.requires_grad_(False)
    model[1].forward = lambda x: torch.tanh(x)  # a forward of its own stays one
    before, x = fingerprint(model), inputs.clone().requires_grad_()
    from_layer = ModelFromLayer(model, model[2])
    activations, arguments = from_layer.at(x)
    assert not activations.requires_grad
    assert x.grad is None
    assert fingerprint(model) == before
    boundary = NearestBoundary(from_layer).find(activations, additional_forward_args=arguments)
    assert boundary.found.all()
    assert fingerprint(model) == before
    for calls in range(4):
        fuse.calls_left = calls
        with pytest.raises(OverflowError):
            from_layer.at(inputs)
        fuse.calls_left = calls
        with pytest.raises(OverflowError):
            NearestBoundary(from_layer).find(activations, additional_forward_args=arguments)
        fuse.calls_left = 10**6
        assert fingerprint(model) == before


def test_the_users_hooks_are_called_and_kept(model, inputs):
    seen = []
    for name in ("first", "second", "last"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: seen.append(name))
    model.norm.register_forward_hook(lambda _, __, output: 2 * output)
    from_layer = ModelFromLayer(model, model.second)
    activations, arguments = from_layer.at(inputs)
    seen.clear()
    close(from_layer(activations, *arguments), model(inputs))
    assert seen == 2 * ["first", "second", "last"]


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")  # of decisions that change between calls
def test_statistics_are_kept_and_training_mode_is_told_of(inputs):
    model = built(Residual).train()
    before = fingerprint(model)
    with pytest.warns(UserWarning, match=r"Call model.eval\(\)"):
        ModelFromLayer(model, model.norm).at(inputs)
    assert fingerprint(model) == before
    dropping = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.Linear(8, 3)).double()
    around = ModelFromLayer(lambda x: dropping(x), dropping[0])
    with pytest.warns(UserWarning, match=r"Call model.eval\(\)"):
        activations, arguments = around.at(inputs)
    with pytest.warns(UserWarning, match=r"Call model.eval\(\)"):
        NearestBoundary(around, budget=2).find(activations, additional_forward_args=arguments)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_without_grad(mode, model, inputs):
    from_layer = ModelFromLayer(model, model.second)
    expected = NearestBoundary(from_layer).find(from_layer.at(inputs)[0], None, from_layer.at(inputs)[1])
    with mode():
        activations, arguments = from_layer.at(inputs.clone())
        boundary = NearestBoundary(from_layer).find(activations, additional_forward_args=arguments)
    close(boundary.distance, expected.distance)


# ------------------------------------------------------------------------------------------------- wrapped models


def wrapped(model: nn.Module, kind: str) -> Any:
    if kind == "parallel":
        return nn.DataParallel(model)
    if kind == "distributed":
        return nn.parallel.DistributedDataParallel(model)
    compiled = torch.compile(model, backend="eager")
    return compiled if kind == "compiled" else lambda *inputs: compiled(*inputs)


@pytest.mark.parametrize("kind", ["parallel", "distributed", "compiled", "function of compiled"])
def test_parallel_and_compiled_models(kind, model, inputs, process_group):
    if kind == "function of compiled" and not hasattr(torch.compiler, "set_stance"):
        pytest.skip("needs a PyTorch that can set compiled modules aside")
    wrapper = wrapped(model, kind)
    wrapper(inputs)
    from_layer = ModelFromLayer(wrapper, model.second)
    activations, arguments = from_layer.at(inputs)
    model.first.n_rows = 0
    boundary = NearestBoundary(from_layer).find(activations, additional_forward_args=arguments)
    assert model.first.n_rows == 0
    plain = ModelFromLayer(model, model.second)
    expected = NearestBoundary(plain).find(activations, additional_forward_args=plain.at(inputs)[1])
    close(boundary.distance, expected.distance)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_scripted_models_say_what_they_lack(inputs):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    scripted = torch.jit.trace(model, inputs)
    with pytest.raises(BoundaryTypeError, match=r"scripted.*Give the module that was scripted"):
        ModelFromLayer(scripted, next(scripted.children()))


# ------------------------------------------------------------------------------------------------------ bad arguments


def test_bad_arguments_say_how_to_mend_them(model, inputs):
    with pytest.raises(BoundaryTypeError, match="forward_func must be callable"):
        ModelFromLayer("model", model.first)
    with pytest.raises(BoundaryTypeError, match=r"layer must be a torch.nn.Module of the model.* but it is str"):
        ModelFromLayer(model, "first")
    with pytest.raises(BoundaryValueError, match="Residual does not contain this Counted"):
        ModelFromLayer(model, copy.deepcopy(model).first)
    from_layer = ModelFromLayer(model, model.second)
    with pytest.raises(BoundaryTypeError, match="inputs must be a Tensor or a tuple of Tensors, but it is list"):
        from_layer.at([inputs])
    with pytest.raises(BoundaryValueError, match=r"same number of examples, at least one.*\(4, 6\), \(3, 6\)"):
        from_layer.at((inputs, inputs[:3]))
    with pytest.raises(BoundaryValueError, match="at least one"):
        from_layer.at(inputs[:0])
    activations, arguments = ModelFromLayer(model, model.third).at(inputs)
    with pytest.raises(BoundaryTypeError, match=r"additional_forward_args=arguments"):
        from_layer(activations)
    with pytest.raises(BoundaryValueError, match=r"one row for each example, but it was given \[\(2, 8\), \(4, 8\)"):
        from_layer(activations[:2], *arguments)
    with pytest.raises(BoundaryTypeError, match=r"needs the arguments that belong to its activations"):
        NearestBoundary(from_layer).find(activations)


def test_activations_must_be_floating_point():
    model = built(Tagger)
    with pytest.raises(BoundaryTypeError, match=r"input of the layer, Embedding, holds no floating.*torch.int64"):
        ModelFromLayer(model, model.tokens, attribute_to_layer_input=True).at(IDS, REAL)

    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(input=x)

    model = ByKeyword()
    with pytest.raises(BoundaryTypeError, match=r"Linear, is given no tensor of the examples by position"):
        ModelFromLayer(model, model.layer, attribute_to_layer_input=True).at(torch.ones(2, 6))


def test_inputs_that_hold_no_examples_in_their_first_dimension_are_refused():
    class Bag(nn.Module):
        """As of the tutorials of PyTorch: the tokens of all texts in one row, and where each text begins."""

        def __init__(self) -> None:
            super().__init__()
            self.bag, self.last = nn.EmbeddingBag(20, 6), nn.Linear(6, 3)

        def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
            return self.last(self.bag(tokens, offsets))

    model = Bag().double().eval()
    offsets = torch.arange(N) * 4
    with pytest.raises(BoundaryValueError, match=r"be evaluated for 2 of the 16 examples: .*Wrap it .*offsets"):
        ModelFromLayer(model, model.bag).at(IDS.flatten(), offsets)

    def of_texts(ids: Tensor) -> Tensor:
        return model(ids.flatten(), torch.arange(len(ids)) * ids.shape[1])

    from_layer = ModelFromLayer(of_texts, model.bag)
    activations, arguments = from_layer.at(IDS)
    assert activations.shape == (N, 6)
    close(from_layer(activations, *arguments), model(IDS.flatten(), offsets))


@pytest.mark.parametrize("wrap", [lambda scores: scores, lambda scores: SimpleNamespace(logits=scores)])
def test_models_that_are_not_reproduced_are_refused(wrap, inputs):
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.n_calls = nn.Linear(6, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.n_calls += 1
            return wrap(self.layer(x) * self.n_calls)

    model = Stateful().double().eval()
    with pytest.raises(BoundaryValueError, match="does not reproduce the model's output"):
        ModelFromLayer(model, model.layer).at(inputs)

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.layer = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer((self.one if len(x) == N else self.other)(x))

    model = Branching().double()
    with pytest.raises(BoundaryValueError, match="calls other modules for another number of examples"):
        ModelFromLayer(model, model.layer).at(inputs)


def test_another_way_to_the_layer_is_noticed_when_it_is_taken(inputs):
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.layer = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer((self.one if len(x) > 1 else self.other)(x))

    model = Alone().double()
    from_layer = ModelFromLayer(model, model.layer)
    activations, arguments = from_layer.at(inputs)
    first = torch.tensor([0])
    with pytest.raises(BoundaryValueError, match="The model took another way to the layer, Linear, than at the inputs"):
        from_layer(activations[first], *rows_of(arguments, first))
