"""What a run writes: the same as a loop over the batches would give, and a row for whatever goes wrong."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from captum.attr import (
    DeepLift,
    FeatureAblation,
    GradientShap,
    IntegratedGradients,
    LayerIntegratedGradients,
    NoiseTunnel,
    Saliency,
)
from small_data import N_CLASSES, Rows, contents, image_model, small_model
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryDistance,
    BoundaryIntegratedGradients,
    BoundarySaliency,
    NearestBoundary,
)
from captum_boundary.datasets import ExampleError, ExampleWarning, FolderError, explain_dataset
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

failing = pytest.mark.filterwarnings("ignore::captum_boundary.datasets.ExampleWarning")


def column(explanations, name):
    return explanations.table([name]).column(name).to_pylist()


def images(n_examples=6):
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(
        torch.rand(n_examples, 3, 8, 8, generator=generator),
        torch.randint(N_CLASSES, (n_examples,), generator=generator),
    )


def test_results_are_those_of_a_loop_over_the_batches(tmp_path):
    model, rows = small_model(), Rows(11)
    big = BoundaryIntegratedGradients(model, NearestBoundary(model, budget=10))
    explanations = explain_dataset(big, rows, tmp_path / "out", batch_size=4, save_points=True, options={"n_steps": 20})
    assert column(explanations, "index") == list(range(11))
    assert column(explanations, "label") == rows.labels.tolist()
    for part in torch.arange(11).split(4):
        inputs = rows.inputs[part]
        scores = model(inputs).detach()
        attributions, delta, boundary = big.attribute(
            inputs, scores.argmax(dim=1), n_steps=20, return_convergence_delta=True, return_boundary=True
        )
        for place, index in enumerate(part.tolist()):
            explanation = explanations[index]
            assert torch.equal(explanation.attributions, attributions[place])
            assert torch.equal(explanation.points, boundary.points[place])
            assert explanation.prediction == explanation.target == scores[place].argmax()
            assert explanation.adversarial == boundary.adversarial[place]
            assert explanation.distance == boundary.distance[place]
            assert explanation.found is True
            assert explanation.evaluations == boundary.n_forward[place] + boundary.n_gradient[place]
            assert explanation.completeness_gap == delta[place]
            best, second = scores[place].topk(2).values
            assert explanation.margin == pytest.approx(float(best - second), rel=1e-6)
            assert explanation.error is None


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (IntegratedGradients, {"n_steps": 5}),
        (Saliency, {"abs": False}),
        (DeepLift, {}),
        (FeatureAblation, {}),
        (GradientShap, {"baselines": torch.zeros(2, 4)}),
        (lambda model: NoiseTunnel(Saliency(model)), {"nt_samples": 3}),
        (BoundaryDistance, {}),
        (lambda model: LayerIntegratedGradients(model, model[0]), {"n_steps": 5}),
    ],
)
def test_methods_that_explain_without_a_boundary_of_each_example(tmp_path, build, options):
    model = small_model()
    explanations = explain_dataset(build(model), Rows(5), tmp_path, batch_size=3, options=options)
    assert column(explanations, "error") == [None] * 5
    for name in ("distance", "adversarial", "found", "evaluations"):
        assert column(explanations, name) == [None] * 5
    assert None not in column(explanations, "margin")
    assert all(explanation.attributions.abs().max() > 0 for explanation in explanations)


def test_saliency_is_captums(tmp_path):
    model, rows = small_model(), Rows(5)
    explanations = explain_dataset(Saliency(model), rows, tmp_path, batch_size=2, target="label")
    expected = Saliency(model).attribute(rows.inputs.clone().requires_grad_(), rows.labels)
    torch.testing.assert_close(torch.stack([each.attributions for each in explanations]), expected.detach())
    assert column(explanations, "target") == rows.labels.tolist()


def test_the_nearest_of_several_boundaries_is_the_rows(tmp_path):
    model, rows = small_model(), Rows(4)
    normals = AggregatedBoundaryNormals(model)
    explanations = explain_dataset(normals, rows, tmp_path, batch_size=4, save_points=True, options={"n_boundaries": 2})
    _, boundaries = normals.attribute(rows.inputs, n_boundaries=2, return_boundary=True)
    assert column(explanations, "distance") == boundaries.distance[:, 0].tolist()
    assert column(explanations, "adversarial") == boundaries.adversarial[:, 0].tolist()
    assert torch.equal(explanations[2].points, boundaries.points[2])


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_binary_models(tmp_path, n_outputs):
    rows = TensorDataset(Rows(6).inputs, Rows(6).labels % 2)
    model = small_model(n_outputs=n_outputs)
    explanations = explain_dataset(BoundarySaliency(model), rows, tmp_path, batch_size=4)
    assert set(column(explanations, "prediction")) == {0, 1}
    for explanation in explanations:
        assert explanation.adversarial == 1 - explanation.target
        assert explanation.margin > 0


@pytest.mark.parametrize("build", [BoundarySaliency, Saliency, AggregatedBoundaryNormals])
def test_the_positive_side_of_one_output(tmp_path, build):
    model, rows = small_model(n_outputs=1), Rows(6)
    options = {"abs": False} if build is Saliency else {"n_boundaries": 1} if build is AggregatedBoundaryNormals else {}
    explanations = explain_dataset(build(model), list(rows.inputs), tmp_path, batch_size=4, target=1, options=options)
    assert set(column(explanations, "prediction")) == {0, 1}
    assert column(explanations, "target") == [1] * 6
    margins = torch.tensor(column(explanations, "margin"))
    torch.testing.assert_close(margins, model(rows.inputs).flatten().detach())
    if build is not Saliency:
        assert column(explanations, "adversarial") == [0] * 6
        expected = build(model).attribute(rows.inputs, 1, **options)
        torch.testing.assert_close(torch.stack([each.attributions for each in explanations]), expected)


@failing
def test_labels_of_one_output(tmp_path):
    model = small_model(n_outputs=1)
    side = (model(Rows(6).inputs).flatten() > 0).long()
    labels = side.clone()
    labels[side == 0] = torch.tensor([1] + [0] * (int((side == 0).sum()) - 1))  # one is approached from outside
    rows = TensorDataset(Rows(6).inputs, labels)
    explainer = BoundarySaliency(model)
    explanations = explain_dataset(explainer, rows, tmp_path / "labels", batch_size=4, target="label")
    assert column(explanations, "target") == labels.tolist()
    assert column(explanations, "adversarial") == (1 - labels).tolist()
    signs = torch.tensor(column(explanations, "margin")).sign()
    assert torch.equal(signs > 0, labels == side)
    predicted = explain_dataset(explainer, rows, tmp_path / "index", batch_size=4, target=0)
    assert column(predicted, "target") == column(predicted, "prediction") == side.tolist()

    wrong = int((side == 1).nonzero()[0])
    labels[wrong] = 0
    explanations = explain_dataset(explainer, rows, tmp_path / "wrong", batch_size=4, target="label")
    told = column(explanations, "error")
    assert [row for row, error in enumerate(told) if error] == [wrong]
    assert "cannot be asked for the negative side of an example on the positive one" in told[wrong]
    assert "torch.stack([0 * model(x).flatten()" in told[wrong]


def test_several_inputs_and_further_arguments(tmp_path):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = small_model()

        def forward(self, first, second, scale):
            return self.model(torch.cat([first, second], dim=1)) * scale

    rows = Rows(5)
    data = [((inputs[:1], inputs[1:]), int(label)) for inputs, label in rows]
    options = {"additional_forward_args": 2.0}
    explanations = explain_dataset(
        BoundaryIntegratedGradients(Joined().eval()), data, tmp_path, batch_size=2, save_points=True, options=options
    )
    assert column(explanations, "error") == [None] * 5
    first, second = explanations[3].attributions
    assert first.shape == (1,)
    assert second.shape == (3,)
    assert [point.shape for point in explanations[3].points] == [(1,), (3,)]


@failing
def test_data_without_labels(tmp_path):
    explanations = explain_dataset(Saliency(small_model()), list(Rows(3).inputs), tmp_path, batch_size=2)
    assert column(explanations, "label") == [None] * 3
    explanations = explain_dataset(
        Saliency(small_model()), list(Rows(3).inputs), tmp_path / "label", batch_size=2, target="label"
    )
    assert "data set with labels" in column(explanations, "error")[0]


def test_limit_takes_the_first_examples(tmp_path):
    numbers = {"batch_size": np.int64(4), "limit": np.int32(5), "target": np.int64(1), "seed": np.int64(3)}
    explanations = explain_dataset(Saliency(small_model()), Rows(9), tmp_path, **numbers)
    assert len(explanations) == 5
    assert column(explanations, "target") == [1] * 5


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_half_precision_keeps_attributions_of_any_size(tmp_path, factor):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = small_model().double()

        def forward(self, inputs):
            return self.model(inputs) * factor

    data = [inputs.double() for inputs, _ in Rows(4)]
    saliency = Saliency(Scaled().eval())
    halves = explain_dataset(saliency, data, tmp_path / "16", batch_size=2, dtype=torch.float16)
    floats = explain_dataset(saliency, data, tmp_path / "32", batch_size=2)
    for half, full in zip(halves, floats, strict=True):
        assert half.attributions.dtype == torch.float32
        assert (half.attributions - full.attributions).abs().max() <= 2**-11 * full.attributions.abs().max()
        assert full.attributions.abs().max() > 0


def test_coarse_maps_keep_the_sum(tmp_path):
    saliency = Saliency(image_model())
    full = explain_dataset(saliency, images(), tmp_path / "full", batch_size=4)
    coarse = explain_dataset(saliency, images(), tmp_path / "coarse", batch_size=4, map_size=(2, np.int64(4)))
    for each, cells in zip(full, coarse, strict=True):
        expected = each.attributions.sum(dim=0).reshape(2, 4, 4, 2).sum(dim=(1, 3))
        torch.testing.assert_close(cells.attributions, expected)


def test_points_that_are_not_found(tmp_path):
    model = small_model()
    big = BoundaryIntegratedGradients(model, NearestBoundary(model, max_distance=0.3))
    explanations = explain_dataset(big, Rows(8), tmp_path, batch_size=4)
    found = column(explanations, "found")
    assert True in found
    assert False in found
    missing = explanations[found.index(False)]
    assert missing.attributions.isnan().all()
    assert missing.distance == float("inf")
    assert missing.adversarial is None
    assert missing.completeness_gap is None
    assert missing.error is None


class Unreadable:
    """Examples that are no use, each in its own way, among good ones."""

    def __len__(self):
        return 9

    def __getitem__(self, index):
        inputs, label = Rows(9)[index]
        if index == 1:
            raise OSError("truncated file")
        if index == 2:
            return inputs[:2], label
        if index == 3:
            return inputs * float("nan"), label
        if index == 4:
            return inputs, N_CLASSES
        if index == 5:
            return inputs, 0.5
        if index == 6:
            return "text", label
        if index == 7:
            return inputs.long(), label
        return inputs, label


@failing
def test_what_cannot_be_read_is_a_row_with_its_error(tmp_path):
    explanations = explain_dataset(BoundarySaliency(small_model()), Unreadable(), tmp_path, batch_size=3)
    errors = column(explanations, "error")
    assert errors[0] is errors[8] is None
    words = [
        "truncated file",
        "must be alike",
        "NaN or infinity",
        "label is 3",
        "integer",
        "inputs are str",
        "torch.int64",
    ]
    assert all(word in error for word, error in zip(words, errors[1:8], strict=True))
    assert column(explanations, "label")[1:5] == [None, Rows(9)[2][1], Rows(9)[3][1], N_CLASSES]
    assert explanations[1].attributions is None
    assert explanations[8].attributions is not None
    for workers in (0, 1):
        with pytest.raises(ExampleError, match=r"^Example 1 could not be read. OSError: truncated file$"):
            explain_dataset(
                BoundarySaliency(small_model()),
                Unreadable(),
                tmp_path / f"strict {workers}",
                batch_size=3,
                strict=True,
                num_workers=workers,
            )


@failing
def test_a_data_set_that_cannot_be_read_at_all(tmp_path):
    explanations = explain_dataset(Saliency(small_model()), Rows(3, broken=(0, 1, 2)), tmp_path, batch_size=2)
    assert all("truncated" in error for error in column(explanations, "error"))
    assert explanations[2].attributions is None


class Choosy(nn.Module):
    """A model that fails on some examples, and on more of them than it has memory for."""

    def __init__(self, most=100, threshold=float("inf")):
        super().__init__()
        self.model = small_model()
        self.most = most
        self.threshold = threshold
        self.sizes = []

    def forward(self, inputs):
        self.sizes.append(len(inputs))
        if len(inputs) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        if (inputs[:, 0] > self.threshold).any():
            raise ArithmeticError("the first column is too large")
        return self.model(inputs)


@failing
def test_what_cannot_be_explained_is_a_row_with_its_error(tmp_path):
    rows = Rows(20)
    bad = rows.inputs[:, 0] > 0.8
    assert 0 < bad.sum() < 8
    explanations = explain_dataset(Saliency(Choosy(threshold=0.8)), rows, tmp_path, batch_size=8)
    errors = column(explanations, "error")
    assert [error is not None for error in errors] == bad.tolist()
    assert "ArithmeticError: the first column is too large" in errors[bad.tolist().index(True)]
    expected = Saliency(small_model()).attribute(
        rows.inputs.clone().requires_grad_(), small_model()(rows.inputs).argmax(1)
    )
    for index in (~bad).nonzero().flatten().tolist():
        torch.testing.assert_close(explanations[index].attributions, expected[index].detach())
    with pytest.raises(ExampleError, match=r"could not be explained. ArithmeticError"):
        explain_dataset(Saliency(Choosy(threshold=0.8)), rows, tmp_path / "s", batch_size=8, strict=True)


def test_a_batch_that_does_not_fit_is_halved_and_the_size_remembered(tmp_path):
    model = Choosy(most=5)
    explanations = explain_dataset(Saliency(model), Rows(40), tmp_path, batch_size=16)
    assert column(explanations, "error") == [None] * 40
    assert [size for size in model.sizes if size > 5] == [16, 8]
    assert max(model.sizes[4:]) == 4


@failing
def test_an_example_that_does_not_fit_alone(tmp_path):
    class Full(Choosy):
        def forward(self, inputs):
            if self.sizes:  # all but the first look at the model
                raise MemoryError
            return super().forward(inputs)

    explanations = explain_dataset(Saliency(Full()), Rows(3), tmp_path, batch_size=2)
    assert all("MemoryError" in error for error in column(explanations, "error"))


@pytest.mark.filterwarnings("ignore:The model is in training mode")
def test_everything_is_left_as_it_was(tmp_path):
    model, rows = nn.Sequential(nn.Dropout(0.1), small_model()).train(), Rows(5)
    generator = torch.Generator().manual_seed(3)
    big = BoundaryIntegratedGradients(model, NearestBoundary(model, generator=generator))
    before = rows.inputs.clone()
    states = torch.get_rng_state(), random.getstate(), generator.get_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    explain_dataset(big, rows, tmp_path, batch_size=2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert torch.equal(generator.get_state(), states[2])
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert torch.equal(rows.inputs, before)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_what_is_drawn_at_random_belongs_to_the_example(tmp_path):
    """Not to what was drawn before, by a data set or by a method."""

    class Noisy(Rows):
        def __getitem__(self, index):
            inputs, label = super().__getitem__(index)
            return inputs + torch.randn(4) + random.random() + np.random.rand(), label  # noqa: NPY002

    def run(name, seed=0, workers=0):
        model = small_model()
        tunnel = NoiseTunnel(Saliency(model))
        explain_dataset(tunnel, Noisy(6), tmp_path / name, batch_size=3, seed=seed, num_workers=workers)
        return contents(tmp_path / name)

    first = run("first")
    torch.rand(7), random.random(), np.random.rand()  # noqa: NPY002
    assert run("second") == first
    assert run("workers", workers=2) == first
    assert run("other", seed=1)["table.parquet"] != first["table.parquet"]


def test_batches_draw_numbers_of_their_own(tmp_path):
    """Equal examples in two batches have different noise, and the same in a run that begins with the second."""
    tunnel = NoiseTunnel(Saliency(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()))
    row = torch.randn(4)
    explanations = explain_dataset(tunnel, [row] * 4, tmp_path, batch_size=2)
    maps = [each.attributions for each in explanations]
    assert not torch.equal(maps[0], maps[2])
    assert not torch.equal(maps[1], maps[3])

    class Noisy(Rows):
        def __getitem__(self, index):
            return torch.randn(4), 0

    explanations = explain_dataset(Saliency(small_model()), Noisy(4), tmp_path / "data", batch_size=4)
    assert len(set(column(explanations, "digest"))) == 4


def test_the_gap_is_the_mean_delta_of_each_example(tmp_path):
    """Captum's gradient SHAP has a delta for each sample, those of an example one after the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    options = {"baselines": torch.zeros(1, 4), "n_samples": 4, "stdevs": 0.0}
    rows = Rows(5)
    explanations = explain_dataset(GradientShap(model), rows, tmp_path, batch_size=5, options=options)
    attributions = torch.stack([each.attributions for each in explanations])
    target = model(rows.inputs).argmax(dim=1)
    difference = (model(rows.inputs) - model(torch.zeros(1, 4))).gather(1, target[:, None]).squeeze(1).detach()
    expected = attributions.sum(dim=1) - difference
    assert expected.abs().min() > 1e-4
    torch.testing.assert_close(
        torch.tensor(column(explanations, "completeness_gap")).float(), expected, atol=1e-5, rtol=1e-4
    )


