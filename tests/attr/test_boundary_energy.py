"""Energies of gradients at the boundaries of noisy copies: closed forms, a replica, and what is unbiased."""

from __future__ import annotations

import pytest
import torch
from captum.attr import NoiseTunnel
from captum.metrics import sensitivity_max
from torch import nn

from captum_boundary import BoundaryEnergy, SmoothedModel
from captum_boundary._core import batch_sizes
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

STDEV = 0.3


def network(n_outputs=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, n_outputs)).double().eval()


def points(n=5):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1)).double()


def noise(n_samples, inputs):
    """The noise of that many copies, which a smoothed model shares: vectors and their negatives in turn."""
    seen = []
    SmoothedModel(lambda given: seen.append(given) or given.flatten(1), STDEV, n_samples=n_samples)(inputs[:1])
    return seen[0] - inputs[:1]


def gradients(function, points):
    leaves = points.clone().requires_grad_()
    values = function(leaves)
    return values.detach(), torch.autograd.grad(values.sum(), leaves)[0]


def gradients_at_boundaries(model, x, target, n_samples):
    """Gradients ``(n_samples, D)`` of the score at the boundaries of the copies of one example."""

    def score(points):
        return model(points)[:, target]

    def margin(points):
        scores = model(points)
        return scores[:, target] - torch.cat([scores[:, :target], scores[:, target + 1 :]], dim=1).amax(dim=1)

    copies = x + noise(n_samples, x[None])
    values, slopes = gradients(margin, copies)
    return gradients(score, copies - (values / slopes.square().sum(dim=1))[:, None] * slopes)[1]


@pytest.mark.parametrize("target", [None, 0, 2])
def test_energies_are_those_of_a_slow_replica(target):
    model, x = network(), points()
    targets = model(x).argmax(dim=1).tolist() if target is None else [target] * 5
    total, common = (
        BoundaryEnergy(model, STDEV).attribute(x, target, n_samples=6, energy=energy) for energy in ("total", "common")
    )
    for row, its_target in enumerate(targets):
        g = gradients_at_boundaries(model, x[row], its_target, 6)
        torch.testing.assert_close(total[row], g.square().mean(dim=0))
        a, b, c = g.unflatten(0, (3, 2)).mean(dim=1)
        torch.testing.assert_close(common[row], (a * b + b * c + c * a) / 3)


@pytest.mark.parametrize("energy", ["total", "common"])
def test_a_linear_model_has_the_squares_of_its_weights(energy):
    model = nn.Linear(4, 3).double()
    maps = BoundaryEnergy(model, STDEV).attribute(points(), target=1, n_samples=4, energy=energy)
    torch.testing.assert_close(maps, model.weight[1].detach().square().expand(5, 4))


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)], ids=str)
def test_one_output_has_the_energy_of_its_margin(shape):
    model, x = network(1), points()
    maps = BoundaryEnergy(lambda inputs: model(inputs).reshape(shape), STDEV).attribute(x, n_samples=4)
    as_two = BoundaryEnergy(lambda inputs: torch.cat([model(inputs), 0 * model(inputs)], dim=1), STDEV)
    torch.testing.assert_close(maps, as_two.attribute(x, target=0, n_samples=4))


def test_common_energy_is_the_squared_mean_without_bias():
    """Few copies are right on average, where the plain square of their mean is not."""
    model, x = network(), points(1)
    g = gradients_at_boundaries(model, x[0], 0, 10_000)
    expected = g.mean(dim=0).square()
    generator = torch.Generator().manual_seed(0)
    few = torch.cat(
        [
            BoundaryEnergy(model, STDEV, generator=generator).attribute(x, 0, n_samples=4, energy="common")
            for _ in range(1000)
        ]
    )
    error = few.std(dim=0) / 1000**0.5
    assert ((few.mean(dim=0) - expected).abs() < 4 * error + 0.002 * expected).all()
    bias = g.unflatten(0, (-1, 2)).mean(dim=1).var(dim=0) / 2
    assert (bias > 5 * error).any(), "the test would notice the bias of the plain square"


def test_total_energy_is_the_larger():
    total, common = (
        BoundaryEnergy(network(), STDEV).attribute(points(), n_samples=200, energy=energy)
        for energy in ("total", "common")
    )
    assert (total > common).all()


@pytest.mark.parametrize("energy", ["total", "common"])
@pytest.mark.parametrize("size", [1, 2, 5, 6, 13, 1000])
def test_results_depend_neither_on_the_batch_nor_on_its_parts(energy, size):
    model, x = network(), points()
    rows = []

    def watched(inputs):
        rows.append(len(inputs))
        return model(inputs)

    whole = BoundaryEnergy(model, STDEV).attribute(x, n_samples=6, energy=energy)
    parts = BoundaryEnergy(watched, STDEV).attribute(x[1:4], n_samples=6, energy=energy, internal_batch_size=size)
    torch.testing.assert_close(parts, whole[1:4], rtol=1e-10, atol=1e-12)
    assert max(rows) <= max(size, 2)


