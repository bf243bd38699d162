"""Images with a synthetic ground truth, one glyph among distractors that decides, and networks trained on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE = 24
GLYPH = 7
N_DISTRACTORS = 3

_PLUS, _FRAME, _STRIPES, _CROSS = (
    torch.tensor([[int(is_ink(r, c)) for c in range(GLYPH)] for r in range(GLYPH)])
    for is_ink in (
        lambda r, c: r == GLYPH // 2 or c == GLYPH // 2,
        lambda r, c: r in (0, GLYPH - 1) or c in (0, GLYPH - 1),
        lambda r, c: r % 2 == 0,
        lambda r, c: r == c or r + c == GLYPH - 1,
    )
)
CAUSES = torch.stack([_PLUS, _FRAME, _STRIPES, _CROSS])
# As much ink in as large a square, whatever the class.
DISTRACTORS = torch.stack([_STRIPES.T, 1 - _PLUS, 1 - _CROSS])


def make_images(n_images: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """RGB images ``(N, 3, SIDE, SIDE)`` in [0, 1], classes ``(N,)`` and masks ``(N, SIDE, SIDE)`` of the glyph.

    An image is a cloudy background with one glyph of its class and some that are the same for all classes, in other
    places, all in random pure colors.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n_images, 3, 5, 5, generator=generator)
    images = nn.functional.interpolate(coarse, SIDE, mode="bicubic", align_corners=True).clamp(0, 1)
    images = 0.2 + 0.4 * images + 0.05 * torch.randn(images.shape, generator=generator)
    classes = torch.randint(len(CAUSES), (n_images,), generator=generator)
    masks = torch.zeros(n_images, SIDE, SIDE)
    cells = SIDE // (GLYPH + 1)
    for row in range(n_images):
        kinds = torch.randint(len(DISTRACTORS), (N_DISTRACTORS,), generator=generator)
        glyphs = torch.cat([CAUSES[classes[row]][None], DISTRACTORS[kinds]])
        places = torch.randperm(cells**2, generator=generator)[: len(glyphs)]
        for index, (glyph, place) in enumerate(zip(glyphs, places.tolist(), strict=True)):
            top, left = (GLYPH + 1) * (place // cells), (GLYPH + 1) * (place % cells)
            where = (row, slice(None), slice(top, top + GLYPH), slice(left, left + GLYPH))
            color = torch.rand(3, 1, 1, generator=generator).round()
            images[where] = torch.where(glyph.bool(), 0.3 * images[where] + 0.7 * color, images[where])
            if index == 0:
                masks[row, where[2], where[3]] = 1
    return images.clamp(0, 1), classes, masks


class PlantedNetwork(nn.Module):
    """Three convolutions, and a linear layer on the maxima of their features in nine cells."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 5, padding=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, padding=2, stride=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.pool = nn.MaxPool2d(4)
        self.last = nn.Linear(32, len(CAUSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.pool(self.features(images)).mean(dim=(2, 3)))


def trained_network(seed: int, n_steps: int) -> nn.Module:
    """Trained on new images in every step of 64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = PlantedNetwork()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, n_steps)
    images, classes, _ = make_images(6000, seed=1000 + seed)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        rows = torch.randint(len(images), (64,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[rows]), classes[rows]).backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)
