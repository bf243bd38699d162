"""Shards of a run, which machines that share no file system have written, brought together in one folder."""

from __future__ import annotations

import os
from collections.abc import Iterable

from captum_boundary.datasets._identity import check_same, claim, read_manifest
from captum_boundary.datasets._store import atomic_file, checked_folder, locked
from captum_boundary.datasets.reading import Explanations, load_explanations
from captum_boundary.errors import BoundaryValueError

__all__ = ["merge_explanations"]


def merge_explanations(parts: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Explanations:
    r"""Copy the explanations of several folders into one, and put their table together once nothing is missing.

    Each folder holds a shard of the same run, as ``explain_dataset(..., shard=(i, n))`` writes it. What ``out`` holds
    already is kept. Processes that write to the same folder need no merging: the last of them does it.

    Args:

        parts (Iterable[str or PathLike]): Folders that :func:`explain_dataset` has written.
        out (str or PathLike): Folder for all of them. Made if it does not exist; it may be one of the parts.

    Returns:

        - **explanations** (*Explanations*): What ``out`` holds now. ``is_complete`` says whether that is everything.

    Raises:

        BoundaryValueError: If there are no parts.
        FolderError: If a part holds no explanations, if they are not of the same run, and if ``out`` is in use or
            holds something else.

    Examples::

        >>> import tempfile
        >>> import torch
        >>> from captum.attr import Saliency
        >>> from captum_boundary.datasets import explain_dataset, merge_explanations
        >>> saliency, rows = Saliency(torch.nn.Linear(4, 3)), list(torch.randn(10, 4))
        >>> parts = [tempfile.mkdtemp() for _ in range(2)]
        >>> for index, part in enumerate(parts):
        ...     _ = explain_dataset(saliency, rows, part, batch_size=4, shard=(index, 2))
        >>> merge_explanations(parts, tempfile.mkdtemp()).is_complete
        True
    """
    folders, path = [checked_folder(part) for part in parts], checked_folder(out)
    if not folders:
        raise BoundaryValueError("parts must hold at least one folder of explanations, but it is empty.")
    manifest = read_manifest(folders[0])
    for folder in folders[1:]:
        check_same(folder, manifest)
    path.mkdir(parents=True, exist_ok=True)
    with locked(path / ".lock", timeout=0):
        claim(path, manifest)
        merged, *stores = (Explanations(folder).store for folder in (path, *folders))
        for store in stores:
            for batch in store.written():
                if store.is_done(batch) and not merged.is_done(batch):
                    merged.table.unlink(missing_ok=True)
                    for file, copy in zip(store.files(batch), merged.files(batch), strict=True):
                        with atomic_file(copy, "merge") as written:
                            written.write(file.read_bytes())
        merged.finish("merge")
    return load_explanations(path)
