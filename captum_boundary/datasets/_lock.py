"""One run at a time writes to a folder. The system takes the lock away from a process that is killed."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import IO

from captum_boundary.datasets.errors import FolderError

try:
    import fcntl
except ImportError:  # Windows: two runs would write the same bytes, each file at once
    fcntl = None  # type: ignore[assignment]

__all__ = ["Lock"]


class Lock:
    """A lock that the processes of a run share, and that one of them takes alone at the start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def take_alone(self) -> None:
        """Take the lock if no other run has it, or say who has."""
        self._take("LOCK_EX")
        assert self._file is not None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def share(self) -> None:
        """Hold the lock together with the other processes of the run."""
        self._take("LOCK_SH")

    def release(self) -> None:
        """Let the next run begin."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, kind: str) -> None:
        if self._file is None:
            self._file = self.path.open("a+", encoding="utf-8")
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, getattr(fcntl, kind) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # a file system without locks
            self._file.seek(0)
            owner = self._file.read() or "another process"
            self.release()
            raise FolderError(
                f"Another run is writing to {self.path.parent} ({owner}). Wait until it is done, stop it, or give "
                "this one another folder."
            ) from None
