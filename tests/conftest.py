"""What several tests share."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.distributed as dist

# Tests run side by side, each on one thread, and so do the processes that they start.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _data_parallel_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of tests are on the CPU: DataParallel must not look for accelerators, real or pretended."""
    module = sys.modules["torch.nn.parallel.data_parallel"]  # whose name in the package is that of a function
    monkeypatch.setattr(module, "_get_available_device_type", lambda: None)


@pytest.fixture(scope="session")
def zoo() -> ModuleType:
    """The real networks and images of the benchmarks. Without the data, tests are skipped."""
    path = Path(__file__).parent / "benchmarks" / "zoo.py"
    spec = importlib.util.spec_from_file_location("zoo", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.data_folder()
    except module.DataNotSetError as error:
        pytest.skip(str(error))
    return module


@pytest.fixture(scope="module")
def benchmark(request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """The modules of benchmarks in the ``NAMES`` of a file of tests, imported as where they are run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent / "benchmarks")
        kept = set(sys.modules)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in request.module.NAMES})
        for name in set(sys.modules) - kept:
            if "benchmarks" in (getattr(sys.modules[name], "__file__", None) or ""):
                del sys.modules[name]


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of this process alone, for models that are distributed."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()
