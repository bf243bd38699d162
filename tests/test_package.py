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


def test_packages_with_optional_dependencies_are_imported_when_they_are_asked_for() -> None:
    code = """
import sys
import captum_boundary
assert not {"transformers", "pyarrow", "captum_boundary.llm", "captum_boundary.datasets"} & set(sys.modules)
print(captum_boundary.llm.LLMBoundaryAttribution.__name__, captum_boundary.datasets.explain_dataset.__name__)
try:
    captum_boundary.nothing
except AttributeError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    names, error = ran.stdout.splitlines()
    assert names == "LLMBoundaryAttribution explain_dataset", ran.stderr
    assert error == "module 'captum_boundary' has no attribute 'nothing'"