@pytest.mark.parametrize("energy", ["total", "common"])
def test_progress_is_shown_in_copies_if_wanted(capsys, energy):
    method, options = BoundaryEnergy(network(), STDEV), {"n_samples": 6, "energy": energy, "internal_batch_size": 7}
    method.attribute(points(), **options)
    assert capsys.readouterr().err == ""
    method.attribute(points(), **options, show_progress=True)
    assert "30/30" in capsys.readouterr().err


def test_two_gradients_a_copy():
    model, count = network(), []

    def counted(inputs):
        scores = model(inputs)
        if scores.requires_grad:
            scores.register_hook(lambda gradient: count.append(len(gradient)))
        return scores

    BoundaryEnergy(counted, STDEV).attribute(points(), n_samples=6)
    assert sum(count) == 5 * 2 * 6


def test_tuples_arguments_and_dtypes():
    x, y, scale = points().float(), torch.zeros(5, 2, dtype=torch.bfloat16), torch.arange(1.0, 6.0)

    def model(x, y, scale):
        return torch.stack([x.sum(dim=1) * scale, y.float().sum(dim=1)], dim=1)

    maps = BoundaryEnergy(model, (0.1, 0.0)).attribute((x, y), 0, scale, n_samples=4)
    assert [part.dtype for part in maps] == [torch.float32, torch.float32]
    torch.testing.assert_close(maps[0], scale.square()[:, None].expand(5, 4))
    assert (maps[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("energy", ["total", "common"])
@pytest.mark.parametrize("factor", [3e-4, 1e3])
def test_half_precision_neither_underflows_nor_overflows(dtype, energy, factor):
    """Gradients of 3e-8 to 3e-5, as those of pixels are: in float16 some of them vanish, and all their squares."""
    weight = torch.logspace(-4, -1, 3 * 64, dtype=torch.double).view(3, 8, 8) * (1 if factor < 1 else 50)

    def model(x):
        scores = (x * weight.to(x) * factor).flatten(1).float().sum(dim=1)
        return torch.stack([scores, 0.01 - scores], dim=1)

    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    half = BoundaryEnergy(model, 0.1).attribute(x, 0, n_samples=8, energy=energy)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, (weight * factor).square().expand(2, 3, 8, 8).float(), rtol=0.05, atol=0.0)


def test_the_default_noise_is_a_tenth_of_each_examples_range():
    model, x = network(), points()
    each = [BoundaryEnergy(model, 0.1 * float(row.max() - row.min())).attribute(row[None], n_samples=8) for row in x]
    torch.testing.assert_close(BoundaryEnergy(model).attribute(x, n_samples=8), torch.cat(each), rtol=1e-5, atol=1e-9)
    # Inputs of one value have no range, and so no noise.
    assert BoundaryEnergy(model).attribute(torch.zeros_like(x), n_samples=4).isfinite().all()


def test_every_input_has_a_range_of_its_own():
    def model(x, y):
        return torch.stack([x.sum(dim=1).square() + y.sum(dim=1).square(), x.sum(dim=1)], dim=1)

    x, y = points().float(), 100 * points().float()
    maps = BoundaryEnergy(model).attribute((x, y), 0, n_samples=4)
    scale = (x.amax(1) - x.amin(1))[0]
    alone = BoundaryEnergy(model, (0.1 * float(scale), 10 * float(scale))).attribute((x[:1], y[:1]), 0, n_samples=4)
    torch.testing.assert_close(maps[0][:1], alone[0], rtol=1e-4, atol=0.0)


def test_by_default_as_many_copies_pass_as_fit(monkeypatch):
    model, x, rows = network(), points(), []

    def watched(inputs):
        rows.append(len(inputs))
        return model(inputs)

    at_once = BoundaryEnergy(watched, STDEV).attribute(x, n_samples=8)
    assert max(rows) == 5 * 8
    monkeypatch.setattr(batch_sizes, "_SMALL", 0)
    monkeypatch.setattr(batch_sizes, "_CPU_BYTES", 2**11)
    rows.clear()
    divided = BoundaryEnergy(watched, STDEV).attribute(x, n_samples=8)
    assert max(rows[1:]) < 20
    torch.testing.assert_close(divided, at_once, rtol=1e-10, atol=1e-14)


def test_a_flat_model_has_no_energy():
    with pytest.warns(UserWarning, match=r"no slope at any noisy copy of row\(s\) \[0, 1\].*saturated.*rounded"):
        maps = BoundaryEnergy(lambda x: x * 0 + torch.arange(4.0), STDEV).attribute(torch.rand(2, 4), n_samples=4)
    assert (maps == 0).all()


def test_all_stays_as_it_was():
    model, x = network(), points().requires_grad_()
    state = torch.get_rng_state()
    maps = BoundaryEnergy(model, STDEV).attribute(x, n_samples=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert x.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not maps.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(BoundaryEnergy(model, STDEV).attribute(points(), n_samples=4), maps)


def test_a_generator_chooses_the_noise():
    def maps(generator):
        return BoundaryEnergy(network(), STDEV, generator=generator).attribute(points(), n_samples=4)

    assert torch.equal(maps(torch.Generator().manual_seed(1)), maps(torch.Generator().manual_seed(1)))
    assert not torch.equal(maps(torch.Generator().manual_seed(1)), maps(None))


def test_captum_takes_it_for_one_of_its_own():
    energy = BoundaryEnergy(network(), STDEV)
    assert NoiseTunnel(energy).attribute(points(), nt_samples=2, stdevs=0.1, target=1).shape == (5, 4)
    assert sensitivity_max(energy.attribute, points(), target=1).shape == (5,)
    assert not energy.has_convergence_delta()
    assert not energy.multiplies_by_inputs
    with pytest.raises(NotImplementedError, match="BoundaryEnergy"):
        energy.attribute_future()


def images(n=2, side=9):
    return torch.rand(n, 2, side, side, generator=torch.Generator().manual_seed(0)).double()


def pixelwise(weight):
    """A model with ``weight`` as the gradient of its first score."""
    return lambda x: torch.stack([(x * weight).flatten(1).sum(dim=1), x.flatten(1).sum(dim=1)], dim=1)


def test_averages_of_the_same_everywhere_are_the_same():
    maps = BoundaryEnergy(pixelwise(torch.ones(2, 9, 9).double()), STDEV).attribute(images(), 0, n_samples=4, width=1.5)
    torch.testing.assert_close(maps, torch.ones_like(maps))


def test_one_pixel_becomes_a_gaussian():
    weight = torch.zeros(2, 21, 21).double()
    weight[0, 10, 10] = 1
    maps = BoundaryEnergy(pixelwise(weight), STDEV).attribute(images(1, 21), 0, n_samples=4, width=1.5)
    offsets = torch.arange(21).double() - 10
    bell = torch.exp(-0.5 * (offsets / 1.5).square()) * (offsets.abs() <= 5)
    bell = bell / bell.sum()
    torch.testing.assert_close(maps[0, 0], bell[:, None] * bell)
    assert (maps[0, 1] == 0).all()


def test_windows_may_be_larger_than_images():
    weight = torch.zeros(2, 3, 3).double()
    weight[:, 1, 1] = 1
    maps = BoundaryEnergy(pixelwise(weight), STDEV).attribute(images(1, 3), 0, n_samples=4, width=100.0)
    torch.testing.assert_close(maps, torch.full_like(maps, 1 / 9), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_samples": 5}, BoundaryValueError, "n_samples must be even"),
        ({"n_samples": 2, "energy": "common"}, BoundaryValueError, "n_samples of at least 4, but it is 2"),
        ({"energy": "mean"}, BoundaryValueError, "energy must be 'total' or 'common', but it is 'mean'"),
        ({"width": -1}, BoundaryValueError, "width must be a number of pixels, 0 or more, but it is -1"),
        ({"width": float("inf")}, BoundaryValueError, "width must be"),
        ({"width": 1.0}, BoundaryValueError, r"positions of images .* inputs have shape \(5, 4\)"),
        ({"inputs": (points(), points())}, BoundaryValueError, r"stdev is for 1 input\(s\), but there are 2"),
        ({"inputs": points().long()}, BoundaryTypeError, "floating point"),
        ({"target": 7}, BoundaryValueError, "target must be between 0 and 2"),
        ({"internal_batch_size": -1}, BoundaryValueError, "internal_batch_size must be"),
    ],
)
def test_impossible_questions_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        BoundaryEnergy(network(), STDEV).attribute(**{"inputs": points(), **options})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"forward_func": 1}, BoundaryTypeError, "forward_func must be callable"),
        ({"stdev": 0.0}, BoundaryValueError, "stdev must be positive"),
        ({"stdev": "large"}, BoundaryTypeError, "stdev must be a number"),
        ({"generator": 1}, BoundaryTypeError, "generator must be"),
    ],
)
def test_impossible_settings_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        BoundaryEnergy(**{"forward_func": network(), "stdev": STDEV, **options})
