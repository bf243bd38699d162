"""Scripts run in this process as the command line runs them, without the seconds that their imports take."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch


@dataclass(frozen=True)
class Finished:
    """What a script returned and printed."""

    returncode: int
    stdout: str
    stderr: str


def run_script(script: Path, *options: object) -> Finished:
    """Run a script with these options; torch's settings are as before in the end."""
    out, err = io.StringIO(), io.StringIO()
    arguments = [str(script), *map(str, options)]
    settings = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with (
            mock.patch.object(sys, "argv", arguments),
            mock.patch.object(sys, "path", [str(script.parent), *sys.path]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = _exit_code(script, err)
    finally:
        torch.set_num_threads(settings[0])
        torch.use_deterministic_algorithms(settings[1])
    return Finished(code, out.getvalue(), err.getvalue())


def _exit_code(script: Path, err: io.StringIO) -> int:
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        err.write(f"{stop.code}\n")
        return 1
    return 0
