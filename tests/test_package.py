"""What ``import captum_boundary`` gives, in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

import captum_boundary


def test_every_public_name_is_there_without_an_import_of_its_own() -> None:
    code = """
import captum_boundary
for name in captum_boundary.__all__:
    getattr(captum_boundary, name)
print(captum_boundary.metrics.insertion.__name__, captum_boundary.visualization.compare_attributions.__name__)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["insertion", "compare_attributions"], ran.stderr


def test_public_names_are_in_order() -> None:
    assert sorted(captum_boundary.__all__) == captum_boundary.__all__
