"""Files that outlive the process: written in one step, read only if they are whole and of the same settings."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


class CheckpointError(RuntimeError):
    """A file is there, but it is damaged or belongs to other settings."""


def plain(name: str) -> str:
    """``name`` for a file: dots would be taken for the beginning of an ending, slashes for folders."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


class Checkpoint:
    """One file ``path`` for the state of one piece of work, of which ``settings`` are the plain numbers and names."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = dict(settings)

    def save(self, state: Mapping[str, Any]) -> None:
        """A process that is killed meanwhile leaves the file as it was before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.part")
        with part.open("wb") as file:
            torch.save({"settings": self.settings, "state": dict(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path)

    def load(self) -> dict[str, Any] | None:
        """The state, or None where there is no file.

        Raises:

            CheckpointError: If the file is damaged or of other settings.
        """
        if not self.path.exists():
            return None
        content = self._read()
        differences = [
            f"{name} was {content['settings'].get(name)!r} and is now {self.settings.get(name)!r}"
            for name in sorted({*content["settings"], *self.settings})
            if content["settings"].get(name) != self.settings.get(name)
        ]
        if differences:
            raise CheckpointError(
                f"{self.path} is of other settings: {'; '.join(differences)}. "
                "Choose another --output, or remove the file."
            )
        state: dict[str, Any] = content["state"]
        return state

    def _read(self) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(self.path) as archive:  # torch.load does not compare the checksums
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            content: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            if set(content) != {"settings", "state"}:
                raise ValueError("it was not written by this benchmark")
        except (zipfile.BadZipFile, EOFError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{self.path} cannot be read: {error}. Nothing was changed. Remove the file to start again."
            ) from error
        return content
