"""Calls of everything that the package offers, each for any device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib as mpl
import torch
from captum.attr import (
    DeepLift,
    FeatureAblation,
    GuidedBackprop,
    InputXGradient,
    LayerDeepLift,
    LayerGradCam,
    LayerIntegratedGradients,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from matplotlib.figure import Figure
from torch import Tensor, nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    AttributionAttack,
    BoundaryAttribution,
    BoundaryDistance,
    BoundaryEnergy,
    BoundaryGradCam,
    BoundaryIntegratedGradients,
    BoundaryPoints,
    BoundarySaliency,
    LayerBoundaryAttribution,
    ModelFromLayer,
    NearestBoundary,
    PGDBoundary,
    RARLoss,
    SmoothedModel,
    bounds_of,
    certified_radius,
    evaluate_attribution_robustness,
    largest_stdev,
    metrics,
    paper_settings,
    visualization,
)
from captum_boundary.attr import BoundaryNoiseTunnel, separate_activations
from captum_boundary.layers import nearest_tokens
from captum_boundary.robust import AttributionCosine, InputAlignment, TopKMargin
from captum_boundary.search import CategoricalBoundary, ClosestBoundary, FoolboxBoundary

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # foolbox imports a deprecated name of scipy
    from foolbox.attacks import DDNAttack, LinfPGD

__all__ = ["CALLS"]

NUMBERS = torch.Generator().manual_seed(0)
IMAGES = torch.rand(4, 1, 6, 6, generator=NUMBERS)
MAPS, OTHER_MAPS = torch.randn(2, 4, 1, 6, 6, generator=NUMBERS)
MASKS = torch.zeros(4, 6, 6)
MASKS[:, 1:4, 2:5] = 1
BOXES = torch.tensor([[2.0, 1.0, 5.0, 4.0]]).repeat(4, 1)
TARGET = torch.tensor([0, 1, 2, 1])
SCALE = torch.tensor([1.0, 1.5, 2.0, 1.0])
BOUNDS = (0.0, 1.0)


def seeded(build: Callable[[], nn.Module], device: str) -> nn.Module:
    """A model with weights that neither take nor set the random state of any device."""
    with torch.random.fork_rng(devices=[]):
        model = build()
    numbers = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=numbers)
    return model.eval().to(device)


def classifier(device: str) -> nn.Module:
    """Three classes of images ``(N, 1, 6, 6)``."""

    def build() -> nn.Module:
        layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 8), nn.ReLU()
        return nn.Sequential(*layers, nn.Linear(8, 3))

    return seeded(build, device)


class TwoInputs(nn.Module):
    """Images, two features, and an argument with an entry for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.images, self.features, self.last = nn.Linear(36, 8), nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, images: Tensor, features: Tensor, scale: Tensor) -> Tensor:
        hidden = self.images(images.flatten(1)) + self.features(features)
        return self.last(torch.tanh(hidden)) * scale[:, None]


def one_output(images: Tensor) -> Tensor:
    return 8 * (images.flatten(1).mean(dim=1) - 0.5)


def steps(images: Tensor) -> Tensor:
    """Scores without a slope."""
    return images.flatten(1)[:, :3].round()


def nearby(model: nn.Module, images: Tensor) -> BoundaryPoints:
    return NearestBoundary(model, budget=10, norm=math.inf).find(images)


# By the public name, and what is special about the call.
CALLS: dict[tuple[str, str], Callable[[str], Any]] = {}


def case(name: str, call: Callable[..., Any], note: str = "", **options: Any) -> None:
    """Add a call of the public ``name``."""
    if (name, note) in CALLS:
        raise ValueError(f"There are two calls of {name} with the note {note!r}.")
    CALLS[name, note] = partial(call, **options)


def searched(device: str, search: Callable[..., Any], target: Any = None, **options: Any) -> BoundaryPoints:
    return search(classifier(device), **options).find(IMAGES.to(device), target)


def searched_function(device: str, function: Callable[[Tensor], Tensor]) -> BoundaryPoints:
    return NearestBoundary(function, bounds=BOUNDS, norm=math.inf, budget=2).find(IMAGES[:2].to(device))


def searched_tuple(device: str) -> BoundaryPoints:
    inputs = IMAGES.to(device), torch.full((4, 2), 0.5, device=device)
    search = NearestBoundary(seeded(TwoInputs, device), bounds=(BOUNDS, None), norm=math.inf)
    return search.find(inputs, additional_forward_args=SCALE.to(device))


def searched_doubles(device: str) -> Tensor:
    return NearestBoundary(classifier(device).double(), norm=math.inf).perturb(IMAGES.to(device).double())


