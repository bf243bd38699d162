"""The rivals and the images of the benchmarks of explanations: what their definitions promise."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from captum_boundary import BoundaryGradCam

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def paths():
    return _imported("baseline_paths")


@pytest.fixture(scope="module")
def synthetic_images():
    return _imported("synthetic_images")


@pytest.fixture(scope="module")
def smoothed():
    return _imported("smoothed_methods")


def _imported(name):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


IMAGES = torch.rand(3, 2, 5, 5, generator=torch.Generator().manual_seed(0)).double()
TARGET = torch.tensor([0, 2, 1])


def smooth_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(50, 30), nn.Softplus(), nn.Linear(30, 3)).double()


def rise(model):
    """Of the target's score from black to the images."""
    with torch.no_grad():
        return (model(IMAGES) - model(torch.zeros_like(IMAGES))).gather(1, TARGET[:, None]).squeeze(1)


@pytest.mark.parametrize("leash", [1e-9, 0.02, 1.0])
def test_guided_integrated_gradients_add_up(paths, leash):
    model = smooth_model()
    maps = paths.guided_integrated_gradients(model, IMAGES, TARGET, n_steps=400, leash=leash)
    torch.testing.assert_close(maps.flatten(1).sum(dim=1), rise(model), rtol=0, atol=2e-3)


def test_guided_integrated_gradients_are_the_ordinary_ones_on_a_short_leash(paths):
    model = smooth_model()
    maps = paths.guided_integrated_gradients(model, IMAGES, TARGET, n_steps=400, leash=1e-9)
    slopes = 0
    for position in (torch.arange(400) + 0.5) / 400:
        leaves = (position * IMAGES).requires_grad_()
        slopes = slopes + torch.autograd.grad(model(leaves).gather(1, TARGET[:, None]).sum(), leaves)[0] / 400
    torch.testing.assert_close(maps, IMAGES * slopes, rtol=0, atol=1e-3)


def test_guided_integrated_gradients_first_move_what_hardly_matters(paths):
    """Without a leash, the pixel without a slope arrives in the first step."""
    seen = []

    def model(images):
        seen.append(images.detach().clone())
        weights = torch.arange(1.0, 51.0).double().reshape(2, 5, 5)
        return (images * weights).flatten(1).sum(dim=1)[:, None].expand(-1, 3)

    paths.guided_integrated_gradients(model, torch.ones_like(IMAGES), TARGET, n_steps=50, fraction=1e-9, leash=1.0)
    torch.testing.assert_close(seen[1][:, 0, 0, 0], torch.ones(3).double())
    torch.testing.assert_close(seen[1].flatten(1).sum(dim=1), torch.ones(3).double())


def test_integrated_decision_gradients_weigh_by_the_rise_of_the_score(paths):
    """The square of the place has slope 2 a at place a: its square, added up on the way, is 4 / 3."""

    def model(images):
        mean = images.mean(dim=(1, 2, 3))
        return (mean.square())[:, None].expand(-1, 3)

    maps = paths.integrated_decision_gradients(model, torch.ones_like(IMAGES), TARGET, n_steps=400)
    torch.testing.assert_close(maps.flatten(1).sum(dim=1), torch.full((3,), 4 / 3).double(), rtol=0.02, atol=0)


def test_causes_tell_the_class_and_distractors_do_not(synthetic_images):
    images, classes, masks = synthetic_images.make_images(40, seed=0)
    assert (masks.sum(dim=(1, 2)) == synthetic_images.GLYPH**2).all()
    assert ((images >= 0) & (images <= 1)).all()
    for image, label, mask in zip(images, classes, masks, strict=True):
        rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
        square = image[:, rows][:, :, columns]
        glyph = synthetic_images.CAUSES[label].bool()
        inside, outside = square[:, glyph], square[:, ~glyph]
        assert (inside.std(dim=1) < 0.35).all()
        assert ((inside.mean(dim=1) - outside.mean(dim=1)).abs() > 0.05).any()
    again = synthetic_images.make_images(40, seed=0)
    assert torch.equal(again[0], images)
    assert (
        len({tuple(glyph.flatten().tolist()) for glyph in (*synthetic_images.CAUSES, *synthetic_images.DISTRACTORS)})
        == 7
    )


def test_every_image_takes_the_noise_that_its_decision_stands(smoothed):
    """Noise lowers the first score by its variance, 0.05 squared is what the first image can lose."""

    def model(images):
        score = 1 - images.square().mean(dim=(1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], dim=1)

    def explain(model, image, label, noise):
        return torch.full_like(image, noise)

    losses = torch.tensor([0.05, 0.5, 0.001]).square()
    images = (1 - losses).sqrt()[:, None, None, None].expand(3, 2, 20, 20)
    maps = smoothed.with_own_noise(explain, model, images, torch.zeros(3, dtype=torch.long))
    assert maps.shape == images.shape
    torch.testing.assert_close(maps[:, 0, 0, 0], torch.tensor([0.04, 0.1, 0.02]))


