"""The command: what it explains, what it says, and what it returns."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import contents, image_model, small_model

from captum_boundary.__main__ import main
from captum_boundary.datasets import load_explanations
from captum_boundary.datasets._command.models import METHODS, Normalized, build_explainer, load_model
from captum_boundary.datasets._command.sources import ImageFiles, NpzArrays

SUPPORT = Path(__file__).parents[1] / "support"
OWN = ["--model", "small_data:small_model", "--data", "small_data:Rows", "--budget", "5", "--limit", "20"]


def explain(*words: object) -> int:
    return main(["explain", *map(str, words)])


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with two classes of images, one of which is no image, and one file that is none of our business."""
    random = np.random.default_rng(0)
    for name, count in (("cat", 3), ("dog", 2)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (12 + number, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    (tmp_path / "images" / "dog" / "9.png").write_bytes(b"this is no picture")
    (tmp_path / "images" / "dog" / "notes.txt").write_text("mine")
    return tmp_path / "images"


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.save(image_model().state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_a_model_and_data_of_ones_own(tmp_path, capsys):
    assert explain(*OWN, "--out", tmp_path / "out", "--steps", 5, "--batch-size", 8) == 0
    printed = capsys.readouterr()
    assert "20 of 20 examples are explained." in printed.out
    assert re.search(r"20 have a boundary point, half of them within 0\.\d+\.", printed.out)
    assert str(tmp_path / "out" / "gallery" / "index.html") in printed.out
    assert "20/20" in printed.err
    explanations = load_explanations(tmp_path / "out")
    assert explanations.manifest["settings"]["options"] == {"n_steps": 5}
    assert explanations.manifest["explainer"]["search"]["budget"] == 5


@pytest.mark.parametrize("method", [*METHODS, "captum.attr:InputXGradient"])
def test_every_method(tmp_path, method):
    assert explain(*OWN, "--out", tmp_path, "--method", method, "--no-gallery") == 0
    assert load_explanations(tmp_path)[3].attributions.abs().max() > 0
    assert not (tmp_path / "gallery").exists()


def test_a_folder_of_images(tmp_path, images, capsys):
    words = ["--model", "small_data:image_model", "--data", images, "--out", tmp_path / "out", "--size", 8]
    assert explain(*words, "--class-names", tmp_path / "names.txt") == 1
    assert "names.txt cannot be read" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("cat\ndog\nhen\n")
    assert explain(*words, "--budget", 5, "--class-names", tmp_path / "names.txt") == 0
    printed = capsys.readouterr().out
    assert "5 of 6 examples are explained." in printed
    assert "1 have an error in their row, the first of them example 5: UnidentifiedImageError" in printed
    explanations = load_explanations(tmp_path / "out")
    assert explanations.table().column("label").to_pylist()[:5] == [0, 0, 0, 1, 1]
    assert explanations.class_names == ["cat", "dog", "hen"]
    assert explanations[3].attributions.shape == (3, 8, 8)


def test_a_folder_with_other_classes_than_the_models(tmp_path, images, capsys):
    words = ["--model", "small_data:image_model", "--data", images, "--out", tmp_path / "out", "--size", 8]
    assert explain(*words) == 1
    assert "The data set has 2 classes, but the model has 3" in capsys.readouterr().err
    assert explain(*words, "--no-labels", "--budget", 5) == 0
    assert load_explanations(tmp_path / "out").table().column("label").null_count == 6


def test_all_options_of_a_run(tmp_path):
    words = [*OWN, "--out", tmp_path, "--dtype", "float16", "--save-points", "--target", "label", "--norm", "inf"]
    assert explain(*words, "--bounds", -5, 5, "--seed", 3, "--workers", 1, "--device", "cpu") == 0
    manifest = load_explanations(tmp_path).manifest
    assert manifest["explainer"]["search"]["bounds"] == [-5, 5]
    assert manifest["explainer"]["search"]["norm"] == "inf"
    settings = manifest["settings"]
    assert (settings["target"], settings["seed"], settings["dtype"]) == ("label", 3, "torch.float16")
    assert load_explanations(tmp_path)[2].points.shape == (4,)


def test_resuming_and_refusing_to(tmp_path, capsys):
    words = [*OWN, "--out", tmp_path, "--no-gallery"]
    assert explain(*words, "--no-resume") == 0
    before = contents(tmp_path)
    assert explain(*words, "--resume") == 0
    assert contents(tmp_path) == before
    capsys.readouterr()
    assert explain(*words, "--no-resume") == 1
    assert "error: " in (printed := capsys.readouterr().err)
    assert "holds explanations already" in printed
    assert explain(*words, "--budget", 6) == 1
    assert "explainer.search.budget: 5 in" in capsys.readouterr().err


def test_shards(tmp_path, capsys):
    words = [*OWN, "--out", tmp_path, "--batch-size", 5]
    assert explain(*words, "--shard", "0/2") == 0
    assert "10 of 20 examples are explained." in (printed := capsys.readouterr().out)
    assert "Other shards are missing." in printed
    assert explain(*words, "--shard", "1/2") == 0
    assert "20 of 20 examples are explained." in capsys.readouterr().out


def test_exit_codes(tmp_path, capsys, monkeypatch):
    bad = ["--model", "small_data:small_model", "--data", "broken:Rows", "--out", tmp_path / "bad"]
    (tmp_path / "broken.py").write_text(
        "import small_data\nclass Rows(small_data.Rows):\n    def __init__(self): super().__init__(3, (0, 1, 2))\n"
        "class Stopped(small_data.Rows):\n    def __getitem__(self, index): raise KeyboardInterrupt\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert explain(*bad) == 3
    assert "0 of 3 examples are explained." in capsys.readouterr().out
    assert explain(*bad[:3], "broken:Rows", "--out", tmp_path / "strict", "--strict") == 1
    assert "Example 0 could not be read" in capsys.readouterr().err
    assert explain(*bad[:3], "broken:Stopped", "--out", tmp_path / "stopped") == 130
    assert "the same command goes on" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        explain("--model", "x:y")
    assert usage.value.code == 2


def test_help_is_for_newcomers(capsys):
    with pytest.raises(SystemExit) as done:
        explain("--help")
    assert done.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("Explain every example of a data set", "examples:", "torchrun", "exit codes:", "go on where the run"):
        assert words in text
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m captum_boundary explain --help" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--data": "nowhere/at/all"}, "There is no folder nowhere/at/all"),
        ({"--data": "nowhere.npz"}, "There is no file nowhere.npz"),
        ({"--data": "no_such_module:data"}, "cannot be imported: No module named 'no_such_module'"),
        ({"--data": "torch:initial_seed"}, "must return a Dataset with a length, but it returned a int"),
        ({"--model": "resnet18"}, "must be torchvision:NAME or package.module:function"),
        ({"--model": "small_data:Rows"}, "must return a torch.nn.Module, but it returned a Rows"),
        ({"--model": "torchvision:resnet18"}, "needs --weights FILE"),
        ({"--model": "torchvision:nonsense", "--weights": __file__}, "torchvision cannot build torchvision:nonsense"),
        ({"--weights": "nowhere.pt"}, "There is no file nowhere.pt of weights"),
        ({"--weights": __file__}, "cannot be read as weights"),
        ({"--method": "gradcam"}, "--method must be one of big, bsm"),
        ({"--device": "abacus"}, "--device must be cpu, cuda or cuda:N"),
        ({"--target": "7"}, "target must be between 0 and 2, but it is 7"),
    ],
)
def test_mistakes_are_explained(tmp_path, capsys, changes, words):
    arguments = {"--model": "small_data:small_model", "--data": "small_data:Rows", "--out": tmp_path / "out", **changes}
    assert explain(*(word for pair in arguments.items() for word in pair)) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [("--budget", "0"), ("--shard", "2/2"), ("--norm", "3"), ("--bounds", "1"), ("--normalize", "a", "b")]
)
def test_usage_errors(tmp_path, words):
    with pytest.raises(SystemExit) as caught:
        explain(*OWN, "--out", tmp_path, *words)
    assert caught.value.code == 2


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert explain(*OWN, "--out", tmp_path / "file" / "out") == 1
    assert "error: " in capsys.readouterr().err