class SpeechlessError(Exception):
    def __str__(self):
        raise RuntimeError


class Odd(Rows):
    """Labels and messages that files cannot hold, and warnings."""

    def __getitem__(self, index):
        if index == 1:
            return self.inputs[index], 2**70
        if index == 2:
            raise OSError("the folder caf\udce9 is away")
        if index == 3:
            return self.inputs[index], -(2**63) - 1
        if index == 5:
            raise SpeechlessError
        if index == 4:
            warnings.warn("only the first page", UserWarning, stacklevel=1)
            warnings.warn("of an old library", DeprecationWarning, stacklevel=1)
        return super().__getitem__(index)


def test_what_files_cannot_hold_is_told_in_words(tmp_path):
    with pytest.warns(
        ExampleWarning, match=r"4 of 6 examples have an error in their row, the first of them example 1: Bou"
    ):
        explanations = explain_dataset(Saliency(small_model()), Odd(6), tmp_path, batch_size=4)
    errors = column(explanations, "error")
    assert "Its label is 1180591620717411303424, but the model has classes 0 to 2" in errors[1]
    assert errors[2] == "OSError: the folder caf\\udce9 is away"
    assert "Its label is -9223372036854775809" in errors[3]
    assert errors[5] == "SpeechlessError: without a message that can be shown"
    assert column(explanations, "label")[1:4] == [None] * 3
    assert column(explanations, "note") == [None] * 4 + ["only the first page", None]


