"""A map on an image, in Captum's colors: read off the figure."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from captum.attr import visualization as captum_visualization

from captum_boundary import bounds_of
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.visualization import show_attribution

IMAGES = torch.rand(2, 3, 6, 9, generator=torch.Generator().manual_seed(0))
MAPS = torch.randn(2, 3, 6, 9, generator=torch.Generator().manual_seed(1))


def colors(axis: Any) -> Any:
    """The colors of the last picture drawn in a panel, as red, green, blue."""
    picture = axis.get_images()[-1]
    return picture.to_rgba(picture.get_array())[..., :3]


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_the_map_is_captums(scale: float) -> None:
    _, axes = show_attribution(IMAGES, scale * MAPS)
    for row in range(2):
        values = MAPS[row].permute(1, 2, 0).numpy()
        figure, axis = plt.subplots()
        captum_visualization.visualize_image_attr(values, sign="all", plt_fig_axis=(figure, axis), use_pyplot=False)
        np.testing.assert_allclose(colors(axes[row, 1]), colors(axis), atol=1e-6)
        np.testing.assert_allclose(axes[row, 0].get_images()[0].get_array(), IMAGES[row].permute(1, 2, 0), atol=1e-6)
        assert len(axes[row, 2].get_images()) == 2


def test_green_is_positive_and_red_negative() -> None:
    maps = torch.zeros(1, 6, 9)
    maps[0, 0, 0], maps[0, 1, 1] = 3.0, -3.0
    _, axes = show_attribution(IMAGES[:1], maps)
    shown = colors(axes[0, 1])
    red, green = shown[1, 1], shown[0, 0]
    assert red[0] > 0.9
    assert red[1] < 0.1
    assert green[1] > 0.4
    assert green[0] < 0.1
    assert shown[5, 8].min() > 0.95


def test_normalized_images_look_as_they_were() -> None:
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    _, axes = show_attribution((IMAGES - mean) / std, MAPS, bounds=bounds_of(mean, std))
    np.testing.assert_allclose(axes[1, 0].get_images()[0].get_array(), IMAGES[1].permute(1, 2, 0), atol=1e-5)
    with pytest.raises(BoundaryValueError, match="Give bounds"):
        show_attribution((IMAGES - mean) / std, MAPS)


@pytest.mark.parametrize("sign", ["all", "positive", "negative", "absolute_value"])
def test_words_where_there_is_no_map(sign: str) -> None:
    maps = torch.stack([torch.full((6, 9), torch.nan), torch.zeros(6, 9)])
    figure, axes = show_attribution(IMAGES[:, :1], maps, sign=sign)
    texts = [[text.get_text() for text in axis.texts] for axis in axes[:, 1]]
    assert texts == [["no boundary\npoint (NaN)"], ["nothing to show"]]
    figure.canvas.draw()


def test_bad_arguments_say_how_to_mend_them() -> None:
    with pytest.raises(BoundaryValueError, match="sign must be"):
        show_attribution(IMAGES, MAPS, sign="both")
    with pytest.raises(BoundaryValueError, match="outlier_perc"):
        show_attribution(IMAGES, MAPS, outlier_perc=100)
    with pytest.raises(BoundaryValueError, match="alpha_overlay"):
        show_attribution(IMAGES, MAPS, alpha_overlay=2)
    with pytest.raises(BoundaryValueError, match="one map for each input"):
        show_attribution(IMAGES, MAPS[:1])
    with pytest.raises(BoundaryTypeError):
        show_attribution(IMAGES, [1.0])
