"""A real GPU where there is one, else one that is pretended: PyTorch knows one kind of accelerator at a time."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import pretended_accelerator
import pytest
import torch

HAS_GPU = torch.cuda.is_available()

if pretended_accelerator.IS_POSSIBLE and not HAS_GPU:
    # Now, since PyTorch counts its devices when it runs its first backward pass.
    pretended_accelerator.register()


@pytest.fixture
def pretended() -> str:
    """The pretended accelerator."""
    if HAS_GPU:
        pytest.skip("a real GPU takes the place of the pretended one")
    if not pretended_accelerator.IS_POSSIBLE:
        pytest.skip(f"torch {torch.__version__} knows no devices made in Python, as torch 2.10 does")
    return pretended_accelerator.DEVICE


@pytest.fixture(params=["pretended", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Any accelerator."""
    if request.param == "pretended":
        yield request.getfixturevalue("pretended")
        return
    if not HAS_GPU:
        pytest.skip("there is no GPU")
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield "cuda:0"


@pytest.fixture(autouse=True)
def _no_windows() -> Iterator[None]:
    backend = mpl.get_backend()
    plt.switch_backend("Agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)