def test_one_example_outside_of_bounds_is_a_row_with_its_error(tmp_path):
    rows = Rows(6)
    rows.inputs = rows.inputs.clamp(-1, 1)
    rows.inputs[4, 0] = 1.5
    model = small_model()
    saliency = BoundarySaliency(model, NearestBoundary(model, bounds=(-1, 1), budget=5))
    with pytest.warns(ExampleWarning, match="1 of 6"):
        explanations = explain_dataset(saliency, rows, tmp_path, batch_size=4)
    errors = column(explanations, "error")
    assert [error is not None for error in errors] == [False] * 4 + [True, False]
    assert "must lie inside bounds" in errors[4]
    assert column(explanations, "found") == [True] * 4 + [None, True]


def test_works_where_gradients_are_off(tmp_path):
    deep_lift = BoundaryAttribution(small_model(), DeepLift)
    with torch.inference_mode():
        explanations = explain_dataset(deep_lift, Rows(3), tmp_path, batch_size=2)
    assert column(explanations, "error") == [None] * 3


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Rows(3))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"batch_size": 0}, BoundaryValueError, "batch_size must be a positive integer"),
        ({"limit": 0}, BoundaryValueError, "limit must be"),
        ({"target": 3}, BoundaryValueError, "target must be between 0 and 2, but it is 3"),
        ({"target": "labels"}, BoundaryTypeError, 'target must be None (the predicted class), "label"'),
        ({"dtype": torch.int8}, BoundaryValueError, "dtype must be"),
        ({"map_size": 4}, BoundaryValueError, "needs attributions of images"),
        ({"map_size": 0}, BoundaryValueError, "positive integers"),
        ({"map_size": (1, 2, 3)}, BoundaryValueError, "positive integers"),
        ({"map_size": 2.5}, BoundaryValueError, "positive integers"),
        *(({"shard": shard}, BoundaryValueError, "shard must be") for shard in ((2, 2), (1,), 5, (0.5, 2), ("0", "2"))),
        ({"seed": 1.5}, BoundaryTypeError, "seed must be an integer, but it is 1.5"),
        ({"version": 5}, BoundaryTypeError, "version must be a text, but it is 5"),
        ({"units": 5}, BoundaryTypeError, "units must be a text"),
        ({"class_names": 5}, BoundaryTypeError, "class_names must be a sequence of names"),
        ({"options": "n_steps"}, BoundaryTypeError, "options must be a mapping"),
        ({"options": {"n_step": 3}}, BoundaryTypeError, "does not know the option 'n_step'"),
        (
            {"options": {"n_step": 3}, "explainer": BoundaryIntegratedGradients(small_model())},
            BoundaryTypeError,
            "BoundaryIntegratedGradients.attribute does not know the option 'n_step'",
        ),
        ({"options": {"abbs": 3}, "explainer": NoiseTunnel(Saliency(small_model()))}, BoundaryTypeError, "'abbs'"),
        ({"options": {"target": 3}}, BoundaryValueError, "options cannot hold 'target'"),
        ({"save_points": True}, BoundaryValueError, "explainer that finds boundary points"),
        ({"class_names": ["cat", "dog"]}, BoundaryValueError, "holds 2 classes, but the model has 3"),
        ({"explainer": small_model()}, BoundaryTypeError, "explainer must be a captum.attr.Attribution"),
        ({"dataset": []}, BoundaryValueError, "it is empty"),
        ({"dataset": Stream()}, BoundaryTypeError, "keeps its place"),
        ({"dataset": list(torch.rand(3, 5))}, BoundaryValueError, "The model fails on the first 3 examples"),
    ],
)
def test_bad_arguments(tmp_path, changes, error, words):
    arguments = {"explainer": IntegratedGradients(small_model()), "dataset": Rows(5), "batch_size": 2, **changes}
    with pytest.raises(error) as caught:
        explain_dataset(arguments.pop("explainer"), arguments.pop("dataset"), tmp_path / "out", **arguments)
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_classes_of_the_data_must_be_those_of_the_model(tmp_path):
    rows = Rows(4)
    rows.classes = ["cat", "dog"]
    with pytest.raises(BoundaryValueError, match="The data set has 2 classes, but the model has 3"):
        explain_dataset(Saliency(small_model()), rows, tmp_path, batch_size=2)
    rows.classes = ["cat", 7, ("hen", "cock")]
    names = explain_dataset(Saliency(small_model()), rows, tmp_path, batch_size=2).class_names
    assert names == ["cat", "7", "hen, cock"]


@pytest.mark.parametrize("classes", [5, lambda: ["cat"]])
def test_what_is_no_list_of_classes_or_units_is_left_alone(tmp_path, classes):
    rows = Rows(4)
    rows.classes, rows.units = classes, 5
    explanations = explain_dataset(Saliency(small_model()), rows, tmp_path, batch_size=2)
    assert explanations.class_names is None
    assert explanations.distance_text() == "distance in units of the inputs"


def test_a_file_or_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    for place, words in ((tmp_path, "holds other files, such as thesis.txt"), (tmp_path / "thesis.txt", "is a file")):
        with pytest.raises(FolderError, match=words):
            explain_dataset(Saliency(small_model()), Rows(4), place, batch_size=2)
