"""The demonstration as a command."""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration, and return the exit status."""
    options = _parser().parse_args(arguments)
    if importlib.util.find_spec("sklearn") is None:
        print('The demonstration needs scikit-learn: pip install "captum-boundary[demo]"', file=sys.stderr)
        return 1

    from captum_boundary._demo import digits, explanation, page, picture

    training, test = digits.load(options.seed)
    model = digits.train(training, options.epochs, options.seed)
    accuracy = digits.accuracy(model, test)
    explained = explanation.explain(model, digits.choose(test, options.examples), options.budget)
    rows = explained.rows()

    print(f"\nRight on {accuracy:.1%} of {len(test.images)} digits that it was not trained on.\n")
    _print_table([explanation.HEADINGS, *rows])
    sentences = explained.sentences()
    print(f"\nIn words, of example 0: {sentences[0]}")

    buffer = io.BytesIO()
    picture.draw(explained).savefig(buffer, format="png")
    folder = options.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "digits.png").write_bytes(buffer.getvalue())
    (folder / "index.html").write_text(page.page(buffer.getvalue(), rows, sentences, accuracy), encoding="utf-8")
    print(f"\nThe picture: {folder / 'digits.png'}\nThe page:    {folder / 'index.html'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m captum_boundary",
        description="Train a small network on handwritten digits and explain it from its decision boundary.",
        epilog="For a model and a data set of your own: python -m captum_boundary explain --help",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("captum_boundary_demo"), help="folder for what is written")
    parser.add_argument("--examples", type=_positive, default=6, help="digits to explain")
    parser.add_argument("--epochs", type=_positive, default=30, help="epochs of training")
    parser.add_argument("--budget", type=_positive, default=40, help="gradients for each boundary point")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of the training")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but it is {number}")
    return number


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
