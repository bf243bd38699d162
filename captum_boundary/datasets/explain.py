"""A whole data set explained, in batches that survive whatever happens to the process."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from captum.attr import Attribution
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from captum_boundary._core.checks import check_count, names_in_order, plain_number
from captum_boundary.datasets._batch import BatchExplainer, find_spec
from captum_boundary.datasets._examples import ExampleError, ExampleWarning, Reader, describe_files, printable
from captum_boundary.datasets._identity import Describer, versions
from captum_boundary.datasets._store import FolderError, Store, checked_folder, claimed, packed, read_rows
from captum_boundary.datasets.reading import Explanations, load_explanations, told
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["explain_dataset"]


def explain_dataset(
    explainer: Attribution,
    dataset: Dataset[Any],
    out: str | os.PathLike[str],
    *,
    batch_size: int,
    target: int | str | None = None,
    options: Mapping[str, Any] | None = None,
    version: str | None = None,
    dtype: torch.dtype = torch.float32,
    map_size: int | tuple[int, int] | None = None,
    save_points: bool = False,
    limit: int | None = None,
    class_names: Sequence[str] | None = None,
    units: str | None = None,
    seed: int = 0,
    strict: bool = False,
    resume: bool = True,
    verify: bool = False,
    shard: tuple[int, int] | None = None,
    device: torch.device | str | None = None,
    num_workers: int = 0,
    show_progress: bool = False,
) -> Explanations:
    r"""Explain every example of a data set, and write what is found to a folder.

    Each batch is written as soon as it is done, whole or not at all. A run that was killed is started again with the
    same call, and does what is missing; the files are then the same bytes as without the interruption. Processes
    share the work by ``shard``, without a word between them: whoever is done last puts the table together. Memory does
    not grow with the data set.

    A batch that does not fit into memory is halved, and later batches are explained in parts of the size that does.
    Examples that cannot be read or explained become rows with their errors, and a warning counts them.

    Args:

        explainer (Attribution): Any attribution of this package or of Captum, such as
            ``BoundaryIntegratedGradients(model, search)``. Its model is evaluated as it is: call ``model.eval()``.
        dataset (Dataset): Data set with ``__getitem__`` and ``__len__``. Its examples are a Tensor ``(...)`` without
            batch dimension, ``(Tensor, label)``, or ``((Tensor, ...), label)`` for a model with several inputs.
        out (str or PathLike): Folder for the results. Made if it does not exist.
        batch_size (int): Examples explained at once, and stored in one file. A killed run loses one batch at most.
        target (int or str, optional): Class to explain: a number, ``"label"`` for the label of each example, or None
            for its predicted class. For a model with one output, 0 means the side of each example, and 1 the positive
            side, as for :meth:`BoundarySearch.find`. Default: None
        options (Mapping, optional): Arguments of the explainer's ``attribute`` for every batch, such as
            ``{"n_steps": 20}``. Default: None
        version (str, optional): A name for whatever results depend on and cannot be seen in model, explainer and data,
            such as a file that ``forward`` reads. Another version is refused. Default: None
        dtype (torch.dtype, optional): ``torch.float32``, or ``torch.float16`` for files of half the size, in which
            the attributions of an example share a power of two as their scale. Default: torch.float32
        map_size (int or tuple, optional): Height and width of coarse maps to store in place of attributions
            ``(C, H, W)`` of images: sums over channels and over the pixels of each cell. Default: None
        save_points (bool, optional): Store boundary points as well. Default: False
        limit (int, optional): Explain the first examples only. Default: None, all of them.
        class_names (Sequence[str], optional): Names of the model's classes. Default: None, ``dataset.classes`` if there
            is such a list.
        units (str, optional): Units of the inputs, for reports of distances, such as ``"pixels of [0, 1]"``. Default:
            None, ``dataset.units`` if there is such a text.
        seed (int, optional): Seed of whatever is drawn at random, by the data set for each example and by the explainer
            for each batch. Default: 0
        strict (bool, optional): Raise an :class:`ExampleError` for the first example that cannot be read or explained,
            in every process of the run. Batches done before stay. Default: False
        resume (bool, optional): Go on with the run that ``out`` holds; if False, a folder with results is refused.
            Default: True
        verify (bool, optional): Read all examples of batches that are done, and compare them with what was explained.
            Default: False, the first, the last and a random one of each batch, or all where times of files changed.
        shard (tuple, optional): ``(i, n)`` for the i-th of n parts of the data set, counted from 0. Default: None, the
            part of this process under ``torchrun`` (``RANK`` of ``WORLD_SIZE``), or else all of it.
        device (torch.device or str, optional): Where inputs are moved. Default: None, where the explainer's model is.
        num_workers (int, optional): Processes that read examples, as for ``DataLoader``. Default: 0, this one.
        show_progress (bool, optional): Show a progress bar of this process's part. Default: False

    Returns:

        - **explanations** (*Explanations*): What the folder holds, as :func:`load_explanations` returns it; complete
          when all shards are done.

    Raises:

        BoundaryTypeError: For arguments of the wrong type, options that the explainer does not know, and data sets
            without length.
        BoundaryValueError: For arguments that make no sense, a model that fails on all of the first examples, and a
            data set whose classes are not the model's.
        FolderError: If ``out`` holds other files or the results of another model, data set, setting or version of a
            package, if another run is writing to it, and if no space is left.
        ExampleError: If ``strict`` and some example cannot be read or explained.

    Examples::

        >>> import tempfile
        >>> import torch
        >>> from captum_boundary import BoundaryIntegratedGradients
        >>> model = torch.nn.Linear(4, 3)
        >>> dataset = torch.utils.data.TensorDataset(torch.randn(10, 4), torch.randint(3, (10,)))
        >>> out = tempfile.mkdtemp()
        >>> explanations = explain_dataset(BoundaryIntegratedGradients(model), dataset, out, batch_size=4)
        >>> len(explanations), explanations[7].attributions.shape
        (10, torch.Size([4]))
    """
    check_count("batch_size", batch_size)
    check_count("limit", limit, optional=True)
    batch_size, limit, target, seed = map(plain_number, (batch_size, limit, target, seed))
    size = map_size if map_size is None or isinstance(map_size, list | tuple) else (map_size, map_size)
    words = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    part: Any = shard or tuple(int(word) if word.isdecimal() else word for word in words)
    is_shard = isinstance(part, list | tuple) and len(part) == 2 and _are_whole(*part) and 0 <= part[0] < part[1]
    is_size = size is None or (len(size) == 2 and _are_whole(*size) and min(size) >= 1)
    is_target = target is None or _are_whole(target) or (isinstance(target, str) and target == "label")
    types: dict[str, Any] = {
        "seed": (seed, _are_whole(seed), "an integer"),
        "target": (target, is_target, 'None (the predicted class), "label" or the number of a class'),
        "options": (options, isinstance(options, Mapping | None), "a mapping of names to values"),
        "class_names": (class_names, isinstance(class_names, Iterable | None), "a sequence of names"),
        "version": (version, isinstance(version, str | None), "a text"),
        "units": (units, isinstance(units, str | None), "a text"),
    }
    values: dict[str, Any] = {
        "dtype": (dtype, dtype in (torch.float16, torch.float32), "torch.float16 or torch.float32"),
        "map_size": (map_size, is_size, "one or two positive integers"),
        "shard": (part, is_shard, "(i, n) with i from 0 to n - 1"),
        "num_workers": (num_workers, _are_whole(num_workers) and num_workers >= 0, "an integer of at least 0"),
    }
    for error, checks in ((BoundaryTypeError, types), (BoundaryValueError, values)):
        for name, (value, is_right, wanted) in checks.items():
            if not is_right:
                raise error(f"{name} must be {wanted}, but it is {value!r}.")
    path, reader = checked_folder(out), Reader(dataset, seed)
    model = getattr(explainer, "forward_func", None)
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    place = torch.device(device or (tensors[0].device if tensors else "cpu"))
    settings = {"target": target, "options": dict(options or {}), "dtype": dtype, "map_size": size and tuple(size)}
    settings |= {"save_points": save_points, "seed": seed, "batch_size": batch_size}
    settings["n_examples"] = n_examples = min(len(reader), limit or len(reader))
    describer = Describer()
    with torch.inference_mode(False), torch.no_grad():
        explain = BatchExplainer(explainer, settings, place, describer.generators, strict)
        spec = reader.spec = find_spec(explain, reader, n_examples)
        manifest = {
            "explainer": describer.describe(explainer),
            "norm": describer.describe(getattr(getattr(explainer, "search", None), "norm", None)),
            "data": {
                "class": f"{type(dataset).__module__}.{type(dataset).__qualname__}",
                "files": describe_files(reader.files),
                "class_names": _class_names(dataset, class_names, spec),
                "units": own if units is None and isinstance(own := getattr(dataset, "units", None), str) else units,
                "spec": spec,
            },
            "settings": describer.describe(settings),
            "code": describer.code(),
            "version": version,
            "device": place.type,
            "versions": versions(),
        }
        with claimed(path, manifest, "{}-of-{}".format(*part)) as store:
            batches = range(part[0], store.n_batches, part[1])
            if not resume and any(file.exists() for file in store.rows(batches)):
                raise FolderError(f"{path} holds explanations already. Resume that run, or give another folder.")
            verify |= store.data["files"] != manifest["data"]["files"]  # whose times are others
            _explain_batches(store, batches, reader, explain, verify, num_workers, show_progress)
    explanations = load_explanations(path)
    if message := told(explanations, "error"):
        warnings.warn(message, ExampleWarning, stacklevel=2)
    return explanations


def _explain_batches(
    store: Store, batches: range, reader: Reader, explain: BatchExplainer, verify: bool, num_workers: int, shown: bool
) -> None:
    """Explain what is missing, if what is done is of the same examples, until a strict process stops them all."""
    done, chance = list(filter(store.is_done, batches)), random.SystemRandom()
    missing = sorted({*batches} - {*done})
    asked: list[Any] = [store.examples(batch) for batch in done]
    asked = asked if verify else [sorted({each[0], each[-1], chance.choice(each)}) for each in asked]
    asked += map(store.examples, missing)
    generator = torch.Generator()  # not the global one; what workers draw, they draw from seeds of examples
    loader = DataLoader(reader, batch_sampler=asked, num_workers=num_workers, collate_fn=list, generator=generator)
    marker, read = store.path / ".stopped", iter(loader)  # a mark of a strict process, for all the others
    stopped_before = marker.stat().st_mtime_ns if marker.exists() else None
    total = sum(len(store.examples(batch)) for batch in batches)
    with tqdm(total=total, desc="Explaining", unit="example", disable=not shown) as bar:
        for batch in done:
            digests = read_rows(store.rows([batch]), ["digest"]).column("digest").to_pylist()
            for example in next(read):
                if digests[example.index % store.batch_size] not in (None, example.facts["digest"]):
                    reason = "" if example.inputs else f" ({example.facts['error']})"
                    raise FolderError(
                        f"Example {example.index} is not the one that was explained in {store.path}: the data set has "
                        f"changed{reason}. Give this run a folder of its own."
                    )
            bar.update(len(store.examples(batch)))
        for batch, examples in zip(missing, read, strict=True):
            if marker.exists() and marker.stat().st_mtime_ns != stopped_before:
                raise ExampleError(f"Another process of this run has stopped. {marker.read_text(encoding='utf-8')}")
            try:
                store.write(batch, *packed(*explain(examples)))
            except ExampleError as error:
                marker.write_text(printable(str(error)), encoding="utf-8")
                raise
            bar.update(len(examples))


def _are_whole(*values: object) -> bool:
    return all(isinstance(value, Integral) and not isinstance(value, bool) for value in values)


def _class_names(dataset: Any, class_names: Sequence[str] | None, spec: Mapping[str, Any] | None) -> list[str] | None:
    """Names of the model's classes: those that were given, or the data set's own."""
    names = getattr(dataset, "classes", None) if class_names is None else class_names
    names = names_in_order(names) if isinstance(names, Iterable) else None
    if names is None or spec is None:
        return None
    if len(names) != spec["n_classes"]:
        raise BoundaryValueError(
            f"{'The data set has' if class_names is None else 'class_names holds'} {len(names)} classes, but the model "
            f"has {spec['n_classes']}. Labels must be classes of the model: give the data set's in its numbering, or "
            "none at all (--no-labels), and class_names for all of the model's classes."
        )
    return [printable(", ".join(map(str, name)) if isinstance(name, tuple | list) else str(name)) for name in names]
