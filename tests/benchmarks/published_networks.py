"""Robust networks that others trained and published: what they are, how they are loaded, and whether they are intact.

    python tests/benchmarks/published_networks.py [--networks FOLDER]

prints each network's accuracy beside the one that its source states, which a wrong normalization would spoil.

The weights lie in clones of public repositories, each in a folder of its name. That folder is ``robust`` in the one
that the environment variable CAPTUM_BOUNDARY_DATA names, unless ``--networks`` says otherwise::

    cd FOLDER
    git clone --depth 1 https://github.com/Verified-Intelligence/alpha-beta-CROWN
    git clone --depth 1 https://github.com/locuslab/convex_adversarial
    git clone --depth 1 https://github.com/vtjeng/MIPVerify_data

All networks take images in [0, 1] and return logits; the normalization is their first layer. Of a cascade of networks,
the first one is taken alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rar_data import Data, load, pixels
from rar_evaluation import accuracy, pgd
from rar_networks import SmallNet
from rar_settings import Evaluation
from report import print_table
from torch import Tensor, nn
from zoo import Normalization, data_folder, load_images


class NetworkNotFoundError(RuntimeError):
    """A network's weights are not in the folder."""


@dataclass(frozen=True)
class Published:
    """A network and its source; where that does not tell the epsilon of the training, it is that of its tests."""

    dataset: str
    training: str
    epsilon: float | None  # None: not robust
    repository: str
    path: str
    build: Callable[[], nn.Module]
    normalization: Callable[[], nn.Module] = nn.Identity
    accuracy: float | None = None  # in %, as the source states it
    norm: str = "linf"


class ResNet(nn.Module):
    """A small residual network without batch normalization; each stage has two blocks and halves the image."""

    def __init__(self, n_first: int, n_filters: int, n_stages: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, n_first, 3, stride=2, padding=1)
        self.stages = [f"layer{i + 1}" for i in range(n_stages)]
        for i, stage in enumerate(self.stages):
            first = ResidualBlock(n_filters if i else n_first, n_filters, stride=2)
            self.add_module(stage, nn.Sequential(first, ResidualBlock(n_filters, n_filters, stride=1)))
        self.linear1 = nn.Linear(n_filters * (16 // 2**n_stages) ** 2, 100)
        self.linear2 = nn.Linear(100, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.conv1(images))
        for stage in self.stages:
            features = getattr(self, stage)(features)
        return self.linear2(torch.relu(self.linear1(features.flatten(1))))


class ResidualBlock(nn.Module):
    def __init__(self, n_inputs: int, n_outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_inputs, n_outputs, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(n_outputs, n_outputs, 3, padding=1)
        self.shortcut = nn.Sequential(*([nn.Conv2d(n_inputs, n_outputs, 1, stride)] if stride > 1 else []))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(inputs))) + self.shortcut(inputs))


def small(image_shape: tuple[int, int, int]) -> Callable[[], nn.Module]:
    """The network with 16 and 32 filters that the literature on verification trains on MNIST and CIFAR-10."""
    return partial(SmallNet, image_shape, 10, nn.ReLU)


