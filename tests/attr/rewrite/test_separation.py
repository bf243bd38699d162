"""Separate activations: same outputs, an untouched model, and DeepLift attributions that add up."""

import itertools

import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import LRP, DeepLift, GuidedBackprop
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from torch import nn

from captum_boundary.attr import separate_activations
from captum_boundary.attr._rewrite.table import SETTINGS
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU:UserWarning"),
]


class Net(nn.Module):
    """Two hidden layers; subclasses say how their activations are written."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)
        self.relu = nn.ReLU()

    def activate(self, x):
        return self.relu(x)

    def forward(self, x):
        return self.last(self.activate(self.second(self.activate(self.first(x)))))


class InPlaceNet(Net):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)


class FunctionalNet(Net):
    def activate(self, x):
        return F.relu(x)


class InPlaceFunctionalNet(Net):
    def activate(self, x):
        return F.relu(x, inplace=True)


class TorchFunctionNet(Net):
    def activate(self, x):
        return torch.relu(input=x)


class MethodNet(Net):
    def activate(self, x):
        return x.relu()


class DiscardedInPlaceNet(Net):
    def activate(self, x):
        x.relu_()
        return x


class KeywordNet(Net):
    def activate(self, x):
        return self.relu(input=x)


class OptionalArgumentNet(Net):
    def forward(self, x, mask=None, scale=True):
        if mask is not None:
            x = x * mask
        return super().forward(x * 2 if scale else x)


class DataDependentNet(Net):
    """Untraceable, with a shared ReLU in each of two traceable blocks, one of which is registered twice."""

    def __init__(self):
        super().__init__()
        self.block = Net()
        self.block.last = nn.Linear(8, 6)
        self.blocks = nn.ModuleList([self.block])

    def forward(self, x):
        if x.sum() > 1e9:
            return self.last(self.first(x))
        return self.last(self.relu(self.first(self.blocks[0](self.block(x)))))


class SharedAcrossLevelsNet(Net):
    """Untraceable, with one ReLU that it calls itself and that a traceable block calls too."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(self.second, self.relu)

    def forward(self, x):
        return self.last(self.block(self.relu(self.first(x)))) if x.sum() < 1e9 else x


class UntraceableLeafNet(Net):
    """A traceable forward around an untraceable block that it calls twice."""

    class Halving(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(x) / 2 if x.abs().max() > 0 else x

    def __init__(self):
        super().__init__()
        self.halving = self.Halving()

    def activate(self, x):
        return self.halving(x)


def hand_written(model: Net) -> nn.Module:
    return nn.Sequential(model.first, nn.ReLU(), model.second, nn.ReLU(), model.last)


def snapshot(model):
    """All that must not change in a model: tensors, flags, hooks and submodules."""
    tensors = {
        name: (value.data_ptr(), value._version, value.double().sum().item())
        for name, value in model.state_dict().items()
    }
    modules = [
        (
            name,
            id(module),
            module.training,
            getattr(module, "inplace", None),
            *(len(getattr(module, hooks)) for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")),
            sorted(vars(module)),
        )
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    return modules, tensors


def attribute(model, inputs, baselines):
    return DeepLift(model).attribute(inputs, baselines, target=1, return_convergence_delta=True)


def assert_complete(model, inputs, baselines):
    attributions, delta = attribute(model, inputs, baselines)
    scale = max(1e-12, (model(inputs) - model(baselines)).abs().max().item())
    assert delta.abs().max().item() < 1e-9 * scale
    return attributions


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def points():
    return torch.randn(2, 4, 6, dtype=torch.float64)


FORMS = [
    Net,
    InPlaceNet,
    FunctionalNet,
    InPlaceFunctionalNet,
    TorchFunctionNet,
    MethodNet,
    DiscardedInPlaceNet,
    KeywordNet,
]


def test_the_activations_are_those_of_deep_lift():
    assert set(SETTINGS) == set(SUPPORTED_NON_LINEAR)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_example", [True, False])
def test_every_form_of_relu_equals_the_hand_written_model(form, with_example, points):
    inputs, baselines = points
    model = form().double().eval()
    before = snapshot(model)
    separated = separate_activations(model, inputs if with_example else None)
    assert snapshot(model) == before
    assert torch.equal(separated(inputs), model(inputs))
    assert len({id(m) for m in separated.modules() if isinstance(m, nn.ReLU)} - {id(model.relu)}) >= 2
    attributions = assert_complete(separated, inputs, baselines)
    expected, _ = attribute(hand_written(model), inputs, baselines)
    torch.testing.assert_close(attributions, expected)


def test_deep_lift_is_wrong_or_refuses_without_separation(points):
    inputs, baselines = points
    with pytest.raises(RuntimeError, match="used more than once"):
        attribute(InPlaceNet().double(), inputs, baselines)
    _, delta = attribute(FunctionalNet().double(), inputs, baselines)
    assert delta.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (lambda x: F.leaky_relu(x, 0.3), nn.LeakyReLU(0.3)),
        (lambda x: F.leaky_relu(x, negative_slope=0.3, inplace=True), nn.LeakyReLU(0.3)),
        (lambda x: F.leaky_relu_(x, 0.3), nn.LeakyReLU(0.3)),
        (lambda x: F.elu(x, 0.5), nn.ELU(0.5)),
        (lambda x: F.softplus(x, 2.0, threshold=5), nn.Softplus(2.0, 5)),
        (torch.sigmoid, nn.Sigmoid()),
        (F.sigmoid, nn.Sigmoid()),
        (torch.tanh, nn.Tanh()),
        (lambda x: x.tanh_(), nn.Tanh()),
        (lambda x: F.softmax(x, dim=1), nn.Softmax(1)),
        (lambda x: torch.softmax(x, 1), nn.Softmax(1)),
        (lambda x: x.softmax(-1), nn.Softmax(-1)),
        (lambda x: F.softmax(x, dim=1, dtype=torch.float64), nn.Softmax(1)),
        (lambda x: F.max_pool1d(x[:, None], 2).flatten(1).repeat(1, 2), None),
    ],
)
def test_functions_keep_their_settings(function, module, points):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x):
            return function(self.linear(x))

    inputs, baselines = points
    model = Functional().double()
    separated = separate_activations(model, inputs)
    assert torch.equal(separated(inputs), model(inputs))
    assert [type(m) for m in separated.modules() if type(m) in SETTINGS] == [type(module) if module else nn.MaxPool1d]
    if module is not None:
        expected, _ = attribute(nn.Sequential(model.linear, module), inputs, baselines)
        torch.testing.assert_close(attribute(separated, inputs, baselines)[0], expected)
    if not isinstance(module, nn.Softmax):
        assert_complete(separated, inputs, baselines)


