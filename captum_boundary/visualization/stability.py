"""Attributions before and after an attack on them."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from captum_boundary._core.agreement import top_count, top_features
from captum_boundary._core.bounds import Bounds
from captum_boundary._core.checks import check_count
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.robust import AttributionRobustness
from captum_boundary.visualization._images import Array, check_images, displayed, maps_of
from captum_boundary.visualization._panels import AxesArray, PanelsToUse, caption, grid, show_image, show_map, title

__all__ = ["show_stability"]

_MARKS = ("neither", "in both", "before only", "after only")
_COLORS = ListedColormap([to_rgb(color) for color in ("0.93", "#000000", "#0072B2", "#E69F00")])


def show_stability(
    inputs: Tensor,
    robustness: AttributionRobustness,
    *,
    k: int | None = None,
    bounds: Bounds = None,
    cmap: str = "viridis",
    plt_fig_axis: PanelsToUse | None = None,
) -> tuple[Figure, AxesArray]:
    r"""Show what an attack does to the attributions of images.

    A row for each image: the image, the attacked image, the maps of both in the same colors, and where the ``k``
    largest values of the two maps lie. Below stand Kendall's rank correlation of the maps and the share of the ``k``
    largest values that remain, which is the top-k intersection, with those under a random perturbation.

    Args:

        inputs (Tensor): Images ``(N, C, H, W)``, gray or in color.
        robustness (AttributionRobustness): What
            :func:`~captum_boundary.robust.evaluate_attribution_robustness` returned for these images.
        k (int, optional): Number of pixels that are the top. Default: None, the number that was evaluated. There is no
            random share for any other.
        bounds (tuple, optional): Values shown as black and white, as a search's ``bounds``. Default: None, ``(0, 1)``.
        cmap (str, optional): Matplotlib color map of the maps, which are magnitudes. Default: ``"viridis"``
        plt_fig_axis (tuple, optional): Figure (or subfigure) and array of axes to draw in, shaped like that returned;
            None in place of the axes makes them. Default: None, a new figure of matplotlib's pyplot, 8 inches wide.

    Returns:

        - **figure** (*Figure*): The figure, to be shown, saved or closed by the caller.
        - **axes** (*numpy.ndarray*): Its panels ``(N, 5)``.

    Raises:

        BoundaryTypeError: If ``inputs`` are no Tensor, or ``robustness`` no AttributionRobustness.
        BoundaryValueError: If shapes do not match, images lie outside ``bounds``, or ``k`` is not between 1 and the
            number of pixels.

    Examples::

        >>> import torch
        >>> from captum_boundary.robust import AttributionAttack, evaluate_attribution_robustness
        >>> from captum_boundary.visualization import show_stability
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> images = torch.rand(2, 1, 8, 8)
        >>> attack = AttributionAttack(model, epsilon=0.05, n_steps=5, bounds=(0, 1))
        >>> robustness = evaluate_attribution_robustness(model, images, None, attack)
        >>> figure, axes = show_stability(images, robustness)
        >>> axes.shape
        (2, 5)
    """
    images = check_images(inputs)
    if not isinstance(robustness, AttributionRobustness):
        raise BoundaryTypeError(
            "robustness must be the AttributionRobustness that evaluate_attribution_robustness returns, but it is "
            f"{type(robustness).__name__}."
        )
    perturbed = robustness.perturbed
    if not isinstance(perturbed, Tensor) or perturbed.shape != images.shape:
        given = tuple(perturbed.shape) if isinstance(perturbed, Tensor) else "several inputs"
        raise BoundaryValueError(
            f"robustness must be that of inputs of shape {tuple(images.shape)}, but it is that of {given}. Give the "
            "images that were evaluated."
        )
    check_count("k", k, optional=True)
    k = top_count(robustness.k if k is None else k, images[0, 0].numel())
    before, after = (maps_of(getattr(robustness, when), images, f"robustness.{when}") for when in ("before", "after"))
    marks = _marks(before, after, k)
    perturbed = perturbed.to(images.device)
    pictures, attacked = (displayed(each, images, bounds) for each in (images, perturbed))

    figure, axes = grid(len(images), 5, images.shape[2] / images.shape[3], plt_fig_axis, foot=0.25)
    for axis, name in zip(axes[0], ("input", "attacked", "map before", "map after", f"top {k}"), strict=True):
        title(axis, name)
    for row, panels in enumerate(axes):
        show_image(panels[0], pictures[row])
        show_image(panels[1], attacked[row])
        caption(panels[1], f"moved by up to {(perturbed[row] - images[row]).abs().max():.2g}")
        largest = max(before[row].max(), after[row].max()) or 1.0
        show_map(panels[2], before[row], cmap, 0.0, largest)
        show_map(panels[3], after[row], cmap, 0.0, largest)
        caption(
            panels[3],
            f"Kendall's τ {robustness.kendall_tau[row]:.2f}\nrandom: {robustness.control.kendall_tau[row]:.2f}",
        )
        show_map(panels[4], marks[row], _COLORS, -0.5, 3.5)
        remain = f"{(marks[row] == 1).sum() / k:.0%} remain"
        control = f"\nrandom: {robustness.control.topk_intersection[row]:.0%}" if k == robustness.k else ""
        caption(panels[4], remain + control)
    handles = [Patch(facecolor=_COLORS(index), label=_MARKS[index]) for index in (1, 2, 3)]
    figure.legend(handles=handles, loc="outside lower right", ncols=3, fontsize=8, frameon=False)
    return figure, axes


def _marks(before: Array, after: Array, k: int) -> Array:
    """0 where a pixel is among the top ``k`` of neither map, 1 of both, 2 of the first alone, 3 of the second alone."""
    first, second = (
        top_features(torch.from_numpy(maps).flatten(1), k).view(maps.shape).numpy() for maps in (before, after)
    )
    return np.select([first & second, first, second], [1.0, 2.0, 3.0], 0.0)