def unpadded(*n_units: int) -> nn.Module:
    """16 and 32 filters without padding, and linear layers."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 4, 2), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten()]
    for n_inputs, n_outputs in zip((32 * 6 * 6, *n_units[:-1]), n_units, strict=True):
        layers += [nn.Linear(n_inputs, n_outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(n_units[-1], 10))


_GRAY, _COLOR = small((1, 28, 28)), small((3, 32, 32))
_CENTERED = (0.4914, 0.4822, 0.4465)
_UNIFORM = partial(Normalization, (0.485, 0.456, 0.406), (0.225, 0.225, 0.225))
_OF_IMAGES = partial(Normalization, _CENTERED, (0.2023, 0.1994, 0.2010))
_OF_PIXELS = partial(Normalization, _CENTERED, (0.2471, 0.2435, 0.2616))
_CROWN, _WONG, _TJENG = "Verified-Intelligence/alpha-beta-CROWN", "locuslab/convex_adversarial", "vtjeng/MIPVerify_data"
_MODELS = "complete_verifier/models"
_MIP = "weights/mnist/WK17a/linf0.1/master_seed_1_epochs_100.pth"

# Where a source states no accuracy, the table has None.
PUBLISHED: Mapping[str, Published] = {
    "provable 0.1": Published("mnist", "provable", 0.1, _WONG, "models/mnist.pth", _GRAY, accuracy=98.2),
    "provable 0.1, seed 1": Published("mnist", "provable", 0.1, _TJENG, _MIP, _GRAY),
    "adversarial 0.3": Published("mnist", "adversarial", 0.3, _CROWN, f"{_MODELS}/sdp/mnist_cnn_a_adv.model", _GRAY),
    "provable 0.3": Published("mnist", "provable", 0.3, _WONG, "models_scaled/mnist_small_0_3.pth", _GRAY),
    "fashion, provable 0.1": Published(
        "fashion_mnist", "provable", 0.1, _WONG, "models/fashion_mnist.pth", _GRAY, accuracy=78.3
    ),
    "CNN-A-Mix": Published(
        "cifar10", "mixed", 2 / 255, _CROWN, f"{_MODELS}/sdp/cifar_cnn_a_mix.model", _COLOR, _OF_PIXELS
    ),
    "CNN-A-Mix-4": Published(
        "cifar10", "mixed", 2 / 255, _CROWN, f"{_MODELS}/sdp/cifar_cnn_a_mix4.model", _COLOR, _OF_PIXELS
    ),
    "CNN-A-Adv": Published(
        "cifar10", "adversarial", 2 / 255, _CROWN, f"{_MODELS}/sdp/cifar_cnn_a_adv.model", _COLOR, _OF_PIXELS
    ),
    "CNN-A-Adv-4": Published(
        "cifar10", "adversarial", 2 / 255, _CROWN, f"{_MODELS}/sdp/cifar_cnn_a_adv4.model", _COLOR, _OF_PIXELS
    ),
    "provable 2/255": Published(
        "cifar10", "provable", 2 / 255, _CROWN, f"{_MODELS}/oval/cifar_wide.pth", _COLOR, _UNIFORM
    ),
    "provable 8/255": Published(
        "cifar10", "provable", 8 / 255, _WONG, "models_scaled/cifar_small_8px.pth", _COLOR, _UNIFORM
    ),
    "provable l2 36/255": Published(
        "cifar10",
        "provable",
        36 / 255,
        _WONG,
        "models_scaled_l2/cifar_small_36px.pth",
        _COLOR,
        _UNIFORM,
        norm="l2",
    ),
    "Marabou": Published(
        "cifar10",
        "natural",
        None,
        _CROWN,
        f"{_MODELS}/marabou_cifar10/cifar_marabou_medium.pth",
        partial(unpadded, 128, 64),
    ),
    "ConvSmall": Published(
        "cifar10",
        "adversarial",
        2 / 255,
        _CROWN,
        f"{_MODELS}/eran/cifar_conv_small_pgd.pth",
        partial(unpadded, 100),
        _OF_IMAGES,
        accuracy=63.0,
    ),
    "ResNet-2B": Published(
        "cifar10",
        "adversarial",
        2 / 255,
        _CROWN,
        f"{_MODELS}/cifar10_resnet/resnet2b.pth",
        partial(ResNet, 8, 16, 1),
        _OF_PIXELS,
        accuracy=69.25,
    ),
    "ResNet-4B": Published(
        "cifar10",
        "adversarial",
        2 / 255,
        _CROWN,
        f"{_MODELS}/cifar10_resnet/resnet4b.pth",
        partial(ResNet, 16, 32, 2),
        _OF_PIXELS,
        accuracy=77.2,
    ),
}


def load_published(name: str, folder: Path | None = None) -> nn.Module:
    """The network ``name`` of :data:`PUBLISHED`, in evaluation mode, from the clones in ``folder``.

    Raises:

        NetworkNotFoundError: If the clone is not there.
        DataNotSetError: Without a folder, if the environment does not say where the data are.
    """
    published = PUBLISHED[name]
    folder = folder or data_folder() / "robust"
    clone = folder / published.repository.split("/")[1]
    file = clone / published.path
    if not file.is_file():
        raise NetworkNotFoundError(
            f"There is no {file} with the weights of {name}. Get it by "
            f"'git clone --depth 1 https://github.com/{published.repository} {clone}', or name the folder of the "
            "clones by --networks."
        )
    network = published.build()
    network.load_state_dict(_weights(torch.load(file, map_location="cpu", weights_only=True)))
    return nn.Sequential(published.normalization(), network).eval().requires_grad_(False)


def _weights(content: Any) -> dict[str, Tensor]:
    """Those of the network itself, or of the first of a cascade."""
    state: Any = content.get("state_dict", content)
    first: dict[str, Tensor] = state[0] if isinstance(state, list) else state
    return first


def images_of(dataset: str) -> Data:
    """Training and test images; of CIFAR-10 the 2,000 and 500 that the data folder has."""
    if dataset != "cifar10":
        return load(dataset, Path(__file__).parent / "results" / "downloads")
    parts = [load_images(name) for name in ("cifar10_train2000", "cifar10_test500")]
    return Data(*(tensor for images, labels in parts for tensor in ((images * 255).round().byte(), labels)), "zoo")


def parser_of(description: str | None, n_images: int, images: str) -> argparse.ArgumentParser:
    """The options of all benchmarks of these networks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=n_images, help=f"{images} (default: %(default)s)")
    parser.add_argument("--networks", type=Path, help="folder of the clones (default: that of published_networks.py)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    output = Path(__file__).parent / "results" / "published"
    parser.add_argument("--output", type=Path, default=output, help="folder for all results")
    return parser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, help="folder of the clones")
    parser.add_argument("--attacked", type=int, default=500, help="test images for PGD (default: %(default)s)")
    options = parser.parse_args()
    rows = {}
    for name, published in PUBLISHED.items():
        network, data = load_published(name, options.networks), images_of(published.dataset)
        images, labels = pixels(data.test_images), data.test_labels
        row: dict[str, Any] = {"data": published.dataset, "training": published.training}
        row |= {"stated %": published.accuracy or "-", "measured %": accuracy(network, images, labels)}
        if published.epsilon and published.norm == "linf":
            attack = Evaluation(published.epsilon, 100, published.epsilon / 10, 1, 1, 1, 0.1)
            first = slice(options.attacked)
            moved = pgd(network, images[first], labels[first], attack, torch.Generator().manual_seed(0))
            row |= {"epsilon": published.epsilon, "under PGD %": accuracy(network, moved, labels[first])}
        rows[name] = row
    print_table(rows)


if __name__ == "__main__":
    main()
