"""What can be said on the command line, and what is said of it."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from captum_boundary.datasets._command.models import METHODS

__all__ = ["parser"]

_DESCRIPTION = """\
Explain every example of a data set with a model, and write the results to a folder: attributions, a table of
distances to the decision boundary, and a gallery to look at. If it is stopped, the same command goes on."""

_EPILOG = """\
examples:
  a folder with a subfolder of images for each class, and a network of torchvision:
    python -m captum_boundary explain --model torchvision:squeezenet1_0 --weights squeezenet.pt \\
        --normalize 0.485,0.456,0.406 0.229,0.224,0.225 --data photographs --size 224 --out explained

  a model and data of your own, from functions without arguments in mine.py, the first 100 examples:
    python -m captum_boundary explain --model mine:model --data mine:test_set --bounds 0 1 --limit 100 --out explained

  on eight GPUs:
    torchrun --nproc-per-node 8 -m captum_boundary explain --model ... --data ... --out explained

exit codes:
  0  done; examples that could not be explained are rows with their errors, and are counted
  1  stopped by an error, which is printed; what is done is kept
  2  the command line is wrong
  3  done, but not one example could be explained
  130  interrupted; the same command goes on"""


def parser() -> argparse.ArgumentParser:
    """The parser of ``python -m captum_boundary explain``."""
    parser = argparse.ArgumentParser(
        prog="python -m captum_boundary explain",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to explain")
    what.add_argument(
        "--model", required=True, help="torchvision:NAME, or package.module:function that returns a model"
    )
    what.add_argument("--weights", type=Path, metavar="FILE", help="state dict of the model, as torch.save writes it")
    what.add_argument("--num-classes", type=positive, metavar="N", help="classes of a torchvision model, if not 1000")
    what.add_argument(
        "--normalize",
        nargs=2,
        type=numbers,
        metavar=("MEAN", "STD"),
        help="what the model wants subtracted from its inputs and divided by, per channel: 0.5 0.25, or 0.4,0.5,0.6 "
        "0.2,0.2,0.2",
    )
    what.add_argument(
        "--data",
        required=True,
        help="folder of images (in one subfolder for each class, if there are labels), .npz file with images and "
        "labels, or package.module:function that returns a Dataset",
    )
    what.add_argument("--size", type=positive, metavar="PIXELS", help="scale and crop images of a folder to squares")
    what.add_argument("--grey", action="store_true", help="read images of a folder with one channel")
    what.add_argument("--no-labels", dest="labels", action="store_false", help="labels are not the model's classes")
    what.add_argument("--class-names", type=Path, metavar="FILE", help="text file, the name of one class a line")
    what.add_argument("--limit", type=positive, metavar="N", help="only the first N examples")

    how = parser.add_argument_group("how to explain it")
    how.add_argument(
        "--method",
        default="big",
        help=f"{', '.join(METHODS)}, or package.module:function from a model to a Captum attribution (default: big, "
        "integrated gradients from the boundary)",
    )
    how.add_argument("--target", type=target, default=None, help="predicted, label, or the number of a class")
    how.add_argument("--budget", type=positive, default=40, help="gradients for each boundary point (default: 40)")
    how.add_argument("--norm", type=norm, default=2, help="norm of the distance: 2, inf or 1 (default: 2)")
    how.add_argument(
        "--bounds",
        nargs=2,
        type=float,
        metavar=("LOWER", "UPPER"),
        help="limits of real inputs, before --normalize (default: 0 1 for images, none for others)",
    )
    how.add_argument("--steps", type=positive, metavar="N", help="path points of big and ig (default: 50)")

    where = parser.add_argument_group("where to")
    where.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for what is written")
    where.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on where the run in DIR was stopped (default), or refuse a folder with results",
    )
    where.add_argument("--dtype", choices=("float16", "float32"), default="float32", help="of attributions")
    where.add_argument("--map-size", type=positive, metavar="N", help="store maps of N x N cells, not of all pixels")
    where.add_argument("--save-points", action="store_true", help="store boundary points too")
    where.add_argument("--no-gallery", dest="gallery", action="store_false", help="write no page to look at")

    run = parser.add_argument_group("on what")
    run.add_argument("--batch-size", type=positive, default=32, metavar="N", help="examples at once (default: 32)")
    run.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read examples (default: 0)")
    run.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU for each process, where there are any)")
    run.add_argument("--shard", type=shard, default=(0, 1), metavar="I/N", help="only the I-th of N parts, from 0")
    run.add_argument("--seed", type=int, default=0, help="seed of all that is random (default: 0)")
    run.add_argument("--strict", action="store_true", help="stop at the first example that cannot be explained")
    return parser


def positive(text: str) -> int:
    """A positive integer."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but it is {number}")
    return number


def numbers(text: str) -> list[float]:
    """Numbers between commas."""
    return [float(part) for part in text.split(",")]


def norm(text: str) -> float:
    """1, 2 or infinity."""
    number = float(text)
    if number not in (1, 2, math.inf):
        raise argparse.ArgumentTypeError(f"must be 2, inf or 1, but it is {text}")
    return number


def target(text: str) -> int | str | None:
    """A class, in words or as a number."""
    if text in ("predicted", "label"):
        return None if text == "predicted" else text
    return int(text)


def shard(text: str) -> tuple[int, int]:
    """Two numbers around a slash."""
    index, count = map(int, text.split("/"))
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"must be I/N with I from 0 to N - 1, but it is {text}")
    return index, count
