"""The command: what it explains, what it says, and what it returns."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import contents, image_model
from torchvision.models import squeezenet1_0
from tqdm.auto import tqdm

from captum_boundary.__main__ import main
from captum_boundary.datasets import load_explanations
from captum_boundary.datasets._models import METHODS
from captum_boundary.datasets._sources import ImageFiles

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
    assert re.search(
        r"20 have a boundary point, half of them within l2 distance 0\.\d+ in units of the in", printed.out
    )
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
    assert "No such file or directory" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("cat\ndog\nhen\n")
    assert explain(*words, "--budget", 5, "--class-names", tmp_path / "names.txt") == 0
    printed = capsys.readouterr().out
    assert "5 of 6 examples are explained." in printed
    assert "1 of 6 examples have an error in their row, the first of them example 5: UnidentifiedImageError" in printed
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
    assert explain(*words, "--bounds", -5, 5, "--seed", 2**70, "--workers", 1, "--device", "") == 0
    manifest = load_explanations(tmp_path).manifest
    assert manifest["explainer"]["search"]["bounds"] == [-5, 5]
    assert manifest["explainer"]["search"]["norm"] == "inf"
    settings = manifest["settings"]
    assert (settings["target"], settings["seed"], settings["dtype"]) == ("label", 2**70, "torch.float16")
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
    for words in (
        "code of yours, which is imported and run",
        "Explain every example of a data set",
        "examples:",
        "torchrun",
        "exit codes:",
        "go on where the run",
    ):
        assert words in text
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m captum_boundary explain --help" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--data": "nowhere/at/all"}, "--data must be a folder of images, an .npz file or package.module:function"),
        ({"--data": "nowhere.npz"}, "nowhere.npz cannot be read as arrays: [Errno 2] No such file"),
        (
            {"--data": "no_such_module:data"},
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            {"--data": "torch:initial_seed"},
            "with __getitem__ and __len__, so that every example keeps its place when a run goes on, but it is a int",
        ),
        ({"--model": "resnet18"}, "must be torchvision:NAME or package.module:function"),
        ({"--model": "small_data:Rows"}, "must return a torch.nn.Module, but it returned a Rows"),
        ({"--model": "torchvision:resnet18"}, "needs --weights"),
        ({"--model": "torchvision:nonsense", "--weights": __file__}, "torchvision cannot build torchvision:nonsense"),
        ({"--weights": "nowhere.pt"}, "nowhere.pt cannot be read as weights: [Errno 2] No such file"),
        ({"--weights": __file__}, "cannot be read as weights"),
        ({"--method": "gradcam"}, "--method must be one of big, bsm"),
        ({"--device": "abacus"}, "--device must be cpu, cuda or cuda:N"),
        ({"--device": "meta"}, "cuda:N, but meta cannot be used"),
        ({"--model": "broken_code:model"}, "--model broken_code:model failed in"),
        ({"--model": "broken_code:model"}, "line 3: ZeroDivisionError"),
        ({"--model": "broken_code:nothing"}, "cannot be imported"),
        (
            {"--model": "broken_code:lazy"},
            "--model broken_code:lazy cannot be used on cpu: ValueError: Attempted to use",
        ),
        (
            {"--model": "torchvision:resnet18", "--weights": "IMAGENET"},
            "or one of IMAGENET1K_V1, DEFAULT, but it is IMAGENET",
        ),
        ({"--workers": "-1"}, "num_workers must be an integer of at least 0, but it is -1"),
        ({"--size": "8", "--layout": "nchw"}, "--layout and --size would change nothing about --data small_data:Rows"),
        ({"--num-classes": "5"}, "--num-classes is for models of torchvision"),
        ({"--shard": "2/2"}, "shard must be (i, n) with i from 0 to n - 1"),
        ({"--target": "7"}, "target must be between 0 and 2, but it is 7"),
    ],
)
def test_mistakes_are_explained(tmp_path, capsys, monkeypatch, changes, words):
    (tmp_path / "broken_code.py").write_text(
        "import torch\ndef model():\n    return 1 / 0\ndef lazy():\n    return torch.nn.LazyLinear(3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_code", raising=False)
    arguments = {"--model": "small_data:small_model", "--data": "small_data:Rows", "--out": tmp_path / "out", **changes}
    assert explain(*(word for pair in arguments.items() for word in pair)) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("--budget", "0"),
        ("--shard", "2"),
        ("--target", "hen"),
        ("--norm", "3"),
        ("--bounds", "1"),
        ("--normalize", "a", "b"),
    ],
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


def test_distances_in_standard_deviations(tmp_path, images, capsys):
    """With one standard deviation for all channels, they are those in pixels divided by it."""
    words = ["--model", "small_data:image_model", "--data", images, "--size", 8, "--no-labels", "--budget", 30]
    words += ["--normalize", "0.5", "0.25", "--batch-size", 4]
    medians = []
    for name, units in (("pixels", "pixels of [0, 1]"), ("std", "standard deviations")):
        assert explain(*words, "--distances-in", name, "--out", tmp_path / name) == 0
        assert units in capsys.readouterr().out
        explanations = load_explanations(tmp_path / name)
        assert units in (tmp_path / name / "gallery" / "index.html").read_text()
        medians.append(np.nanmedian(explanations.table(["distance"]).to_pandas()["distance"]))
    assert medians[1] == pytest.approx(medians[0] / 0.25, rel=0.01)
    pictures = [sorted((tmp_path / name).rglob("*.webp")) for name in ("pixels", "std")]
    for first, second in zip(*pictures, strict=True):
        left, right = (np.asarray(Image.open(path)).astype(int)[:, :8] for path in (first, second))
        assert np.abs(left - right).max() <= 1
    assert explain(*words[:6], "--out", tmp_path / "no", "--distances-in", "std") == 1
    assert "needs --normalize" in capsys.readouterr().err


MEMORY = """
import resource, sys
from captum_boundary.__main__ import main
import captum_boundary.datasets._command
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = main(sys.argv[1:])
print(code, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.parametrize(("method", "steps"), [("ig", 8), pytest.param("big", 50, marks=pytest.mark.exhaustive)])
def test_eight_large_images_need_little_memory(tmp_path, method, steps):
    """Without an option for it: 8 path points of 8 images at once take 3 GB, and 50 of them 19 GB."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.fromarray(random.integers(0, 256, (230, 230, 3), dtype=np.uint8)).save(
            tmp_path / "images" / f"{number}.png"
        )
    torch.manual_seed(0)
    torch.save(squeezenet1_0().state_dict(), tmp_path / "weights.pt")
    words = ["--model", "torchvision:squeezenet1_0", "--weights", tmp_path / "weights.pt", "--size", 224]
    words += ["--method", method, "--steps", steps, "--budget", 2]
    words += ["--normalize", "0.485,0.456,0.406", "0.229,0.224,0.225"]
    words += ["--data", tmp_path / "images", "--out", tmp_path / "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MEMORY, "explain", *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    code, gibibytes = done.stdout.splitlines()[-1].split()
    assert code == "0", done.stderr
    assert float(gibibytes) < 1.4  # 1.5 GB
    explanations = load_explanations(tmp_path / "out")
    assert explanations.store.batch_size < 8  # a killed run loses no more


def test_the_size_of_groups_of_path_points_changes_nothing(tmp_path, images):
    words = ["--model", "small_data:image_model", "--data", images, "--size", 8, "--no-labels", "--budget", 5]
    for method in ("big", "ig"):
        maps = []
        for size in ([], ["--internal-batch-size", 6], ["--internal-batch-size", 1]):
            out = tmp_path / f"{method} {len(maps)}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Captum's, of a size below the number of examples
                assert explain(*words, *size, "--method", method, "--out", out, "--no-gallery") == 0
            maps.append(torch.stack([each.attributions for each in load_explanations(out) if each.error is None]))
        for other in maps[1:]:
            torch.testing.assert_close(other, maps[0], rtol=1e-4, atol=1e-6)


def test_merging(tmp_path, capsys):
    words = [*OWN, "--batch-size", 5]
    for index in range(2):
        assert explain(*words, "--shard", f"{index}/2", "--out", tmp_path / str(index)) == 0
    capsys.readouterr()
    parts = [str(tmp_path / str(index)) for index in range(2)]
    assert main(["merge", parts[0], "--out", str(tmp_path / "out")]) == 0
    assert "Other shards are missing" in capsys.readouterr().out
    assert main(["merge", *parts, "--out", str(tmp_path / "out")]) == 0
    assert "20 of 20 examples are explained." in capsys.readouterr().out
    assert explain(*words, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "gallery" / "index.html").exists()
    assert main(["merge", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 1
    assert "There is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "closed", [">&- 2>&-", *(pytest.param(one, marks=pytest.mark.exhaustive) for one in (">&-", "2>&-"))]
)
def test_closed_streams_stop_nothing(tmp_path, closed):
    words = " ".join(map(str, [*OWN, "--out", tmp_path, "--steps", 2]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])}
    shell = f"{sys.executable} -m captum_boundary explain {words} {closed}"
    done = subprocess.run(shell, shell=True, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load_explanations(tmp_path).is_complete
    assert "Traceback" not in done.stderr


def test_the_report_survives_a_terminal_of_ascii(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "damaged.py").write_text(
        "import small_data\nclass Rows(small_data.Rows):\n    def __getitem__(self, index):\n"
        "        if index != 3: return super().__getitem__(index)\n        raise OSError('caf\\u00e9 \\udce9')\n"
    )
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    words = ["--model", "small_data:small_model", "--data", "damaged:Rows", "--limit", 5, "--budget", 5]
    assert explain(*words, "--out", tmp_path / "out") == 0
    terminal.flush()
    assert b"OSError: caf\\xe9 \\udce9" in terminal.buffer.getvalue()


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


def test_normalization_is_the_models_first_layer(tmp_path, images, monkeypatch):
    mean, std = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]]).view(2, 3, 1, 1)
    words = ["--model", "small_data:image_model", "--data", images, "--out", tmp_path / "out", "--size", 8]
    words += ["--no-labels", "--method", "saliency", "--normalize", "0.1,0.2,0.3", "0.5,0.6,0.7"]
    assert explain(*words, "--no-gallery") == 0
    data = ImageFiles(images, size=8)
    image = data[2][0][None].requires_grad_()
    scores = image_model()((image - mean) / std)
    expected = torch.autograd.grad(scores.max(), image)[0][0]
    torch.testing.assert_close(load_explanations(tmp_path / "out")[2].attributions, expected)


def test_a_bar_moves_within_a_batch(tmp_path, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr("captum_boundary.search.boundary_search.tqdm", partial(tqdm, mininterval=0))
    assert explain(*OWN, "--out", tmp_path, "--batch-size", "20", "--no-gallery") == 0
    before, _, _ = shown.getvalue().partition("20/20")
    assert len(set(re.findall(r"boundary: +(\d+)%", before))) >= 4
