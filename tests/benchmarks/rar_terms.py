"""What holds attributions still beyond the paper, at equal training time: a table over seeds, and the frontier.

    python tests/benchmarks/rar_terms.py --dataset mnist [--seconds 60] [--seeds 0 1 2] [--setting all]

Every setting trains the small network of ``rar.py`` for the same time, so that a cheap one takes more steps, under the
same schedule: epsilon grows over the first half of the time, and the learning rate falls after two thirds. Time is the
processor's, of all threads together. The terms see ReLUs as softplus. Columns are those of ``rar.py``: NA, AA, IN, CO.
Below the table come differences to adversarial training, paired by seed, with 95 % t-intervals.

A network that was tested is not trained again; one that was interrupted is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rar_checkpoint import Checkpoint, CheckpointError, plain
from rar_data import Data, DataNotReachableError, load
from rar_evaluation import evaluate
from rar_settings import PAPER_NAMES, Evaluation, Training, evaluation, training
from rar_training import Run
from report import Claim, print_claims, print_table, save
from scipy.stats import t as student
from tqdm.auto import tqdm

from captum_boundary.robust import AttributionCosine, InputAlignment, StabilityTerm, TopKMargin

REFERENCE = "adversarial"
COLUMNS = ("NA %", "AA %", "IN %", "CO")
EXTRA = ("IN % random", "CO random", "seconds / step", "steps")
# The share of the data set's epsilon, and what is added to adversarial training.
SETTINGS: Mapping[str, tuple[float, tuple[StabilityTerm, ...]]] = {
    REFERENCE: (1.0, ()),
    "cosine": (1.0, (AttributionCosine(3.0, n_steps=1),)),
    "cosine, smaller epsilon": (0.7, (AttributionCosine(3.0, n_steps=1),)),
    "top-k margin": (1.0, (TopKMargin(0.1, k=100),)),
    "alignment": (1.0, (InputAlignment(0.5),)),
    "adversarial, smaller epsilon": (0.7, ()),
    "adversarial, larger epsilon": (1.4, ()),
}


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = options.output / options.dataset
    tests = replace(evaluation(options.dataset, "cpu", options.quick), pgd_images=500, attack_steps=20, n_steps=8)
    try:
        data = load(options.dataset, options.data)
        found = {
            name: [finish(name, seed, data, tests, folder, options) for seed in options.seeds]
            for name in options.setting
        }
    except (CheckpointError, DataNotReachableError) as error:
        sys.exit(str(error))
    rows = {
        name: {column: mean(row[column] for row in seeds) for column in (*COLUMNS, *EXTRA)}
        for name, seeds in found.items()
    }
    print_table(rows)
    differences = {}
    if REFERENCE in found and len(options.seeds) > 1:
        differences = {name: compare(seeds, found[REFERENCE]) for name, seeds in found.items() if name != REFERENCE}
        print(f"\nDifferences to {REFERENCE}, by seed, with 95 % t-intervals\n")
        print_table({name: {c: text(*values) for c, values in row.items()} for name, row in differences.items()})
    expected = claims(differences)
    print_claims(expected)
    result = {"data": data.source, "seeds": found, "rows": rows, "differences": differences, "claims": expected}
    save("rar_terms", result, folder / "table.json")
    draw(found, folder / "frontier.png")
    print(f"\nSaved {folder / 'table.json'} and {folder / 'frontier.png'}")


def finish(
    name: str, seed: int, data: Data, tests: Evaluation, folder: Path, options: argparse.Namespace
) -> dict[str, float]:
    """A row of the table, trained and tested unless it was before."""
    settings = settings_of(name, options.dataset, seed, options.quick)
    everything = {**asdict(settings), "evaluation": asdict(tests), "seconds": options.seconds}
    done = Checkpoint(folder / f"{plain(name)}-{seed}.pt", {name: str(value) for name, value in everything.items()})
    row = done.load()
    if row is None:
        run = Run(settings, data, torch.device("cpu"))
        n_steps = train(run, options.seconds, f"{name}, seed {seed}")
        row = {**evaluate(run, data, tests)["row"], "steps": n_steps}
        done.save(row)
    return row


def settings_of(name: str, dataset: str, seed: int, quick: bool) -> Training:
    share, terms = SETTINGS[name]
    settings = training(dataset, "madry", "cpu", seed, quick)
    loss = {**settings.loss, "terms": terms}
    loss |= {option: share * loss[option] for option in ("epsilon", "attack_step_size")}
    if terms:
        loss["smooth"] = "softplus"
    return replace(settings, loss=loss)


def train(run: Run, seconds: float, title: str) -> int:
    """Train until the time is over, and return the number of steps."""
    n_steps = 0
    with tqdm(total=round(seconds), desc=title, unit="s") as bar:
        while run.seconds < seconds:
            run.n_done = int(run.settings.n_steps * run.seconds / seconds)  # where the schedule stands
            run.step()
            n_steps += 1
            bar.update(round(run.seconds) - bar.n)
    run.network.eval()
    run.n_done = n_steps
    return n_steps


def compare(rows: list[dict[str, float]], reference: list[dict[str, float]]) -> dict[str, tuple[float, float, float]]:
    """Mean differences and the ends of their 95 % t-intervals, paired by seed."""
    found = {}
    for column in COLUMNS:
        values = [row[column] - other[column] for row, other in zip(rows, reference, strict=True)]
        half = student.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
        found[column] = (mean(values), mean(values) - half, mean(values) + half)
    return found


def claims(differences: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> list[Claim]:
    """Which settings keep the accuracy of adversarial training with attributions that are significantly more stable."""
    found = []
    for name, row in differences.items():
        if SETTINGS[name][1]:
            worst = min(row["IN %"][1] / 100, row["CO"][1])
            is_ahead = row["NA %"][0] >= -0.5 and worst > 0
            found.append(Claim(f"{name}: NA kept, IN and CO above {REFERENCE}; lowest end", worst, is_ahead))
    return found


def text(value: float, low: float, high: float) -> str:
    return f"{value:+.3g} ({low:.3g} to {high:.3g})"


def draw(found: Mapping[str, list[dict[str, float]]], path: Path) -> None:
    """Stability over accuracy: a small dot for every seed, a large one for the mean."""
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    measures = {"IN %": "share of the top kept, in %", "CO": "Kendall's tau"}
    for panel, (column, label) in zip(figure.subplots(1, 2), measures.items(), strict=True):
        for number, (name, rows) in enumerate(found.items()):
            across, up = [row["NA %"] for row in rows], [row[column] for row in rows]
            panel.plot(across, up, ".", color=f"C{number}", alpha=0.5)
            panel.plot(mean(across), mean(up), "o", color=f"C{number}", label=name)
        panel.set(xlabel="accuracy in %", ylabel=label)
        panel.grid(alpha=0.3)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("--dataset", choices=list(PAPER_NAMES), required=True)
    parser.add_argument("--setting", nargs="+", choices=[*SETTINGS, "all"], default=["all"], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, for each (default: %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="few images")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=here / "results" / "rar_terms", help="folder for all results")
    parser.add_argument("--data", type=Path, default=here / "results" / "downloads", help="folder for downloads")
    options = parser.parse_args()
    if "all" in options.setting:
        options.setting = list(SETTINGS)
    return options


if __name__ == "__main__":
    main()
