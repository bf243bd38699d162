"""Data that a command line names: folders of images as people see them, and arrays of a file."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from PIL import Image
from small_data import image_model

from captum_boundary.__main__ import main
from captum_boundary.datasets import FolderError, explain_dataset, load_explanations
from captum_boundary.datasets._sources import ImageFiles, NpzArrays, pixels_of
from captum_boundary.errors import BoundaryValueError

RANDOM = np.random.default_rng(0)


def save(path: Path, height: int = 10, width: int = 12, **options: object) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255


def names(data: ImageFiles) -> list[str]:
    return [os.path.relpath(path, data.root) for path, _ in data.samples]


def test_folders_are_classes_and_images_are_scaled_and_cropped(tmp_path):
    for name, count in (("cat", 3), ("dog", 2)):
        for number in range(count):
            save(tmp_path / name / f"{number}.png", height=12 + number)
    data = ImageFiles(tmp_path, size=8)
    assert (len(data), data.classes) == (5, ["cat", "dog"])
    image, label = data[4]
    assert (image.shape, label) == ((3, 8, 8), 1)
    assert image.min() >= 0
    assert image.max() <= 1
    gray, _ = ImageFiles(tmp_path / "cat", gray=True)[1]
    assert gray.shape == (1, 13, 12)
    whole, label = ImageFiles(tmp_path, labels=False)[0]
    assert label is None
    assert torch.equal(whole, as_tensor(np.asarray(Image.open(tmp_path / "cat" / "0.png"))))


def test_what_is_no_image_of_a_class_is_left_out(tmp_path):
    for name in ("a/1.png", "a/deep/2.PNG", "b/x.jpg/3.png", ".ipynb_checkpoints/4.png", "a/.ipynb_checkpoints/5.png"):
        save(tmp_path / name)
    (tmp_path / "a" / "._1.png").write_bytes(b"what another system leaves behind")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    data = ImageFiles(tmp_path)
    assert data.classes == ["a", "b"]
    assert names(data) == ["a/1.png", "a/deep/2.PNG", "b/x.jpg/3.png"]
    assert len(ImageFiles(tmp_path, labels=False)) == 3


def test_loose_images_beside_classes_are_refused(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "loose.png")
    with pytest.raises(BoundaryValueError, match=r"1 images beside its 1 folders of classes, such as loose\.png"):
        ImageFiles(tmp_path)
    assert names(ImageFiles(tmp_path, labels=False)) == ["loose.png", "a/1.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(BoundaryValueError, match="There are no images in"):
        ImageFiles(tmp_path / "empty")


def test_links_to_images_and_classes_are_followed_and_never_in_circles(tmp_path):
    save(tmp_path / "elsewhere" / "1.png")
    save(tmp_path / "data" / "a" / "2.png")
    save(tmp_path / "data" / "b" / "3.png")
    (tmp_path / "data" / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "linked.png").symlink_to(tmp_path / "data" / "b" / "3.png")
    (tmp_path / "data" / "a" / "circle").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "b" / "self").symlink_to(tmp_path / "data" / "b")
    (tmp_path / "data" / "b" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "data" / "c").symlink_to(tmp_path / "elsewhere")
    data = ImageFiles(tmp_path / "data")
    assert names(data) == ["a/2.png", "a/linked.png", "b/3.png", "b/broken.png", "c/1.png"]
    assert data.classes == ["a", "b", "c"]
    assert len(ImageFiles(tmp_path / "data", labels=False)) == 5
    with pytest.raises(FileNotFoundError):
        data[3]


def test_results_among_the_images_leave_themselves_out(tmp_path, capsys):
    for number in range(3):
        save(tmp_path / f"{number}.png", 8, 8)
    words = [
        "explain",
        "--model",
        "small_data:image_model",
        "--data",
        tmp_path,
        "--out",
        tmp_path / "out",
        "--budget",
        "3",
    ]
    for _ in range(2):  # the second time, there is a gallery
        assert main(list(map(str, words))) == 0
        assert "3 of 3 examples are explained" in capsys.readouterr().out
    assert load_explanations(tmp_path / "out").table(["name"]).column("name").to_pylist() == ["0.png", "1.png", "2.png"]


def test_files_that_have_changed_are_all_looked_at(tmp_path, monkeypatch):
    """An image of the same size, and not one of those that are compared in any case."""
    monkeypatch.setattr("random.SystemRandom.choice", lambda _, examples: examples[1])
    images = [RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(9)]
    (tmp_path / "data").mkdir()
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number}.bmp")
    saliency = Saliency(image_model())

    def explain():
        return explain_dataset(saliency, ImageFiles(tmp_path / "data"), tmp_path / "out", batch_size=9)

    explain()
    os.utime(tmp_path / "data" / "4.bmp", (1, 1))
    explain()  # another time, the same content
    Image.fromarray(images[4] // 2).save(tmp_path / "data" / "4.bmp")
    with pytest.raises(FolderError, match="Example 4 is not the one"):
        explain()
    (tmp_path / "data" / "4.bmp").unlink()
    with pytest.raises(FolderError, match=r"data\.files\.count: 9 in"):
        explain()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = save(tmp_path / "1.png", exif=exif)
    turned = [
        pixels,
        pixels[:, ::-1],
        pixels[::-1, ::-1],
        pixels[::-1],
        pixels.transpose(1, 0, 2),
        np.rot90(pixels, -1),
        pixels[::-1, ::-1].transpose(1, 0, 2),
        np.rot90(pixels),
    ]
    assert torch.equal(ImageFiles(tmp_path)[0][0], as_tensor(turned[orientation - 1]))


def read(path: Path, gray: bool = False) -> torch.Tensor:
    with Image.open(path) as file:
        return pixels_of(file, gray)


def test_depths(tmp_path):
    values = np.array([[0, 32768], [65535, 257]], dtype=np.uint16)
    wanted = torch.from_numpy(values.astype(np.float32) / 65535)
    for name in ("gray.png", "gray.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert torch.equal(read(tmp_path / name), wanted.expand(3, -1, -1))
        assert read(tmp_path / name, gray=True).shape == (1, 2, 2)
    for name, array in (("float.tif", np.ones((2, 2), np.float32)), ("long.tif", np.ones((2, 2), np.int32))):
        Image.fromarray(array).save(tmp_path / name)
        with pytest.raises(BoundaryValueError, match="pixels are of 32 bits"):
            read(tmp_path / name)
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert read(tmp_path / "bits.png")[0].tolist() == [[1, 0]]


def test_what_is_transparent_is_white(tmp_path):
    pixels = np.array([[[255, 0, 0, 255], [0, 0, 255, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    wanted = [[1.0, 1.0, 0.8], [0.0, 1.0, 0.8], [0.0, 1.0, 0.8]]
    torch.testing.assert_close(read(tmp_path / "alpha.png")[:, 0], torch.tensor(wanted))
    Image.fromarray(pixels[..., [0, 3]]).save(tmp_path / "gray.png")
    torch.testing.assert_close(read(tmp_path / "gray.png", gray=True)[0, 0], torch.tensor([1.0, 1.0, 0.8]))
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "palette.png")
    assert read(tmp_path / "palette.png")[:, 0].tolist() == [[1, 0], [0, 1], [0, 0]]
    palette.save(tmp_path / "see-through.png", transparency=1)
    assert read(tmp_path / "see-through.png")[:, 0].tolist() == [[1, 1], [0, 1], [0, 1]]


def test_colors_of_print(tmp_path):
    Image.new("CMYK", (2, 1), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    red = read(tmp_path / "red.jpg")[:, 0, 0]
    assert red[0] > 0.9
    assert red[1:].max() < 0.1


def test_animated_files_are_their_first_frame_and_say_so(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    frames[0].save(tmp_path / "1.gif", save_all=True, append_images=frames[1:])
    save(tmp_path / "2.png", 8, 8)
    data = ImageFiles(tmp_path)
    with pytest.warns(UserWarning, match="The first of 3 frames"):
        image, _ = data[0]
    assert image[:, 0, 0].tolist() == [1, 0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explanations = explain_dataset(Saliency(image_model()), data, tmp_path / "out", batch_size=2)
    assert explanations.table(["note"]).column("note").to_pylist() == ["The first of 3 frames.", None]
    assert explanations[0].note == "The first of 3 frames."


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


def test_arrays_of_a_file(tmp_path):
    path = tmp_path / "data.npz"
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    data = NpzArrays(npz(path, images=pixels, labels=[0, 1], class_names=["cat", "dog"]))
    assert (data.classes, data.bounds, data.units) == (["cat", "dog"], (0.0, 1.0), "pixels of [0, 1]")
    image, label = data[1]
    assert torch.equal(image, as_tensor(pixels[1]))
    assert label == 1
    assert NpzArrays(npz(path, inputs=np.ones((2, 5))))[0][0].tolist() == [1.0] * 5
    assert not hasattr(NpzArrays(path), "bounds")
    assert NpzArrays(npz(path, images=pixels[..., 0]))[0][0].shape == (1, 4, 4)


def test_the_layout_of_arrays_is_not_guessed(tmp_path):
    first = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    path = npz(tmp_path / "data.npz", images=first)
    with pytest.raises(BoundaryValueError, match="--layout nchw or --layout nhwc"):
        NpzArrays(path)
    assert torch.equal(NpzArrays(path, layout="nchw")[1][0], torch.from_numpy(first[1]) / 255)
    path = npz(tmp_path / "data.npz", images=first.reshape(2, 5, 4, 3)[:, :3])
    with pytest.raises(BoundaryValueError, match="cannot be told whether"):
        NpzArrays(path)  # channels may be first or last
    assert NpzArrays(path, layout="nhwc")[0][0].shape == (3, 3, 4)
    gray = npz(tmp_path / "data.npz", images=first[:, 0])  # which have no channels to be elsewhere
    assert all(NpzArrays(gray, layout=layout)[1][0].shape == (1, 4, 5) for layout in (None, "nchw", "nhwc"))
    floats = npz(tmp_path / "data.npz", images=first.astype(np.float32))
    assert NpzArrays(floats)[0][0].shape == (3, 4, 5)
    assert NpzArrays(floats, layout="nhwc")[0][0].shape == (5, 3, 4)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pixels": np.ones((2, 3))}, "it holds pixels"),
        ({"images": np.ones((2, 3)), "labels": [1]}, "2 inputs, but labels of shape"),
        ({"images": np.ones((2, 3)), "labels": 1}, r"labels of shape \(\)"),
        ({"images": np.ones((2, 3)), "labels": ["a", "b"]}, "type <U1. It needs one class number"),
        ({"images": np.ones((2, 3)), "labels": [0.5, 1]}, "type float64"),
        ({"images": np.array(1.0)}, r"it holds images of shape \(\)"),
        ({"images": np.array([{}, []], dtype=object)}, "cannot be read as arrays"),
    ],
)
def test_arrays_that_cannot_be_explained(tmp_path, arrays, words):
    with pytest.raises(BoundaryValueError, match=words):
        NpzArrays(npz(tmp_path / "data.npz", **arrays))


def test_files_that_are_no_arrays(tmp_path):
    path = tmp_path / "data.npz"
    for content in (b"no archive", b"", b"PK"):
        path.write_bytes(content)
        with pytest.raises(BoundaryValueError, match="cannot be read as arrays"):
            NpzArrays(path)
    np.save(tmp_path / "data.npy", np.ones(3))
    (tmp_path / "data.npy").replace(path)
    with pytest.raises(BoundaryValueError, match="cannot be read as arrays"):
        NpzArrays(path)
