"""What is read back, of runs that are done and of runs that are not."""

from __future__ import annotations

import pickle

import pyarrow.compute as pc
import pytest
from captum.attr import Saliency
from small_data import Rows, small_model
from torch.utils.data import DataLoader, Subset

from captum_boundary import BoundarySaliency
from captum_boundary.datasets import ExampleError, ExampleWarning, FolderError, explain_dataset, load_explanations


@pytest.fixture
def folder(tmp_path):
    with pytest.warns(
        ExampleWarning, match="1 of 11 examples have an error in their row, the first of them example 6: OSE"
    ):
        explain_dataset(BoundarySaliency(small_model()), Rows(11, broken=(6,)), tmp_path, batch_size=4)
    return tmp_path


def test_examples_keep_their_places(folder):
    explanations = load_explanations(folder)
    assert [explanation.index for explanation in explanations] == list(range(11))
    assert explanations[-1].index == 10
    for wrong in (11, -12):
        with pytest.raises(IndexError, match="There are 11 explanations"):
            explanations[wrong]


def test_tables_have_the_columns_and_rows_that_are_asked_for(folder):
    explanations = load_explanations(folder)
    near = explanations.table(["index", "distance"], filter=pc.field("distance") < 0.5)
    assert near.column_names == ["index", "distance"]
    frame = explanations.table().to_pandas()
    assert list(frame["index"]) == list(range(11))
    assert near.num_rows == (frame["distance"] < 0.5).sum() > 0
    assert list(frame["index"][frame["error"].notna()]) == [6]


def test_runs_that_are_not_done(tmp_path):
    with pytest.raises(ExampleError):
        explain_dataset(Saliency(small_model()), Rows(11, broken=(9,)), tmp_path, batch_size=4, strict=True)
    explanations = load_explanations(tmp_path)
    assert not explanations.is_complete
    assert explanations.indices() == list(range(8))
    assert explanations.table(["index"]).column("index").to_pylist() == list(range(8))
    assert len(Subset(explanations, explanations.indices())) == 8
    with pytest.raises(FolderError, match="Examples 8 to 10 have not been explained yet"):
        explanations[9]


def test_a_data_loader_may_read_them(folder):
    explanations = load_explanations(folder)
    explanations[3]
    assert pickle.loads(pickle.dumps(explanations))[3].distance == explanations[3].distance
    batches = list(DataLoader(explanations, batch_size=4, collate_fn=list, num_workers=1))
    assert [explanation.index for batch in batches for explanation in batch] == list(range(11))


def test_what_is_no_folder_of_explanations(tmp_path):
    with pytest.raises(FolderError, match="There is no folder"):
        load_explanations(tmp_path / "missing")
    with pytest.raises(FolderError, match=r"it has no manifest\.json"):
        load_explanations(tmp_path)