def test_weights_of_another_model(tmp_path, weights, capsys):
    assert explain(*OWN, "--out", tmp_path / "out", "--weights", weights) == 1
    printed = capsys.readouterr().err
    assert "are not those of this model" in printed
    assert "--num-classes" in printed


def test_checkpoints_hold_weights_in_several_ways(tmp_path):
    wanted = small_model(seed=1)
    for wrap in (dict, lambda state: {"state_dict": state}, lambda state: {"module." + k: v for k, v in state.items()}):
        torch.save(wrap(wanted.state_dict()), tmp_path / "weights.pt")
        model = load_model("small_data:small_model", tmp_path / "weights.pt", None, None, torch.device("cpu"))
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wanted.parameters(), strict=True))


def test_normalisation_is_the_models_first_layer():
    images = torch.rand(2, 3, 8, 8)
    model = image_model()
    normalized = Normalized(model, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    mean, std = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]]).view(2, 3, 1, 1)
    assert torch.equal(normalized(images), model((images - mean) / std))
    assert build_explainer("big", normalized, (0, 1), 10, 2).search.budget == 10


def test_images_of_a_folder_are_cropped_and_scaled(images):
    data = ImageFiles(images, size=8)
    assert len(data) == 6
    assert data.classes == ["cat", "dog"]
    image, label = data[4]
    assert image.shape == (3, 8, 8)
    assert label == 1
    assert image.min() >= 0
    assert image.max() <= 1
    grey, _ = ImageFiles(images / "cat", grey=True)[1]
    assert grey.shape == (1, 13, 10)
    whole, label = ImageFiles(images, labels=False)[0]
    assert label is None
    pixels = np.asarray(Image.open(images / "cat" / "0.png"))
    assert torch.equal(whole, torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255)


def test_arrays_of_a_file(tmp_path):
    path = tmp_path / "data.npz"
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(path, images=pixels, labels=[0, 1], class_names=["cat", "dog"])
    data = NpzArrays(path)
    assert (data.classes, data.bounds) == (["cat", "dog"], (0.0, 1.0))
    image, label = data[1]
    assert torch.equal(image, torch.from_numpy(pixels[1]).permute(2, 0, 1) / 255)
    assert label == 1
    np.savez(path, inputs=np.ones((2, 5)))
    assert NpzArrays(path)[0][0].tolist() == [1.0] * 5
    assert not hasattr(NpzArrays(path), "bounds")
    for arrays, words in (({"pixels": pixels}, "it holds pixels"), ({"images": pixels, "labels": [1]}, "but 1 labels")):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=words):
            NpzArrays(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be read as arrays"):
        NpzArrays(path)


@pytest.mark.exhaustive  # what is under the command runs under torchrun in test_resume.py
def test_torchrun_writes_what_one_process_does(tmp_path):
    words = ["-m", "captum_boundary", "explain", *OWN, "--batch-size", "4"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])}
    command = [sys.executable, *launcher, *words, "--out", str(tmp_path / "two" / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("20 of 20 examples are explained.") == 1
    assert explain(*OWN, "--batch-size", 4, "--out", tmp_path / "one" / "out") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
