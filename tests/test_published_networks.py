"""Networks that others published: their shapes, what is said where they are missing, and their accuracies."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")

NAMES = ("published_networks", "rar_data", "zoo")


def write(benchmark: SimpleNamespace, name: str, folder: Path, wrapped: bool) -> dict[str, torch.Tensor]:
    """A file of the published form, with random weights."""
    published = benchmark.published_networks.PUBLISHED[name]
    file = folder / published.repository.split("/")[1] / published.path
    file.parent.mkdir(parents=True)
    state = published.build().state_dict()
    other = published.build().state_dict()
    torch.save({"state_dict": [state, other], "err": 0.5} if wrapped else state, file)
    return state


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "cifar10"])
def test_every_network_classifies_images_of_its_data(benchmark: SimpleNamespace, dataset: str) -> None:
    shape = (3, 32, 32) if dataset == "cifar10" else (1, 28, 28)
    chosen = [network for network in benchmark.published_networks.PUBLISHED.values() if network.dataset == dataset]
    assert chosen
    for published in chosen:
        network = nn.Sequential(published.normalization(), published.build())
        assert network(torch.rand(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize(("name", "wrapped"), [("CNN-A-Adv", False), ("provable 8/255", True), ("ResNet-4B", False)])
def test_weights_are_those_of_the_file(benchmark: SimpleNamespace, name: str, wrapped: bool, tmp_path: Path) -> None:
    """Of a cascade, those of its first network; images are normalized before they come to it."""
    state = write(benchmark, name, tmp_path, wrapped)
    network = benchmark.published_networks.load_published(name, tmp_path)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    bare = benchmark.published_networks.PUBLISHED[name].build()
    bare.load_state_dict(state)
    layer = network[0]
    images = torch.rand(2, 3, 32, 32)
    standardized = (images - layer.mean) / layer.std
    torch.testing.assert_close(network(images), bare(standardized))
    assert layer.mean.flatten().tolist() == pytest.approx([0.49, 0.48, 0.43], abs=0.03)


def test_a_missing_network_says_how_to_get_it(benchmark: SimpleNamespace, tmp_path: Path) -> None:
    clone = tmp_path / "convex_adversarial"
    command = f"git clone --depth 1 https://github.com/locuslab/convex_adversarial {clone}'"
    with pytest.raises(benchmark.published_networks.NetworkNotFoundError, match=command) as raised:
        benchmark.published_networks.load_published("provable 0.1", tmp_path)
    assert "--networks" in str(raised.value)


def test_a_folder_that_nobody_named_is_an_error(benchmark: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(benchmark.zoo.VARIABLE, raising=False)
    with pytest.raises(benchmark.zoo.DataNotSetError):
        benchmark.published_networks.load_published("provable 0.1")


@pytest.mark.parametrize("name", ["provable 0.1", "fashion, provable 0.1", "ConvSmall", "ResNet-2B", "ResNet-4B"])
def test_accuracy_is_the_stated_one(benchmark: SimpleNamespace, name: str) -> None:
    if not os.environ.get(benchmark.zoo.VARIABLE):
        pytest.skip(f"{benchmark.zoo.VARIABLE} is not set")
    module = benchmark.published_networks
    published = module.PUBLISHED[name]
    try:
        network = module.load_published(name)
    except module.NetworkNotFoundError as error:
        pytest.skip(str(error))
    data = module.images_of(published.dataset)
    measured = module.accuracy(network, benchmark.rar_data.pixels(data.test_images), data.test_labels)
    assert measured == pytest.approx(published.accuracy, abs=3 if published.dataset == "cifar10" else 0.5)
