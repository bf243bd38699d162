"""Bounds of normalized images: what the transform itself makes of black and white."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models import ResNet50_Weights
from torchvision.transforms import v2

from captum_boundary import NearestBoundary, bounds_of
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLACK, WHITE = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)


@pytest.mark.parametrize(
    "transform",
    [
        transforms.Normalize(MEAN, STD),
        v2.Normalize(MEAN, STD),
        transforms.Compose([transforms.Resize(8), transforms.Normalize(MEAN, STD)]),
        transforms.Compose([transforms.CenterCrop(8), v2.Compose([transforms.Normalize(MEAN, STD)])]),
        v2.Compose([transforms.Normalize(MEAN, STD), transforms.Normalize((0.5,) * 3, (2.0,) * 3)]),
        nn.Sequential(transforms.Normalize(torch.tensor(MEAN), torch.tensor(STD))),
        ResNet50_Weights.IMAGENET1K_V2.transforms(),
    ],
)
def test_are_black_and_white_after_the_transform(transform: Any) -> None:
    lower, upper = bounds_of(transform)
    assert lower.shape == upper.shape == (3, 1, 1)
    torch.testing.assert_close(transform(BLACK)[0, :, :1, :1], lower, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(transform(WHITE)[0, :, :1, :1], upper, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        (MEAN, STD),
        (list(MEAN), list(STD)),
        ((MEAN, STD),),
        (torch.tensor(MEAN), torch.tensor(STD).view(3, 1, 1)),
        ((torch.tensor(MEAN), torch.tensor(STD)),),
        (SimpleNamespace(image_mean=MEAN, image_std=STD, do_normalize=True),),
    ],
)
def test_all_forms(arguments: tuple[Any, ...]) -> None:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    lower, upper = bounds_of(*arguments)
    torch.testing.assert_close(lower, -mean / std)
    torch.testing.assert_close(upper, (1 - mean) / std)


def test_gray_images_and_double_precision() -> None:
    lower, upper = bounds_of([0.5], [0.25])
    assert lower.flatten().tolist() == [-2.0]
    assert upper.flatten().tolist() == [2.0]
    assert bounds_of(0.5, 0.25)[1].shape == (1, 1, 1)
    assert bounds_of(torch.tensor(MEAN).double(), torch.tensor(STD).double())[0].dtype == torch.float64


def test_a_search_keeps_them() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()
    images: Tensor = torch.rand(4, 3, 4, 4)
    images[0], images[1] = 0.0, 1.0
    transform = transforms.Normalize(MEAN, STD)
    bounds = bounds_of(transform)
    boundary = NearestBoundary(model, bounds=bounds, budget=10).find(transform(images))
    assert boundary.found.any()
    points = boundary.points * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert points.min() > -1e-5
    assert points.max() < 1 + 1e-5


@pytest.mark.parametrize(
    "transform",
    [
        transforms.Compose([transforms.Resize(8)]),
        lambda image: image,
        SimpleNamespace(image_mean=MEAN, image_std=STD, do_normalize=False),
        "imagenet",
        None,
        torch.rand(3),
    ],
)
def test_without_a_normalization(transform: Any) -> None:
    with pytest.raises(BoundaryTypeError, match="no normalization"):
        bounds_of(transform)


@pytest.mark.parametrize(
    ("mean", "std", "error", "message"),
    [
        (MEAN, STD[:2], BoundaryValueError, "hold 3 and 2"),
        (MEAN, (0.1, 0.0, 0.1), BoundaryValueError, "positive"),
        (MEAN, (0.1, -0.1, 0.1), BoundaryValueError, "positive"),
        ((torch.nan,) * 3, STD, BoundaryValueError, "finite"),
        ((), (), BoundaryValueError, "each channel"),
        (("a", "b"), STD, BoundaryTypeError, "must be numbers"),
    ],
)
def test_numbers_that_make_no_sense(mean: Any, std: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bounds_of(mean, std)
