"""``python -m captum_boundary``: what boundary attributions look like, on digits, and ``explain`` for data of yours."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration, or the command that is named first, and return the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["explain"]:
        return _explain(words[1:])
    from captum_boundary._demo.command import main as demonstrate

    return demonstrate(words)


def _explain(words: Sequence[str]) -> int:
    missing = [name for name in ("pyarrow", "safetensors", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        print(f'explain needs {" and ".join(missing)}: pip install "captum-boundary[datasets]"', file=sys.stderr)
        return 1
    from captum_boundary.datasets._command.main import main as explain

    return explain(words)


if __name__ == "__main__":
    sys.exit(main())