def searched_twice(device: str) -> BoundaryPoints:
    model = classifier(device)
    searches = NearestBoundary(model, norm=math.inf, budget=5), PGDBoundary(model, norm=math.inf, attack_steps=5)
    return ClosestBoundary(searches).find(IMAGES.to(device))


nearest = partial(NearestBoundary, budget=10)
case("NearestBoundary", searched, search=nearest)
case("NearestBoundary", searched, "l2 in bounds", search=nearest, bounds=BOUNDS)
case("NearestBoundary", searched, "linf", search=nearest, norm=math.inf)
case("NearestBoundary", searched, "l1", search=nearest, norm=1, bounds=BOUNDS)
case("NearestBoundary", searched, "in parts", search=nearest, norm=math.inf, internal_batch_size=3)
case("NearestBoundary", searched, "tensors of bounds", search=nearest, bounds=(torch.zeros(6, 6), torch.ones(6, 6)))
case("NearestBoundary", searched, "not found", search=nearest, norm=math.inf, max_distance=0.01)
case("NearestBoundary", lambda device: searched(device, nearest, generator=torch.Generator()), "generator")
case("NearestBoundary", searched, "one target", search=nearest, norm=math.inf, target=1)
case("NearestBoundary", searched, "targets", search=nearest, norm=math.inf, target=TARGET)
case("NearestBoundary", searched_function, "one output", function=one_output)
case("NearestBoundary", searched_function, "no slope", function=steps)
case("NearestBoundary", searched_tuple, "several inputs")
case("NearestBoundary", searched_doubles, "double precision")
descent = partial(PGDBoundary, epsilons=(0.1, 0.5, 2.0), attack_steps=5)
case("PGDBoundary", searched, search=descent)
case("PGDBoundary", searched, "linf", search=descent, norm=math.inf, bounds=BOUNDS)
case("PGDBoundary", searched, "l1", search=descent, norm=1)
case("ClosestBoundary", searched_twice)
case("FoolboxBoundary", searched, "DDN", search=FoolboxBoundary, attack=DDNAttack(steps=10))
pgd = partial(FoolboxBoundary, attack=LinfPGD(steps=5, random_start=False), epsilons=(0.1, 0.5), norm=math.inf)
case("FoolboxBoundary", searched, "PGD", search=pgd)


TABLE = torch.tensor([[0.5, 1.0, 0.0, 0.0, 1.0], [-0.3, 0.0, 1.0, 0.0, 0.0], [0.1, 0.0, 0.0, 1.0, 1.0]])
CATEGORIES = {"color": [1, 2, 3], "sold": [4]}


def table_model(device: str) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), device)


def searched_table(device: str, **options: Any) -> BoundaryPoints:
    search = NearestBoundary(table_model(device), budget=5, **options)
    return CategoricalBoundary(search, CATEGORIES, n_combinations=2).find(TABLE.to(device))


case("CategoricalBoundary", searched_table, norm=1)
case("CategoricalBoundary", searched_table, "in bounds", bounds=(torch.full((3, 5), -1.0), torch.ones(5)))


def searched_with_mask(device: str) -> BoundaryPoints:
    mask = (MASKS[0, :, :] > 0).to(device)
    return NearestBoundary(classifier(device), norm=math.inf, budget=10).find(IMAGES.to(device), mask=~mask)


case("NearestBoundary", searched_with_mask, "mask")


def distances_of_segments(device: str) -> Any:
    model = classifier(device)
    search = NearestBoundary(model, norm=math.inf, budget=10, internal_batch_size=5)
    images, segments = IMAGES.to(device), MASKS[0].long().to(device)
    return BoundaryDistance(model, search).attribute(images, feature_mask=segments, return_boundary=True)


case("BoundaryDistance", distances_of_segments)


