"""Benchmark of explanations of texts: prints tables and claims, saves JSON after every model.

    CAPTUM_BOUNDARY_DATA=FOLDER python tests/benchmarks/text.py [--quick] [--models transformer]

Classifiers of film reviews (see text_data.py) are trained, and every method explains the predicted classes of the first
test sentences in the layer of the embeddings; attributions are summed over each token's embedding. Columns:

* comprehensiveness (higher is better) and sufficiency (lower is better), as in ERASER
  (https://arxiv.org/abs/1911.03429): what is lost of the class's probability without the most important tokens, and
  with them alone. Tokens are taken out of sight of the model, as padding is.
* gradients, forwards, seconds: evaluations of what follows the embeddings, and time, for a sentence.

"Presence" rows search the boundary among texts whose words are partly taken away: in place of the embeddings, one
number between 0 and 1 for each token is moved, by which its embedding is multiplied (that of padding is zero).

Means come with 95 % bootstrap intervals over sentences, and so do paired differences to integrated gradients from the
embeddings of padding. ``--quick`` takes 40 sentences. The transformer needs the package transformers.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import zoo
from captum.attr import GradientShap, LayerGradientXActivation, LayerIntegratedGradients
from counting import CountedModel, Counter
from explanations import summary
from intervals import paired_difference
from report import Claim, print_claims, print_table, save
from text_data import PADDING, Reviews, load_reviews
from text_models import MODELS, accuracy, trained
from torch import Tensor, nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryIntegratedGradients,
    BoundarySaliency,
    LayerBoundaryAttribution,
    ModelFromLayer,
    NearestBoundary,
)
from captum_boundary.metrics import comprehensiveness, sufficiency

REFERENCE = "IG, padding"
COLUMNS = ("comprehensiveness", "sufficiency")
AT_ONCE = 50

Explain = Callable[["Texts", Tensor], Tensor]


class Texts(nn.Module):
    """A classifier whose evaluations are counted, and its embeddings."""

    def __init__(self, model: nn.Module, counter: Counter) -> None:
        super().__init__()
        self.counted = CountedModel(model, counter)
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.counted(ids, mask)

    def of_ids(self, ids: Tensor) -> Tensor:
        return self.model(ids, ids != PADDING)


def methods() -> dict[str, Explain]:
    return {
        REFERENCE: _integrated_gradients,
        "InputXGradient": _input_times_gradient,
        "GradientShap": _gradient_shap,
        "BIG": partial(_boundary, LayerIntegratedGradients),
        "boundary InputXGradient": partial(_boundary, LayerGradientXActivation),
        "mean of 5 normals x way": _normals,
        "BIG, presence": partial(_presence, BoundaryIntegratedGradients),
        "BSM, presence": partial(_presence, BoundarySaliency),
        "random": lambda model, ids: torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)),
    }


def _integrated_gradients(model: Texts, ids: Tensor) -> Tensor:
    method = LayerIntegratedGradients(model, model.model.embedding)
    return method.attribute(ids, torch.full_like(ids, PADDING), **_question(model, ids)).sum(dim=-1)


def _input_times_gradient(model: Texts, ids: Tensor) -> Tensor:
    return LayerGradientXActivation(model, model.model.embedding).attribute(ids, **_question(model, ids)).sum(dim=-1)


def _gradient_shap(model: Texts, ids: Tensor) -> Tensor:
    """In the model from the embeddings on: Captum's LayerGradientShap would draw points between token ids."""
    torch.manual_seed(0)
    from_layer = ModelFromLayer(model, model.model.embedding)
    activations, arguments = from_layer.at(ids, ids != PADDING)
    padding = model.model.embedding(torch.full_like(ids[:1], PADDING))
    target = _question(model, ids)["target"]
    return GradientShap(from_layer).attribute(activations, padding, 50, 0.0, target, arguments).sum(dim=-1)


def _boundary(method: Any, model: Texts, ids: Tensor) -> Tensor:
    explainer = LayerBoundaryAttribution(model, model.model.embedding, method)
    return explainer.attribute(ids, mask=(ids != PADDING)[..., None], **_question(model, ids)).sum(dim=-1)


def _normals(model: Texts, ids: Tensor) -> Tensor:
    from_layer = ModelFromLayer(model, model.model.embedding)
    activations, arguments = from_layer.at(ids, ids != PADDING)
    explainer = AggregatedBoundaryNormals(from_layer, multiply_by_inputs=True)
    mask = (ids != PADDING)[..., None]
    return explainer.attribute(activations, None, arguments, n_boundaries=5, sampling="random", mask=mask).sum(dim=-1)


