"""Maps of few cells in place of maps of all pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from captum_boundary.errors import BoundaryValueError

__all__ = ["coarse", "pair_of"]


def coarse(attributions: Tensor, size: tuple[int, int]) -> Tensor:
    """Attributions of images ``(N, C, H, W)`` as maps ``(N, h, w)``: sums over channels and over the pixels of a cell.

    A map keeps the sum of the attributions; where cells do not divide the image evenly, up to a little at their rims.
    """
    if attributions.ndim != 4 or any(
        cells > pixels for cells, pixels in zip(size, attributions.shape[2:], strict=True)
    ):
        raise BoundaryValueError(
            f"map_size={size} needs attributions of images (N, C, H, W) with at least as many pixels, but their shape "
            f"is {tuple(attributions.shape)}. Leave map_size out to keep them as they are."
        )
    pixels_in_a_cell = attributions.shape[2] * attributions.shape[3] / (size[0] * size[1])
    maps: Tensor = adaptive_avg_pool2d(attributions.sum(dim=1), size) * pixels_in_a_cell
    return maps


def pair_of(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width from one number for both, or from two."""
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise BoundaryValueError(f"map_size must be one or two positive integers, but it is {size!r}.")
    return height, width
