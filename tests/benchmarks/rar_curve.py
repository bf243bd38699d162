"""Learning curves of Robust Attribution Regularization: the paper's network beside the small one, while time lasts.

    python tests/benchmarks/rar_curve.py --dataset mnist --threads 1 [--minutes 20] [--objective all]

The paper trains for up to 100,000 steps, which needs a GPU. How far does a processor come in the time that there is?
Every objective trains until its schedule ends, or for ``--minutes``: the paper's network, with the attacks and paths of
the small one (``--scale paper_network``), and the small one (``cpu``); ``paper`` has the paper's attacks and paths too.
At regular times the network is tested, which does not count as training: NA on the first test images, AA under PGD on a
fifth of them. Time is the processor's, of all threads together.

A run that was stopped goes on where it was when started again, and one that has come to its end goes on when there are
more minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rar_checkpoint import Checkpoint, CheckpointError
from rar_data import Data, DataNotReachableError, load, pixels
from rar_evaluation import accuracy, pgd
from rar_settings import OBJECTIVES, PAPER_NAMES, Evaluation, evaluation, training
from rar_training import Run
from report import print_table, save
from tqdm.auto import tqdm

TITLES = {"paper_network": "the paper's network", "cpu": "small network", "paper": "as in the paper"}  # by scale
COLUMNS = ("step", "seconds", "NA %", "AA %")
Curve = list[dict[str, float]]


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = options.output / f"{options.dataset}{'-quick' * options.quick}"
    try:
        data = load(options.dataset, options.data)
        curves = {
            f"{objective}, {scale}": learn(objective, scale, data, folder, options)
            for scale in options.scale
            for objective in options.objective
        }
    except (CheckpointError, DataNotReachableError) as error:
        sys.exit(str(error))
    ends = {name: curve[-1] for name, curve in curves.items()}
    print_table({name: {**end, "seconds / step": end["seconds"] / end["step"]} for name, end in ends.items()})
    save("rar_curve", {"data": data.source, "curves": curves, "claims": []}, folder / "curves.json")
    draw(curves, options.scale, folder / "curves.png")
    print(f"\nSaved {folder / 'curves.json'} and {folder / 'curves.png'}")


def learn(objective: str, scale: str, data: Data, folder: Path, options: argparse.Namespace) -> Curve:
    """Train for the minutes that are left, and test at regular times."""
    is_path = objective in ("ig_norm", "ig_sum_norm")
    beta = options.softplus_beta if is_path else None
    settings = training(options.dataset, objective, scale, options.seed, options.quick, softplus_beta=beta)
    tests = evaluation(options.dataset, "cpu", options.quick)
    run = Run(settings, data, torch.device("cpu"))
    checkpoint = Checkpoint(folder / f"{objective}-{scale}.pt", {**asdict(settings), "tested": options.images})
    state = checkpoint.load()
    curve: Curve = []
    if state is not None:
        curve = state["curve"]
        run.load_state_dict(state["run"])
    end = 60 * options.minutes
    every = end / options.points
    with tqdm(total=round(end), initial=round(run.seconds), desc=f"{objective}, {scale}", unit="s") as bar:
        while run.seconds < end and run.n_done < settings.n_steps:
            run.step()
            bar.update(round(run.seconds) - bar.n)
            is_over = run.seconds >= end or run.n_done == settings.n_steps
            if is_over or run.seconds >= (curve[-1]["seconds"] if curve else 0) + every:
                curve.append(point(run, data, tests, options.images))
                checkpoint.save({"run": run.state_dict(), "curve": curve})
    return curve


def point(run: Run, data: Data, tests: Evaluation, n_images: int) -> dict[str, float]:
    """Accuracies in % at the present step, on the first test images and, under PGD, on a fifth of them."""
    network = run.network.eval()
    images, labels = pixels(data.test_images[:n_images]), data.test_labels[:n_images]
    n_attacked = max(1, n_images // 5)
    moved = pgd(network, images[:n_attacked], labels[:n_attacked], tests, torch.Generator().manual_seed(0))
    values = (run.n_done, run.seconds, accuracy(network, images, labels), accuracy(network, moved, labels[:n_attacked]))
    network.train()
    return dict(zip(COLUMNS, map(float, values), strict=True))


def draw(curves: Mapping[str, Curve], scales: list[str], path: Path) -> None:
    """Accuracies over minutes, a panel for each scale."""
    figure = Figure(figsize=(5 * len(scales), 3.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(scales), squeeze=False, sharey=True)[0]
    for panel, scale in zip(panels, scales, strict=True):
        for number, objective in enumerate(OBJECTIVES):
            curve = curves.get(f"{objective}, {scale}", [])
            minutes = [at["seconds"] / 60 for at in curve]
            for column, style in (("NA %", ":"), ("AA %", "-")):
                label = objective if column == "AA %" and curve else None
                panel.plot(minutes, [at[column] for at in curve], style, color=f"C{number}", label=label)
        panel.set(title=TITLES[scale], xlabel="minutes of training", ylim=(0, 101))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy in %\n(dotted: without attack)")
    panels[-1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("--dataset", choices=list(PAPER_NAMES), required=True)
    parser.add_argument("--scale", nargs="+", choices=list(TITLES), default=["paper_network", "cpu"])
    parser.add_argument("--objective", nargs="+", choices=[*OBJECTIVES, "all"], default=["all"])
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="of training, at most, for each (default: %(default)s)"
    )
    parser.add_argument("--points", type=int, default=12, help="of a curve (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1000, help="to test on (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few images to train with")
    parser.add_argument(
        "--softplus-beta",
        type=float,
        default=100.0,
        help="IG objectives see ReLUs as softplus of this sharpness (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--output", type=Path, default=here / "results" / "rar_curve", help="folder for all results")
    parser.add_argument("--data", type=Path, default=here / "results" / "downloads", help="folder for downloads")
    options = parser.parse_args()
    if "all" in options.objective:
        options.objective = list(OBJECTIVES)
    return options


if __name__ == "__main__":
    main()