class Texts(nn.Module):
    """Token ids and a mask, with positions that are the same for all."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.last = nn.Embedding(9, 6), nn.Embedding(3, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        embedded = self.tokens(ids) + self.positions(torch.arange(3, device=ids.device))
        return self.last(torch.tanh(embedded * mask[..., None]).mean(dim=1))


def searched_in_a_layer(device: str, at_input: bool) -> Any:
    model, images = classifier(device), IMAGES.to(device)
    from_layer = ModelFromLayer(model, model[4], attribute_to_layer_input=at_input)
    activations, arguments = from_layer.at(images)
    search = NearestBoundary(from_layer, norm=math.inf, budget=10)
    return activations, search.find(activations, additional_forward_args=arguments)


def searched_in_embeddings(device: str) -> Any:
    model, ids = seeded(Texts, device), torch.tensor([[1, 2, 3], [4, 5, 0], [6, 0, 0]], device=device)
    mask = (ids > 0).float()
    from_layer = ModelFromLayer(model, model.tokens)
    activations, arguments = from_layer.at(ids, mask)
    search = NearestBoundary(from_layer, norm=math.inf, budget=10)
    boundary = search.find(activations, additional_forward_args=arguments, mask=mask[..., None])
    return boundary, nearest_tokens(boundary.points, model.tokens.weight, k=2, mask=mask)


case("ModelFromLayer", searched_in_a_layer, "output", at_input=False)
case("ModelFromLayer", searched_in_a_layer, "input", at_input=True)
case("nearest_tokens", searched_in_embeddings)


def explained_in_a_layer(device: str, method: Any) -> Any:
    model = classifier(device)
    explainer = LayerBoundaryAttribution(model, model[0], method, NearestBoundary(model, norm=math.inf, budget=10))
    return explainer.attribute(IMAGES.to(device), return_boundary=True)


for layer_method in (LayerIntegratedGradients, LayerDeepLift, LayerGradCam):
    case("LayerBoundaryAttribution", explained_in_a_layer, layer_method.__name__, method=layer_method)


def explained(device: str, explainer: Callable[..., Any], **options: Any) -> Any:
    model = classifier(device)
    search = NearestBoundary(model, norm=math.inf, budget=10)
    return explainer(model, search=search).attribute(IMAGES.to(device), return_boundary=True, **options)


def separated(device: str) -> Tensor:
    relu = nn.ReLU(inplace=True)
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 8), relu, nn.Linear(8, 8), relu), device)
    return separate_activations(model, IMAGES.to(device))(IMAGES.to(device)).detach()


case("BoundarySaliency", explained, explainer=BoundarySaliency)
case("BoundaryIntegratedGradients", explained, explainer=BoundaryIntegratedGradients, return_convergence_delta=True)
margin = partial(BoundaryAttribution, score="margin")
case("BoundaryAttribution", explained, "margin", explainer=margin)
for method in (DeepLift, FeatureAblation, InputXGradient, GuidedBackprop):
    case("BoundaryAttribution", explained, method.__name__, explainer=partial(BoundaryAttribution, method=method))
occlusion = partial(BoundaryAttribution, method=Occlusion)
case("BoundaryAttribution", explained, "Occlusion", explainer=occlusion, sliding_window_shapes=(1, 3, 3))
smooth = partial(BoundaryAttribution, method=lambda forward_func: NoiseTunnel(Saliency(forward_func)))
case("BoundaryAttribution", explained, "NoiseTunnel", explainer=smooth, nt_samples=2, stdevs=0.0)
normals = AggregatedBoundaryNormals
case("AggregatedBoundaryNormals", explained, "classes", explainer=normals, n_boundaries=2)
case("AggregatedBoundaryNormals", explained, "random", explainer=normals, n_boundaries=2, sampling="random")
times_inputs = partial(normals, multiply_by_inputs=True)
case("AggregatedBoundaryNormals", explained, "times inputs", explainer=times_inputs, weighting="inverse")


def normals_of_given(device: str) -> Any:
    model, images = classifier(device), IMAGES.to(device)
    explainer = AggregatedBoundaryNormals(model, NearestBoundary(model, norm=math.inf, budget=10))
    _, boundary = explainer.attribute(images, n_boundaries=2, return_boundary=True)
    return explainer.attribute(images, weighting="uniform", boundary=boundary, return_boundary=True)


case("AggregatedBoundaryNormals", normals_of_given, "given")
case("separate_activations", separated)


def smoothed(device: str, **options: Any) -> SmoothedModel:
    return SmoothedModel(classifier(device), 0.1, n_samples=4, **options)


def scored(device: str, **options: Any) -> Any:
    images = IMAGES.to(device).requires_grad_()
    scores = smoothed(device, **options)(images)
    return scores.detach(), torch.autograd.grad(scores[:, 0].sum(), images)[0]


def certified(device: str, **options: Any) -> Any:
    return certified_radius(smoothed(device), IMAGES.to(device), n_samples=50, **options)


def searched_smoothed(device: str) -> BoundaryPoints:
    return NearestBoundary(smoothed(device), budget=5, norm=math.inf).find(IMAGES.to(device))


def energetic(device: str, **options: Any) -> Tensor:
    return BoundaryEnergy(classifier(device), 0.1).attribute(IMAGES.to(device), n_samples=4, **options)


def evidence(device: str) -> Tensor:
    model = classifier(device)
    return BoundaryGradCam(model, model[0], 0.1).attribute(IMAGES.to(device), n_samples=4)


def noiseless(device: str) -> Any:
    """Without noise, which Captum draws on the device."""
    model = classifier(device)
    tunnel = BoundaryNoiseTunnel(BoundarySaliency(model, NearestBoundary(model, budget=5)))
    return tunnel.attribute(IMAGES.to(device), nt_samples=2, stdevs=0.0, return_n_found=True)


case("BoundaryGradCam", evidence)
case("BoundaryNoiseTunnel", noiseless)
case("bounds_of", lambda device: bounds_of(torch.ones(3, device=device), torch.full((3,), 0.5, device=device)))
case("BoundaryEnergy", energetic)
case("BoundaryEnergy", energetic, "common", energy="common")
case("BoundaryEnergy", energetic, "averaged", width=1.0)
case("SmoothedModel", scored)
case("SmoothedModel", scored, "probabilities", average="probabilities")
case("SmoothedModel", scored, "in parts", internal_batch_size=3)
case("SmoothedModel", lambda device: scored(device, generator=torch.Generator()), "generator")
case("SmoothedModel", searched_smoothed, "searched")
case("largest_stdev", lambda device: largest_stdev(classifier(device), IMAGES.to(device)))
case("certified_radius", certified)
case("certified_radius", certified, "probabilities", decision="probabilities")


def trained(device: str, size: Any = "ig_norm", with_layer: bool = False, **options: Any) -> Any:
    model = classifier(device)
    options = {"epsilon": 0.1, "n_steps": 4, "attack_steps": 2, "layer": model[0] if with_layer else None, **options}
    rar = RARLoss(model, size, **options)
    loss = rar(IMAGES.to(device), TARGET.to(device))
    loss.backward()
    return loss.detach(), rar.parts, [parameter.grad for parameter in model.parameters()]


def attacked(device: str, **options: Any) -> Tensor:
    attack = AttributionAttack(classifier(device), epsilon=0.05, n_steps=4, attack_steps=4, **options)
    return attack.perturb(IMAGES.to(device))


def evaluated(
    device: str,
    evaluate: Callable[..., Any] = evaluate_attribution_robustness,
    method: Callable[..., Any] | None = None,
) -> Any:
    model = classifier(device)
    attack = AttributionAttack(model, epsilon=0.05, n_steps=4, attack_steps=4)
    explainer = None if method is None else method(model)
    return evaluate(model, IMAGES.to(device), None, attack, attribution=explainer)


def quick_saliency(model: nn.Module) -> BoundarySaliency:
    return BoundarySaliency(model, NearestBoundary(model, budget=5))


for size in ("ig_norm", "ig_sum_norm", "sum", "norm_power"):
    case("RARLoss", trained, size, size=size, bounds=BOUNDS)
case("RARLoss", trained, "function", size=lambda attributions: attributions.flatten(1).square().sum(dim=1))
case("RARLoss", lambda device: trained(device, norm=2, generator=torch.Generator()), "l2")
case("RARLoss", trained, "penalty", penalty=1.0)
case("RARLoss", trained, "layer", with_layer=True)
case("RARLoss", trained, "smooth", smooth="softplus")
case("RARLoss", trained, "in parts", internal_batch_size=3)
for term in (AttributionCosine(2.0), TopKMargin(0.3), InputAlignment(0.5, contrast=True)):
    case(type(term).__name__, trained, size="sum", smooth="softplus", terms=[term])
case("RARLoss", trained, "of the paper", **{**paper_settings("flower"), "attack_steps": 2})
case("AttributionAttack", attacked, "topk", bounds=BOUNDS)
case("AttributionAttack", attacked, "mass_center", method="mass_center")
case("AttributionAttack", attacked, "target", method="target", target_map=MASKS[0])
case("AttributionAttack", lambda device: attacked(device, method="random", generator=torch.Generator()), "random")
case("AttributionAttack", attacked, "gradient", attribution="gradient", measure="topk")
case("evaluate_attribution_robustness", evaluated)
case("evaluate_attribution_robustness", evaluated, "of BSM", method=quick_saliency)


def measured(device: str, measure: Callable[..., Any], *arguments: Any) -> Any:
    return measure(*(each.to(device) if isinstance(each, Tensor) else each for each in arguments))


def exchanged(device: str, measure: Callable[..., Any], **options: Any) -> Any:
    images, maps = IMAGES.to(device), MAPS.to(device)
    return measure(classifier(device), images, maps, return_curves=True, n_steps=6, **options)


def aligned(device: str, measure: Callable[..., Any], **options: Any) -> Any:
    model, images = classifier(device), IMAGES.to(device)
    return measure(model, images, nearby(model, images), **options)


def case_of_measure(name: str, *arguments: Any) -> None:
    case(f"metrics.{name}", lambda device: measured(device, getattr(metrics, name), *arguments))


for name in ("localization", "energy_game", "positive_percentage", "concentration"):
    case_of_measure(name, MAPS, MASKS)
for name in ("kendall_tau", "spearman_rho", "center_shift", "cosine_similarity", "attribution_gap"):
    case_of_measure(name, MAPS, OTHER_MAPS)
case_of_measure("topk_intersection", MAPS, OTHER_MAPS, 5)
case("metrics.localization", lambda device: measured(device, metrics.localization, MAPS, BOXES), "in boxes")
for measure in (metrics.deletion, metrics.insertion):
    case(f"metrics.{measure.__name__}", exchanged, measure=measure)
    case(f"metrics.{measure.__name__}", exchanged, "in parts", measure=measure, baselines=0.5, perturbations_per_eval=4)


def erased(device: str, measure: Callable[..., Any]) -> Tensor:
    model, ids = seeded(Texts, device), torch.tensor([[1, 2, 3], [4, 5, 0], [6, 0, 0]], device=device)
    maps = torch.arange(9.0, device=device).view(3, 3)
    return measure(lambda ids: model(ids, (ids > 0).float()), ids, maps, mask=ids > 0)


for measure in (metrics.comprehensiveness, metrics.sufficiency):
    case(f"metrics.{measure.__name__}", erased, measure=measure)
case("metrics.normal_alignment", lambda device: aligned(device, metrics.normal_alignment))
case("metrics.first_order_optimality", aligned, measure=metrics.first_order_optimality, norm=math.inf)
case("metrics.evaluate_attribution_robustness", evaluated, evaluate=metrics.evaluate_attribution_robustness)


def picture_of(figure: Figure) -> Any:
    """Images, lines and words."""
    artists = [artist for axis in figure.axes for artist in axis.get_children()]
    images = [artist.get_array().filled() for artist in artists if isinstance(artist, mpl.image.AxesImage)]
    lines = [artist.get_xydata() for artist in artists if isinstance(artist, mpl.lines.Line2D)]
    return images, lines, [text.get_text() for text in figure.findobj(mpl.text.Text)]


def shown(device: str, show: Callable[..., Any], **options: Any) -> Any:
    model, images = classifier(device), IMAGES.to(device)
    return picture_of(show(model, images, nearby(model, images), **options))


def compare(model: nn.Module, images: Tensor, boundary: BoundaryPoints) -> Figure:
    return visualization.compare_attributions(images, {"maps": MAPS.to(images)}, boundary=boundary)[0]


def overlaid(model: nn.Module, images: Tensor, boundary: BoundaryPoints) -> Figure:
    return visualization.show_attribution(images, MAPS.to(images))[0]


def show_point(model: nn.Module, images: Tensor, boundary: BoundaryPoints) -> Figure:
    return visualization.show_boundary_point(images, boundary)[0]


def plot_slice(model: nn.Module, images: Tensor, boundary: BoundaryPoints, **options: Any) -> Figure:
    return visualization.plot_boundary_slice(model, images, boundary, resolution=10, **options)[0]


def plot_robustness(model: nn.Module, images: Tensor, boundary: BoundaryPoints) -> Figure:
    return visualization.show_stability(images, evaluated(str(images.device)))[0]


def compare_models(model: nn.Module, images: Tensor, boundary: BoundaryPoints) -> Figure:
    maps = {"one": {"maps": MAPS.to(images)}, "other": {"maps": OTHER_MAPS.to(images)}}
    return visualization.compare_attributions(images, maps, boundary={"one": boundary, "other": boundary})[0]


def described_table(device: str, tell: Callable[..., Any]) -> Any:
    table = TABLE.to(device)
    boundary = NearestBoundary(table_model(device), budget=5).find(table)
    told = tell(table, boundary, categories=CATEGORIES)
    return told if isinstance(told, list) else picture_of(told[0])


case("visualization.compare_attributions", shown, show=compare)
case("visualization.show_attribution", shown, show=overlaid)
case("visualization.compare_attributions", shown, "models", show=compare_models)
for tell in (visualization.describe_feature_changes, visualization.plot_feature_changes):
    case(f"visualization.{tell.__name__}", described_table, tell=tell)
case("visualization.show_boundary_point", shown, show=show_point)
case("visualization.plot_boundary_slice", shown, show=plot_slice)
case("visualization.plot_boundary_slice", shown, "direction", show=plot_slice, direction=MAPS[0])
case("visualization.show_stability", shown, show=plot_robustness)