def test_an_activation_after_another_and_a_residual_connection_add_up(points):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.relu, self.tanh, self.last = nn.Linear(6, 6), nn.ReLU(), nn.Tanh(), nn.Linear(6, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(self.tanh(self.relu(x)) + x)

    model = Residual().double()
    assert attribute(model, *points)[1].abs().max() > 1e-3
    separated = separate_activations(model)
    assert type(separated) is Residual
    assert_complete(separated, *points)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 0), ((3, 2), (1, 2), (1, 0))])
def test_max_pooling_with_overlapping_windows_adds_up(kernel, stride, padding):
    inputs, baselines = torch.randn(2, 3, 2, 9, 9, dtype=torch.float64)
    pool = nn.MaxPool2d(kernel, stride, padding)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), pool, nn.Flatten(), nn.LazyLinear(2)).double()
    model(inputs)
    separated = separate_activations(model, inputs)
    assert torch.equal(separated(inputs), model(inputs))
    assert_complete(separated, inputs, baselines)


def test_max_pooling_of_all_shapes_is_the_same():
    settings = itertools.product((2, 3, (3, 2)), (1, 2, 3), (0, 1), (1, 2), (False, True), (7, 8))
    for kernel, stride, padding, dilation, ceil_mode, size in settings:
        pool = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
        images = torch.randn(1, 2, size, size + 1)
        assert torch.equal(separate_activations(pool)(images), pool(images))
    for n_dimensions, pool in ((1, nn.MaxPool1d(3, 2, 1)), (3, nn.MaxPool3d(3, 2, 1))):
        volume = torch.randn(2, 3, *[7] * n_dimensions)
        assert torch.equal(separate_activations(pool)(volume), pool(volume))


def test_a_reused_pooling_and_modules_in_nested_containers():
    pool, relu = nn.MaxPool2d(2), nn.ReLU(inplace=True)
    block = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), relu, pool)
    model = nn.Sequential(block, nn.Sequential(block, nn.Sequential(relu, pool)), nn.Flatten(), nn.Linear(8, 2))
    inputs, baselines = torch.randn(2, 3, 2, 16, 16, dtype=torch.float64)
    model = model.double()
    separated = separate_activations(model, inputs)
    assert sum(type(m) is nn.MaxPool2d for m in separated.modules()) == 3
    assert torch.equal(separated(inputs), model(inputs))
    assert_complete(separated, inputs, baselines)


@pytest.mark.parametrize("form", [DataDependentNet, SharedAcrossLevelsNet, UntraceableLeafNet])
def test_what_cannot_be_traced_is_rewritten_in_parts(form, points):
    inputs, baselines = points
    model = form().double()
    before = snapshot(model)
    separated = separate_activations(model, inputs)
    assert snapshot(model) == before
    assert torch.equal(separated(inputs), model(inputs))
    assert_complete(separated, inputs, baselines)
    with pytest.raises(BoundaryValueError, match="Pass example_inputs"):
        separate_activations(model)