def test_methods_of_single_features_have_their_closed_forms():
    """A linear model with one output: distances, losses and gradients are known."""
    module = _imported("feature_distance")
    model = nn.Linear(4, 1)
    model.weight.data, model.bias.data = torch.tensor([[2.0, -1.0, 0.0, 0.5]]), torch.tensor([0.25])
    x, others = torch.tensor([[1.0, 1.0, 1.0, 1.0], [-1.0, 0.5, 2.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3)
    groups = torch.tensor([[0, 1, 2, 2]])  # the last two columns move together
    causes = torch.tensor([[True, True, False], [True, False, False]])
    task = module.Task(model.requires_grad_(False), x, groups, causes, others, None)
    logits = model(x)
    norms = torch.tensor([2.0, 1.0, 0.5])
    torch.testing.assert_close(module.distances(task), norms / logits.abs(), rtol=1e-3, atol=0)
    weights = torch.tensor([2.0, -1.0, 0.0, 0.5]) * (x - others[:1]) * logits.sign()
    sums = torch.cat([weights[:, :2], weights[:, 2:].sum(1, keepdim=True)], 1)
    torch.testing.assert_close(module.ablation(task, None), sums)
    torch.testing.assert_close(module.ablation(task, 3), sums)
    torch.testing.assert_close(module.path(task, 5), sums)
    torch.testing.assert_close(module.slope(task), norms.expand(2, 3))
    columns = module.measured(module.distances(task), causes)
    assert columns["first"].tolist() == [1, 1]
    assert columns["over others"].tolist() == [1, 1]
    worst = module.measured(torch.tensor([[0.0, 1.0, 2.0]]), causes[:1])
    assert (float(worst["first"]), float(worst["over others"])) == (0, 0)


def test_maps_of_a_transformer_are_those_of_their_definitions():
    """Attention that is the same everywhere mixes tokens evenly; Grad-CAM is the one that the package multiplies by."""
    module = _imported("vit")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images, target = module.untrained().eval(), torch.rand(2, 1, 28, 28), torch.tensor([3, 7])
        nn.init.normal_(model.heads.head.weight)
    cam, _ = BoundaryGradCam(model, model.encoder.layers[-2], reshape_transform=module.grid)._grad_cam(
        images, target, None, None
    )
    torch.testing.assert_close(module.grad_cam(model, images, target), cam)
    for block in model.encoder.layers:
        nn.init.zeros_(block.self_attention.in_proj_weight)
    joint = torch.linalg.matrix_power((torch.full((50, 50), 1 / 50) + torch.eye(50)) / 2, len(model.encoder.layers))
    maps = module.attention_rollout(model, images, target)
    torch.testing.assert_close(maps, joint[0, 1].expand(2, 1, 28, 28))


@pytest.fixture(scope="module")
def occluding():
    return _imported("baseline_occlusion")


def bright_square(side, rows, columns):
    """A model whose first class is the light in one square, and images that are gray."""

    def model(images):
        light = images[:, :, rows, columns].mean(dim=(1, 2, 3))
        return torch.stack([20 * (light - 0.25), torch.zeros_like(light)], dim=1)

    return model, torch.full((2, 3, side, side), 0.5)


@pytest.mark.parametrize("name", ["rise", "occlusion"])
def test_baselines_that_occlude_find_the_square_that_counts(occluding, name):
    square = slice(14, 21), slice(7, 14)
    model, images = bright_square(28, *square)
    target = torch.tensor([0, 0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "rise":
            maps = occluding.rise(model, images, target, n_masks=2000)
        else:
            maps = occluding.occlusion(torch.zeros(3, 1, 1), model, images, target)
    assert maps.shape == images.shape
    inside = maps[:, :, square[0], square[1]].mean()
    outside = maps.clone()
    outside[:, :, square[0], square[1]] = 0
    assert inside > 1.2 * outside.sum() / (outside != 0).sum()
    row, column = divmod(int(maps[0].sum(dim=0).argmax()), 28)
    assert 13 <= row <= 21
    assert 6 <= column <= 14


def test_masks_of_rise_have_the_mean_that_their_sum_is_divided_by(occluding):
    """Of a model that does not look at the image, the map is its probability everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        maps = occluding.rise(
            lambda images: images.new_zeros(len(images), 4), torch.rand(1, 3, 28, 28), torch.tensor([1]), 2000
        )
    torch.testing.assert_close(maps, torch.full_like(maps, 0.25), rtol=0, atol=0.02)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
def test_guided_backprop_lets_only_positive_slopes_through(occluding):
    """Through the second layer, the first unit counts and the other one counts against the class."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        model[1].bias.fill_(1.0)
        model[3].weight.copy_(torch.tensor([[2.0, -3.0], [0.0, 0.0]]))
    maps = occluding.guided_backprop(model, torch.ones(1, 1, 1, 2).requires_grad_(), torch.tensor([0]))
    torch.testing.assert_close(maps, torch.tensor([[[[2.0, 0.0]]]]))
