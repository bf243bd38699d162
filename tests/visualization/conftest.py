"""What the tests of pictures share: no window, and no figure left open."""

from __future__ import annotations

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

from captum_boundary import BoundaryPoints


@pytest.fixture(autouse=True)
def no_windows(monkeypatch):
    """Draw without a display; nothing may call ``show`` or change matplotlib's settings."""

    def refuse(*_, **__):
        raise RuntimeError("show was called")

    plt.close("all")  # whatever an example of the documentation has left open in this process
    backend = mpl.get_backend()
    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", refuse)
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before
    plt.close("all")
    plt.switch_backend(backend)


@pytest.fixture
def missing():
    """Boundary points with some rows turned into rows without one."""

    def without(boundary: BoundaryPoints, inputs, rows: list[int]) -> BoundaryPoints:
        parts = {
            name: getattr(boundary, name).clone() for name in ("points", "adversarial", "distance", "margin", "found")
        }
        parts["points"][rows] = inputs[rows]
        parts["adversarial"][rows] = -1
        parts["distance"][rows] = float("inf")
        parts["margin"][rows] = 1.0
        parts["found"][rows] = False
        return BoundaryPoints(
            **parts, target=boundary.target, n_forward=boundary.n_forward, n_gradient=boundary.n_gradient
        )

    return without
