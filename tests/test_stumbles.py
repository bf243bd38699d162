"""What newcomers do wrong: every error names the cause and what to change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import DeepLift, IntegratedGradients, LayerIntegratedGradients, NoiseTunnel, Saliency
from torch import nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryAttribution,
    BoundaryDistance,
    BoundaryEnergy,
    BoundaryGradCam,
    BoundaryIntegratedGradients,
    LayerBoundaryAttribution,
    NearestBoundary,
    PGDBoundary,
    RARLoss,
    SmoothedModel,
)
from captum_boundary.datasets import explain_dataset
from captum_boundary.datasets._models import load_model
from captum_boundary.datasets._sources import NpzArrays
from captum_boundary.errors import BoundaryError, BoundaryTypeError, BoundaryValueError
from captum_boundary.robust import AttributionAttack
from captum_boundary.smoothing import certified_radius
from captum_boundary.visualization import describe_feature_changes, show_boundary_point

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


MODEL = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval())
IMAGES = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 3)).eval())
ROWS = seeded(lambda: torch.randn(4, 4))
METHODS = {
    "search": lambda model, inputs: NearestBoundary(model).find(inputs),
    "big": lambda model, inputs: BoundaryIntegratedGradients(model).attribute(inputs),
    "energy": lambda model, inputs: BoundaryEnergy(model, 0.1).attribute(inputs, n_samples=4),
    "normals": lambda model, inputs: AggregatedBoundaryNormals(model).attribute(inputs),
    "distance": lambda model, inputs: BoundaryDistance(model).attribute(inputs),
}


@pytest.mark.parametrize("call", METHODS.values(), ids=METHODS)
def test_one_row_without_a_batch(call) -> None:
    with pytest.raises(BoundaryValueError, match=r"[Aa]dd a batch dimension: inputs\[None\]"):
        call(MODEL, ROWS[0])


@pytest.mark.parametrize("call", [METHODS["search"], lambda m, x: BoundaryGradCam(m, m[0]).attribute(x)])
def test_one_image_without_a_batch(call) -> None:
    with pytest.raises(BoundaryValueError, match=r"[Aa]dd a batch dimension: inputs\[None\]"):
        call(IMAGES, torch.rand(3, 8, 8))


def test_an_error_of_the_models_own_is_left_alone() -> None:
    def broken(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        NearestBoundary(broken).find(ROWS)


MASK = (torch.arange(6) < torch.tensor([6, 5, 4, 3])[:, None]).float()
EMBEDDED = seeded(lambda: torch.randn(4, 6, 4))


def pooled(x, mask):
    return MODEL((x * mask[..., None]).sum(dim=1))


def last_token(x):
    return MODEL(x[torch.arange(4), MASK.sum(dim=1).long() - 1])


@pytest.mark.parametrize("name", ["search", "big", "energy"])
@pytest.mark.parametrize("held", [lambda x: pooled(x, MASK), last_token], ids=["broadcast", "indexed"])
def test_a_mask_in_a_closure(name, held) -> None:
    with pytest.raises(BoundaryValueError, match=r"rows made of the 4 examples.*as additional_forward_args"):
        METHODS[name](held, EMBEDDED)


# Calls whose passes through the model could hold as many rows as there are examples, of other examples.
IN_PASSES = {
    "big": lambda model, x, points, size, *mask: BoundaryIntegratedGradients(model).attribute(
        x, None, *mask, boundary=points, n_steps=8, internal_batch_size=size
    ),
    "smoothed": lambda model, x, points, size, *mask: SmoothedModel(model, 0.3, n_samples=4, internal_batch_size=size)(
        x, *mask
    ),
    "certified": lambda model, x, points, size, *mask: (
        certified_radius(
            SmoothedModel(model, 0.3, n_samples=4, internal_batch_size=size), x, None, *mask, n_samples=64
        ).p_lower
    ),
    "attack": lambda model, x, points, size, *mask: AttributionAttack(
        model, epsilon=0.3, n_steps=4, internal_batch_size=size
    ).perturb(x, None, *mask),
}


@pytest.mark.parametrize("n", [2, 3, 4, 8])
@pytest.mark.parametrize("call", IN_PASSES.values(), ids=IN_PASSES)
def test_a_mask_in_a_closure_is_never_that_of_other_examples(call, n) -> None:
    mask = torch.eye(8, 6)[:n].roll(1, 0) + 0.2
    x = seeded(lambda: torch.randn(n, 6, 4))
    points = NearestBoundary(pooled).find(x, additional_forward_args=mask)
    for size in {2, 4, n}:
        try:
            result = call(lambda x: pooled(x, mask), x, points, size)
        except (RuntimeError, BoundaryError):
            continue
        torch.testing.assert_close(result, call(pooled, x, points, size, mask))


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
def test_a_mask_in_a_closure_that_is_cut_to_the_batch() -> None:
    mask = torch.ones(9, 6)
    mask[5:, 3:] = 0  # the first examples do not tell
    search = PGDBoundary(lambda x: pooled(x, mask[: len(x)]))
    with pytest.warns(UserWarning, match="holds tensors of its examples, which are for additional_forward_args"):
        search.find(seeded(lambda: torch.randn(9, 6, 4)))


def test_the_same_mask_as_an_argument() -> None:
    assert NearestBoundary(pooled).find(EMBEDDED, additional_forward_args=MASK).found.all()


def test_running_out_of_memory_is_not_blamed_on_the_batch() -> None:
    def model(x):
        if len(x) < 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a tensor of size 3")
        return MODEL(x)

    with pytest.raises(torch.OutOfMemoryError):
        NearestBoundary(model).find(ROWS)


@pytest.mark.parametrize(
    ("labels", "way_out"),
    [
        (torch.tensor([0.0, 1.0, 2.0, 0.0]), r"Convert it with target\.long\(\)"),
        (torch.eye(3)[[0, 1, 2, 0]], r"give target\.argmax\(dim=1\)"),
        (torch.eye(3).long()[[0, 1, 2, 0]], r"give target\.argmax\(dim=1\)"),
        (torch.tensor([[0], [1], [2], [0]]), r"target\.squeeze\(1\)\.long\(\)"),
    ],
    ids=["float", "one-hot", "one-hot of integers", "column"],
)
def test_labels_in_other_forms(labels, way_out) -> None:
    for call in (
        lambda: NearestBoundary(MODEL).find(ROWS, labels),
        lambda: BoundaryIntegratedGradients(MODEL).attribute(ROWS, labels),
        lambda: RARLoss(MODEL, "sum", epsilon=0.1)(ROWS, labels),
    ):
        with pytest.raises(BoundaryError, match=way_out):
            call()


def test_a_table_of_bytes() -> None:
    with pytest.raises(BoundaryTypeError, match=r"dtype is torch.uint8. Convert it with \.float\(\)"):
        NearestBoundary(MODEL).find(torch.arange(16, dtype=torch.uint8).view(4, 4))


def test_a_stored_table_of_bytes_holds_numbers_and_images_of_bytes_pixels(tmp_path) -> None:
    values = np.arange(16, dtype=np.uint8).reshape(4, 4)
    np.savez(tmp_path / "table.npz", inputs=values)
    np.savez(tmp_path / "flat.npz", images=values)
    table, flat = NpzArrays(tmp_path / "table.npz"), NpzArrays(tmp_path / "flat.npz")
    assert table[3][0].tolist() == [12, 13, 14, 15]
    assert getattr(table, "bounds", None) is None
    torch.testing.assert_close(flat[3][0] * 255, table[3][0])
    assert flat.bounds == (0, 1)


NAMES = ["a", "b", "c"]


@pytest.mark.parametrize("names", [dict(enumerate(NAMES)), {"c": 2, "a": 0, "b": 1}], ids=["id2label", "label2id"])
def test_names_of_classes_as_a_mapping(names) -> None:
    boundary = NearestBoundary(MODEL).find(ROWS)
    of_list = describe_feature_changes(ROWS, boundary, class_names=NAMES)
    assert describe_feature_changes(ROWS, boundary, class_names=names) == of_list


@pytest.mark.parametrize("names", [{1: "a", 2: "b", 3: "c"}, {"a", "b", "c"}, {"0": "a", "1": "b", "2": "c"}])
def test_names_of_classes_without_an_order(names) -> None:
    images = torch.rand(2, 3, 8, 8)
    boundary = NearestBoundary(IMAGES, bounds=(0, 1)).find(images)
    with pytest.raises(BoundaryError, match=r"class_names must .* in the order of the model's outputs"):
        show_boundary_point(images, boundary, class_names=names)


def test_a_data_set_whose_classes_are_a_mapping(tmp_path) -> None:
    data = torch.utils.data.TensorDataset(ROWS)
    explainer = BoundaryIntegratedGradients(MODEL, NearestBoundary(MODEL, budget=5))
    names = {"c": 2, "a": 0, "b": 1}
    assert explain_dataset(explainer, data, tmp_path, batch_size=4, class_names=names).class_names == NAMES


@pytest.mark.parametrize(("content", "fault"), [("", "it is empty"), (LFS, "git lfs pull")], ids=["empty", "lfs"])
def test_files_without_their_content(tmp_path, content, fault) -> None:
    weights, arrays = tmp_path / "weights.pt", tmp_path / "data.npz"
    weights.write_text(content)
    arrays.write_text(content)
    with pytest.raises(BoundaryValueError, match=rf"weights.pt cannot be read as weights: .*{fault}"):
        load_model("torchvision:squeezenet1_1", str(weights), 3)
    with pytest.raises(BoundaryValueError, match=rf"data.npz cannot be read as arrays: .*{fault}"):
        NpzArrays(arrays)


@pytest.mark.parametrize("n_rows", [1, 4])
def test_squeezed_outputs_are_reported_as_they_are(n_rows) -> None:
    with pytest.raises(BoundaryValueError, match=r"it returned shape \(3,\)\. Keep the dimension of the examples"):
        NearestBoundary(lambda x: MODEL(x).squeeze()).find(ROWS[:n_rows])


@pytest.mark.parametrize(
    "method", [IntegratedGradients, DeepLift, Saliency, lambda f: NoiseTunnel(IntegratedGradients(f))]
)
def test_options_are_listed_once(method) -> None:
    with pytest.raises(BoundaryTypeError, match="Its options are") as caught:
        BoundaryAttribution(MODEL, method).attribute(ROWS, wrong=1)
    listed = str(caught.value).split("Its options are: ")[1].rstrip(".").split(", ")
    assert len(listed) == len(set(listed))


def test_options_of_layer_methods_are_listed_once() -> None:
    method = LayerBoundaryAttribution(MODEL, MODEL[0], LayerIntegratedGradients)
    with pytest.raises(BoundaryTypeError, match="Its options are") as caught:
        method.attribute(ROWS, wrong=1)
    listed = str(caught.value).split("Its options are: ")[1].rstrip(".").split(", ")
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
    "call",
    [
        *METHODS.values(),
        lambda m, x: RARLoss(m, "sum", epsilon=0.1)(x, torch.tensor([0, 1, 2, 0])),
        lambda m, x: LayerBoundaryAttribution(m, m[0]).attribute(x),
        lambda m, x: SmoothedModel(m, 0.1)(x),
    ],
)
def test_inputs_of_another_type_than_the_weights(call) -> None:
    message = r"inputs are torch.float64, and the weights of the model are torch.float32.*inputs\.to\(torch.float32\)"
    with pytest.raises(BoundaryValueError, match=message):
        call(MODEL, ROWS.double())


def test_arrays_become_tensors() -> None:
    with pytest.raises(BoundaryTypeError, match=r"it is ndarray\. Convert it with torch\.as_tensor\(inputs\)\.$"):
        NearestBoundary(MODEL).find(ROWS.numpy())
    with pytest.raises(BoundaryValueError, match=r"shape \(4,\), one class for each .* it has shape \(2,\)\.$"):
        NearestBoundary(MODEL).find(ROWS, torch.tensor([0, 1]))


@pytest.fixture(scope="module")
def for_one() -> nn.Module:
    """A program that takes batches of one example only."""
    return torch.export.export(MODEL, (ROWS[:1],)).module()


@pytest.mark.parametrize("name", ["search", "big", "energy"])
def test_an_exported_program_of_a_fixed_batch(for_one, name) -> None:
    with pytest.raises(BoundaryValueError, match=r"dynamic batch dimension.*internal_batch_size=1"):
        METHODS[name](for_one, ROWS)


def test_an_exported_program_row_by_row(for_one) -> None:
    search = NearestBoundary(for_one, internal_batch_size=1)
    expected = NearestBoundary(MODEL).find(ROWS)
    torch.testing.assert_close(search.find(ROWS).distance, expected.distance)
    big = BoundaryIntegratedGradients(for_one, search).attribute(ROWS, internal_batch_size=1)
    torch.testing.assert_close(big, BoundaryIntegratedGradients(MODEL).attribute(ROWS))
    energy = BoundaryEnergy(for_one, 0.1).attribute(ROWS, n_samples=4, internal_batch_size=1)
    torch.testing.assert_close(energy, BoundaryEnergy(MODEL, 0.1).attribute(ROWS, n_samples=4))
