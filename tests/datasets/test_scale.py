"""Large and real data: memory stays flat, files open, and the numbers are those of a loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

from captum_boundary import BoundaryIntegratedGradients, NearestBoundary
from captum_boundary.datasets import explain_dataset, load_explanations, write_gallery

SUPPORT = Path(__file__).parents[1] / "support"
N_ROWS = 100_000
LARGE_RUN = f"""
import json, sys, time
import psutil, torch
from captum.attr import Saliency
from captum_boundary.datasets import explain_dataset
from small_data import Rows, small_model

class Watched(Rows):
    memory = {{}}

    def __getitem__(self, index):
        if index % 10_000 == 0:
            self.memory[index] = psutil.Process().memory_info().rss
        return super().__getitem__(index)

torch.set_num_threads(1)
rows = Watched({N_ROWS})
start = time.monotonic()
explain_dataset(Saliency(small_model()), rows, sys.argv[1], batch_size=250)
print(json.dumps([time.monotonic() - start, rows.memory, psutil.Process().memory_info().rss]))
"""


@pytest.mark.exhaustive
def test_memory_does_not_grow_with_the_data_set(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path])}
    command = [sys.executable, "-c", LARGE_RUN, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, memory, at_the_end = json.loads(done.stdout.splitlines()[-1])
    early, late = memory["20000"], memory["90000"]
    print(
        f"\n{N_ROWS} rows in {seconds:.0f} s; {early / 1e6:.1f} MB after 20,000 rows, {late / 1e6:.1f} MB after "
        f"90,000, {at_the_end / 1e6:.1f} MB with the table"
    )
    assert late - early < 5e6
    assert at_the_end - early < 100e6  # what Arrow brings along to read and write tables
    assert pq.read_metadata(tmp_path / "table.parquet").num_rows == N_ROWS
    explanations = load_explanations(tmp_path)
    assert explanations.table(["index"]).column("index").to_pylist() == list(range(N_ROWS))
    assert explanations.table(["error"]).column("error").null_count == N_ROWS
    files = sorted((tmp_path / "tensors").rglob("*.safetensors"))
    assert len(files) == N_ROWS // 250
    stored = [load_file(path) for path in files]
    assert torch.cat([tensors["index"] for tensors in stored]).tolist() == list(range(N_ROWS))
    assert all(tensors["attributions"].shape == (250, 4) for tensors in stored)
    assert explanations[77_777].index == 77_777


@pytest.mark.parametrize("n_images", [40, pytest.param(500, marks=pytest.mark.exhaustive)])
def test_cifar_from_end_to_end(zoo, tmp_path, n_images):
    model = zoo.cifar_resnet20()
    images, labels = zoo.load_images("cifar10_test500")
    data = TensorDataset(images, labels)
    big = BoundaryIntegratedGradients(model, NearestBoundary(model, bounds=(0, 1), budget=8))
    explanations = explain_dataset(
        big, data, tmp_path, batch_size=20, limit=n_images, options={"n_steps": 8}, dtype=torch.float16
    )
    table = explanations.table().to_pandas()
    assert len(table) == n_images
    assert table["error"].isna().all()
    assert table["found"].all()
    assert (table["label"] == labels[:n_images].numpy()).all()
    assert (table["label"] == table["prediction"]).mean() > 0.85
    assert (table["adversarial"] != table["target"]).all()
    assert 0.01 < table["distance"].median() < 0.3
    attributions, boundary = big.attribute(images[20:40], n_steps=8, return_boundary=True)
    torch.testing.assert_close(torch.tensor(table["distance"][20:40].to_numpy()).float(), boundary.distance)
    for index, expected in enumerate(attributions, start=20):
        stored = explanations[index].attributions
        assert (stored - expected).abs().max() <= 2**-11 * expected.abs().max()
    assert write_gallery(tmp_path, data, bounds=(0, 1)).exists()
    assert len(list((tmp_path / "gallery" / "pictures").rglob("*.webp"))) == n_images
