"""``python -m captum_boundary``: a demonstration on digits; ``explain`` and ``merge`` for data sets."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

__all__ = ["main"]

_NEEDED = ("filelock", "jinja2", "PIL", "pyarrow", "safetensors", "torchvision")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration, or the command that is named first, and return the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] not in (["explain"], ["merge"]):
        from captum_boundary._demo.command import main as demonstrate

        return demonstrate(words)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f'{words[0]} needs {" and ".join(missing)}: pip install "captum-boundary[datasets]"', file=sys.stderr)
        return 1
    from captum_boundary.datasets._command import main as run

    return run(words)


if __name__ == "__main__":
    sys.exit(main())
