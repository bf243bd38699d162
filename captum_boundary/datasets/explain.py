"""A whole data set explained, in batches that survive whatever happens to the process."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from captum.attr import Attribution
from torch.utils.data import Dataset

from captum_boundary._core.checks import check_count
from captum_boundary.datasets._batch import device_of
from captum_boundary.datasets._coarse import pair_of
from captum_boundary.datasets._examples import check_dataset
from captum_boundary.datasets._run import Run, Settings
from captum_boundary.datasets._team import Team
from captum_boundary.datasets.reading import Explanations, load_explanations
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
    dtype: torch.dtype = torch.float32,
    map_size: int | tuple[int, int] | None = None,
    save_points: bool = False,
    limit: int | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    strict: bool = False,
    resume: bool = True,
    shard: tuple[int, int] = (0, 1),
    device: torch.device | str | None = None,
    num_workers: int = 0,
    show_progress: bool = False,
) -> Explanations:
    r"""Explain every example of a data set, and write what is found to a folder.

    Each batch is written as soon as it is done, whole or not at all. A run that was killed is started again with the
    same call, and does what is missing; the files are then the same bytes as without the interruption. In a process
    group of ``torch.distributed`` every process does a part of the batches; their number may change from one start to
    the next. Memory does not grow with the data set.

    A batch that does not fit into memory is halved, and later batches are explained in parts of the size that does.
    Examples that cannot be read or explained become rows with their errors.

    Args:

        explainer (Attribution): Any attribution of this package or of Captum, such as
            ``BoundaryIntegratedGradients(model, search)``. Its model is evaluated as it is: call ``model.eval()``.
        dataset (Dataset): Data set with ``__getitem__`` and ``__len__``. Its examples are a Tensor ``(...)`` without
            batch dimension, ``(Tensor, label)``, or ``((Tensor, ...), label)`` for a model with several inputs.
        out (str or PathLike): Folder for the results. Made if it does not exist.
        batch_size (int): Examples explained at once, and stored in one file.
        target (int or str, optional): Class to explain: a number, ``"label"`` for the label of each example, or None
            for its predicted class. For a model with one output, 0 means the side of each example, and 1 the positive
            side, as for :meth:`BoundarySearch.find`. Default: None
        options (Mapping, optional): Arguments of the explainer's ``attribute`` for every batch, such as
            ``{"n_steps": 20}``. Default: None
        dtype (torch.dtype, optional): ``torch.float32``, or ``torch.float16`` for files of half the size, in which
            the attributions of an example share a power of two as their scale. Default: torch.float32
        map_size (int or tuple, optional): Height and width of coarse maps to store in place of attributions
            ``(C, H, W)`` of images: sums over channels and over the pixels of each cell. Default: None
        save_points (bool, optional): Store boundary points as well. Default: False
        limit (int, optional): Explain the first examples only. Default: None, all of them.
        class_names (Sequence[str], optional): Names of the model's classes. Default: None, ``dataset.classes`` if there
            is such a list.
        seed (int, optional): Seed of whatever is drawn at random, by the data set for each example and by the explainer
            for each batch. Default: 0
        strict (bool, optional): Raise an :class:`ExampleError` for the first example that cannot be read or explained.
            Batches done before stay. Default: False
        resume (bool, optional): Go on with the run that ``out`` holds; if False, a folder with results is refused.
            Default: True
        shard (tuple, optional): ``(i, n)`` for the i-th of n parts of the data set, counted from 0, where machines
            that do not know of each other share the work. Default: (0, 1), all of it.
        device (torch.device or str, optional): Where inputs are moved. Default: None, where the explainer's model is.
        num_workers (int, optional): Processes that read examples, as for ``DataLoader``. Default: 0, this one.
        show_progress (bool, optional): Show a progress bar over all processes. Default: False

    Returns:

        - **explanations** (*Explanations*): What the folder holds, as :func:`load_explanations` returns it.

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
    check_dataset(dataset)
    check_count("batch_size", batch_size)
    check_count("limit", limit, optional=True)
    _check_target(target)
    if dtype not in (torch.float16, torch.float32):
        raise BoundaryValueError(f"dtype must be torch.float16 or torch.float32, but it is {dtype}.")
    n_examples = len(dataset)  # type: ignore[arg-type]
    settings = Settings(
        target=target,
        options=dict(options or {}),
        batch_size=batch_size,
        dtype=dtype,
        map_size=pair_of(map_size),
        save_points=save_points,
        seed=operator.index(seed),
        n_examples=n_examples if limit is None else min(limit, n_examples),
        class_names=class_names,
        strict=strict,
        resume=resume,
        shard=_checked_shard(shard),
        num_workers=num_workers,
        show_progress=show_progress,
    )
    place = device_of(getattr(explainer, "forward_func", None)) if device is None else torch.device(device)
    with Team() as team, torch.inference_mode(False), torch.no_grad():
        run = team.together(lambda: Run(explainer, dataset, Path(out), place, settings))
        run.work(team)
    return load_explanations(out)


def _check_target(target: object) -> None:
    if isinstance(target, bool) or not (target is None or target == "label" or isinstance(target, int)):
        raise BoundaryTypeError(
            f'target must be None (the predicted class), "label" or the number of a class, but it is {target!r}.'
        )


def _checked_shard(shard: tuple[int, int]) -> tuple[int, int]:
    index, count = shard
    if not 0 <= index < count:
        raise BoundaryValueError(f"shard must be (i, n) with i from 0 to n - 1, but it is {shard!r}.")
    return index, count
