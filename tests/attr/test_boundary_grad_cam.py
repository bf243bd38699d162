"""Boundary energy times Grad-CAM: against Captum's Grad-CAM, on grids of tokens and of channels that come last."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam, NoiseTunnel
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer

from captum_boundary import BoundaryEnergy, BoundaryGradCam
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

SIDE, CLASSES = 32, 5


def built(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
        for parameter in model.parameters():  # the heads of both are zero at first, or as good as
            parameter.data += 0.1 * torch.randn_like(parameter)
        return model


def cnn() -> nn.Module:
    return built(
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, stride=2)),
            nn.ReLU(inplace=True),  # changes the output of the layer before it
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, CLASSES),
        )
    )


class GridViT(nn.Module):
    """A ViT one of whose modules returns the last grid of tokens as (N, C, h, w), for Captum to look at."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit, self.grid = vit, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.vit._process_input(x)
        tokens = torch.cat([self.vit.class_token.expand(len(x), -1, -1), tokens], dim=1)
        encoder = self.vit.encoder
        first, last = encoder.layers[0], encoder.layers[1]
        tokens = first(tokens + encoder.pos_embedding)
        grid = self.grid(tokens[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2))
        tokens = torch.cat([tokens[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
        return self.vit.heads(encoder.ln(last(tokens))[:, 0])


def vit() -> VisionTransformer:
    return built(lambda: VisionTransformer(SIDE, 8, 2, 2, hidden_dim=24, mlp_dim=32, num_classes=CLASSES))


def swin() -> SwinTransformer:
    return built(lambda: SwinTransformer([2, 2], 8, [1, 1], [2, 2], [4, 4], num_classes=CLASSES))


def vit_grid(x: Tensor) -> Tensor:
    return x[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)


def swin_grid(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def expected(model: nn.Module, layer: nn.Module, images: Tensor, target: Any, stdev: float) -> Tensor:
    """Made of Captum's Grad-CAM."""
    cam = LayerGradCam(model, layer).attribute(images, target, relu_attributions=True)
    cam = LayerAttribution.interpolate(cam, images.shape[2:], "bilinear").detach()
    energy = BoundaryEnergy(model, stdev).attribute(images, target, n_samples=4, energy="common", width=1.0)
    return energy * cam


def cases() -> list[Any]:
    first, second, third = cnn(), vit(), swin()
    grid_vit = GridViT(second)
    return [
        pytest.param(first, first[0], None, first, nn.Sequential(first[0], first[1]), id="cnn"),
        pytest.param(second, second.encoder.layers[0], vit_grid, grid_vit, grid_vit.grid, id="vit"),
        pytest.param(third, third.norm, swin_grid, third, third.permute, id="swin"),
    ]


@pytest.mark.parametrize(("model", "layer", "reshape", "same_model", "grid_layer"), cases())
@pytest.mark.parametrize("target", [None, 2, [0, 1, 4]])
def test_is_energy_times_captums_grad_cam(model, layer, reshape, same_model, grid_layer, target, images):
    torch.testing.assert_close(same_model(images), model(images))
    actual = BoundaryGradCam(model, layer, 0.1, reshape_transform=reshape).attribute(images, target, n_samples=4)
    wanted = model(images).argmax(1) if target is None else target
    if isinstance(model, nn.Sequential):  # whose layer is changed in place: Captum must be given a copy that is not
        same_model = nn.Sequential(*model)
        same_model[1] = nn.ReLU()
        grid_layer = same_model[0]
    torch.testing.assert_close(actual, expected(same_model, grid_layer, images, wanted, 0.1), rtol=1e-3, atol=1e-9)
    assert actual.shape == images.shape
    assert (actual > 0).any()
    assert not actual.requires_grad


@pytest.mark.parametrize(
    ("layer", "reshape", "message"),
    [
        ("vit", None, r"must have the shape \(N, C, h, w\) with N = 3 images, but it has \(3, 17, 24\).*unflatten"),
        ("vit", lambda x: x[:, 1:].reshape(-1, 24, 4, 4), "mixes positions, channels or images"),
        ("vit", lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (4, 4)).transpose(2, 3), "positions in their order"),
        ("vit", lambda x: x[:, 1:].unflatten(1, (2, 8)).permute(0, 3, 1, 2), "proportions"),
        ("vit", lambda x: x[:, :1, :, None].transpose(1, 2), "one position only"),
        ("vit", lambda x: x[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2) * 2.5, "and not compute with them"),
        ("vit", lambda x: x[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)[:2], "N = 3 images"),
        ("vit", lambda x: [x], "must be a Tensor"),
        ("swin", None, "do not have the proportions of the image, 32 x 32.*channels may come last"),
        ("swin", lambda x: x.reshape(3, 16, 8, 8), "mixes positions, channels or images"),
    ],
)
def test_positions_that_are_not_spatial_are_refused(layer: str, reshape: Any, message: str, images: Tensor) -> None:
    model: Any = vit() if layer == "vit" else swin()
    module = model.encoder.layers[0] if layer == "vit" else model.norm
    method = BoundaryGradCam(model, module, 0.1, reshape_transform=reshape)
    with pytest.raises((BoundaryValueError, BoundaryTypeError), match=message):
        method.attribute(images, n_samples=4)
    assert not module._forward_hooks


def test_tuples_and_other_orders_of_dimensions(images: Tensor) -> None:
    """Layers that return tuples, and tokens that come first, as in many transformers."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 8, stride=8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, str]:
            tokens = self.patch(x).flatten(2).permute(2, 0, 1)  # (L, N, E)
            return tokens.mean(0), tokens, "a name"

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.last = Tokens(), nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            _, tokens, _ = self.tokens(x)
            return self.last(tokens.relu().mean(0))

    model = built(Model)
    reshape = lambda out: out[1].permute(1, 2, 0).unflatten(2, (4, 4))  # noqa: E731
    actual = BoundaryGradCam(model, model.tokens, 0.1, reshape_transform=reshape).attribute(images, 1, n_samples=4)
    torch.testing.assert_close(actual, expected(model, model.tokens.patch, images, 1, 0.1), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_results_depend_neither_on_the_batch_nor_on_its_parts(size: int, images: Tensor) -> None:
    model = cnn().double()
    images = images.double()
    whole = BoundaryGradCam(model, model[0]).attribute(images, [0, 1, 2], n_samples=4)
    parts = BoundaryGradCam(model, model[0]).attribute(images, [0, 1, 2], n_samples=4, internal_batch_size=size)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-15)
    one = BoundaryGradCam(model, model[0]).attribute((images[1:2],), torch.tensor([1]), n_samples=4)
    assert isinstance(one, tuple)
    torch.testing.assert_close(one[0], whole[1:2], rtol=1e-9, atol=1e-15)


def test_both_sides_of_one_output(images: Tensor) -> None:
    """The map of the negative side is that of the negated score."""
    body = built(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    head = built(lambda: nn.Linear(4, 1))
    shift = nn.Sequential(body, head)(images).mean().detach()
    function = lambda x: head(body(x)) - shift  # noqa: E731
    two = lambda x: function(x) @ torch.tensor([[-0.5, 0.5]])  # noqa: E731
    target = (function(images)[:, 0] > 0).long()
    assert target.unique().tolist() == [0, 1]
    actual = BoundaryGradCam(function, body[0], 0.1).attribute(images, n_samples=4)
    same = BoundaryGradCam(two, body[0], 0.1).attribute(images, target, n_samples=4)
    torch.testing.assert_close(actual, 8 * same, rtol=1e-3, atol=1e-9)  # a factor of 2 in each of three gradients


def test_the_model_is_as_before(images: Tensor) -> None:
    model, x = cnn(), images.clone().requires_grad_()
    with torch.inference_mode():
        expected_maps = BoundaryGradCam(model, model[0]).attribute(images, n_samples=4)
    maps = BoundaryGradCam(model, model[0]).attribute(x, n_samples=4)
    torch.testing.assert_close(maps, expected_maps.clone())
    assert x.grad is None
    assert torch.equal(x.detach(), images)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    again = pickle.loads(pickle.dumps(BoundaryGradCam(model, model[0])))
    torch.testing.assert_close(again.attribute(images, n_samples=4), maps)
    assert NoiseTunnel(again).attribute(images, nt_samples=2, stdevs=0.01, target=1, n_samples=4).shape == images.shape


def test_half_precision_and_further_arguments(images: Tensor) -> None:
    model = cnn().bfloat16()
    maps = BoundaryGradCam(model, model[0]).attribute(images.bfloat16(), n_samples=4)
    assert maps.dtype == torch.float32
    body = cnn()

    def scaled(x: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
        return body(x) * scale[:, None] * weights

    arguments = (torch.tensor([1.0, 2.0, 3.0]), torch.ones(CLASSES))
    plain = BoundaryGradCam(body, body[0]).attribute(images, 1, n_samples=4)
    method = BoundaryGradCam(scaled, body[0])
    maps = method.attribute(images, 1, arguments, n_samples=4, internal_batch_size=2)
    torch.testing.assert_close(maps, plain * arguments[0].pow(3).view(-1, 1, 1, 1), rtol=1e-3, atol=1e-9)


def test_bad_arguments_say_how_to_mend_them(images: Tensor) -> None:
    model = cnn()
    with pytest.raises(BoundaryTypeError, match=r"layer must be a torch.nn.Module"):
        BoundaryGradCam(model, "layer4")
    with pytest.raises(BoundaryTypeError, match="reshape_transform must be a function"):
        BoundaryGradCam(model, model[0], reshape_transform=(14, 14))
    with pytest.raises(BoundaryTypeError, match="callable"):
        BoundaryGradCam(None, model[0])
    with pytest.raises(BoundaryValueError, match="one Tensor of images"):
        BoundaryGradCam(model, model[0]).attribute(images[0])
    with pytest.raises(BoundaryValueError, match="one Tensor of images"):
        BoundaryGradCam(model, model[0]).attribute((images, images))
    with pytest.raises(BoundaryValueError, match="must be called once in a pass, but it was not called"):
        BoundaryGradCam(model, cnn()[0]).attribute(images)
    twice = nn.Sequential(conv := nn.Conv2d(3, 3, 3, padding=1), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(BoundaryValueError, match="but it was 2 times called"):
        BoundaryGradCam(twice, conv).attribute(images)
    with pytest.raises(BoundaryValueError, match="one position only"):
        BoundaryGradCam(twice, twice[2]).attribute(images)
    with pytest.raises(BoundaryValueError, match="gradient"):
        BoundaryGradCam(torch.no_grad()(model.forward), model[0]).attribute(images)
    with pytest.raises(BoundaryValueError, match="target"):
        BoundaryGradCam(model, model[0]).attribute(images, CLASSES)
    with pytest.raises(NotImplementedError, match="BoundaryGradCam"):
        BoundaryGradCam(model, model[0]).attribute_future()
