"""How far all processes are together, and how long it will take."""

from __future__ import annotations

import time

from tqdm.auto import tqdm

from captum_boundary.datasets._folder import Folder

__all__ = ["Progress"]

_INTERVAL = 1.0  # seconds between looks at the folder, and more where a look takes long
_SHARE_OF_TIME = 0.01


class Progress:
    """A bar over the examples of the whole run: the files in its folder are the work of all processes."""

    def __init__(self, folder: Folder, show: bool) -> None:
        self.folder = folder
        self.show = show
        self.next_look = 0.0
        self.bar = tqdm(
            total=folder.n_examples,
            initial=self._done() if show else 0,
            desc="Explaining",
            unit="example",
            disable=not show,
            smoothing=0.05,  # batches differ in their cost
        )

    def update(self) -> None:
        """Count again, unless that was done a moment ago."""
        if self.show and time.monotonic() >= self.next_look:
            self._look()

    def close(self) -> None:
        """Count for the last time."""
        if self.show:
            self._look()
        self.bar.close()

    def _look(self) -> None:
        start = time.monotonic()
        self.bar.update(self._done() - self.bar.n)
        end = time.monotonic()
        self.next_look = end + max(_INTERVAL, (end - start) / _SHARE_OF_TIME)

    def _done(self) -> int:
        return min(self.folder.n_done() * self.folder.batch_size, self.folder.n_examples)