def _presence(method: Any, model: Texts, ids: Tensor) -> Tensor:
    """From the boundary among texts whose words are partly taken away: each token's embedding times one number."""
    from_layer = ModelFromLayer(model, model.model.embedding)
    embeddings, arguments = from_layer.at(ids, ids != PADDING)

    def of_presence(presence: Tensor, embeddings: Tensor, *arguments: Any) -> Tensor:
        return from_layer(presence[..., None] * embeddings, *arguments)

    explainer = method(of_presence, NearestBoundary(of_presence, bounds=(0, 1)))
    mask = ids != PADDING
    return explainer.attribute(mask.float(), None, (embeddings, *arguments), mask=mask)


def _question(model: Texts, ids: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return {"target": model.of_ids(ids).argmax(dim=1), "additional_forward_args": ids != PADDING}


def explain_all(explain: Explain, classifier: nn.Module, ids: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Attributions of tokens, and what they cost for a sentence."""
    counter = Counter()
    model = Texts(classifier, counter).eval()
    begin = time.perf_counter()
    maps = torch.cat([explain(model, part) for part in ids.split(AT_ONCE)]).detach()
    seconds = time.perf_counter() - begin
    costs = {"gradients": counter.gradients, "forwards": counter.forwards, "seconds": seconds}
    return maps, {name: value / len(ids) for name, value in costs.items()}


def run(name: str, reviews: Reviews, n_sentences: int) -> dict[str, Any]:
    begin = time.perf_counter()
    model = trained(name, len(reviews.words), *reviews.train)
    result: dict[str, Any] = {
        "accuracy": accuracy(model, *reviews.test),
        "seconds of training": time.perf_counter() - begin,
        "sentences": n_sentences,
        "per image": {},
    }
    ids = reviews.test[0][:n_sentences]
    for label, explain in methods().items():
        maps, costs = explain_all(explain, model, ids)
        measures = {
            measure.__name__: measure(
                Texts(model, Counter()).of_ids, ids, maps, replacement=PADDING, mask=ids != PADDING
            )
            for measure in (comprehensiveness, sufficiency)
        }
        result["per image"][label] = {
            **{column: values.tolist() for column, values in measures.items()},
            **{column: [cost] for column, cost in costs.items()},
        }
    result |= summary_of(result["per image"])
    result["per sentence"] = result.pop("per image")
    return result


def summary_of(rows: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Means, differences to the reference, and what is claimed of them."""
    result = summary(rows)
    result["differences"] = {
        label: {column: asdict(paired_difference(values[column], rows[REFERENCE][column])) for column in COLUMNS}
        for label, values in rows.items()
        if label != REFERENCE
    }
    claims = []
    for label in ("BIG", "BIG, presence"):
        n_explained = result["means"][label][COLUMNS[0]]["n"]
        n_sentences = len(rows[label][COLUMNS[0]])
        claims.append(Claim(f"{label}: a boundary for each of {n_sentences}", n_explained, n_explained == n_sentences))
        gain = paired_difference(rows[label][COLUMNS[0]], rows["random"][COLUMNS[0]])
        claims.append(Claim(f"comprehensiveness: {label} less random, whole interval above 0", gain.low, gain.low > 0))
    return result | {"claims": claims}


def show(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}: accuracy {result['accuracy']:.3f}, trained in {result['seconds of training']:.0f} s\n")
    for kind in ("means", "differences"):
        print_table(
            {label: {column: shown(cell) for column, cell in row.items()} for label, row in result[kind].items()}
        )
        print()
    print_claims(result["claims"])


def shown(cell: dict[str, float]) -> str:
    return f"{cell['mean']:.3g}" + ("" if cell["n"] < 2 else f" [{cell['low']:.3f}, {cell['high']:.3f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="separated by semicolons (default: all that can be built)")
    parser.add_argument("--n-sentences", type=int, help="(default: 200, 40 if quick)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON")
    parser.add_argument("--quick", action="store_true", help="few sentences")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = [name for name in MODELS if name != "transformer" or importlib.util.find_spec("transformers")]
    names = options.models.split(";") if options.models else known
    if unknown := set(names) - set(known):
        sys.exit(f"--models takes {'; '.join(known)}, but not {'; '.join(unknown)}")
    if "transformer" not in known:
        print("Without the transformer, which needs: pip install captum-boundary[text]")
    path = options.output / ("text-quick.json" if options.quick else "text.json")
    try:
        reviews = load_reviews()
    except zoo.DataNotSetError as error:
        sys.exit(str(error))
    for name in names:
        result = run(name, reviews, options.n_sentences or (40 if options.quick else 200))
        show(name, result)
        save(name, result, path)
    print(f"\nSaved {path}")


if __name__ == "__main__":
    main()