@pytest.mark.parametrize(
    ("form", "problem"), [(Net, "'relu' .* is called several times"), (MethodNet, "function relu")]
)
def test_a_call_that_cannot_be_separated_is_an_error(form, problem, points):
    class Untraceable(form):
        def forward(self, x):
            return super().forward(x) if x.sum() < 1e9 else x

    with pytest.raises(BoundaryValueError, match=problem):
        separate_activations(Untraceable().double(), points[0])


def test_settings_that_depend_on_the_input_are_an_error():
    class GlobalPooling(nn.Module):
        def forward(self, x):
            return F.max_pool1d(x, x.shape[2])

    with pytest.raises(BoundaryValueError, match="depend on the input"):
        separate_activations(GlobalPooling(), torch.randn(1, 2, 3))


def test_an_in_place_activation_seen_through_a_view_is_an_error():
    class View(nn.Module):
        def forward(self, x):
            x = x * 1
            x[:, 0].relu_()
            return x

    with pytest.raises(BoundaryValueError, match="does not compute"):
        separate_activations(View(), -torch.ones(1, 2))


def test_optional_arguments_follow_the_example(points):
    inputs = points[0]
    model = OptionalArgumentNet().double()
    mask = torch.rand_like(inputs)
    without, with_mask = separate_activations(model), separate_activations(model, (inputs, mask, False))
    assert torch.equal(without(inputs), model(inputs))
    assert torch.equal(with_mask(inputs, mask, False), model(inputs, mask, False))
    with pytest.raises(AssertionError, match="mask has been specialized"):
        without(inputs, mask)


def test_the_copy_shares_tensors_and_keeps_names(points):
    model = InPlaceNet().double()
    separated = separate_activations(model)
    assert {n: id(p) for n, p in separated.named_parameters()} == {n: id(p) for n, p in model.named_parameters()}
    with torch.no_grad():
        model.first.weight.mul_(2)
    assert torch.equal(separated(points[0]), model(points[0]))


@pytest.mark.parametrize("training", [True, False])
def test_modes_buffers_and_random_state_are_untouched(training):
    model = torchvision.models.resnet18(num_classes=4).train(training)
    model.layer1.eval()
    before, state = snapshot(model), torch.get_rng_state()
    separated = separate_activations(model, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert separated.training is training
    assert not any(module.training for module in separated.get_submodule("layer1").modules())
    assert separated.get_submodule("layer2.0.bn1").training is training


def test_hooks_of_the_model_neither_run_in_tracing_nor_get_lost(points):
    seen = []
    model = nn.Sequential(InPlaceNet(), nn.Linear(3, 3)).double()
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(type(output)) or 2 * output)
    model[0].first.register_forward_hook(lambda module, inputs, output: output + 1)
    model[0].relu.register_full_backward_hook(lambda *_: None)
    before = snapshot(model)
    with pytest.raises(BoundaryValueError, match=r"hooks.*Pass example_inputs"):
        separate_activations(model)
    with pytest.raises(BoundaryValueError, match="called several times"):
        separate_activations(model, points[0])
    assert set(seen) == {torch.Tensor}
    assert snapshot(model) == before


def test_stored_activations_do_not_prevent_the_copy(points):
    class Storing(Net):
        def forward(self, x):
            self.stored = super().forward(x)
            return self.stored

    model = Storing().double()
    model(points[0])
    separated = separate_activations(model, points[0])
    assert_complete(separated, *points)


def test_separating_twice_changes_nothing(points):
    once = separate_activations(InPlaceNet().double(), points[0])
    twice = separate_activations(once, points[0])
    assert all(len(m._forward_pre_hooks) == 1 for m in twice.modules() if isinstance(m, nn.ReLU))
    torch.testing.assert_close(attribute(twice, *points)[0], attribute(once, *points)[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_models_that_cannot_be_rewritten_are_refused(points):
    model = Net().double()
    for refused, message in [
        (torch.jit.trace(model, points[0]), "ScriptModule"),
        (torch.compile(model, backend="eager"), r"torch\.compile"),
        (nn.Sequential(nn.DataParallel(model)), "parallel"),
        (model.forward, r"must be an nn\.Module"),
    ]:
        with pytest.raises(BoundaryTypeError, match=message):
            separate_activations(refused)


@pytest.mark.parametrize("form", [InPlaceNet, FunctionalNet])
def test_other_methods_that_hook_activations(form, points):
    model = form().double()
    separated = separate_activations(model)
    reference = hand_written(model)
    inputs = points[0].requires_grad_()
    for method in (GuidedBackprop, LRP):
        torch.testing.assert_close(
            method(separated).attribute(inputs, target=1), method(reference).attribute(inputs, target=1)
        )


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "densenet121"])
def test_torchvision_models_as_they_come(name):
    model = torchvision.models.get_model(name, weights=None, num_classes=4).double().eval()
    inputs, baselines = torch.rand(2, 1, 3, 64, 64, dtype=torch.float64)
    before = snapshot(model)
    separated = separate_activations(model, inputs)
    assert snapshot(model) == before
    assert torch.equal(separated(inputs), model(inputs))
    assert_complete(separated, inputs, baselines)
